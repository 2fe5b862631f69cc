"""The command line of ``inference/restore.py``.

Nothing heavy is imported before the options and the inputs are known to be good.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.restore.files import OutputFolders, Source, find_sources
from quantface_arch.restore.options import add_model_options, load_restorer, note, number
from quantface_arch.utils.cli import EXIT_FAILED, Parser
from quantface_arch.utils.distributed import Shard
from quantface_arch.utils.files import remove_temporaries

if TYPE_CHECKING:
    from quantface_arch.background.tiles import BackgroundUpsampler
    from quantface_arch.restore.manifest import Manifest
    from quantface_arch.restore.restorer import FaceRestorer

__all__ = ["main", "make_parser"]

_MAX_UPSCALE = 8


def make_parser() -> argparse.ArgumentParser:
    """The options, as ``--help`` shows them."""
    parser = Parser(
        description="Restore the faces in photographs and clips.",
        epilog="Writes restored/NAME.png, cropped_faces/NAME_00.png and restored_faces/NAME_00.png "
        "under the output folder; of a clip restored/NAME.mp4 alone. NAME is the input's stem, "
        "made longer where two inputs share it (a_png and a_jpg; x_a and y_a). What was done is "
        "noted, a line for each input, in manifest-N.jsonl. Large batches: torchrun "
        "--nproc-per-node 4 inference/restore.py ... shares the inputs out among 4 processes. Exit "
        "status: 0 all done, 1 some input failed, 2 wrong usage and nothing was done.",
    )
    add = parser.add_argument
    add("-i", "--input", nargs="+", required=True, metavar="PATH", help="files, folders or globs")
    add("-o", "--output", type=Path, default=Path("results"), metavar="DIR", help="%(default)s")
    add("--recursive", action="store_true", help="look into subfolders")
    add("--skip-existing", action="store_true", help="leave out inputs whose result exists")
    add(
        "--resume",
        action="store_true",
        help="leave out inputs that the manifest says were done with the same settings",
    )
    add("--keep-unrestored", action="store_true", help="write what has no faces as it is")
    add("--compare", action="store_true", help="write compare/NAME, input beside result")
    add(
        "--aligned",
        action="store_true",
        help="every input is one aligned face: resized to 512x512, written to restored_faces/",
    )
    add("--upscale", type=number(1, _MAX_UPSCALE), default=1.0, help="enlarge, 1 to 8 times")
    add(
        "--bg-upsampler",
        metavar="PATH",
        help="what enlarges the rest of a picture: Real-ESRGAN's weights (RRDBNet, x2 or x4), or "
        "such a network quantized here; default: interpolation",
    )
    add("--strength", type=number(0, 1), default=1.0, help="0 keeps the input's faces, 1 replaces")
    add_model_options(parser)
    return parser


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
    if args.resume and args.skip_existing:
        raise UsageError("--resume does not go with --skip-existing: both leave inputs out")
    if args.bg_upsampler:
        _check_background(args)
    shard = Shard.here()
    folders = OutputFolders(args.output, args.aligned, args.compare)
    sources, ignored = find_sources(args.input, args.recursive, folders)
    folders.check(sources)
    _check_clip_options(args, sources)
    with shard.joined():
        # The first process's, since others may look when it has begun to write.
        todo = [s for s in sources if not (args.skip_existing and folders.final(s).exists())]
        sources, ignored, todo = shard.agree((sources, ignored, todo))
        if todo:
            return _restore(args, folders, shard, todo, len(sources) - len(todo), ignored)
        _say_done(sources, args, shard)
        return 0


def _say_done(sources: list[Source], args: argparse.Namespace, shard: Shard) -> None:
    if shard.is_first:
        kind = "inputs" if any(source.is_clip for source in sources) else "images"
        print(f"all {len(sources)} {kind} are done already; results in {args.output}")


def _restore(
    args: argparse.Namespace,
    folders: OutputFolders,
    shard: Shard,
    todo: list[Source],
    skipped: int,
    ignored: int,
) -> int:
    """Do this process's share; returns the exit status of all."""
    try:
        restorer = load_restorer(args, shard)
        if args.bg_upsampler:
            restorer.background = _background(args, restorer, shard)
        if not args.aligned:
            # Built now, so that missing weights are found before any work.
            _ = restorer.detector
    except QuantFaceError as error:
        raise UsageError(str(error)) from error
    folders.make()

    from quantface_arch.restore.manifest import Manifest, settings_of
    from quantface_arch.restore.run import Run
    from quantface_arch.restore.video_run import ClipRun

    settings = shard.agree(settings_of(args, restorer) if shard.is_first else {})
    manifest = Manifest(args.output, settings, shard.rank)
    if args.resume:
        left = _left(args, folders, shard, manifest, todo)
        if not left:
            _say_done(todo, args, shard)
            return 0
        skipped, todo = len(todo) - len(left), left
    failed = 0
    for make, is_clip in ((Run, False), (ClipRun, True)):
        sources = [source for source in todo if source.is_clip == is_clip]
        if sources:
            run = make(restorer, folders, args, manifest, shard)
            run.process(shard.share(sources))
            counts = run.counts.of_all(shard.gather(run.counts))
            if shard.is_first:
                print(counts.summary(skipped, ignored, args.output), flush=True)
            failed += counts.failed
            skipped = ignored = 0
    return EXIT_FAILED if failed else 0


def _check_background(args: argparse.Namespace) -> None:
    from quantface_arch.background.weights import check_name

    if args.aligned:
        raise UsageError("--bg-upsampler does not go with --aligned: there is no background")
    try:
        check_name(args.bg_upsampler)
    except QuantFaceError as error:
        raise UsageError(str(error)) from error


def _check_clip_options(args: argparse.Namespace, sources: list[Source]) -> None:
    clip = next((source for source in sources if source.is_clip), None)
    reasons = {
        "aligned": "faces of a clip are found in its frames",
        "sample": "its noise would change from frame to frame",
    }
    for option, reason in reasons.items():
        if clip and getattr(args, option):
            raise UsageError(f"--{option} does not go with the clip {clip.path}: {reason}")


def _left(
    args: argparse.Namespace,
    folders: OutputFolders,
    shard: Shard,
    manifest: Manifest,
    sources: list[Source],
) -> list[Source]:
    """The pictures that are not done yet, found out by all processes together."""
    if shard.is_first:
        for folder in folders.used():
            remove_temporaries(folder)
    manifest.load()
    done = [manifest.has(source, args.keep_unrestored) for source in shard.share(sources)]
    flags = shard.whole(shard.gather(done))
    return [source for source, is_done in zip(sources, flags, strict=True) if not is_done]


def _background(
    args: argparse.Namespace, restorer: FaceRestorer, shard: Shard
) -> BackgroundUpsampler:
    from quantface_arch.background.load import load_background

    # The experimental runtime is for the restorer.
    runtime = "reference" if args.runtime == "cuda" else args.runtime
    device = str(restorer.device)
    return load_background(args.bg_upsampler, runtime, device, args.offline, note(shard))
