"""Extract the tensors of a pickled checkpoint and write them as .safetensors."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.utils.cli import Parser, run
from quantface_arch.utils.files import atomic_path
from quantface_arch.utils.state_dict import unpickle

DESCRIPTION = """\
Extract the tensors of a pickled checkpoint (.ckpt, .pth, .pt) and write them as .safetensors.

A pickle is a program, which most software runs with your permissions when it reads the file. This
package runs none of it, and refuses a pickle that needs more than tensors, except OSDFace's own.
This command takes the tensors out of every pickle: objects of unknown classes become empty
placeholders, and their code is never imported. Use it only on a file whose origin you trust, since
its tensors replace a network's; confirm with --i-trust-this-file.

The result holds the checkpoint's "state_dict" if it has one, else all its tensors. Keys are kept.

example:
  python scripts/convert_pickle.py --i-trust-this-file \\
      weights/OSDFace/associate_2.ckpt weights/OSDFace/associate_2.safetensors
"""


def make_parser() -> Parser:
    """Build the command-line parser."""
    parser = Parser(description=DESCRIPTION)
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
            f"{args.file}: it is converted only if you trust whoever made it: add "
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
    found = unpickle(path, foreign=True)
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
