"""Take the tensors out of a pickled checkpoint and write them as .safetensors."""

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
Take the tensors out of a pickled checkpoint (.ckpt, .pth, .pt) and write them as .safetensors.

A pickle is a program: reading it runs what its maker wrote, with your rights. Everything else in
this package refuses pickles that ask for more than tensors. This command reads them: objects of
foreign classes become empty placeholders and their code is never imported, but that is a guard, not
a guarantee. Use it only on a file whose origin you trust, and say so by --i-trust-this-file.

A checkpoint's "state_dict" is taken if it has one, else all tensors in it. Key names are kept.

example:
  python scripts/convert_pickle.py --i-trust-this-file \\
      weights/OSDFace/associate_2.ckpt weights/OSDFace/associate_2.safetensors
"""

# What rebuilding tensors takes.
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
    """Stands for an object of a foreign class; takes whatever unpickling does to it."""

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
    """Imports nothing but what rebuilds tensors."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in NEEDED or (module == "torch" and name.endswith("Storage")):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return Placeholder


def _load(file: Any, **options: Any) -> Any:
    return TensorUnpickler(file, **options).load()


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="pickled checkpoint")
    parser.add_argument("output", type=Path, help=".safetensors file to write")
    parser.add_argument(
        "--i-trust-this-file", action="store_true", help="you know who made it (required)"
    )
    return parser


def main(args: argparse.Namespace) -> int:
    """Convert, print what was written."""
    if args.output.suffix != ".safetensors":
        raise UsageError(f"{args.output}: tensors are written as .safetensors")
    if not args.file.is_file():
        raise UsageError(f"{args.file}: no such file")
    if not args.i_trust_this_file:
        raise UsageError(
            f"{args.file}: reading a pickle runs what its maker wrote; if you trust this file, "
            "add --i-trust-this-file (--help says more)"
        )
    tensors = read_pickle(args.file)
    with atomic_path(args.output) as temporary:
        save_file(tensors, temporary)
    print(f"{args.output}: {len(tensors)} tensors, {args.output.stat().st_size:,} bytes")
    return 0


def read_pickle(path: Path) -> dict[str, Tensor]:
    """All tensors of a pickled checkpoint, each with memory of its own, by flattened key.

    Raises:
        QuantFaceError: no pickle, or one without tensors.
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
