"""A disk that is full."""

from __future__ import annotations

import resource
from contextlib import contextmanager


@contextmanager
def full_disk(size):
    """Let no file of this process, and of those that it starts, grow beyond ``size`` bytes."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
