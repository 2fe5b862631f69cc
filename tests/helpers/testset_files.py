"""Test sets as their authors pack them, and the command that lays them out."""

from __future__ import annotations

from loops import write_images

SETS = ("celeba", "lfw", "webphoto", "wider")


def prepare(script, *words):
    return script.main(script.make_parser().parse_args([str(word) for word in words]))


def make(folder, side=512, count=2):
    """Write images as authors pack them: deep, with files that do not belong to the set."""
    write_images(folder / "faces", count, side)
    write_images(folder / ".thumbnails", 1, 8)
    (folder / "readme.txt").write_text("faces")
    (folder / "faces/.DS_Store").write_bytes(b"")
    (folder / "__MACOSX/faces").mkdir(parents=True)
    (folder / "__MACOSX/faces/._0.png").write_bytes(b"no image")
    return folder
