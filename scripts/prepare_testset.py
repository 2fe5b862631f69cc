"""Lay out a published test set of faces as the options files of options/testsets expect it."""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.utils.cli import Parser, run
from quantface_arch.utils.image_sources import ImageSource, open_source
from quantface_arch.utils.images import read_image, write_image
from quantface_arch.utils.progress import progress_bar

DESCRIPTION = """\
Lay out a published test set of faces as options/testsets/*.yml expect it:

  celeba     datasets/celeba_test/lq and gt   3000 pairs of CelebA-Test
  lfw        datasets/lfw_test/lq             1711 faces of LFW-Test
  webphoto   datasets/webphoto_test/lq         407 faces of WebPhoto-Test
  wider      datasets/wider_test/lq            970 faces of Wider-Test

Nothing is downloaded: docs/test_sets.md says who distributes the sets. Name the .zip file or folder
that you got; neither its name nor the depth of the images in it matters.

examples:
  python scripts/prepare_testset.py celeba -i self_celeba_512_v2.zip -g celeba_512_validation.zip
  python scripts/prepare_testset.py lfw -i lfw_cropped_faces.zip
  python scripts/prepare_testset.py webphoto -i WebPhoto-Test.zip --redo
  without a second copy of a folder that stays where it is:
    python scripts/prepare_testset.py wider -i ~/downloads/Wider-Test --link
"""
EPILOG = """\
Every image is read once, so that damaged ones are found. All must be 512x512, and are stored as PNG
under their own names; pairs have equal names. The set appears only when it is complete: a run that
fails or is killed leaves the old one, or none, and the same command starts again.
"""
SIDE = 512


@dataclass(frozen=True)
class TestSet:
    """A published test set: its folder, its number of images, and whether they come in pairs."""

    folder: str
    count: int
    paired: bool = False


SETS = {
    "celeba": TestSet("celeba_test", 3000, paired=True),
    "lfw": TestSet("lfw_test", 1711),
    "webphoto": TestSet("webphoto_test", 407),
    "wider": TestSet("wider_test", 970),
}


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("set", choices=SETS, help="which test set it is")
    add("-i", "--lq", required=True, type=Path, help="degraded faces: a folder or a .zip file")
    add("-g", "--gt", type=Path, help="clean faces with the same names; for celeba")
    add(
        "-o",
        "--out",
        type=Path,
        default=Path("datasets"),
        help="folder in which the set is made (default: %(default)s)",
    )
    add("--link", action="store_true", help="hard-link a folder's images instead of copying them")
    add("--resize", action="store_true", help=f"resize square images of other sizes to {SIDE}")
    add("--redo", action="store_true", help="replace the set if it exists")
    return parser


def main(args: argparse.Namespace) -> int:
    """Check and copy the set, put it in place, and print the next command."""
    testset = SETS[args.set]
    target = args.out / testset.folder
    _check(args, testset, target)
    sources = {"lq": open_source(args.lq)}
    if testset.paired:
        sources["gt"] = open_source(args.gt)
        _check_pairs(**sources)
    with _replacing(target) as part:
        _fill(part, sources, args)
    count = len(sources["lq"].images)
    if count != testset.count:
        print(
            f"warning: images found: {count}, published: {testset.count}; "
            "scores on this set are not comparable with papers",
            file=sys.stderr,
        )
    print(f"{target}: images in {' and '.join(sources)}: {count}")
    print(f"next: python basicsr/test.py -opt options/testsets/{args.set}.yml")
    return 0


def _check(args: argparse.Namespace, testset: TestSet, target: Path) -> None:
    """Refuse wrong options before anything is read."""
    if testset.paired and args.gt is None:
        raise UsageError(f"{args.set} has clean images, too: give -g")
    if not testset.paired and args.gt is not None:
        raise UsageError(f"-g {args.gt}: {args.set} has no clean images")
    if not target.exists():
        return
    if not args.redo:
        raise UsageError(f"{target} exists already; --redo replaces it")
    foreign = sorted(path.name for path in target.iterdir() if path.name not in ("lq", "gt"))
    if foreign:
        raise UsageError(f"{target} holds other files, which --redo would delete: {foreign[0]}")


def _check_pairs(lq: ImageSource, gt: ImageSource) -> None:
    for source, other in ((lq, gt), (gt, lq)):
        missing = [stem for stem in source.images if stem not in other.images]
        if missing:
            more = f" ({len(missing)} such images)" if len(missing) > 1 else ""
            raise QuantFaceError(
                f"{source.origin(missing[0])}: no image of that name in {other.path}{more}"
            )


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Yield a new folder that takes the place of ``target`` when the block succeeds."""
    part = target.with_name(f".{target.name}.part")
    if part.is_symlink():
        raise QuantFaceError(f"{part} is a link, whose folder would be emptied: remove it")
    part.mkdir(parents=True, exist_ok=True)
    handle = os.open(part, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise QuantFaceError(f"{target}: another run is preparing it") from error
    try:
        # Remove what a killed run left behind.
        for path in part.iterdir():
            shutil.rmtree(path)
        new, old = part / "new", part / "old"
        new.mkdir()
        yield new
        if target.exists():
            target.rename(old)
        new.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        os.close(handle)


def _fill(part: Path, sources: Mapping[str, ImageSource], args: argparse.Namespace) -> None:
    images = [(role, stem) for role, source in sources.items() for stem in source.images]
    for role in sources:
        (part / role).mkdir()
    for role, stem in progress_bar(images, desc="prepare", unit="image"):
        source = sources[role]
        path = part / role / source.images[stem].name
        (source.link if args.link else source.copy)(stem, path)
        try:
            _standardize(path, args.resize)
        except QuantFaceError as error:
            # The user knows the image by its own path, not by that of the copy.
            raise QuantFaceError(str(error).replace(str(path), source.origin(stem))) from error


def _standardize(path: Path, resize: bool) -> None:
    """Check an image, and make it a PNG of the right size unless it is one."""
    image = read_image(path)
    width, height = image.size
    if width != height or (width != SIDE and not resize):
        way_out = "--resize needs a square" if width != height else "--resize makes it fit"
        raise QuantFaceError(f"{path}: {width}x{height} pixels, expected {SIDE}x{SIDE}; {way_out}")
    final = path.with_suffix(".png")
    if width == SIDE and path == final:
        return
    write_image(final, image.resized(SIDE, SIDE))
    if path != final:
        path.unlink()


if __name__ == "__main__":
    run(main, make_parser())
