"""Importing this module puts QuantFace into BasicSR's registries, and mends how BasicSR reads
options files and resumes.

The one line that somebody's own BasicSR checkout needs is ``import quantface_arch.register``.
"""

from __future__ import annotations

import quantface_arch.data
import quantface_arch.integration.registered
import quantface_arch.losses
import quantface_arch.metrics
import quantface_arch.models  # noqa: F401
from quantface_arch.integration.patches import patch_options, patch_resume

patch_options()
patch_resume()
