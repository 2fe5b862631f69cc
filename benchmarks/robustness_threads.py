"""Share a restorer among threads: ``python benchmarks/robustness.py threads``."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from small_networks import TINY

from quantface_arch.archs.build import build_arch
from quantface_arch.errors import QuantFaceError
from quantface_arch.faces.detect import build_detector
from quantface_arch.quant import save_checkpoint
from quantface_arch.restore.restorer import FaceRestorer
from quantface_arch.utils.images import load_rgb, resize

REPO = Path(__file__).resolve().parents[1]
THREADS = 8
# Networks keep the size of their last input, so the sizes differ.
WIDTHS = (200, 256, 320, 400)
Call = Callable[[np.ndarray], list[np.ndarray]]


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each shared object: how many results differ from those of one thread."""
    photo = load_rgb(REPO / "inputs/astronaut.jpg")
    images = [resize(photo, width, width) for width in WIDTHS]
    images += [np.ascontiguousarray(image[:, ::-1]) for image in images]
    calls = 2 if args.smoke else args.calls
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, call in _shared(Path(folder), args):
            wanted = [call(image) for image in images]
            turns = [number % len(images) for number in range(THREADS * calls)]
            start = time.perf_counter()
            with ThreadPoolExecutor(THREADS) as pool:
                results = list(pool.map(lambda turn, c=call: c(images[turn]), turns))
            mixed = sum(
                not _equal(result, wanted[turn])
                for result, turn in zip(results, turns, strict=True)
            )
            row = {"shared": name, "threads": THREADS, "calls": len(turns), "mixed up": mixed}
            found.append({**row, "minutes": (time.perf_counter() - start) / 60})
    return found


def _equal(result: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    return len(result) == len(wanted) and all(map(np.array_equal, result, wanted))


def _shared(folder: Path, args: argparse.Namespace) -> Iterator[tuple[str, Call]]:
    """Yield the name of each object that threads share, and a call of it."""
    for name in ("yunet", "retinaface_mobile0.25"):
        try:
            detector = build_detector(name, weights_dir=args.weights_dir, offline=True)
        except QuantFaceError:
            continue  # its weights are not here
        yield (
            name,
            lambda image, d=detector: [
                part for face in d.detect(image) for part in (face.box, face.landmarks)
            ],
        )
    model = folder / "small.safetensors"
    save_checkpoint(build_arch(TINY), model, TINY)
    restorers = {"restorer, reference": (model, "reference")}
    if not args.smoke:
        restorers["restorer, openvino"] = (Path("mini-fast-w4a8"), "openvino")
    for name, (path, runtime) in restorers.items():
        restorer = FaceRestorer.from_pretrained(path, runtime, detector="yunet", offline=True)
        yield name, lambda image, r=restorer: [r.restore(image).image]
