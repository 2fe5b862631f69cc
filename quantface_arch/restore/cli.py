"""The command line of ``inference/restore.py``.

Heavy imports wait until the options and the inputs have been checked.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.faces.choices import AUTO_STRENGTH
from quantface_arch.pretrained.hub.options import FetchOptions
from quantface_arch.restore.arguments import add_model_arguments, number, strength
from quantface_arch.restore.batch import print_all_done, restore_all
from quantface_arch.restore.files import OutputFolders, Source, find_sources, left_out_line
from quantface_arch.restore.options import (
    FaceOptions,
    InputOptions,
    OutputOptions,
    RestoreOptions,
    RuntimeOptions,
    build,
)
from quantface_arch.utils.cli import HUB_VARIABLES, Parser, ending, run
from quantface_arch.utils.distributed import Shard
from quantface_arch.utils.limits import MAX_UPSCALE

__all__ = ["main", "make_parser", "parse_options"]

DESCRIPTION = """\
Restore the faces in images and videos.

An image is written to restored/NAME.png, cropped_faces/NAME_00.png and restored_faces/NAME_00.png
under the output folder, a video to restored/NAME.mp4. NAME is the input's stem; it is made longer
where two inputs share it (a_png and a_jpg; x_a and y_a). manifest-N.jsonl records one line per
input.

examples:
  photographs, with the input beside each result in results/compare:
    python inference/restore.py -i photos -o results --recursive --compare
  an old photograph, enlarged:
    python inference/restore.py -i old.jpg --upscale 2
  faces that are aligned already, 512x512:
    python inference/restore.py -i crops --aligned
  a large batch, shared out among 4 processes; --resume continues after a kill:
    torchrun --nproc-per-node 4 inference/restore.py -i photos --resume
"""
_WHOLE = (
    "--model is a network for whole images, such as Real-ESRGAN's weights (.pth): images go "
    "through it in tiles, and no faces are looked for"
)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the restore command."""
    parser = Parser(
        description=DESCRIPTION,
        epilog=ending(
            *HUB_VARIABLES,
            "OMP_NUM_THREADS",
            done="all inputs are done",
            failed="some input failed",
        ),
    )
    _add_input_arguments(parser)
    _add_output_arguments(parser)
    add_model_arguments(parser)
    return parser


def _add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``InputOptions``."""
    add = parser.add_argument_group("input").add_argument
    add("-i", "--input", nargs="+", required=True, metavar="PATH", help="files, folders or globs")
    add("--recursive", action="store_true", help="also search subfolders")
    add("--skip-existing", action="store_true", help="leave out inputs whose result exists")
    add(
        "--resume",
        action="store_true",
        help="leave out inputs that the manifest lists as done with the same settings",
    )
    add("--aligned", action="store_true", help="inputs are aligned faces, resized to 512x512")
    add("--whole", action="store_true", help=_WHOLE)


def _add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``OutputOptions``, and ``--strength``."""
    add = parser.add_argument_group("output").add_argument
    add(
        "-o",
        "--output",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="output folder (default: %(default)s)",
    )
    add("--keep-unrestored", action="store_true", help="write inputs without a face unchanged")
    add(
        "--no-metadata",
        dest="keep_metadata",
        action="store_false",
        help="do not copy EXIF (date, place, camera), XMP, texts and resolution to the results",
    )
    add("--compare", action="store_true", help="also write compare/NAME, input beside result")
    add(
        "--upscale",
        type=number(1, MAX_UPSCALE),
        metavar="X",
        help=f"enlarge images by this factor, 1 (default) to {MAX_UPSCALE}; with --whole, the "
        "network's own scale is the default",
    )
    add(
        "--bg-upsampler",
        metavar="PATH",
        help="network that enlarges the background: Real-ESRGAN's weights (RRDBNet, x2 "
        "or x4), or such a network quantized by this package; default: interpolation",
    )
    add(
        "--strength",
        type=strength,
        default=AUTO_STRENGTH,
        metavar="S",
        help="0 keeps the input's faces, 1 replaces them; auto (default) takes what each face "
        "needs: sharp faces stay nearly as they are",
    )


