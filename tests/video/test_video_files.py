"""Reading and writing videos keeps frames, rotation and sound, and writes whole files."""

from __future__ import annotations

import os
import socket
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from disks import full_disk
from videos import copy_video, frames_of, sound_hash, streams, turn, write_video

from quantface_arch.errors import QuantFaceError, WriteError
from quantface_arch.utils.images import RGBImage, write_image
from quantface_arch.video.reader import Span, VideoReader
from quantface_arch.video.tracks import unkept
from quantface_arch.video.writer import video_writer


def stripes(count, height=48, width=64):
    """Return frames whose left half is red and in which a bright stripe moves down."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[:, :, : width // 2, 0] = 200
    for number, frame in enumerate(frames):
        frame[4 * number % height :][:4] = 255
    return list(frames)


def span(number):
    return Span(Fraction(number, 25), Fraction(1, 25))


def rewritten(folder, count, change):
    """Return the frames of a video after each frame and its span went through ``change``."""
    write_video(folder / "a.mp4", stripes(count))
    with (
        VideoReader(folder / "a.mp4") as reader,
        video_writer(folder / "b.mp4", reader) as write,
    ):
        for frame in reader:
            write(*change(*frame))
    return frames_of(folder / "b.mp4")


def test_frames_colours_and_rate_are_kept(tmp_path):
    frames = stripes(10)
    write_video(tmp_path / "a.mp4", frames, 12.5)
    copy_video(tmp_path / "a.mp4", tmp_path / "b.mp4")
    # Check the first video as well: errors in reading and writing could cancel in the second.
    for name in ("a.mp4", "b.mp4"):
        with VideoReader(tmp_path / name) as reader:
            assert reader.rate == Fraction(25, 2) and reader.frames == 10
            found = list(reader)
        for number, (before, (after, own)) in enumerate(zip(frames, found, strict=True)):
            assert np.abs(before.astype(int) - after).mean() < 6
            assert own == Span(Fraction(2 * number, 25), Fraction(2, 25))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_sides_of_odd_length_are_made_even(tmp_path):
    frames = rewritten(tmp_path, 3, lambda rgb, own: (rgb[:47, :61], own))
    assert frames[0].shape == (48, 62, 3)


def test_frames_of_another_size_are_resized_to_the_first(tmp_path):
    paths = [tmp_path / "a.h264", tmp_path / "b.h264"]
    for path, size in zip(paths, ((48, 64), (96, 128)), strict=True):
        write_video(path, stripes(5, *size))
    (tmp_path / "c.mpg").write_bytes(b"".join(path.read_bytes() for path in paths))
    with VideoReader(tmp_path / "c.mpg") as reader:
        found = list(reader)
    assert [rgb.shape for rgb, _ in found] == [(48, 64, 3)] * 10
    assert all(own.duration == Fraction(1, 25) for _, own in found)


def test_times_that_jump_back_are_an_error(tmp_path):
    write_video(tmp_path / "a.mpg", stripes(50))
    (tmp_path / "b.mpg").write_bytes((tmp_path / "a.mpg").read_bytes() * 2)
    assert len(frames_of(tmp_path / "a.mpg")) == 50
    with pytest.raises(QuantFaceError, match=r"b\.mpg: after 1\.96 s the times jump back to 0\.00"):
        frames_of(tmp_path / "b.mpg")


def test_a_failure_keeps_the_existing_file(tmp_path):
    write_video(tmp_path / "a.mp4", stripes(3))
    (tmp_path / "b.mp4").write_text("before")
    with (
        pytest.raises(RuntimeError),
        VideoReader(tmp_path / "a.mp4") as reader,
        video_writer(tmp_path / "b.mp4", reader) as write,
    ):
        write(*next(iter(reader)))
        raise RuntimeError
    assert (tmp_path / "b.mp4").read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize("frames", [[], [np.zeros((2, 80000, 3), np.uint8)] * 2])
def test_the_error_names_a_file_that_cannot_be_encoded(tmp_path, frames):
    write_video(tmp_path / "a.mp4", stripes(3))
    with (
        VideoReader(tmp_path / "a.mp4") as reader,
        pytest.raises(QuantFaceError, match=r"cannot write .*b\.mp4"),
        video_writer(tmp_path / "b.mp4", reader) as write,
    ):
        for number, rgb in enumerate(frames):
            write(rgb, span(number))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4"]


def test_frames_with_equal_times_are_all_kept(tmp_path):
    frames = rewritten(tmp_path, 4, lambda rgb, own: (rgb, Span(Fraction(0), own.duration)))
    assert len(frames) == 4


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied(tmp_path, degrees):
    """The decoder's frames are turned clockwise by the angle in the header."""
    write_video(tmp_path / "a.mp4", stripes(3), sound="aac")
    before = frames_of(tmp_path / "a.mp4")[0].astype(int)
    turn(tmp_path / "a.mp4", degrees)
    copy_video(tmp_path / "a.mp4", tmp_path / "b.mp4")
    wanted = np.rot90(before, -degrees // 90)
    assert np.abs(frames_of(tmp_path / "b.mp4")[0] - wanted).mean() < 6
    with VideoReader(tmp_path / "b.mp4") as reader:
        assert np.abs(next(iter(reader))[0] - wanted).mean() < 6
    with av.open(str(tmp_path / "b.mp4")) as result:
        assert next(result.decode(video=0)).rotation == 0
    assert sound_hash(tmp_path / "b.mp4") == sound_hash(tmp_path / "a.mp4")


@pytest.mark.parametrize(("degrees", "aspect"), [(0, Fraction(4, 3)), (90, Fraction(3, 4))])
def test_pixel_aspect_and_tags_are_kept(tmp_path, degrees, aspect):
    write_video(tmp_path / "a.mp4", stripes(5), "30000/1001", aspect=Fraction(4, 3))
    turn(tmp_path / "a.mp4", degrees)
    copy_video(tmp_path / "a.mp4", tmp_path / "b.mp4")
    video = streams(tmp_path / "b.mp4")["video"]
    assert (video["codec"], video["aspect"], video["frames"]) == ("h264", aspect, 5)
    assert (video["rate"], video["colours"]) == (Fraction(30000, 1001), 1)


@pytest.mark.parametrize(
    ("suffix", "sound", "kept"),
    [
        (".mkv", "pcm_s16le", False),
        (".mkv", "libopus", True),
        (".mkv", "flac", True),
        (".mkv", "ac3", True),
        (".avi", "libmp3lame", True),
        (".avi", "pcm_s16le", False),
        (".mpg", "mp2", True),
    ],
)
def test_sound_is_copied_if_mp4_can_hold_it(tmp_path, suffix, sound, kept):
    source = (tmp_path / "a").with_suffix(suffix)
    write_video(source, stripes(15), sound=sound)
    copy_video(source, tmp_path / "b.mp4")
    assert (sound_hash(tmp_path / "b.mp4") == sound_hash(source)) is kept
    assert (streams(tmp_path / "b.mp4")["audio"]["codec"] == "aac") is not kept


def test_every_sound_track_is_kept_and_what_is_lost_is_named(tmp_path):
    source = tmp_path / "a.mkv"
    with av.open(str(source), "w") as output:
        video = output.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sounds = [output.add_stream(name, rate=48000) for name in ("ac3", "flac")]
        for stream, language in zip(sounds, ("deu", "fra"), strict=True):
            stream.metadata["language"] = language
        bitmap = output.add_mux_stream("dvd_subtitle")
        output.add_attachment("font.ttf", "font/ttf", b"font")
        for number, rgb in enumerate(stripes(5)):
            frame = av.VideoFrame.from_ndarray(rgb)
            frame.pts = number
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        for stream in sounds:
            silence = av.AudioFrame.from_ndarray(
                np.zeros((2, 9600), np.float32), format="fltp", layout="stereo"
            )
            silence.sample_rate, silence.pts = 48000, 0
            output.mux([*stream.encode(silence), *stream.encode(None)])
        packet = av.Packet(bytes(8))
        packet.stream, packet.pts, packet.dts, packet.time_base = bitmap, 0, 0, Fraction(1, 1000)
        output.mux(packet)
    with VideoReader(source) as reader:
        assert unkept(reader) == "1 dvd_subtitle subtitle track, 1 attachment track"
    copy_video(source, tmp_path / "b.mp4")
    with av.open(str(tmp_path / "b.mp4")) as result:
        found = [(s.codec_context.name, s.language) for s in result.streams.audio]
    assert found == [("ac3", "deu"), ("flac", "fra")]


def test_unsupported_sizes_are_errors(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", stripes(2, 8, 64))
    with pytest.raises(QuantFaceError, match=r"frames of 64x8 pixels: at least 16x16"):
        VideoReader(tmp_path / "a.mp4")
    write_video(tmp_path / "c.mp4", stripes(2))
    monkeypatch.setattr("quantface_arch.video.reader.MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(QuantFaceError, match=r"frames of 64x48 pixels: .* at most"):
        VideoReader(tmp_path / "c.mp4")


def test_a_video_opens_no_other_file_or_address(tmp_path):
    """A pipe, a pattern of image names and playlists are refused."""
    write_video(tmp_path / "a.mp4", stripes(2))
    os.mkfifo(tmp_path / "pipe.mp4")
    for number in range(3):
        write_image(tmp_path / f"{number}.png", RGBImage(stripes(1)[0]))
        (tmp_path / f"{number}.png").rename(tmp_path / f"a_{number:02d}.mp4")
    (tmp_path / "a_%02d.mp4").write_text("hello")
    (tmp_path / "joined.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        for name, entry in {"list.m3u8": address, "local.m3u8": "a.mp4"}.items():
            playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{entry}\n#EXT-X-ENDLIST\n"
            (tmp_path / name).write_text(playlist)
        for name, message in {
            "pipe.mp4": "it is a pipe, expected a file",
            "a_%02d.mp4": "not a video",
            "joined.mp4": "not a video",
            "list.m3u8": "not a video",
            "local.m3u8": "not a video",
        }.items():
            with pytest.raises(QuantFaceError, match=rf"{name}: cannot be read: {message}"):
                VideoReader(tmp_path / name)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_names_that_look_like_addresses_are_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.mp4", stripes(3))
    (tmp_path / "http:").mkdir()
    (tmp_path / "a.mp4").rename(tmp_path / "rtmp:a.mp4")
    copy_video(Path("rtmp:a.mp4"), Path("http:/b.mp4"))
    assert len(frames_of("http:/b.mp4")) == 3


def test_a_full_disk_is_an_error(tmp_path):
    noise = np.random.randint(0, 255, (20, 64, 64, 3), np.uint8)
    write_video(tmp_path / "a.avi", list(noise))
    with (
        full_disk(20_000),
        pytest.raises(WriteError, match=r"cannot write .*b\.mp4: File too large"),
    ):
        copy_video(tmp_path / "a.avi", tmp_path / "b.mp4")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.avi"]
