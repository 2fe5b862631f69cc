"""Triton's kernels, decorated for its interpreter; import this before any user of them."""

from __future__ import annotations

import os
from unittest import mock

import pytest

pytest.importorskip("triton")
# This is read only when kernels are decorated, so other tests do not see it.
with mock.patch.dict(os.environ, TRITON_INTERPRET="1"):
    from quantface_arch.runtime.cuda import kernels, ops

__all__ = ["kernels", "ops"]
