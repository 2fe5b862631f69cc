"""The files and folders that the names of models and base models stand for."""

from __future__ import annotations

import os
from pathlib import Path

from quantface_arch.errors import QuantFaceError
from quantface_arch.pretrained.hub.options import BASE_VARIABLE
from quantface_arch.utils.installation import is_full

__all__ = [
    "DEFAULT_MODEL",
    "WEIGHTS",
    "resolve_base",
    "resolve_model",
    "shipped_models",
    "usable_models",
]

WEIGHTS = Path(__file__).parents[1] / "weights"
DEFAULT_MODEL = "mini-w4a8"
BASE_FOLDER = "stable-diffusion-2-1-base"


def shipped_models() -> list[str]:
    """Return the names of the checkpoints in this package."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def usable_models() -> list[str]:
    """Return those shipped checkpoints that can restore here: without torch, few can."""
    if is_full():
        return shipped_models()
    graphs = {path.stem.rpartition("-")[0] for path in (WEIGHTS / "graphs").glob("*.zip")}
    return [name for name in shipped_models() if name in graphs]


def resolve_model(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the path of a shipped or fetched model, a checkpoint, or a folder of OSDFace's files.

    Raises:
        QuantFaceError: there is neither a model of this name nor such a path, or the model has not
            been fetched from the hub yet.
    """
    shipped = WEIGHTS / f"{name_or_path}.safetensors"
    if str(name_or_path) in shipped_models():
        return shipped
    path = Path(name_or_path)
    if path.exists():
        return path
    # Import this late: the names of shipped models need no table of others.
    from quantface_arch.pretrained.hub.cache import require
    from quantface_arch.pretrained.hub.sources import fetchable

    if fetchable(str(name_or_path)):
        return require(str(name_or_path))
    raise QuantFaceError(
        f"model {str(name_or_path)!r}: neither a shipped model ({', '.join(shipped_models())}), "
        "nor one to fetch (osdface-w4a8, USER/REPOSITORY), nor an existing file or folder"
    )


def resolve_base(folder: Path, base: str | os.PathLike[str] | None = None) -> str:
    """Return the folder, or the Hugging Face hub id, of Stable Diffusion 2.1-base.

    ``base`` comes first, then the environment variable QUANTFACE_SD_BASE, then the folder
    ``stable-diffusion-2-1-base`` beside OSDFace's files. What was fetched has its own base.

    Raises:
        QuantFaceError: nothing is found. The message says how to set the location.
    """
    # Import this late, as in resolve_model.
    from quantface_arch.pretrained.hub.sources import has_form_of_id, hub_folder

    fetched = folder == hub_folder(folder.name) and (folder / BASE_FOLDER).is_dir()
    given = base or (None if fetched else os.environ.get(BASE_VARIABLE))
    found = str(given or folder / BASE_FOLDER)
    if Path(found).is_dir() or (given and has_form_of_id(found)):
        return found
    raise QuantFaceError(
        f"{found}: no such folder; set the option base or the variable {BASE_VARIABLE} to "
        "Stable Diffusion 2.1-base in diffusers' layout (a folder, or a hub id to download)"
    )
