"""Networks in diffusers' layout, from a folder or the hub: no pickles, and nothing missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError

from quantface_arch.errors import QuantFaceError, listed, one_line
from quantface_arch.utils.plain import plain

__all__ = ["read_network"]

# Configuration that changes neither a weight nor what the network computes in float32.
INERT_OPTIONS = {"sample_size", "upcast_attention", "force_upcast"}


def read_network(
    kind: type[ModelMixin], source: str, part: str, wanted: Mapping[str, Any], offline: bool
) -> Any:
    """One of diffusers' networks in float32, complete and of the sizes wanted.

    Args:
        kind: of network.
        source: folder, or id on the Hugging Face hub.
        part: subfolder of the source; empty: the source itself.
        wanted: configuration that the network must have.
        offline: take a hub id from the local cache, never from the network.

    Raises:
        QuantFaceError: nothing there, keys or sizes of another network; the message names them.
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
    options = {
        "subfolder": part or None,
        "local_files_only": offline,
        "use_safetensors": True,
        "torch_dtype": torch.float32,
        "output_loading_info": True,
    }
    try:
        return kind.from_pretrained(source, **options)
    except OSError as error:
        # Mirrors often keep only the half-precision files.
        try:
            return kind.from_pretrained(source, variant="fp16", **options)
        except OSError:
            raise error from None
