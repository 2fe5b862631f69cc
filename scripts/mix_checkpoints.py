"""Average the weights of two full-precision checkpoints of one architecture."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from quantface_arch.archs.build import build_arch
from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.pretrained.names import resolve_model
from quantface_arch.quant import load_checkpoint, read_metadata, save_checkpoint
from quantface_arch.utils.cli import Parser, run

DESCRIPTION = """\
Average the weights of two full-precision checkpoints of one architecture.

The average of two points of one training run behaves like a point between them (Wortsman et al.,
2022): an early, faithful checkpoint and a late, sharp one give one that is both.

example:
  python scripts/mix_checkpoints.py soft.safetensors sharp.safetensors -o mixed.safetensors
"""


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(description=DESCRIPTION)
    parser.add_argument("first", help="shipped name or checkpoint")
    parser.add_argument("second", help="another checkpoint of the same architecture")
    parser.add_argument("--share", type=float, default=0.5, help="the second's share, 0 to 1 (0.5)")
    parser.add_argument("-o", "--output", required=True, type=Path, help="checkpoint to write")
    return parser


@torch.no_grad()
def main(args: argparse.Namespace) -> int:
    """Mix the checkpoints, save the result, and print the shares."""
    if not 0 <= args.share <= 1:
        raise UsageError(f"--share: found {args.share}, allowed is 0 to 1")
    paths = [resolve_model(args.first), resolve_model(args.second)]
    first, second = (read_metadata(path) for path in paths)
    for path, metadata in zip(paths, (first, second), strict=True):
        if metadata["state"] != "float":
            raise QuantFaceError(f"{path}: found state {metadata['state']}, expected float")
    if first["arch"] != second["arch"]:
        raise QuantFaceError(f"{paths[1]}: found arch {second['arch']}, expected {first['arch']}")
    mixed, other = (load_checkpoint(path, build_arch) for path in paths)
    for value, towards in zip(mixed.parameters(), other.parameters(), strict=True):
        value.lerp_(towards, args.share)
    save_checkpoint(mixed, args.output, first["arch"])
    print(f"{args.output}: {1 - args.share:g} of {paths[0]}, {args.share:g} of {paths[1]}")
    return 0


if __name__ == "__main__":
    run(main, make_parser())
