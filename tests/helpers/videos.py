"""Make test videos and inspect them."""

from __future__ import annotations

import json
import shutil
import subprocess

import cv2
import numpy as np
import pytest

needs_ffmpeg = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="no ffmpeg on the PATH"
)


def write_video(path, frames, rate="30000/1001", sound=True, options=()):
    """Encode (H, W, 3) uint8 RGB frames with ffmpeg, with a tone as sound."""
    height, width = frames[0].shape[:2]
    command = ["ffmpeg", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", rate, "-i", "pipe:0"]
    if sound:
        command += ["-f", "lavfi", "-i", "sine=440", "-shortest"]
    command += ["-crf", "10", "-pix_fmt", "yuv420p", *options, str(path)]
    subprocess.run(command, input=np.stack(frames).tobytes(), check=True)


def write_plain_video(path, frames, rate=25.0):
    """Encode frames with OpenCV, without sound."""
    height, width = frames[0].shape[:2]
    code = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, rate, (width, height))
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()


def streams(path):
    """Return ffprobe's report on each kind of stream."""
    command = ["ffprobe", "-v", "error", "-show_streams", "-of", "json", str(path)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return {stream["codec_type"]: stream for stream in found["streams"]}


def sound_hash(path):
    """Return the hash of the encoded sound, which copying does not change."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-map", "0:a", "-c", "copy"]
    return subprocess.run([*command, "-f", "md5", "-"], capture_output=True, check=True).stdout
