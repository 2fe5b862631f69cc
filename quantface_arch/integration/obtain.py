"""Restorers by name, fetched from the hub and quantized where the cache does not have them yet."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from quantface_arch.errors import QuantFaceError
from quantface_arch.pretrained.hub.cache import cached
from quantface_arch.pretrained.hub.options import FetchOptions
from quantface_arch.pretrained.hub.sources import Source, fetchable, source_of
from quantface_arch.pretrained.names import shipped_models

__all__ = ["obtain"]

# As many shipped faces calibrate as by scripts/quantize.py. Few fit into 8 GB at once.
_FACES, _BATCH_SIZE = 32, 1


def obtain(
    name_or_path: str | os.PathLike[str],
    options: FetchOptions | None = None,
    notify: Callable[[str], None] = lambda message: None,
) -> str | os.PathLike[str]:
    """Return what ``load_model`` loads: the argument itself, or a restorer in the cache.

    A name such as ``osdface`` or ``USER/REPOSITORY`` is fetched from the hub once, after asking.
    ``osdface-w4a8`` is made of ``osdface`` once: calibrated on the shipped faces and quantized.

    Args:
        name_or_path: see ``resolve_model``.
        options: how missing files are fetched.
        notify: receives a line about what takes long.

    Raises:
        UsageError: the user does not agree to fetching.
        QuantFaceError: the files cannot be fetched, or are not those of the restorer.
    """
    name, options = str(name_or_path), options or FetchOptions()
    if name in shipped_models() or Path(name).exists() or not fetchable(name):
        return name_or_path
    path = cached(name)
    if path is not None:
        return path
    # Import these late: what is shipped or in the cache needs none of them.
    from quantface_arch.pretrained.hub.checkpoint import checkpoint_source
    from quantface_arch.pretrained.hub.fetch import fetch

    found = source_of(name)
    if found is None:
        return _single(fetch(checkpoint_source(name, options), options, notify))
    source, recipe = found
    folder = fetch(source, options, notify)
    return folder if recipe is None else _quantized(source, recipe, notify)


def _single(folder: Path) -> Path:
    """Return the checkpoint that was fetched, after checking that it is one."""
    from quantface_arch.quant.checkpoint.save_load import read_metadata

    (path,) = folder.glob("*.safetensors")
    read_metadata(path)
    return path


def _quantized(source: Source, recipe: str, notify: Callable[[str], None]) -> Path:
    """Make a quantized restorer of a fetched one."""
    from quantface_arch.data.calibration_faces import open_faces
    from quantface_arch.integration.post_training import PostTraining
    from quantface_arch.pretrained.zoo import load_model
    from quantface_arch.quant import Recipe

    target = source.quantized(recipe)
    notify(f"{target.stem} is made once, from {source.folder}; on two cores this takes minutes")
    try:
        model = load_model(source.folder, offline=True)
    except QuantFaceError as error:
        raise QuantFaceError(f"{source.name}: {error}") from error
    how = PostTraining(Recipe.from_name(recipe), batch_size=_BATCH_SIZE)
    how.run(model, open_faces(None, how.size, _FACES), target)
    return target
