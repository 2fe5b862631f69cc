"""The command line of ``inference/restore.py``.

Nothing heavy is imported before the options and the inputs are known to be good.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from quantface_arch.cli import EXIT_FAILED, Parser
from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.faces.detect import DETECTORS
from quantface_arch.restore_files import OutputFolders, find_sources

if TYPE_CHECKING:
    from quantface_arch.restorer import FaceRestorer

__all__ = ["main", "make_parser"]

_RUNTIMES = ("auto", "reference", "openvino", "cuda")
_MAX_UPSCALE = 8


def make_parser() -> argparse.ArgumentParser:
    """The options, as ``--help`` shows them."""
    parser = Parser(
        description="Restore the faces in photographs.",
        epilog="Writes restored/NAME.png, cropped_faces/NAME_00.png and restored_faces/NAME_00.png "
        "under the output folder. NAME is the input's stem, made longer where two inputs share it "
        "(a_png and a_jpg; x_a and y_a). Exit status: 0 all done, 1 some input failed, 2 wrong "
        "usage and nothing was done.",
    )
    add = parser.add_argument
    add("-i", "--input", nargs="+", required=True, metavar="PATH", help="files, folders or globs")
    add("-o", "--output", type=Path, default=Path("results"), metavar="DIR", help="%(default)s")
    add("--recursive", action="store_true", help="look into subfolders")
    add("--skip-existing", action="store_true", help="leave out inputs whose result exists")
    add("--keep-unrestored", action="store_true", help="write a picture without faces as it is")
    add("--compare", action="store_true", help="write compare/NAME.png, input beside result")
    add(
        "--aligned",
        action="store_true",
        help="every input is one aligned face: resized to 512x512, written to restored_faces/",
    )
    add("--upscale", type=_number(1, _MAX_UPSCALE), default=1.0, help="enlarge, 1 to 8 times")
    add("--strength", type=_number(0, 1), default=1.0, help="0 keeps the input's faces, 1 replaces")
    _add_model_options(parser)
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="mini-w4a8", metavar="NAME_OR_PATH", help="default: %(default)s")
    add("--runtime", choices=_RUNTIMES, default="auto", help="default: %(default)s")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:0")
    add("--batch-size", type=_integer(1), metavar="N", help="faces at once: 1, on a GPU 8")
    add("--sample", action="store_true", help="sample the latent instead of taking its mean")
    add("--seed", type=_integer(0), default=0, help="of --sample, with the picture's content")
    add(
        "--detector",
        choices=DETECTORS,
        default="auto",
        help="auto (default): retinaface_mobile0.25, without its weights haar",
    )
    add("--weights-dir", type=Path, metavar="DIR", help="holds the detector's .pth")
    add("--offline", action="store_true", help="never download anything")


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not a number from {low:g} to {high:g}")
        return value

    return parse


def _integer(low: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least {low}")
        return value

    return parse


def main(args: argparse.Namespace) -> int:
    """Restore what the command line names.

    Returns:
        0 if every input is done, 1 if some failed.

    Raises:
        UsageError: something was typed wrong, or the model or the detector cannot be loaded; no
            work was done.
    """
    if args.aligned and args.upscale != 1:
        raise UsageError("--upscale does not go with --aligned: aligned faces are 512x512")
    folders = OutputFolders(args.output, args.aligned, args.compare)
    sources, ignored = find_sources(args.input, args.recursive, folders)
    folders.check(sources)
    todo = [s for s in sources if not (args.skip_existing and folders.final(s).exists())]
    skipped = len(sources) - len(todo)
    if not todo:
        print(f"all {skipped} images are done already; results in {args.output}")
        return 0
    try:
        restorer = _load(args)
    except QuantFaceError as error:
        raise UsageError(str(error)) from error
    folders.make()

    from quantface_arch.restore_run import Run

    run = Run(restorer, folders, args)
    run.process(todo)
    print(run.summary(skipped, ignored))
    return EXIT_FAILED if run.failed else 0


def _load(args: argparse.Namespace) -> FaceRestorer:
    from quantface_arch.zoo import resolve_model

    resolve_model(args.model)

    from quantface_arch.restorer import FaceRestorer

    restorer = FaceRestorer.from_pretrained(
        args.model,
        args.runtime,
        _device(args.device, args.runtime),
        detector=args.detector,
        weights_dir=args.weights_dir,
        offline=args.offline,
        batch_size=args.batch_size,
        notify=lambda message: print(f"note: {message}", file=sys.stderr),
    )
    if not args.aligned:
        # Built now, so that missing weights are found before any work.
        _ = restorer.detector
    return restorer


def _device(name: str, runtime: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() and runtime != "openvino" else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown --device {name!r}: auto, cpu, cuda or cuda:0") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: {torch.cuda.device_count()} CUDA devices are here")
    return name
