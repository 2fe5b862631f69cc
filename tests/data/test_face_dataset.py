"""The degradation dataset: pairs that depend on the seed and the place in the run alone."""

from __future__ import annotations

import random
import re
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
import torch

import quantface_arch.register  # noqa: F401
from basicsr.data import build_dataset
from basicsr.utils import get_root_logger
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from quantface_arch.data import Degradation, ResumableSampler, SampleIndex, seeded
from quantface_arch.data.colors import recolored
from quantface_arch.errors import QuantFaceError


@pytest.fixture
def faces(tmp_path):
    """A folder with two large pictures in one subfolder and two small ones in another."""
    rng = np.random.default_rng(0)
    for folder, side in (("large", 96), ("small", 48)):
        (tmp_path / "faces" / folder).mkdir(parents=True)
        for index in range(2):
            image = cv2.resize(rng.integers(0, 255, (8, 8, 3), np.uint8), (side, side))
            cv2.imwrite(str(tmp_path / "faces" / folder / f"{folder}{index}.png"), image)
    return tmp_path / "faces"


def make(faces, **options):
    base = {"name": "t", "type": "QuantFaceDataset", "dataroot_gt": str(faces), "gt_size": 32}
    return build_dataset({**base, "io_backend": {"type": "disk"}, **options})


def test_pairs_are_degraded_in_range_and_repeatable(faces):
    first, second = (make(faces, rescale_prob=0.5) for _ in range(2))
    for index in range(4):
        place = SampleIndex(index, 1, 10 + index)
        a = first[place]
        random.random()
        np.random.rand()
        b = second[place]
        assert torch.equal(a["lq"], b["lq"]) and torch.equal(a["gt"], b["gt"])
        assert a["lq"].shape == a["gt"].shape == (3, 32, 32)
        assert a["lq"].min() >= 0 and a["lq"].max() <= 1
        assert (a["lq"] - a["gt"]).abs().mean() > 1e-3


def test_recolored_samples_keep_shapes_but_not_colours(faces):
    plain, changed = make(faces), make(faces, recolor_prob=1)
    for index in range(4):
        place = SampleIndex(index, 1, 10 + index)
        before, after = plain[place]["gt"], changed[place]["gt"]
        assert after.min() >= 0 and after.max() <= 1
        middle = ((after > 0) & (after < 1)).all(0)
        assert torch.allclose(before.mean(0)[middle], after.mean(0)[middle], atol=1e-6)
        # Some pixels keep their colour if two channels happen to be exchanged with each other.
        assert ((before - after).abs().amax(0) > 0.01).float().mean() > 0.5
    orders = {tuple(recolored(np.eye(3, dtype=np.float32)[None])[0].argmax(1)) for _ in range(99)}
    assert len(orders) == 6


def test_another_place_or_seed_gives_another_sample(faces):
    here = make(faces)[SampleIndex(0, 1, 0)]["lq"]
    assert not torch.equal(here, make(faces)[SampleIndex(0, 1, 4)]["lq"])
    assert not torch.equal(here, make(faces, seed=1)[SampleIndex(0, 1, 0)]["lq"])


def test_global_generators_are_left_alone():
    random.seed(5)
    np.random.seed(5)
    expected = random.random(), np.random.rand()
    random.seed(5)
    np.random.seed(5)
    with seeded(1, 2):
        random.random()
        np.random.rand()
    assert (random.random(), np.random.rand()) == expected


def test_size_grows_with_the_iteration_and_small_faces_are_replaced(faces):
    dataset = make(faces, gt_size=[[0, 16], [5, 32], [9, 96]])
    for iteration, size in ((1, 16), (4, 16), (5, 32), (8, 32), (9, 96), (50, 96)):
        for index in range(len(dataset)):
            sample = dataset[SampleIndex(index, iteration, iteration)]
            assert sample["gt"].shape[-1] == size
            assert size <= 48 or "large" in sample["gt_path"]


def test_repeat_multiplies_a_subfolder(faces):
    keys = make(faces, repeat={"large": 3}).keys
    assert len(keys) == 2 * 3 + 2


