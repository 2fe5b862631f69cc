"""Command-line arguments shared by the restore command and the web page."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from quantface_arch.faces.choices import ALIASES, AUTO_STRENGTH, COLOR_FIXES, DETECTORS
from quantface_arch.pretrained.names import DEFAULT_MODEL
from quantface_arch.utils.runtime_names import RUNTIME_NAMES

__all__ = ["add_fetch_arguments", "add_model_arguments", "integer", "number", "strength"]


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``RuntimeOptions`` and ``FaceOptions``, except ``--strength``."""
    _add_face_arguments(parser)
    add = parser.add_argument_group("model").add_argument
    add(
        "--model",
        default=DEFAULT_MODEL,
        metavar="NAME_OR_PATH",
        help="a shipped model (default: %(default)s), a checkpoint, an exported .xml file, or "
        "what is fetched from the hub after asking: osdface, osdface-w4a8, USER/REPOSITORY",
    )
    add("--runtime", choices=("auto", *RUNTIME_NAMES), default="auto", help="default: %(default)s")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:0")
    add(
        "--batch-size",
        type=integer(1),
        metavar="N",
        help="faces restored at once (default: 1 on a CPU, 8 on a GPU)",
    )
    add(
        "-w",
        "--fidelity",
        type=number(0, 1),
        metavar="W",
        help="only for CodeFormer: 0 is the best quality, 1 is closest to the input (default: the "
        "checkpoint's, usually 0.5)",
    )
    add("--offline", action="store_true", help="never download anything")
    add_fetch_arguments(parser)


def _add_face_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments about how a face is found and restored."""
    add = parser.add_argument_group("faces").add_argument
    add("--sample", action="store_true", help="sample the latent instead of taking its mean")
    add(
        "--seed",
        type=integer(0),
        default=0,
        metavar="N",
        help="seed of --sample, combined with the image's content (default: %(default)s)",
    )
    add(
        "--detector",
        choices=(*DETECTORS, *ALIASES),
        default="auto",
        help="auto (default) is yunet, which is shipped; haar, which was removed, also means yunet",
    )
    add(
        "--color-fix",
        choices=COLOR_FIXES,
        help="what a face takes over from the input: tones at low resolution (lowres), also "
        "a share of everything coarser than 3 pixels (structure), the low "
        "band of a wavelet transform (wavelet), mean and deviation of each channel (adain), or "
        "nothing (none); default: the model's own, structure for mini models, none for OSDFace",
    )
    add("--weights-dir", type=Path, metavar="DIR", help="folder with RetinaFace's .pth file")
    add(
        "--identity",
        type=number(0, 1),
        metavar="T",
        help="lower the strength of a face until the cosine between its embeddings before and "
        "after is at least T, 0 to 1; needs MobileFaceNet (4 MB, downloaded once)",
    )
    add(
        "--identity-weights",
        type=Path,
        metavar="PATH",
        help="MobileFaceNet.onnx, or the folder that holds it",
    )


def add_fetch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``FetchOptions``, except ``--offline``."""
    add = parser.add_argument_group("models from the hub").add_argument
    add("--yes", action="store_true", help="fetch without asking (or set QUANTFACE_YES=1)")
    add("--base", metavar="DIR_OR_ID", help="Stable Diffusion 2.1-base, in place of the mirrors")
    add("--revision", help="branch, tag or commit of the model's repository")
    add("--endpoint", metavar="URL", help="the hub's address (default: HF_ENDPOINT, or the hub)")


def number(low: float, high: float) -> Callable[[str], float]:
    """Return an argument type that accepts a number from ``low`` to ``high``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not a number from {low:g} to {high:g}")
        return value

    return parse


def strength(text: str) -> float | str:
    """Accept ``auto`` or a number from 0 to 1, as the type of an argument."""
    if text == AUTO_STRENGTH:
        return text
    try:
        return number(0, 1)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or {AUTO_STRENGTH}") from error


def integer(low: int) -> Callable[[str], int]:
    """Return an argument type that accepts a whole number of at least ``low``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least {low}")
        return value

    return parse
