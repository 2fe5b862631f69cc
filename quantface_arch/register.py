"""Importing this module registers QuantFace in BasicSR and patches BasicSR's loop.

The patches change how BasicSR reads options files and LMDBs, and how it resumes. A BasicSR checkout
of your own needs one line, ``import quantface_arch.register``, at the top of its ``train.py`` and
``test.py``.
"""

from __future__ import annotations

import quantface_arch.data
import quantface_arch.integration.registered
import quantface_arch.losses.registered
import quantface_arch.metrics.registered
import quantface_arch.models  # noqa: F401
from quantface_arch.integration.patches import patch_lmdb, patch_options, patch_resume
from quantface_arch.integration.training_loop import patch_experiments, patch_launcher

patch_options()
patch_resume()
patch_lmdb()
patch_launcher()
patch_experiments()