def parse_options(args: argparse.Namespace) -> RestoreOptions:
    """Return the parsed command line as typed options."""
    values = vars(args)
    return RestoreOptions(
        build(InputOptions, {**values, "input": tuple(args.input)}),
        build(OutputOptions, values),
        build(FaceOptions, values),
        build(RuntimeOptions, {**values, "fetching": build(FetchOptions, values)}),
        debug=values.get("debug", False),
    )


def _check_options(options: RestoreOptions) -> None:
    """Raise UsageError if options contradict each other or name no background network."""
    if options.inputs.whole:
        _check_faceless(options)
        _check_weights("--whole --model", options.runtime.model)
    if options.inputs.aligned and options.outputs.factor != 1:
        raise UsageError("--upscale cannot be used with --aligned: aligned faces are 512x512")
    if options.inputs.resume and options.inputs.skip_existing:
        raise UsageError("--resume cannot be used with --skip-existing: both leave inputs out")
    if options.outputs.bg_upsampler:
        if options.inputs.aligned:
            raise UsageError("--bg-upsampler cannot be used with --aligned: there is no background")
        _check_weights("--bg-upsampler", options.outputs.bg_upsampler)


def main(args: argparse.Namespace) -> int:
    """Restore the inputs that the command line names.

    Returns:
        0 if every input is done, 1 if some failed.

    Raises:
        UsageError: an option is wrong, or the model or the detector cannot be loaded. Nothing was
            written.
    """
    options = parse_options(args)
    _check_options(options)
    inputs, outputs = options.inputs, options.outputs
    shard = Shard.here()
    folders = OutputFolders(outputs.output, inputs.aligned, outputs.compare, inputs.whole)
    sources, others = find_sources(inputs.input, inputs.recursive, folders)
    if shard.is_first and others:
        print(left_out_line(others), file=sys.stderr)
    ignored = len(others)
    folders.check(sources)
    _check_video_options(options, sources)
    with shard.joined():
        # Use the first process's list: later ones may already see its results.
        todo = [s for s in sources if not (inputs.skip_existing and folders.final(s).exists())]
        sources, ignored, todo = shard.agree((sources, ignored, todo))
        if todo:
            return restore_all(options, folders, shard, todo, len(sources) - len(todo), ignored)
        print_all_done(sources, outputs.output, shard)
        return 0


def _check_weights(option: str, name_or_path: str) -> None:
    """Raise UsageError if an option names no file of weights and no published network."""
    from quantface_arch.background.weights import check_name

    try:
        check_name(name_or_path, option)
    except QuantFaceError as error:
        raise UsageError(str(error)) from error


def _check_faceless(options: RestoreOptions) -> None:
    """Refuse options that have no effect on whole images.

    Raises:
        UsageError: one of them is given. The message names it.
    """
    faces = options.faces
    given = {
        "--aligned": options.inputs.aligned,
        "--bg-upsampler": options.outputs.bg_upsampler is not None,
        "--strength": faces.strength not in (AUTO_STRENGTH, 1),
        "--identity": faces.identity is not None,
        "--sample": faces.sample,
        "--color-fix": faces.color_fix is not None,
        "--detector": faces.detector != "auto",
        "--weights-dir": faces.weights_dir is not None,
        "--keep-unrestored": options.outputs.keep_unrestored,
        "--batch-size": options.runtime.batch_size is not None,
        "--fidelity": options.runtime.fidelity is not None,
    }
    for name, is_given in given.items():
        if is_given:
            raise UsageError(f"{name} cannot be used with --whole: no faces are looked for")


def _check_video_options(options: RestoreOptions, sources: list[Source]) -> None:
    """Raise UsageError if an option does not apply to a video among the inputs."""
    video = next((source for source in sources if source.is_video), None)
    if video is None:
        return
    reasons = {
        "--aligned": (options.inputs.aligned, "faces are detected in every frame"),
        "--sample": (options.faces.sample, "sampled noise would change from frame to frame"),
    }
    for name, (is_set, reason) in reasons.items():
        if is_set:
            raise UsageError(f"{name} cannot be used with the video {video.path}: {reason}")


if __name__ == "__main__":
    run(main, make_parser())
