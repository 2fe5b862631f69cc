"""Read pickled tensors without unpickling anything else, and fill networks from them."""

from __future__ import annotations

import mmap
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError, listed, one_line
from quantface_arch.utils.files import kind_of
from quantface_arch.utils.foreign_files import refuse_foreign
from quantface_arch.utils.inert_pickle import load_tensors

__all__ = ["PARAM_KEYS", "fill", "read_state", "unpickle"]

# BasicSR saves a network under these keys. The EMA comes first.
PARAM_KEYS = ("params_ema", "params")
# Old files lack this tensor of batch norms, and torch adds it.
OPTIONAL = ".num_batches_tracked"
# torch.compile wraps modules and lengthens the names of their tensors.
_COMPILED = "_orig_mod."


def unpickle(path: Path, *, foreign: bool = False) -> Any:
    """Load a file of ``torch.save`` that holds only tensors and plain data, uncompressed.

    Args:
        foreign: replace objects of other classes by inert ones, see ``inert_pickle``, instead of
            refusing the file. No code of the file runs in either case.

    Raises:
        QuantFaceError: the file is unreadable or damaged, or holds anything else. The message
            gives the reason.
    """
    is_zip = _check_size(path)
    try:
        with path.open("rb") as file:
            # A pickle may claim any length. Reading from a file would allocate that much first,
            # while a memory map holds only what exists.
            mapped = None if is_zip else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            source = cast("IO[bytes]", mapped or file)
            if foreign:
                return load_tensors(source)
            return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        if foreign or (culprit is None and not is_zip):
            raise QuantFaceError(f"{path}: damaged, or not a checkpoint") from error
        what = f"it holds {culprit[1]}" if culprit else "it holds more than tensors"
        raise QuantFaceError(
            f"{path}: cannot be unpickled safely ({what}); if you trust whoever made it: "
            f"python scripts/convert_pickle.py {path} {path.with_suffix('.safetensors')}"
        ) from error
    except Exception as error:
        # Damaged files raise almost any type of exception.
        line = one_line(error)
        raise QuantFaceError(f"{path}: damaged, or not a checkpoint ({line})") from error


def _check_size(path: Path) -> bool:
    """Return whether a file is an archive.

    Raises:
        QuantFaceError: the path is not a regular file, or an archive unpacks to more than its own
            size. torch compresses nothing.
    """
    kind = kind_of(path.stat().st_mode) if path.exists() else "missing"
    if kind is not None:
        raise QuantFaceError(f"{path}: it is {kind}, expected a file of tensors")
    try:
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise QuantFaceError(f"{path}: it is a TorchScript program, expected tensors")
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise QuantFaceError(f"{path}: damaged, or not a checkpoint ({one_line(error)})") from error
    size = path.stat().st_size
    if unpacked > size:
        raise QuantFaceError(
            f"{path}: unpacks to {unpacked:,} bytes, at most its own {size:,} are allowed"
        )
    return True


def read_state(path: str | os.PathLike[str], keys: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Return the state dict in a ``.pth`` file, without the prefixes that torch.compile adds.

    Args:
        keys: the keys under which the state dict may lie in the file. The first one that exists is
            used, then ``state_dict``. If none exists, the whole file is the state dict.

    Raises:
        QuantFaceError: see ``unpickle``; or there is no state dict.
    """
    path = Path(path)
    refuse_foreign(path, pytorch=True)
    found = unpickle(path)
    if isinstance(found, Mapping):
        found = next((found[key] for key in (*keys, "state_dict") if key in found), found)
    state = found if isinstance(found, Mapping) else {}
    tensors = {
        str(key).replace(_COMPILED, ""): value
        for key, value in state.items()
        if isinstance(value, Tensor)
    }
    if len(tensors) < len(state) or not tensors:
        wanted = " or ".join(keys) or "a state dict"
        names = listed(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise QuantFaceError(f"{path}: found {names or 'nothing'}, expected {wanted}")
    return tensors


def fill(
    net: nn.Module,
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    *,
    assign: bool = False,
) -> None:
    """Fill a network with ``tensors``, which must have exactly its keys and shapes.

    Args:
        path: what messages call the file.
        assign: make the tensors, as float32, the network's own instead of copying them. Tensors
            that are already float32 are then shared. The network may be on the meta device.

    Raises:
        QuantFaceError: a key is missing or unexpected, or a shape differs. The message names the
            file and the key, and says what was found and expected.
    """
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    problems = {
        "missing": [key for key in shapes if key not in tensors and not key.endswith(OPTIONAL)],
        "unexpected": [key for key in tensors if key not in shapes],
        "of another shape": [
            f"{key} (found {tuple(tensors[key].shape)}, expected {shape})"
            for key, shape in shapes.items()
            if key in tensors and tuple(tensors[key].shape) != shape
        ],
    }
    found = [f"keys {problem}: {listed(keys)}" for problem, keys in problems.items() if keys]
    if found:
        raise QuantFaceError(f"{path}: does not fit {type(net).__name__}: {'; '.join(found)}")
    state = dict(tensors)
    if assign:
        state = {key: value.detach().float().contiguous() for key, value in state.items()}
    net.load_state_dict(state, assign=assign)
