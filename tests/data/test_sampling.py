"""Which faces a training draws: held out, whole, and of every skin tone equally often."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

import quantface_arch.register  # noqa: F401
from basicsr.data import build_dataset
from quantface_arch.data import SampleIndex
from quantface_arch.data.face_dataset import held_out

# Lightness of the three classes of skin tone.
TONES = {"dark": 35, "medium": 58, "light": 75}


@pytest.fixture
def faces(tmp_path):
    """Six dark, two medium and one light face of 64 pixels, in one subfolder."""
    folder = tmp_path / "faces" / "some"
    folder.mkdir(parents=True)
    for tone, count in zip(TONES, (6, 2, 1), strict=True):
        lab = np.full((64, 64, 3), (TONES[tone], 10, 15), np.float32)
        face = (cv2.cvtColor(lab, cv2.COLOR_LAB2BGR) * 255).round().astype(np.uint8)
        face[:4] = 255  # a bar at the top, which only some crops show
        for index in range(count):
            cv2.imwrite(str(folder / f"{tone}{index}.png"), face)
    return tmp_path / "faces"


def make(faces, **options):
    base = {"name": "t", "type": "QuantFaceDataset", "dataroot_gt": str(faces), "gt_size": 32}
    return build_dataset({**base, "io_backend": {"type": "disk"}, **options})


def test_faces_held_out_are_never_drawn(faces):
    names = {path.stem for path in faces.rglob("*.png")}
    kept = {Path(key).stem for key in make(faces, holdout={"some": 2}).keys}
    assert kept == {name for name in names if not held_out(name, 2)} and 0 < len(kept) < len(names)
    assert {Path(key).stem for key in make(faces, holdout={"other": 2}).keys} == names


def test_every_nth_batch_holds_whole_faces(faces):
    data = make(faces, whole_every=4)

    def shows_bar(iteration):
        return [
            bool(data[SampleIndex(0, iteration, i)]["gt"][:, 0].mean() > 0.9) for i in range(12)
        ]

    assert all(shows_bar(4)) and all(shows_bar(8)) and not all(shows_bar(5))


def test_skin_tones_are_drawn_equally_often(faces):
    def share(**options):
        data = make(faces, **options)
        paths = [data[SampleIndex(i % len(data), 1, i)]["gt_path"] for i in range(300)]
        return Counter(Path(path).stem.rstrip("0123456789") for path in paths)

    assert share()["light"] < 50
    assert all(count > 75 for count in share(equalize_skin_tones=True).values())
