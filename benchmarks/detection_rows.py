"""Time face detection, for latency.py."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from quantface_arch.errors import QuantFaceError
from quantface_arch.faces.choices import DETECTORS
from quantface_arch.faces.detect import build_detector
from quantface_arch.utils.images import read_image
from quantface_arch.utils.threads import set_thread_count

__all__ = ["detection"]


def detection(
    photo: Path, weights_dir: Path | None, repeats: int, threads: int
) -> list[dict[str, Any]]:
    """Return the seconds of every available detector for one photograph, on the CPU."""
    set_thread_count(threads)
    image = read_image(photo).rgb
    rows = []
    for name in DETECTORS[1:]:
        try:
            detector = build_detector(name, weights_dir=weights_dir, offline=True)
        except QuantFaceError as error:
            print(f"skipped: {error}")
            continue
        seconds = []
        for _ in range(1 + repeats):
            start = time.perf_counter()
            faces = detector.detect(image)
            seconds.append(time.perf_counter() - start)
        size = f"{image.shape[1]}x{image.shape[0]}"
        rows.append({"detector": name, "photo": size, "faces": len(faces), "s": min(seconds)})
    return rows
