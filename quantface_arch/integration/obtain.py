"""Restorers by name, fetched from the hub and quantized where the cache does not have them yet."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.pretrained.hub.cache import BIT_WIDTHS, cached, held
from quantface_arch.pretrained.hub.options import FetchOptions
from quantface_arch.pretrained.hub.origin import Origin, check_origin
from quantface_arch.pretrained.hub.sources import Source, fetchable, source_of
from quantface_arch.pretrained.names import shipped_models
from quantface_arch.utils.installation import need

__all__ = ["obtain"]

# Calibrate on as many faces as scripts/quantize.py, one at a time, so that 8 GB suffice. Measuring
# what each bit width costs takes a run of the network for each layer and width, so few small faces
# have to do, as in options/allocate_mini.yml.
_FACES, _BATCH_SIZE = 32, 1
_MEASURED_FACES, _MEASURED_SIZE = 4, 192


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
        UsageError: the user does not agree to fetching, an option has no effect, or the cache has
            the restorer with another base or revision.
        QuantFaceError: the files cannot be fetched, or are not those of the restorer.
    """
    name, options = str(name_or_path), options or FetchOptions()
    if name in shipped_models() or Path(name).exists() or not fetchable(name):
        _refuse(name, revision=options.revision)
        return name_or_path
    found = source_of(name)
    if found is None:
        _refuse(name, base=options.base)
    path = cached(name)
    if path is not None:
        check_origin(name, options)
        return path
    need(name, "huggingface_hub")
    # Import these late: what is shipped or in the cache needs none of them.
    from quantface_arch.pretrained.hub.checkpoint import checkpoint_source
    from quantface_arch.pretrained.hub.fetch import fetch

    if found is None:
        return _checked(fetch(checkpoint_source(name, options), options, notify))
    source, recipe = found
    folder = fetch(source, options, notify)
    return folder if recipe is None else _quantized(source, recipe, notify)


def _refuse(name: str, **options: str | None) -> None:
    """Refuse options that have no effect on a model.

    Raises:
        UsageError: one of them is given.
    """
    for option, value in options.items():
        if value is not None:
            raise UsageError(f"--{option} {value}: the option has no effect on {name}")


def _checked(folder: Path) -> Path:
    """Return the checkpoint that was fetched; it is removed if it is none."""
    from quantface_arch.quant.checkpoint.save_load import read_metadata

    (path,) = folder.glob("*.safetensors")
    try:
        read_metadata(path)
    except QuantFaceError:
        path.unlink()
        raise
    return path


def _quantized(source: Source, recipe: str, notify: Callable[[str], None]) -> Path:
    """Make a quantized restorer of a fetched one."""
    from quantface_arch.data.calibration_faces import open_faces
    from quantface_arch.data.default_faces import SHIPPED_FACES
    from quantface_arch.integration.mixed_precision import MIXED, RECIPE, allocated
    from quantface_arch.integration.post_training import PostTraining
    from quantface_arch.pretrained.osdface_folder import load_osdface_folder
    from quantface_arch.quant import Recipe

    target = source.quantized(recipe)
    with held(target, notify):
        if not target.is_file():
            long = "some hours" if recipe == MIXED else "a while"
            notify(f"{target.stem} is quantized once, from {source.folder}; this takes {long}")
            base = source.folder / source.parts[1].folder
            load = partial(load_osdface_folder, source.folder, base)
            clean = SHIPPED_FACES / "train"
            bits = None
            if recipe == MIXED:
                few = open_faces(None, _MEASURED_SIZE, _MEASURED_FACES, clean)
                bits, recipe = allocated(load, few, target.with_suffix(f"{BIT_WIDTHS}.yml")), RECIPE
            how = PostTraining(Recipe.from_name(recipe), bits, batch_size=_BATCH_SIZE)
            Origin.read(source.name).write(target.stem)
            how.run(load(), open_faces(None, how.size, _FACES, clean), target)
    return target
