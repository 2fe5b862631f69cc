"""Models and bases by name or path: which file or folder a name stands for."""

from __future__ import annotations

import os
import re
from pathlib import Path

from quantface_arch.errors import QuantFaceError

__all__ = ["DEFAULT_MODEL", "WEIGHTS", "resolve_base", "resolve_model", "shipped_models"]

WEIGHTS = Path(__file__).parents[1] / "weights"
DEFAULT_MODEL = "mini-w4a8"
BASE_FOLDER = "stable-diffusion-2-1-base"
BASE_VARIABLE = "QUANTFACE_SD_BASE"


def shipped_models() -> list[str]:
    """Names of the checkpoints that came with the package."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def resolve_model(name_or_path: str | Path) -> Path:
    """Path of a shipped model, of a checkpoint file, or of a folder of OSDFace's files.

    Raises:
        QuantFaceError: neither a shipped name nor an existing path.
    """
    shipped = WEIGHTS / f"{name_or_path}.safetensors"
    if str(name_or_path) in shipped_models():
        return shipped
    path = Path(name_or_path)
    if path.exists():
        return path
    raise QuantFaceError(
        f"model {str(name_or_path)!r}: neither a shipped one ({', '.join(shipped_models())}) "
        "nor an existing file or folder"
    )


def resolve_base(folder: Path, base: str | os.PathLike[str] | None = None) -> str:
    """Where Stable Diffusion 2.1-base is: a folder, or an id on the Hugging Face hub.

    ``base`` if given, else the environment variable QUANTFACE_SD_BASE, else the folder
    ``stable-diffusion-2-1-base`` beside OSDFace's files.

    Raises:
        QuantFaceError: nothing there; the message says how to point to it.
    """
    found = str(base or os.environ.get(BASE_VARIABLE) or folder / BASE_FOLDER)
    is_default = not base and not os.environ.get(BASE_VARIABLE)
    # A mistyped path looks like an id as well, but then its first half is a folder here.
    is_hub_id = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", found) and not Path(found).parent.is_dir()
    if Path(found).is_dir() or (is_hub_id and not is_default):
        return found
    raise QuantFaceError(
        f"{found}: no such folder; point to Stable Diffusion 2.1-base in diffusers' layout (a "
        f"folder, or a hub id to download) by the option base or the variable {BASE_VARIABLE}"
    )
