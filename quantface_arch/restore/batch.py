"""Restore all inputs of one command: load the restorer, resume, run, print the summary."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.restore.files import OutputFolders, Source
from quantface_arch.restore.load import device_of, limit_threads, load_restorer, note_printer
from quantface_arch.restore.options import RestoreOptions, RuntimeOptions
from quantface_arch.utils.cli import EXIT_FAILED
from quantface_arch.utils.distributed import Shard
from quantface_arch.utils.files import remove_temporaries
from quantface_arch.utils.installation import need

if TYPE_CHECKING:
    from quantface_arch.restore.manifest import Manifest
    from quantface_arch.restore.restorer import FaceRestorer
    from quantface_arch.restore.run import ImageRun
    from quantface_arch.restore.video_run import VideoRun

__all__ = ["print_all_done", "restore_all"]


def print_all_done(sources: list[Source], output: Path, shard: Shard) -> None:
    """Print that no input is left to restore."""
    if shard.is_first:
        kind = "inputs" if any(source.is_video for source in sources) else "images"
        print(f"all {len(sources)} {kind} are done already; results in {output}")


def restore_all(
    options: RestoreOptions,
    folders: OutputFolders,
    shard: Shard,
    todo: list[Source],
    skipped: int,
    ignored: int,
) -> int:
    """Restore this process's share of the inputs.

    Args:
        todo: inputs of all processes.
        skipped: number of inputs that were already left out.
        ignored: number of files that are neither images nor videos.

    Returns:
        the exit status, which is the same in all processes.

    Raises:
        UsageError: the model or the detector cannot be loaded, or a folder cannot be written.
    """
    restorer, scale = _loaded(options, shard, todo)
    if options.outputs.upscale is None:
        options = replace(options, outputs=replace(options.outputs, upscale=float(scale)))
    folders.make()

    from quantface_arch.restore.manifest import Manifest, settings_of

    settings = shard.agree(settings_of(options, restorer) if shard.is_first else {})
    manifest = Manifest(folders.root, settings, shard.rank)
    if options.inputs.resume:
        left = _remaining(options.takes_faceless, folders, shard, manifest, todo)
        if not left:
            print_all_done(todo, folders.root, shard)
            return 0
        skipped, todo = len(todo) - len(left), left
    failed = _run(options, restorer, folders, manifest, shard, todo, (skipped, ignored))
    return EXIT_FAILED if failed else 0


def _run(
    options: RestoreOptions,
    restorer: FaceRestorer,
    folders: OutputFolders,
    manifest: Manifest,
    shard: Shard,
    todo: list[Source],
    left_out: tuple[int, int],
) -> int:
    """Restore images, then videos; return how many inputs failed in all processes."""
    failed = 0
    for is_video in (False, True):
        sources = [source for source in todo if source.is_video == is_video]
        if sources:
            run = _kind_of_run(is_video)(restorer, folders, options, manifest, shard)
            run.process(shard.share(sources))
            counts = run.counts.merged(shard.gather(run.counts))
            if shard.is_first:
                print(counts.summary(*left_out, folders.root), flush=True)
            failed += counts.failed
            left_out = 0, 0
    return failed


def _kind_of_run(is_video: bool) -> type[ImageRun | VideoRun]:
    """Return the class that runs a kind of input; only videos load FFmpeg's libraries."""
    if is_video:
        from quantface_arch.restore.video_run import VideoRun

        return VideoRun
    from quantface_arch.restore.run import ImageRun

    return ImageRun


def _loaded(options: RestoreOptions, shard: Shard, todo: list[Source]) -> tuple[FaceRestorer, int]:
    """Load the restorer, and everything whose absence would stop the run later.

    Returns:
        the restorer, and the scale of its results.
    """
    try:
        if options.inputs.whole:
            return _loaded_whole(options.runtime, shard)
        restorer = load_restorer(options.runtime, options.faces, shard)
        if options.outputs.bg_upsampler:
            need("--bg-upsampler")
            from quantface_arch.background.load import load_background

            restorer.background = load_background(
                options.outputs.bg_upsampler,
                options.runtime.plain_runtime,
                restorer.device,
                options.runtime.offline,
                note_printer(shard),
            )
        if not options.inputs.aligned:
            _ = restorer.detector
        if options.faces.identity is not None:
            _ = restorer.embedder
        if any(source.is_video for source in todo) and find_spec("av") is None:
            raise UsageError("videos: the package av is missing: pip install av")
    except QuantFaceError as error:
        raise UsageError(str(error)) from error
    return restorer, 1


def _loaded_whole(options: RuntimeOptions, shard: Shard) -> tuple[FaceRestorer, int]:
    """Load a network for whole images."""
    need("--whole")
    from quantface_arch.restore.whole import whole_restorer

    limit_threads(shard)
    runtime = options.plain_runtime
    device = device_of(options.device, runtime, shard)
    return whole_restorer(options.model, runtime, device, options.offline, note_printer(shard))


def _remaining(
    keep_unrestored: bool,
    folders: OutputFolders,
    shard: Shard,
    manifest: Manifest,
    sources: list[Source],
) -> list[Source]:
    """Return the inputs that are not done yet; the processes share the checking."""
    if shard.is_first:
        for folder in folders.used():
            remove_temporaries(folder)
    manifest.load()
    done = [manifest.has(source, keep_unrestored) for source in shard.share(sources)]
    flags = shard.whole(shard.gather(done))
    return [source for source, is_done in zip(sources, flags, strict=True) if not is_done]
