"""Options that all which restores pictures shares, and the restorer that they describe."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from quantface_arch.errors import UsageError
from quantface_arch.faces.color import COLOR_FIXES
from quantface_arch.faces.detect import ALIASES, DETECTORS
from quantface_arch.pretrained.names import DEFAULT_MODEL
from quantface_arch.utils.distributed import Shard
from quantface_arch.utils.runtime_names import RUNTIME_NAMES

if TYPE_CHECKING:
    from quantface_arch.restore.restorer import FaceRestorer

__all__ = ["add_model_options", "integer", "load_restorer", "note", "number"]


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options that :func:`load_restorer` reads, and those of sampling."""
    add = parser.add_argument
    add("--model", default=DEFAULT_MODEL, metavar="NAME_OR_PATH", help="default: %(default)s")
    add("--runtime", choices=("auto", *RUNTIME_NAMES), default="auto", help="default: %(default)s")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:0")
    add("--batch-size", type=integer(1), metavar="N", help="faces at once: 1, on a GPU 8")
    add("--sample", action="store_true", help="sample the latent instead of taking its mean")
    add("--seed", type=integer(0), default=0, help="of --sample, with the picture's content")
    add(
        "--detector",
        choices=(*DETECTORS, *ALIASES),
        default="auto",
        help="auto (default): yunet, which is shipped; haar, now gone, means yunet, too",
    )
    add(
        "--color-fix",
        choices=COLOR_FIXES,
        help="what a face takes over from the input: tones at low resolution (lowres), the low "
        "band of a wavelet transform (wavelet), mean and deviation of each channel (adain), or "
        "nothing (none); default: the model's own, lowres for mini models, none for OSDFace",
    )
    add("--weights-dir", type=Path, metavar="DIR", help="holds RetinaFace's .pth")
    add("--offline", action="store_true", help="never download anything")


def number(low: float, high: float) -> Callable[[str], float]:
    """A type of option: a number within these limits."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not a number from {low:g} to {high:g}")
        return value

    return parse


def integer(low: int) -> Callable[[str], int]:
    """A type of option: a whole number from ``low`` on."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least {low}")
        return value

    return parse


def load_restorer(args: argparse.Namespace, shard: Shard | None = None) -> FaceRestorer:
    """What ``add_model_options`` describes; the detector is not built yet.

    Args:
        shard: of the processes that load one each; the first speaks for all.

    Raises:
        QuantFaceError: no such model, runtime or device.
    """
    from quantface_arch.pretrained.names import resolve_model

    resolve_model(args.model)

    from quantface_arch.restore.restorer import FaceRestorer

    shard = shard or Shard()
    restorer = FaceRestorer.from_pretrained(
        args.model,
        args.runtime,
        _device(args.device, args.runtime, shard),
        detector=args.detector,
        weights_dir=args.weights_dir,
        offline=args.offline,
        batch_size=args.batch_size,
        color_fix=args.color_fix,
        notify=note(shard),
    )
    if shard.count > 1:
        import cv2

        cv2.setNumThreads(shard.threads)
    return restorer


def note(shard: Shard) -> Callable[[str], None]:
    """What prints notes on stderr, of the first process alone."""

    def say(message: str) -> None:
        if shard.is_first:
            print(f"note: {message}", file=sys.stderr)

    return say


def _device(name: str, runtime: str, shard: Shard) -> str:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() and runtime != "openvino" else "cpu"
    if name == "cuda" and shard.count > 1 and torch.cuda.is_available():
        return f"cuda:{shard.local_rank % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown --device {name!r}: auto, cpu, cuda or cuda:0") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: {torch.cuda.device_count()} CUDA devices are here")
    return name
