"""Networks in diffusers' layout, loaded complete and without pickles from a folder or the hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError

from quantface_arch.errors import QuantFaceError, listed, one_line
from quantface_arch.utils.plain import plain

__all__ = ["read_network"]

# These options change neither a weight nor what the network computes in float32.
INERT_OPTIONS = {"sample_size", "upcast_attention", "force_upcast"}


def read_network(
    kind: type[ModelMixin], source: str, part: str, wanted: Mapping[str, Any], offline: bool
) -> Any:
    """Load a diffusers network in float32 and check that it is complete and has the right sizes.

    Args:
        kind: the class of the network.
        source: a folder, or an id on the Hugging Face hub.
        part: the subfolder of the source, or an empty string for the source itself.
        wanted: the configuration that the network must have.
        offline: load a hub id from the local cache only.

    Raises:
        QuantFaceError: the network is missing, or its keys or sizes differ. The message names them.
    """
    where = f"{source}/{part}" if part else source
    try:
        network, info = _from_pretrained(kind, source, part, offline)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise QuantFaceError(f"{where}: {one_line(error)}") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(problem):
            keys = listed(str(key) for key in info[problem])
            raise QuantFaceError(f"{where}: {problem.replace('_', ' ')}: {keys}")
    for key, value in wanted.items():
        found = network.config.get(key)
        if not key.startswith("_") and key not in INERT_OPTIONS and plain(found) != plain(value):
            raise QuantFaceError(f"{where}/config.json: {key}: found {found!r}, expected {value!r}")
    return network


def _from_pretrained(
    kind: type[ModelMixin], source: str, part: str, offline: bool
) -> tuple[Any, dict[str, Any]]:
    options: dict[str, Any] = {
        "subfolder": part or None,
        "local_files_only": offline,
        "use_safetensors": True,
        "torch_dtype": torch.float32,
        "output_loading_info": True,
    }
    try:
        found = kind.from_pretrained(source, **options)
    except OSError as error:
        # Mirrors often keep only the half-precision files.
        try:
            found = kind.from_pretrained(source, variant="fp16", **options)
        except OSError:
            raise error from None
    # ``output_loading_info`` makes it return a pair, which diffusers' annotation leaves out.
    return cast("tuple[Any, dict[str, Any]]", found)