def test_lmdb_gives_what_the_folder_gives(faces, tmp_path):
    paths = sorted((faces / "large").glob("*.png"))
    keys = [path.stem for path in paths]
    target = tmp_path / "faces.lmdb"
    make_lmdb_from_imgs(str(faces / "large"), str(target), [p.name for p in paths], keys)
    assert lmdb.open(str(target), readonly=True).stat()["entries"] == 2
    from_lmdb = make(target, io_backend={"type": "lmdb"})
    from_disk = make(faces / "large")
    for index in range(2):
        assert torch.equal(from_lmdb[index]["lq"], from_disk[index]["lq"])


NAMES = ["a b", "v1.2", "v1.3", "x (8,8,3) 1", "one.two three.four", "(1) .hidden", "plain"]


def write_lmdb(folder, target):
    """Write the images of a folder by BasicSR's own function, keys being names without suffix."""
    paths = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.png"))]
    make_lmdb_from_imgs(str(folder), str(target), paths, [path[:-4] for path in paths])
    return target


@pytest.fixture
def odd_names(tmp_path):
    """A folder of images whose names have spaces, dots and brackets, and an LMDB of it."""
    rng, folder = np.random.default_rng(1), tmp_path / "odd"
    (folder / "sub.dir 1").mkdir(parents=True)
    for index, name in enumerate(NAMES):
        image = rng.integers(0, 255, (40 + index, 50, 3), np.uint8)
        cv2.imwrite(str(folder / "sub.dir 1" / f"{name}.png"), image)
    return folder, write_lmdb(folder, tmp_path / "odd.lmdb")


@pytest.mark.parametrize("holdout", [{}, {"sub.dir 1": 2}])
def test_names_with_spaces_and_dots_are_the_same_in_an_lmdb(odd_names, holdout):
    folder, target = odd_names
    options = {"use_hflip": False, "holdout": holdout}
    from_lmdb = make(target, io_backend={"type": "lmdb"}, **options)
    from_disk = make(folder, **options)
    keys = {str(Path(key).relative_to(folder))[:-4] for key in from_disk.keys}
    assert set(from_lmdb.keys) == keys and 0 < len(keys) == len(from_lmdb)
    assert holdout or keys == {f"sub.dir 1/{name}" for name in NAMES}
    places = {key: index for index, key in enumerate(from_lmdb.keys)}
    for index, key in enumerate(from_disk.keys):
        place = places[str(Path(key).relative_to(folder))[:-4]]
        found = from_lmdb[SampleIndex(place, 1, 7)]["gt"]
        assert torch.equal(found, from_disk[SampleIndex(index, 1, 7)]["gt"])


def test_pairs_in_lmdbs_have_names_with_spaces_and_dots(odd_names, tmp_path):
    folder, target = odd_names
    # An LMDB is opened only once in a process.
    twin = write_lmdb(folder, tmp_path / "twin.lmdb")
    options = {
        "name": "t",
        "type": "PairedImageDataset",
        "phase": "val",
        "scale": 1,
        "dataroot_gt": str(target),
        "dataroot_lq": str(twin),
        "io_backend": {"type": "lmdb"},
    }
    dataset = build_dataset(options)
    assert len(dataset) == len(NAMES)
    for index in range(len(NAMES)):
        sample = dataset[index]
        image = cv2.imread(str(folder / f"{sample['gt_path']}.png"))[..., ::-1]
        found = (sample["gt"].permute(1, 2, 0).numpy() * 255).round()
        assert np.array_equal(found, image) and torch.equal(sample["gt"], sample["lq"])
    (folder / "sub.dir 1/plain.png").unlink()
    fewer = write_lmdb(folder, tmp_path / "fewer.lmdb")
    with pytest.raises(QuantFaceError, match=r"'sub\.dir 1/plain' in one of them alone"):
        build_dataset({**options, "dataroot_lq": str(fewer), "io_backend": {"type": "lmdb"}})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.png (8,8,3) 1\nb.png 8 8 3\n", "line 2: found 'b.png 8 8 3', expected 'NAME.png"),
        ("a.png (8,8,3) 1\n\na.jpg (9,9,3) 1\n", "line 3: key 'a' occurs twice"),
        ("\n", "names no images"),
    ],
)
def test_lines_of_an_lmdb_that_are_wrong_are_named(odd_names, text, words):
    (odd_names[1] / "meta_info.txt").write_text(text)
    with pytest.raises(QuantFaceError, match=re.escape(words)):
        make(odd_names[1], io_backend={"type": "lmdb"})


