"""Importing this module puts QuantFace into BasicSR's registries, and mends BasicSR's loop.

The one line that somebody's own BasicSR checkout needs is ``import quantface_arch.register``.
"""

from __future__ import annotations

import quantface_arch.archs.registered
import quantface_arch.data
import quantface_arch.losses
import quantface_arch.metrics
import quantface_arch.models  # noqa: F401
from quantface_arch.compat import mend_resume

mend_resume()
