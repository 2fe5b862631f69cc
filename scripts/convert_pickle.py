"""Extract the tensors of a pickled checkpoint and write them as .safetensors."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.utils.cli import Parser, describe, run
from quantface_arch.utils.files import atomic_path

DESCRIPTION = """\
Extract the tensors of a pickled checkpoint (.ckpt, .pth, .pt) and write them as .safetensors.

A pickle is a program: reading it runs its author's code with your permissions. Everything else in
this package rejects pickles that need more than tensors. This command reads them: objects of
unknown classes become empty placeholders, and their code is never imported. That reduces the risk
but does not remove it. Use it only on a file whose origin you trust; confirm with
--i-trust-this-file.

The result holds the checkpoint's "state_dict" if it has one, else all its tensors. Keys are kept.

example:
  python scripts/convert_pickle.py --i-trust-this-file \\
      weights/OSDFace/associate_2.ckpt weights/OSDFace/associate_2.safetensors
"""

# Rebuilding tensors needs these names and no others.
NEEDED = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch.storage", "TypedStorage"),
    ("torch.storage", "UntypedStorage"),
}


class Placeholder(dict):
    """A placeholder for an object of an unknown class, which accepts any unpickling step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Placeholder:
        return self

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    def add(self, item: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


class TensorUnpickler(pickle.Unpickler):
    """An unpickler that imports only the functions that rebuild tensors."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in NEEDED or (module == "torch" and name.endswith("Storage")):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return Placeholder


def _load(file: Any, **options: Any) -> Any:
    return TensorUnpickler(file, **options).load()


def make_parser() -> Parser:
    """Build the command-line parser."""
    parser = Parser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="pickled checkpoint")
    parser.add_argument("output", type=Path, help=".safetensors file to write")
    parser.add_argument(
        "--i-trust-this-file", action="store_true", help="you know who made it (required)"
    )
    return parser


def main(args: argparse.Namespace) -> int:
    """Convert the file and print a summary."""
    if args.output.suffix != ".safetensors":
        raise UsageError(f"{args.output}: tensors are written as .safetensors")
    if not args.file.is_file():
        raise UsageError(f"{args.file}: no such file")
    if not args.i_trust_this_file:
        raise UsageError(
            f"{args.file}: reading a pickle runs its author's code; if you trust this file, add "
            "--i-trust-this-file (--help says more)"
        )
    tensors = read_pickle(args.file)
    with atomic_path(args.output) as temporary:
        save_file(tensors, temporary)
    print(f"{args.output}: {len(tensors)} tensors, {args.output.stat().st_size:,} bytes")
    return 0


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a pickled checkpoint by flattened key, each with its own memory.

    Raises:
        QuantFaceError: the file is not a pickle, or has no tensors.
    """
    reader = SimpleNamespace(Unpickler=TensorUnpickler, load=_load, __name__="tensors only")
    try:
        found = torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader)
    except Exception as error:
        raise QuantFaceError(f"{path}: cannot be unpickled ({describe(error)})") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    tensors = {
        key: value.detach().contiguous().clone() for key, value in _tensors(found) if key.strip(".")
    }
    if not tensors:
        raise QuantFaceError(f"{path}: found no named tensor in it")
    return tensors


def _tensors(value: Any, key: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _tensors(item, f"{key}.{name}" if key else str(name))


if __name__ == "__main__":
    run(main, make_parser())
