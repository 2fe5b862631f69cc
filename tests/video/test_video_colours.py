"""The colours of videos are read by their tags, and copies keep their brightness."""

from __future__ import annotations

import av
import numpy as np
import pytest
from videos import copy_video, frames_of, write_video

from quantface_arch.utils.images import load_rgb, resize

# The formats' names of the matrices: BT.601, BT.709 and BT.2020; and of the ranges.
MATRICES = {"601": (5, 5), "709": (1, 1), "2020": (9, 9)}


def write_colours(path, colours, matrix, full, height, tagged, pix_fmt):
    """Encode one frame of vertical bars without loss, converted here with the given matrix."""
    red, blue = {"601": (0.299, 0.114), "709": (0.2126, 0.0722), "2020": (0.2627, 0.0593)}[matrix]
    rgb = np.repeat(np.array(colours, float) / 255, 16, axis=0)
    y = rgb @ [red, 1 - red - blue, blue]
    parts = [y, (rgb[:, 2] - y) / (2 - 2 * blue), (rgb[:, 0] - y) / (2 - 2 * red)]
    bits = 10 if pix_fmt.endswith("10le") else 8
    spans = (255, 255) if full else (219, 224)
    levels = [parts[0] * spans[0] + (0 if full else 16)] + [p * spans[1] + 128 for p in parts[1:]]
    rows = np.rint(np.array(levels) * 2 ** (bits - 8)).clip(0, 2**bits - 1)
    planes = np.repeat(rows[:, None], height, axis=1).astype("<u2" if bits > 8 else np.uint8)
    with av.open(str(path), "w") as output:
        video = output.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = len(rgb), height, pix_fmt
        if tagged:
            video.codec_context.colorspace = MATRICES[matrix][0]
        video.codec_context.color_range = 2 if full else 1
        frame = av.VideoFrame(len(rgb), height, pix_fmt)
        for plane, data in zip(frame.planes, planes, strict=True):
            width = plane.line_size // data.dtype.itemsize
            padded = np.zeros((height, width), data.dtype)
            padded[:, : data.shape[1]] = data
            plane.update(padded)
        frame.pts = 0
        # PyAV converts a frame whose tags differ from those of the encoder.
        frame.colorspace = video.codec_context.colorspace
        frame.color_range = video.codec_context.color_range
        output.mux(video.encode(frame))
        output.mux(video.encode(None))


@pytest.mark.parametrize(
    ("matrix", "full", "height", "tagged", "pix_fmt"),
    [
        ("601", False, 48, True, "yuv444p"),
        ("709", False, 48, True, "yuv444p"),
        ("2020", False, 48, True, "yuv444p10le"),
        ("601", True, 48, True, "yuv444p"),
        ("709", True, 48, True, "yuv444p10le"),
        ("601", False, 718, False, "yuv444p"),
        ("709", False, 720, False, "yuv444p"),
    ],
)
def test_colours_are_read_by_their_tags(tmp_path, matrix, full, height, tagged, pix_fmt):
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (180, 180, 40), (120, 120, 120)]
    write_colours(tmp_path / "a.mkv", colours, matrix, full, height, tagged, pix_fmt)
    (frame,) = frames_of(tmp_path / "a.mkv")
    found = frame[height // 2, 8::16].astype(int)
    assert np.abs(found - colours).max() <= 3


def test_copying_a_video_again_and_again_keeps_its_brightness(repo, tmp_path):
    photo = resize(load_rgb(repo / "inputs/astronaut.jpg"), 256, 256)
    write_video(tmp_path / "0.mp4", [photo])
    for number in range(4):
        copy_video(tmp_path / f"{number}.mp4", tmp_path / f"{number + 1}.mp4")
    first, last = (frames_of(tmp_path / f"{number}.mp4")[0].mean() for number in (0, 4))
    assert abs(first - last) < 0.5


def test_grey_videos_are_read(tmp_path):
    ramp = np.repeat(np.arange(16, 240, 14, dtype=np.uint8).repeat(4)[None], 48, axis=0)
    with av.open(str(tmp_path / "a.mkv"), "w") as output:
        video = output.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "gray"
        output.mux(video.encode(av.VideoFrame.from_ndarray(ramp, format="gray")))
        output.mux(video.encode(None))
    (frame,) = frames_of(tmp_path / "a.mkv")
    assert np.abs(frame.astype(int) - ramp[..., None]).max() <= 2
