"""Recognize, by their first bytes, files that are not the weights that they are taken for."""

from __future__ import annotations

import os
from pathlib import Path

from quantface_arch.errors import QuantFaceError

__all__ = ["refuse_foreign"]

_LFS_POINTER = b"version https://git-lfs"
_WEB_PAGE = (b"<!doctype html", b"<html", b"<?xml")
_PYTORCH = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")


def refuse_foreign(path: str | os.PathLike[str], *, pytorch: bool) -> None:
    """Check that a file is not one of those that are often taken for weights.

    A file that cannot be read passes, because its reader will report that.

    Args:
        path: the file.
        pytorch: whether PyTorch's own format is expected.

    Raises:
        QuantFaceError: the file is a Git LFS pointer, a web page or, if ``pytorch`` is false, in
            PyTorch's format. The message says what to do.
    """
    path = Path(path)
    if not path.is_file() or not os.access(path, os.R_OK):
        return
    with path.open("rb") as file:
        start = file.read(64)
    # A safetensors file starts with the length of its header, and any length can look like the
    # start of another format.
    if start[8:9] == b"{":
        return
    start = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(_LFS_POINTER):
        raise QuantFaceError(
            f"{path}: this is a Git LFS pointer, not the weights: run 'git lfs pull' in its "
            "repository, or download the file itself"
        )
    if start.lower().startswith(_WEB_PAGE):
        raise QuantFaceError(
            f"{path}: this is a web page, not the weights: download the file by its direct link"
        )
    if not pytorch and start.startswith(_PYTORCH):
        raise QuantFaceError(
            f"{path}: this is a PyTorch file (.pth, .ckpt), expected .safetensors: "
            "scripts/convert_pickle.py converts it"
        )
