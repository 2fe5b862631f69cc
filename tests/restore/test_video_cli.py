"""The restore command on videos, with a tiny restorer that has random weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from disks import full_disk
from programs import run_program
from small_networks import TINY
from videos import sound_hash, streams, write_video

from quantface_arch.archs.build import build_arch
from quantface_arch.faces.face import Face
from quantface_arch.faces.yunet import YuNetDetector
from quantface_arch.restore.cli import main, make_parser
from quantface_arch.restore.options import RestoreOptions
from quantface_arch.restore.restorer import FaceRestorer
from quantface_arch.restore.results import FoundFaces
from quantface_arch.restore.video_run import VideoRun
from quantface_arch.utils.cli import run
from quantface_arch.utils.images import RGBImage, load_rgb, resize, write_image
from quantface_arch.video.reader import VideoReader


@pytest.fixture
def photo(repo):
    """Return a small photograph of one face."""
    return resize(load_rgb(repo / "inputs/astronaut.jpg"), 256, 256)


@pytest.fixture
def command(repo, model, tmp_path):
    """Return the command line without its inputs."""
    words = [sys.executable, repo / "inference/restore.py", "--model", model]
    words += ["--runtime", "reference", "--detector", "yunet", "--offline", "-o", tmp_path / "out"]
    return [str(word) for word in words]


def _swaying(photo, count):
    return [np.roll(photo, round(4 * np.sin(number)), axis=1) for number in range(count)]


def _written(folder):
    """Return the files of a folder, except the manifest that every run writes."""
    found = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".jsonl")
    return sorted(str(p.relative_to(folder)) for p in found)


def _check_errors(stderr, wanted):
    """Check that the failed files are named, in this order, each with its reason."""
    assert "Traceback" not in stderr
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert [line.split(": ")[1].rpartition("/")[2] for line in errors] == list(wanted)
    assert all(reason in line for reason, line in zip(wanted.values(), errors, strict=True))


@pytest.mark.slow
def test_a_folder_of_videos_and_images(command, photo, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    blank = [np.full_like(photo, 100)] * 4
    write_video(folder / "good.mp4", _swaying(photo, 8) + blank, sound="aac")
    write_video(folder / "faceless.mkv", blank, sound="flac")
    write_image(folder / "picture.png", RGBImage(photo))
    write_video(folder / "cut.avi", _swaying(photo, 12))
    cut = (folder / "cut.avi").read_bytes()
    (folder / "cut.avi").write_bytes(cut[: len(cut) // 2])
    (folder / "text.webm").write_text("hello")
    words = ["-i", str(folder), "--compare", "--upscale", "1.5", "--batch-size", "3"]
    # The default takes a share of the shapes from the input, which weakens the network's changes.
    done = run_program(*command[1:], *words, "--color-fix", "lowres")
    assert done.returncode == 1, done.stderr
    _check_errors(
        done.stderr,
        {"cut.avi": "truncated", "faceless.mkv": "no face found", "text.webm": "not a video"},
    )
    out = tmp_path / "out"
    assert _written(out) == [
        *("compare/good.mp4", "compare/picture.png", "cropped_faces/picture_00.png"),
        *("restored/good.mp4", "restored/picture.png", "restored_faces/picture_00.png"),
    ]
    before, after = streams(folder / "good.mp4"), streams(out / "restored/good.mp4")
    assert after["video"]["size"] == (384, 384)
    for key in ("frames", "rate"):
        assert after["video"][key] == before["video"][key]
    assert sound_hash(out / "restored/good.mp4") == sound_hash(folder / "good.mp4")
    with VideoReader(out / "restored/good.mp4") as reader:
        frames = [resize(rgb, 256, 256) for rgb, _ in reader]
    left, top, right, bottom = YuNetDetector().detect(photo)[0].box.astype(int)
    for before, after in zip(_swaying(photo, 8), frames, strict=False):
        change = np.abs(after.astype(int) - before).mean(axis=2)
        # The random network changes the face strongly; elsewhere only the codec changes pixels.
        assert change[top:bottom, left:right].mean() > 3 * change[:, -40:].mean()
    assert all(np.abs(frame.astype(int) - 100).max() < 6 for frame in frames[8:])
    for text in ("1 images", "1 videos, 12 frames, 8 faces", "3 failed", "4 frames written unrest"):
        assert text in done.stdout
    assert "12/12" in done.stderr and "frame/s" in done.stderr.replace("s/frame", "frame/s")


@pytest.mark.slow
def test_a_note_names_what_a_video_loses(restore, photo, tmp_path):
    write_video(tmp_path / "a.mkv", [photo] * 2, attachment=b"font")
    status, _, stderr = restore("-i", tmp_path / "a.mkv")
    assert status == 0
    notes = [line for line in stderr.splitlines() if line.startswith("note: ")]
    assert f"note: {tmp_path / 'a.mkv'}: not kept: 1 attachment track" in notes


@pytest.mark.slow
def test_the_times_of_frames_are_kept(restore, photo, tmp_path):
    """The videos side by side have them too, and detection and batches delay the frames."""
    write_video(tmp_path / "a.mkv", [photo] * 9, times=[0, 1, 2, 10, 11, 30, 31, 32, 33])
    assert restore("-i", tmp_path / "a.mkv", "--compare", "--batch-size", "3")[0] == 0
    for folder in ("restored", "compare"):
        with VideoReader(tmp_path / "out" / folder / "a.mp4") as reader:
            starts = [float(span.start) for _, span in reader]
        assert starts == [number / 25 for number in (0, 1, 2, 10, 11, 30, 31, 32, 33)]


@pytest.mark.slow
def test_an_interrupted_video_does_not_count_as_done(command, photo, tmp_path):
    write_video(tmp_path / "long.mp4", _swaying(photo, 400))
    process = subprocess.Popen(
        [*command, "-i", str(tmp_path / "long.mp4")],
        stderr=subprocess.DEVNULL,
        # Shells make background processes ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    restored = tmp_path / "out/restored"
    try:
        while not (restored.is_dir() and any(restored.iterdir())):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 130
    finally:
        process.kill()
    assert not _written(tmp_path / "out")


@pytest.fixture
def restore(command, monkeypatch, capsys):
    """Return a function that runs the command: arguments to (exit status, stdout, stderr)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", [*command[1:], *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            run(main, make_parser())
        return stopped.value.code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("option", ["--aligned", "--sample"])
