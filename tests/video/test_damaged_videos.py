"""Videos that are cut short or damaged are errors that name the file; whole ones never are."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import av
import numpy as np
import pytest
from videos import write_video

from quantface_arch.errors import QuantFaceError, WriteError
from quantface_arch.utils.files import atomic_path
from quantface_arch.video.container import demuxed
from quantface_arch.video.reader import VideoReader

# For each name: suffix, encoder of the sound and options of the file format.
FILES = {
    "mp4, index first": (".mp4", "aac", {"movflags": "+faststart"}),
    "mp4, index last": (".mp4", "aac", {}),
    "mp4, fragments": (".mp4", "aac", {"movflags": "+frag_keyframe+empty_moov"}),
    "mkv": (".mkv", "flac", {}),
    "webm": (".webm", "libopus", {}),
    "live webm": (".webm", "libopus", {"live": "1"}),
    "avi": (".avi", "libmp3lame", {}),
    "avi without sound": (".avi", None, {}),
    "mpg": (".mpg", "mp2", {}),
}
# FFmpeg finds its way again in damaged program streams, without an error. Sound is copied without
# decoding, so these files have none.
DAMAGED = {name: (suffix, None, options) for name, (suffix, _, options) in FILES.items()}
del DAMAGED["mpg"]
FRAMES = 30


@pytest.fixture(scope="module")
def noise():
    """Return frames that do not compress, so that a cut takes whole frames."""
    first = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    return [np.roll(first, 3 * number, axis=1) for number in range(FRAMES)]


@pytest.fixture
def video(request, noise, tmp_path):
    suffix, sound, options = request.param
    path = tmp_path / f"a{suffix}"
    write_video(path, noise, 25, sound, gop=1, **options)
    return path


def count(path):
    with VideoReader(path) as reader:
        return sum(1 for _ in reader)


@pytest.mark.slow
@pytest.mark.parametrize("video", FILES.values(), ids=FILES, indirect=True)
def test_every_cut_is_found(video):
    data = video.read_bytes()
    assert count(video) == FRAMES
    for share in np.linspace(0.04, 0.995, 25):
        video.write_bytes(data[: round(share * len(data))])
        with pytest.raises(
            QuantFaceError, match=rf"{video.name}: .*(damaged|no frame|no video track)"
        ):
            count(video)


@pytest.mark.slow
@pytest.mark.parametrize("video", DAMAGED.values(), ids=DAMAGED, indirect=True)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_damage_within_a_file_is_found(video, share):
    data = bytearray(video.read_bytes())
    start, length = round(share * len(data)), len(data) // 8
    data[start : start + length] = np.random.default_rng(1).bytes(length)
    video.write_bytes(data)
    with pytest.raises(QuantFaceError, match=rf"{video.name}: truncated or damaged: "):
        count(video)


@pytest.mark.parametrize(
    "video", [FILES[name] for name in ("mp4, index first", "mkv", "webm", "avi")], indirect=True
)
def test_bytes_after_the_end_do_no_harm(video):
    with video.open("ab") as file:
        file.write(b"\0" * 100 + b"after the end" * 10)
    assert count(video) == FRAMES


def test_a_camera_may_declare_more_media_data_than_it_uses(noise, tmp_path):
    """Only the samples in the index are needed."""
    path = tmp_path / "a.mp4"
    write_video(path, noise, movflags="+faststart")
    data = path.read_bytes()
    start = data.index(b"mdat") - 4
    size = int.from_bytes(data[start : start + 4], "big") + 5000
    path.write_bytes(data[:start] + size.to_bytes(4, "big") + data[start + 4 :])
    assert count(path) == FRAMES


class FailingDisk:
    """A container whose file cannot be read."""

    def demux(self, *_):
        raise av.error.OSError(errno.EIO, "Input/output error")
        yield


def test_a_read_error_is_not_one_of_writing(tmp_path):
    """A damaged input must not end the run, as a full disk does."""
    with (
        pytest.raises(QuantFaceError, match=r"a\.mkv: .*Input/output error") as caught,
        atomic_path(tmp_path / "b.mp4"),
    ):
        list(demuxed(Path("a.mkv"), FailingDisk(), ()))
    assert not isinstance(caught.value, WriteError) and not os.listdir(tmp_path)


@pytest.mark.parametrize("kind", ["text", "empty", "missing", "pipe", "sound only"])
def test_the_error_names_a_file_that_is_no_video(tmp_path, noise, kind):
    path = tmp_path / "a.avi"
    wanted = {
        "text": "cannot be read: not a video",
        "empty": "empty file",
        "missing": "cannot be read: .*No such",
        "pipe": "cannot be read: .*it is a pipe",
        "sound only": "no video track",
    }[kind]
    if kind == "text":
        path.write_text("hello")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "sound only":
        write_video(path, noise, sound="libmp3lame")
        data = path.read_bytes().replace(b"vids", b"xxxx").replace(b"FMP4", b"xxxx")
        path.write_bytes(data)
    with pytest.raises(QuantFaceError, match=rf"a\.avi: .*{wanted}|a\.avi: {wanted}"):
        count(path)
