"""Measure the memory of one long run: ``python benchmarks/robustness.py soak``."""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from batch_runs import Run, faces_folder, restore_command, tallied
from restore_memory import resident

MIB = 2**20
# Each part of the run lies between these shares of finished images.
PARTS = {"start": (0.03, 0.1), "middle": (0.45, 0.55), "end": (0.93, 1.0)}
SECONDS = 0.2


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row: median resident memory and open files in the parts of one run."""
    count = 6 if args.smoke else args.soak
    with tempfile.TemporaryDirectory() as folder:
        source, out = faces_folder(Path(folder) / "in", count), Path(folder) / "out"
        start = time.perf_counter()
        run = Run(restore_command(source, out, 1, ["--model", args.model]))
        samples = list(_watched(run, out, count))
        status, output = run.wait()
        seconds = time.perf_counter() - start
        lost, doubled = tallied(source, out)
    if status:
        raise SystemExit(f"restore.py failed:\n{output}")
    found = {
        name: [sample for sample in samples if low <= sample[0] < high]
        for name, (low, high) in PARTS.items()
    }
    memory = {
        f"{name} MiB": median(size for _, size, _ in part) / MIB if part else float("nan")
        for name, part in found.items()
    }
    files = {
        f"files open, {name}": median(opened for _, _, opened in part) if part else float("nan")
        for name, part in found.items()
    }
    per_face = re.search(r"([\d.]+) seconds per face", output)
    return [
        {
            "images": count,
            **memory,
            **files,
            "lost": lost,
            "doubled": doubled,
            "minutes": seconds / 60,
            "s/face": float(per_face[1]) if per_face else float("nan"),
        }
    ]


def _watched(run: Run, out: Path, count: int) -> Iterator[tuple[float, int, int]]:
    """Yield (share of finished images, resident bytes, open files) five times a second."""
    pid, manifest = run.process.pid, out / "manifest-0.jsonl"
    done, place = 0, 0
    while run.process.poll() is None:
        if manifest.exists():
            with manifest.open("rb") as file:
                file.seek(place)
                done += file.read().count(b"\n")
                place = file.tell()
        try:
            opened = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        except OSError:
            return
        if size := resident(pid):
            yield done / count, size, opened
        time.sleep(SECONDS)
