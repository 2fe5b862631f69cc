"""Reading and writing videos keeps frames, rate, rotation and sound, and reports damage."""

from __future__ import annotations

import os
import socket
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from disks import full_disk
from videos import needs_ffmpeg, sound_hash, streams, write_plain_video, write_video

from quantface_arch.errors import QuantFaceError, WriteError
from quantface_arch.utils.images import RGBImage, write_image
from quantface_arch.video import writer
from quantface_arch.video.reader import VideoReader
from quantface_arch.video.writer import video_writer


def stripes(count, height=48, width=64):
    """Return frames whose left half is red and in which a bright stripe moves down."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[:, :, : width // 2, 0] = 200
    for number, frame in enumerate(frames):
        frame[4 * number % height :][:4] = 255
    return list(frames)


def copy_video(source, target):
    with VideoReader(source) as reader, video_writer(target, reader) as write:
        for frame in reader:
            write(frame)


@pytest.fixture(params=["ffmpeg", "opencv"])
def encoder(request, monkeypatch):
    if request.param == "opencv":
        monkeypatch.setattr(writer, "find_ffmpeg", lambda: None)
    elif writer.find_ffmpeg() is None:
        pytest.skip("no ffmpeg on the PATH")
    return request.param


def test_frames_colours_and_rate_are_kept(encoder, tmp_path):
    frames = stripes(10)
    write_plain_video(tmp_path / "a.mp4", frames, 12.5)
    copy_video(tmp_path / "a.mp4", tmp_path / "b.mp4")
    # Check the first video as well: errors in reading and writing could cancel in the second.
    for name in ("a.mp4", "b.mp4"):
        with VideoReader(tmp_path / name) as reader:
            assert reader.rate == Fraction(25, 2) and reader.frames == 10
            found = list(reader)
        for before, after in zip(frames, found, strict=True):
            assert np.abs(before.astype(int) - after).mean() < 6
    assert [p.name for p in tmp_path.iterdir() if p.name not in ("a.mp4", "b.mp4")] == []


def test_sides_of_odd_length_are_made_even(encoder, tmp_path):
    write_plain_video(tmp_path / "a.mp4", stripes(3))
    with (
        VideoReader(tmp_path / "a.mp4") as reader,
        video_writer(tmp_path / "b.mp4", reader) as write,
    ):
        for frame in reader:
            write(frame[:47, :61])
    with VideoReader(tmp_path / "b.mp4") as reader:
        assert next(iter(reader)).shape == (48, 62, 3)


def test_a_failure_keeps_the_existing_file(encoder, tmp_path):
    write_plain_video(tmp_path / "a.mp4", stripes(3))
    (tmp_path / "b.mp4").write_text("before")
    with (
        pytest.raises(RuntimeError),
        VideoReader(tmp_path / "a.mp4") as reader,
        video_writer(tmp_path / "b.mp4", reader) as write,
    ):
        write(next(iter(reader)))
        raise RuntimeError
    assert (tmp_path / "b.mp4").read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_the_error_names_a_file_that_cannot_be_encoded(encoder, tmp_path):
    write_plain_video(tmp_path / "a.mp4", stripes(3))
    with VideoReader(tmp_path / "a.mp4") as reader:
        for frames in ([], [np.zeros((2, 80000, 3), np.uint8)] * 2):
            with (
                pytest.raises(QuantFaceError, match=r"b\.mp4"),
                video_writer(tmp_path / "b.mp4", reader) as write,
            ):
                for frame in frames:
                    write(frame)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4"]


def test_frames_that_opencv_drops_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "find_ffmpeg", lambda: None)
    write_plain_video(tmp_path / "a.mp4", stripes(2))
    with (
        pytest.raises(QuantFaceError, match=r"b\.mp4: 1 of 2 frames were written"),
        VideoReader(tmp_path / "a.mp4") as reader,
        video_writer(tmp_path / "b.mp4", reader) as write,
    ):
        first, second = reader
        write(first)
        # OpenCV silently drops a frame of another size.
        write(second[:32])
    assert not (tmp_path / "b.mp4").exists()


@needs_ffmpeg
def test_sound_rotation_and_pixel_aspect_are_kept(tmp_path):
    turned, shaped = tmp_path / "turned.mp4", tmp_path / "shaped.mkv"
    write_video(tmp_path / "a.mp4", stripes(15), options=["-c:a", "aac"])
    tags = ["-c", "copy", "-metadata:s:v", "rotate=90"]
    write_video(shaped, stripes(15), options=["-vf", "setsar=4/3", "-c:a", "pcm_s16le"])
    subprocess.run(["ffmpeg", "-v", "error", "-i", tmp_path / "a.mp4", *tags, turned], check=True)
    for source in (turned, shaped):
        copy_video(source, tmp_path / f"{source.stem}_out.mp4")
    first = streams(tmp_path / "turned_out.mp4")
    assert first["video"]["codec_name"] == "h264"
    assert (first["video"]["width"], first["video"]["height"]) == (48, 64)
    assert not any("rotation" in data for data in first["video"].get("side_data_list", []))
    assert first["video"]["nb_frames"] == "15"
    assert first["video"]["r_frame_rate"] == "30000/1001"
    assert sound_hash(tmp_path / "turned_out.mp4") == sound_hash(turned)
    # Compare with ffmpeg, which applies the rotation: the red half is above or below, the stripe
    # is vertical.
    command = ["ffmpeg", "-v", "error", "-i", turned, "-frames:v", "1", "-f", "rawvideo"]
    raw = subprocess.run([*command, "-pix_fmt", "rgb24", "-"], capture_output=True, check=True)
    wanted = np.frombuffer(raw.stdout, np.uint8).reshape(64, 48, 3)
    with VideoReader(tmp_path / "turned_out.mp4") as reader:
        assert np.abs(next(iter(reader)).astype(int) - wanted).mean() < 6
    second = streams(tmp_path / "shaped_out.mp4")
    assert second["video"]["sample_aspect_ratio"] == "4:3"
    assert second["audio"]["codec_name"] == "aac"


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "missing", "pipe"])
def test_the_error_names_a_damaged_file(tmp_path, damage):
    path = tmp_path / "a.avi"
    # Use noise, which does not compress, so that half of the file holds whole frames.
    write_plain_video(path, list(np.random.randint(0, 255, (40, 48, 64, 3), np.uint8)), 25)
    data = path.read_bytes()
    wanted = r"truncated or damaged: \d+ of 40 frames can be read"
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage in ("missing", "pipe"):
        path.unlink()
        if damage == "pipe":
            os.mkfifo(path)
        wanted = "cannot be read: .*(No such|it is a pipe)"
    else:
        path.write_bytes(b"hello" if damage == "text" else b"")
        wanted = "not a video" if damage == "text" else "empty file"
    with pytest.raises(QuantFaceError, match=rf"a\.avi: .*{wanted}"):
        list(VideoReader(path))


def test_unsupported_sizes_and_rates_are_errors(tmp_path, monkeypatch):
    write_plain_video(tmp_path / "a.mp4", stripes(2, 8, 64))
    with pytest.raises(QuantFaceError, match=r"frames of 64x8 pixels: at least 16x16"):
        VideoReader(tmp_path / "a.mp4")
    write_plain_video(tmp_path / "b.mp4", stripes(4), 2000)
    with pytest.raises(QuantFaceError, match=r"2000 frames per second: more than 0 and at most"):
        VideoReader(tmp_path / "b.mp4")
    write_plain_video(tmp_path / "c.mp4", stripes(2))
    monkeypatch.setattr("quantface_arch.video.reader.MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(QuantFaceError, match=r"frames of 64x48 pixels: .* at most"):
        VideoReader(tmp_path / "c.mp4")


def test_a_video_opens_no_other_file_or_address(tmp_path):
    """A pipe, a pattern of image names and a playlist are refused."""
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "a_%02d.mp4").write_text("hello")
    for number in range(3):
        write_image(tmp_path / f"{number}.png", RGBImage(stripes(1)[0]))
        (tmp_path / f"{number}.png").rename(tmp_path / f"a_{number:02d}.mp4")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{address}\n#EXT-X-ENDLIST\n"
        (tmp_path / "list.m3u8").write_text(playlist)
        for name, message in {
            "pipe.mp4": "it is a pipe, expected a file",
            "a_%02d.mp4": "not a video",
            "list.m3u8": "not a video",
        }.items():
            with pytest.raises(QuantFaceError, match=rf"{name}: cannot be read: {message}"):
                VideoReader(tmp_path / name)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_names_that_look_like_addresses_are_files(encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_plain_video(tmp_path / "a.mp4", stripes(3))
    (tmp_path / "http:").mkdir()
    (tmp_path / "a.mp4").rename(tmp_path / "rtmp:a.mp4")
    copy_video(Path("rtmp:a.mp4"), Path("http:/b.mp4"))
    with VideoReader("http:/b.mp4") as reader:
        assert len(list(reader)) == 3


def test_a_full_disk_is_an_error(encoder, tmp_path):
    write_plain_video(
        tmp_path / "a.avi", list(np.random.randint(0, 255, (20, 64, 64, 3), np.uint8))
    )
    with (
        full_disk(20_000),
        pytest.raises(WriteError, match=r"cannot write .*b\.mp4: File too large"),
    ):
        copy_video(tmp_path / "a.avi", tmp_path / "b.mp4")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.avi"]
