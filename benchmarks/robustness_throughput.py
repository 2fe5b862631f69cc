"""Compare two processes with one of two threads: ``benchmarks/robustness.py throughput``.

Both restore the same folder in turns, so that other load on the machine affects both equally.
Seconds per face are those that the command reports, without start-up.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from batch_runs import Run, faces_folder, restore_command

PROCESSES = 2


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for one process and one for two, with median ratios of neighbouring runs.

    A smoke run leaves out the two processes.
    """
    images, turns = (2, 1) if args.smoke else (args.images, args.turns)
    with tempfile.TemporaryDirectory() as root:
        source = faces_folder(Path(root) / "in", images)
        times: dict[int, list[float]] = {1: [], PROCESSES: []}
        counts = (1,) if args.smoke else tuple(times)
        for turn in range(turns):
            for count in counts:
                out = Path(root) / f"{turn}-{count}"
                times[count].append(
                    _seconds(restore_command(source, out, count, ["--model", args.model]))
                )
    names = {1: f"1 process, {PROCESSES} threads"}
    names[PROCESSES] = f"{PROCESSES} processes, 1 thread each"
    return [_row(names[count], images, times[count], times[1]) for count in counts]


def _row(what: str, images: int, times: list[float], base: list[float]) -> dict[str, Any]:
    ratios = [first / own for own, first in zip(times, base, strict=True)]
    return {
        "run": what,
        "images": images,
        "turns": len(times),
        "s/face": median(times),
        "faces/s against 1 process": median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def _seconds(command: list[str]) -> float:
    """Return the seconds per face of a run."""
    # This sets the threads of one process; torchrun divides them among several.
    threads = str(min(PROCESSES, os.cpu_count() or 1))
    status, output = Run(command, {"OMP_NUM_THREADS": threads}).wait()
    found = re.search(r"([\d.]+) seconds per face", output)
    if status or found is None:
        raise SystemExit(f"restore.py failed:\n{output}")
    return float(found[1])
