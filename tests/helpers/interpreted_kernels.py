"""Triton's kernels, decorated for its interpreter: imported before anything that uses them."""

from __future__ import annotations

import os
from unittest import mock

import pytest

pytest.importorskip("triton")
# Read when kernels are decorated, and by nothing later: other tests do not see it.
with mock.patch.dict(os.environ, TRITON_INTERPRET="1"):
    from quantface_arch.runtime.cuda import kernels, ops

__all__ = ["kernels", "ops"]