def test_options_that_do_not_apply_to_videos(restore, photo, tmp_path, option):
    write_video(tmp_path / "a.mp4", [photo] * 2)
    status, _, stderr = restore("-i", tmp_path / "a.mp4", option)
    assert status == 2 and not (tmp_path / "out").exists()
    assert stderr.startswith(f"error: {option} cannot be used with the video {tmp_path / 'a.mp4'}")


def test_videos_without_faces_and_videos_that_exist(restore, photo, tmp_path):
    write_video(tmp_path / "a.mp4", [np.full_like(photo, 100)] * 3)
    status, stdout, _ = restore("-i", tmp_path / "a.mp4", "--keep-unrestored")
    assert status == 0 and "1 videos, 3 frames, 0 faces" in stdout
    assert "3 frames written unrestored" in stdout
    assert _written(tmp_path / "out") == ["restored/a.mp4"]
    status, stdout, _ = restore("-i", tmp_path / "a.mp4", "--skip-existing")
    assert status == 0 and "all 1 inputs are done already" in stdout


@pytest.mark.slow
def test_resuming_videos_by_the_manifest(restore, photo, tmp_path):
    good, broken = tmp_path / "a.mp4", tmp_path / "b.mp4"
    write_video(good, _swaying(photo, 3))
    broken.write_text("hello")
    assert restore("-i", good, broken)[0] == 1
    notes = [json.loads(line) for line in (tmp_path / "out/manifest-0.jsonl").open()]
    assert [note["error"] is None for note in notes] == [True, False]
    assert "not a video" in notes[1]["error"] and notes[0]["faces"] == 3
    os.mkfifo(tmp_path / "c.mp4")
    status, stdout, stderr = restore("-i", tmp_path, "--resume")
    assert status == 1 and "0 videos" in stdout and "2 failed, 1 skipped" in stdout
    assert "c.mp4: cannot be read: it is a pipe" in stderr
    write_video(good, _swaying(photo, 4))
    assert "1 videos, 4 frames" in restore("-i", good, "--resume")[1]


def _frames(path):
    with VideoReader(path) as reader:
        return np.stack([rgb for rgb, _ in reader]).astype(int)


@pytest.mark.slow
def test_compared_videos_and_strengths(restore, photo, tmp_path):
    write_video(tmp_path / "a.mp4", [photo] * 3)
    before, results = _frames(tmp_path / "a.mp4"), []
    left, top, right, bottom = YuNetDetector().detect(photo)[0].box.astype(int)
    face = np.s_[:, top:bottom, left:right]
    for strength in (0, 0.5, 1):
        out = tmp_path / f"out{strength}"
        words = ("-i", tmp_path / "a.mp4", "-o", out, "--compare", "--strength", strength)
        assert restore(*words)[0] == 0
        after, pair = _frames(out / "restored/a.mp4"), _frames(out / "compare/a.mp4")
        results.append(after[face])
        # The codec changes either half by a few levels.
        assert np.abs(pair[:, -256:, :256] - before).mean() < 4
        assert np.abs(pair[:, -256:, -256:] - after).mean() < 4
    unchanged, half, whole = results
    assert np.abs(unchanged - before[face]).mean() < 4
    recorded = [json.loads((tmp_path / f"out{s}/manifest-0.jsonl").read_text()) for s in (0, 0.5)]
    levels = [record["strength"] for record in recorded]
    assert levels == [{"least": s, "mean": s, "most": s} for s in (0, 0.5)]
    # Compared with the unchanged video, which went through the same codec.
    changes = [np.abs(result - unchanged).mean() for result in (half, whole)]
    assert changes[1] > 1.5 * changes[0] > 1.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("faces", "side", "most"), [(1, 64, 3), (0, 64, 1), (2, 64, 2), (1, 4000, 2)]
)
def test_pending_frames_are_bounded(faces, side, most):
    """Frames are pending until their faces fill a batch or their pixels reach the limit."""
    restorer = FaceRestorer(build_arch(TINY), detector="yunet", batch_size=3)
    frame, face = np.zeros((side, side, 3), np.uint8), np.zeros((512, 512, 3), np.uint8)
    run_videos, read = VideoRun(restorer, None, RestoreOptions(), None), []
    matrix = np.array([[1.0, 0, 600], [0, 1, 600]])

    def found():
        for number in range(7):
            read.append(number)
            box = Face(np.zeros(4), np.zeros((5, 2)), 1.0)
            yield FoundFaces(RGBImage(frame), [box] * faces, [matrix] * faces, [face] * faces)

    pending, done = 0, 0
    for _ in run_videos._restored(found()):
        pending = max(pending, len(read) - done)
        done += 1
    assert (done, pending) == (7, most)


def test_a_full_disk_ends_the_run(restore, photo, tmp_path):
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, [photo] * 2)
    with full_disk(3000):
        status, stdout, stderr = restore("-i", tmp_path / "a.mp4", tmp_path / "b.mp4")
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert status == 1 and not stdout and not _written(tmp_path / "out")
    assert len(errors) == 1 and "a.mp4: File too large" in errors[0]
