"""Clips in and out: frames, rate, rotation and sound survive; damage is named."""

from __future__ import annotations

import os
import subprocess
from fractions import Fraction

import numpy as np
import pytest
from clips import needs_ffmpeg, sound_hash, streams, write_clip, write_plain_clip

from quantface_arch.errors import QuantFaceError
from quantface_arch.video import writer
from quantface_arch.video.reader import VideoReader
from quantface_arch.video.writer import written


def stripes(count, height=48, width=64):
    """Frames that differ: a bright stripe moves down; the left half is red."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[:, :, : width // 2, 0] = 200
    for number, frame in enumerate(frames):
        frame[4 * number % height :][:4] = 255
    return list(frames)


def copied(source, target):
    with VideoReader(source) as reader, written(target, reader) as write:
        for frame in reader:
            write(frame)


@pytest.fixture(params=["ffmpeg", "opencv"])
def encoder(request, monkeypatch):
    if request.param == "opencv":
        monkeypatch.setattr(writer, "find_ffmpeg", lambda: None)
    elif writer.find_ffmpeg() is None:
        pytest.skip("no ffmpeg on the PATH")
    return request.param


def test_frames_colours_and_rate_survive(encoder, tmp_path):
    frames = stripes(10)
    write_plain_clip(tmp_path / "a.mp4", frames, 12.5)
    copied(tmp_path / "a.mp4", tmp_path / "b.mp4")
    with VideoReader(tmp_path / "b.mp4") as reader:
        assert reader.rate == Fraction(25, 2) and reader.frames == 10
        found = list(reader)
    assert len(found) == 10
    for before, after in zip(frames, found, strict=True):
        assert np.abs(before.astype(int) - after).mean() < 6
    assert [p.name for p in tmp_path.iterdir() if p.name not in ("a.mp4", "b.mp4")] == []


def test_sides_of_odd_length_are_made_even(encoder, tmp_path):
    write_plain_clip(tmp_path / "a.mp4", stripes(3))
    with VideoReader(tmp_path / "a.mp4") as reader, written(tmp_path / "b.mp4", reader) as write:
        for frame in reader:
            write(frame[:47, :61])
    with VideoReader(tmp_path / "b.mp4") as reader:
        assert next(iter(reader)).shape == (48, 62, 3)


def test_a_failure_leaves_what_was_there(encoder, tmp_path):
    write_plain_clip(tmp_path / "a.mp4", stripes(3))
    (tmp_path / "b.mp4").write_text("before")
    with (
        pytest.raises(RuntimeError),
        VideoReader(tmp_path / "a.mp4") as reader,
        written(tmp_path / "b.mp4", reader) as write,
    ):
        write(next(iter(reader)))
        raise RuntimeError
    assert (tmp_path / "b.mp4").read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_what_cannot_be_encoded_is_named(encoder, tmp_path):
    write_plain_clip(tmp_path / "a.mp4", stripes(3))
    with VideoReader(tmp_path / "a.mp4") as reader:
        for frames in ([], [np.zeros((2, 80000, 3), np.uint8)] * 2):
            with (
                pytest.raises(QuantFaceError, match=r"b\.mp4"),
                written(tmp_path / "b.mp4", reader) as write,
            ):
                for frame in frames:
                    write(frame)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4"]


@needs_ffmpeg
def test_sound_rotation_and_shape_of_pixels_are_kept(tmp_path):
    turned, shaped = tmp_path / "turned.mp4", tmp_path / "shaped.mkv"
    write_clip(tmp_path / "a.mp4", stripes(15), options=["-c:a", "aac"])
    tags = ["-c", "copy", "-metadata:s:v", "rotate=90"]
    write_clip(shaped, stripes(15), options=["-vf", "setsar=4/3", "-c:a", "pcm_s16le"])
    subprocess.run(["ffmpeg", "-v", "error", "-i", tmp_path / "a.mp4", *tags, turned], check=True)
    for source in (turned, shaped):
        copied(source, tmp_path / f"{source.stem}_out.mp4")
    first = streams(tmp_path / "turned_out.mp4")
    assert first["video"]["codec_name"] == "h264"
    assert (first["video"]["width"], first["video"]["height"]) == (48, 64)
    assert not any("rotation" in data for data in first["video"].get("side_data_list", []))
    assert first["video"]["nb_frames"] == "15"
    assert first["video"]["r_frame_rate"] == "30000/1001"
    assert sound_hash(tmp_path / "turned_out.mp4") == sound_hash(turned)
    # Upright as ffmpeg itself turns it: the red half is above or below, the stripe upright.
    command = ["ffmpeg", "-v", "error", "-i", turned, "-frames:v", "1", "-f", "rawvideo"]
    raw = subprocess.run([*command, "-pix_fmt", "rgb24", "-"], capture_output=True, check=True)
    wanted = np.frombuffer(raw.stdout, np.uint8).reshape(64, 48, 3)
    with VideoReader(tmp_path / "turned_out.mp4") as reader:
        assert np.abs(next(iter(reader)).astype(int) - wanted).mean() < 6
    second = streams(tmp_path / "shaped_out.mp4")
    assert second["video"]["sample_aspect_ratio"] == "4:3"
    assert second["audio"]["codec_name"] == "aac"


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "missing", "pipe"])
def test_damage_is_named(tmp_path, damage):
    path = tmp_path / "a.avi"
    write_plain_clip(path, stripes(40), 25)
    data = path.read_bytes()
    wanted = "truncated or damaged"
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage in ("missing", "pipe"):
        path.unlink()
        if damage == "pipe":
            os.mkfifo(path)
        wanted = "cannot be read: .*(No such|it is a pipe)"
    else:
        path.write_bytes(b"hello" if damage == "text" else b"")
        wanted = "not a clip" if damage == "text" else "empty file"
    with pytest.raises(QuantFaceError, match=rf"a\.avi: .*{wanted}"):
        list(VideoReader(path))


def test_sizes_that_are_not_allowed(tmp_path):
    write_plain_clip(tmp_path / "a.mp4", stripes(2, 8, 64))
    with pytest.raises(QuantFaceError, match=r"frames of 64x8 pixels: at least 16x16"):
        VideoReader(tmp_path / "a.mp4")