def test_second_order_degrades_more():
    image = cv2.resize(np.random.rand(16, 16, 3).astype(np.float32), (128, 128))
    errors = []
    for probability in (0.0, 1.0):
        with seeded(3):
            out = Degradation(second_order_prob=probability)(image, 512)
        errors.append(np.abs(out - image).mean())
    assert errors[1] > errors[0] > 0


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"dataroot_gt": "nowhere/faces"}, "nowhere/faces"),
        ({"gt_size": 500}, "500"),
        ({"degradation": {"blurr": 1}}, "blurr"),
        ({"gtsize": 1}, "gtsize"),
    ],
)
def test_bad_options_are_named(faces, options, word):
    with pytest.raises(QuantFaceError, match=word):
        make(faces, **options)


@pytest.fixture
def warnings(caplog, monkeypatch):
    """What was logged as a warning; BasicSR's logger does not hand on what it gets.

    Earlier tests of the process may have switched it off or raised its level.
    """
    logger = get_root_logger()
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "disabled", False)
    caplog.set_level("WARNING", logger=logger.name)
    return lambda: [record.getMessage() for record in caplog.records]


def test_unusable_files_are_named_counted_and_skipped(faces, warnings):
    (faces / "large" / "broken.png").write_bytes(b"\x89PNG not really")
    cv2.imwrite(str(faces / "large" / "tiny.png"), np.zeros((8, 8, 3), np.uint8))
    (faces / "large" / "._large0.png").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X        ")
    assert len(make(faces)) == 4
    [line] = warnings()
    assert "2 of 6 files" in line and "broken.png" in line and "tiny.png" in line
    assert "._large0" not in line


def test_more_than_half_unusable_files_are_an_error(faces):
    for index in range(5):
        (faces / f"broken{index}.jpg").write_bytes(b"no picture")
    with pytest.raises(QuantFaceError, match=r"5 of 9 files .* at most half"):
        make(faces)


def test_a_truncated_file_is_replaced_when_it_is_read(faces, warnings):
    path = faces / "large/large0.png"
    path.write_bytes(path.read_bytes()[:-200])
    dataset = make(faces, use_hflip=False)
    samples = [dataset[SampleIndex(0, 1, place)] for place in range(6)]
    assert all(Path(sample["gt_path"]) != path for sample in samples)
    [line] = warnings()
    assert "1 of 4 files" in line and "large0.png" in line
    again = make(faces, use_hflip=False)[SampleIndex(0, 1, 5)]
    assert torch.equal(again["lq"], samples[5]["lq"])


def test_no_readable_picture_of_the_size_is_an_error(faces):
    for name in ("large0", "large1"):
        path = faces / f"large/{name}.png"
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(QuantFaceError, match=r"gt_size 96: .*large\d\.png"):
        make(faces, gt_size=96)[0]


def test_sampler_goes_on_where_it_was_stopped():
    def drawn(resume_at, epoch=1):
        sampler = ResumableSampler(list(range(10)), 1, 0, ratio=3)
        sampler.batch_size = 4
        sampler.resume_at = resume_at
        sampler.set_epoch(epoch)
        # BasicSR's prefetcher starts an iterator that it never uses.
        next(iter(sampler))
        return [(int(i), i.iteration, i.position) for i in sampler]

    whole = drawn((0, 0))
    assert drawn((1, 3)) == whole[12:]
    assert drawn((1, 3), epoch=2) == drawn((0, 0), epoch=2)
    assert whole[0][1] == 30 // 4 + 1
    assert len({position for _, _, position in whole}) == 30
