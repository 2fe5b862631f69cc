"""The faces that ship with the package, for a checkout without a data set of its own."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.utils import get_root_logger
from quantface_arch.utils.images import find_images

__all__ = ["DEFAULT_FACES", "DEFAULT_PAIRS", "SHIPPED_FACES", "find_faces"]

# Options files look here for clean faces, and for gt/ and lq/ of validation.
DEFAULT_FACES = Path("datasets/faces")
DEFAULT_PAIRS = Path("datasets/faces_val")
# This folder holds clean 256×256 faces in train/ and val/, made by scripts/make_default_faces.py.
SHIPPED_FACES = Path(__file__).parent / "faces"


def find_faces(root: str | Path) -> Path:
    """Return the folder to read faces from, and log a line if it is not ``root``.

    Only missing default folders are replaced by the shipped faces. Any other folder is returned as
    it is.
    """
    root = Path(root)
    parts = {DEFAULT_FACES: "train", DEFAULT_PAIRS / "gt": "val"}
    if root.exists() or root not in parts:
        return root
    shipped = SHIPPED_FACES / parts[root]
    _log_once(
        f"no folder {root}: using the {len(find_images(shipped))} faces that ship with the package "
        f"in {shipped}; to use your own, put clean, aligned, square faces into {root}, or set "
        "dataroot_gt to their folder"
    )
    return shipped


@cache
def _log_once(line: str) -> None:
    get_root_logger().warning(line)
