"""Kill runs of two processes at random and resume them: ``benchmarks/robustness.py kill``.

One folder is restored by as many runs as it takes. Each run is ended with ``kill -9`` shortly after
it has begun to write; the signal goes to one of its two processes, to torchrun, or to all of them.
Then the run is resumed.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from batch_runs import Run, digests, end, faces_folder, lines, restore_command, tallied

from quantface_arch.utils.files import file_digest
from quantface_arch.utils.progress import progress_bar

VICTIMS = ("a process", "torchrun", "all")
# A run finishes at most this many images before it is killed.
LONGEST = 4


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row: the state after all rounds and a last run without a kill."""
    rounds, longest = (1, 1) if args.smoke else (args.kill_rounds, LONGEST)
    processes, victims = (1, ("all",)) if args.smoke else (2, VICTIMS)
    chance = random.Random(args.seed)
    options = ["--model", args.model]
    with tempfile.TemporaryDirectory() as folder:
        # Use enough images: a kill takes a moment, and the last rounds still need work.
        source = faces_folder(Path(folder) / "in", 3 * longest * rounds + 4)
        whole, out = Path(folder) / "whole", Path(folder) / "out"
        status, output = Run(restore_command(source, whole, 1, options)).wait()
        if status:
            raise SystemExit(f"restore.py failed:\n{output}")
        resume = restore_command(source, out, processes, [*options, "--resume"])
        killed = {victim: 0 for victim in victims}
        torn = 0
        for number in progress_bar(range(rounds), desc="kill", unit="round"):
            victim = victims[number % len(victims)]
            run = Run(resume)
            killed[victim] += _kill(run, out, victim, longest, chance)
            run.wait()
            torn += _torn(out)
        status, output = Run(resume).wait()
        lost, doubled = tallied(source, out)
        equal = digests(out) == digests(whole)
        images = len(list(source.iterdir()))
    counts = {f"killed: {victim}": count for victim, count in killed.items()}
    return [
        {
            "rounds": rounds,
            **counts,
            "images": images,
            "lost": lost,
            "doubled": doubled,
            "damaged": torn,
            "exit code at last": status,
            "equal to a run by itself": "yes" if equal else "NO",
        }
    ]


def _kill(run: Run, out: Path, victim: str, longest: int, chance: random.Random) -> bool:
    """Wait for some images and a moment, then kill; return False if the run had ended."""
    begun = sum(1 for _ in lines(out))
    wanted, moment = begun + chance.randint(0, longest), chance.uniform(0, 1)
    while run.process.poll() is None and sum(1 for _ in lines(out)) < wanted:
        time.sleep(0.05)
    time.sleep(moment)
    if run.process.poll() is not None:
        return False
    workers = run.workers()
    if victim != "a process":
        end(run.process.pid)
    if victim == "all":
        for pid in workers:
            end(pid)
    elif victim == "a process" and workers:
        end(chance.choice(workers))
    return True


def _torn(out: Path) -> int:
    """Count the files whose contents differ from their line in the manifest."""
    wanted = {name: value for record in lines(out) for name, value in record["outputs"].items()}
    return sum(
        not (out / name).is_file() or file_digest(out / name) != value
        for name, value in wanted.items()
    )
