"""Measure how steadily faces in videos are tracked, or the cost of the whole command.

    python benchmarks/video.py                     # jitter by smoothing, both detectors
    python benchmarks/video.py --command           # seconds per frame and memory of restore.py

The video is a photograph that sways, nods, turns and comes nearer, with new noise of 6 levels in
every frame. "jitter" is the distance that the face moves inside its aligned 512x512 crop between
frames, and "drift" is its distance from its mean position there; both would be 0 if every crop were
at its true position. "smoothing" is the number of frames on each side in the average; "ema" is an
EMA of the landmarks instead, with that weight for the new frame.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from moving_face import RATE, deviations, moving
from report import data_root, parser, report
from restore_memory import GIB, REPO, resident

from quantface_arch.errors import QuantFaceError
from quantface_arch.faces.align import similarity
from quantface_arch.faces.detect import build_detector
from quantface_arch.faces.face import Face
from quantface_arch.utils.images import load_rgb
from quantface_arch.video.tracking import track_faces

PHOTO = REPO / "inputs/astronaut.jpg"
DETECTORS = ("yunet", "retinaface_mobile0.25")
HALVES = (0, 1, 2, 3, 4, 6)
WEIGHTS = (0.5, 0.3)


def steadiness(detector: str, count: int) -> list[dict[str, Any]]:
    """Return a row per smoothing, on the same frames and detections."""
    frames, true = zip(*moving(load_rgb(PHOTO), count, (384, 384)), strict=True)
    finder = build_detector(detector, weights_dir=data_root() / "weights/facexlib", offline=True)
    start = time.perf_counter()
    faces = [finder.detect(frame) for frame in frames]
    seconds = (time.perf_counter() - start) / count
    missed = sum(not found for found in faces)
    found = {}
    for half in HALVES:
        tracked = track_faces(zip(frames, faces, strict=True), half)
        found[str(half)] = [frame.matrices[:1] for frame in tracked]
    found |= {f"ema {weight:g}": _exponential(faces, weight) for weight in WEIGHTS}
    rows = []
    for smoothing, matrices in found.items():
        seen = [(own[0], matrix) for own, matrix in zip(matrices, true, strict=True) if own]
        jitter, drift = deviations(*zip(*seen, strict=True))
        rows.append(
            {
                "detector": detector,
                "smoothing": smoothing,
                "jitter px": jitter,
                "of none": jitter / rows[0]["jitter px"] if rows else 1.0,
                "drift px": drift,
                "frames": count,
                "missed": missed,
                "detection s/frame": seconds,
            }
        )
    return rows


def _exponential(faces: Sequence[list[Face]], weight: float) -> list[list[np.ndarray]]:
    matrices, state = [], None
    for found in faces:
        if found:
            marks = found[0].landmarks
            state = marks if state is None else state + weight * (marks - state)
        matrices.append([similarity(state)] if found and state is not None else [])
    return matrices


def whole_command(count: int, folder: Path) -> dict[str, Any]:
    """Restore a video of ``count`` frames with the command and measure its memory."""
    video = folder / f"{count}.mp4"
    with av.open(str(video), "w") as output:
        track: Any = output.add_stream("libx264", rate=RATE)
        track.width, track.height, track.pix_fmt = 640, 480, "yuv420p"
        for number, (frame, _) in enumerate(moving(load_rgb(PHOTO), count, (640, 480))):
            image = av.VideoFrame.from_ndarray(frame)
            image.pts, image.time_base = number, Fraction(1, RATE)
            output.mux(track.encode(image))
        output.mux(track.encode(None))
    command = [sys.executable, str(REPO / "inference/restore.py"), "-i", str(video)]
    command += ["-o", str(folder / "out"), "--offline"]
    command += ["--weights-dir", str(data_root() / "weights/facexlib")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.1)
    output = process.stdout.read() if process.stdout else ""
    seconds = re.search(r"([\d.]+) seconds per frame", output)
    if process.returncode or seconds is None:
        raise QuantFaceError(f"restore.py failed on {video}: {output}")
    faces = re.search(r"(\d+) faces", output)
    return {
        "video": "640x480",
        "frames": count,
        "faces": int(faces[1]) if faces else 0,
        "s/frame": float(seconds[1]),
        "peak GiB": peak / GIB,
    }


def main() -> None:
    args_parser = parser(__doc__)
    args_parser.add_argument("--command", action="store_true", help="measure restore.py instead")
    args_parser.add_argument("--frames", type=int, nargs="+", default=[60], help="(%(default)s)")
    args = args_parser.parse_args()
    counts = [8] if args.smoke else args.frames
    if args.command:
        with tempfile.TemporaryDirectory() as folder:
            rows = [whole_command(count, Path(folder)) for count in counts]
    else:
        detectors = DETECTORS[:1] if args.smoke else DETECTORS
        rows = []
        for name in detectors:
            try:
                rows += steadiness(name, counts[0])
            except QuantFaceError as error:
                print(f"left out: {error}", file=sys.stderr)
    report(rows, args.json)


if __name__ == "__main__":
    main()
