"""Feed damaged and generated files to every reader of untrusted files.

    python benchmarks/robustness_fuzz.py --inputs 20000 --seconds 900 --seed 0

Hypothesis makes the inputs: valid files of every kind with bytes, fields and values changed,
generated files, and command lines. Each kind has its own process, whose address space may grow by
2 GB after the start (5 GB for commands). The only good results are success ("accepted") and the
project's own error ("refused"). Everything else is a crash: another exception, a command that
reports an unexpected error, the end of the process, memory that the limit refused, or too much
time: 5 seconds of the processor (60 for a command) or 180 seconds of the clock. The input of a
crash is kept in the folder of --keep.
Exit status: 0 no crash, 1 some.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import resource
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import report

# An input, or a whole command, may take this many seconds of the processor.
WATCHDOG_SECONDS = 5
COMMAND_SECONDS = 60
STALL_SECONDS = 180
# A command leaves its process some memory; users run each in a process of its own.
PER_WORKER = 2000
MEMORY = 2 << 30
# Commands import more while they run; OpenVINO alone takes 1 GB.
COMMAND_MEMORY = 5 << 30
# Each target gets this share of --inputs.
SHARES = {
    "checkpoints": 0.3,
    "balance files": 0.05,
    "pickled weights": 0.1,
    "bit maps": 0.1,
    "sensitivities": 0.05,
    "options files": 0.1,
    "recipes": 0.1,
    "images": 0.2,
    # Commands get as many inputs as all other targets together.
    "command lines": 0.9,
    "loops": 0.1,
}
# The inputs of these targets are whole commands.
COMMANDS = ("command lines", "loops")
# A smoke run has only targets whose workers start quickly.
SMOKE_INPUTS = 400
SMOKE_TARGETS = ("bit maps", "recipes", "images")


def main() -> int:
    """Run the fuzzer and report the results."""
    parser = report.parser(__doc__)
    parser.add_argument(
        "--inputs", type=int, default=20_000, help="inputs in total (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=900, help="time limit (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the inputs (default: %(default)s)"
    )
    parser.add_argument(
        "--targets", nargs="+", choices=SHARES, help="what is fuzzed (default: everything)"
    )
    parser.add_argument("--jobs", type=int, help="targets at once (default: one per core)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="folder for inputs that crash")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        _work(args.worker[0], int(args.worker[1]), args.seed, Path(args.worker[2]))
        return 0
    found = rows(args)
    report.report(found, args.json)
    return int(any(row["crashes"] for row in found))


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row per target and one for all targets.

    Args:
        args: ``inputs``, ``seconds``, ``seed``, ``smoke``, and optionally ``keep``.
    """
    inputs = SMOKE_INPUTS if args.smoke else args.inputs
    names = SMOKE_TARGETS if args.smoke else getattr(args, "targets", None) or tuple(SHARES)
    until = time.monotonic() + args.seconds
    keep = getattr(args, "keep", None)
    with ThreadPoolExecutor(getattr(args, "jobs", None) or os.cpu_count()) as pool:
        running = [
            pool.submit(_measure, name, round(SHARES[name] * inputs), args.seed, until, keep)
            for name in names
        ]
        found = [future.result() for future in running]
    total = {name: sum(row[name] for row in found) for name in list(found[0])[1:5]}
    most = {name: max(row[name] for row in found) for name in list(found[0])[5:]}
    return [*found, {"target": "all", **total, **most}]


def _measure(
    target: str, inputs: int, seed: int, until: float, keep: Path | None
) -> dict[str, Any]:
    """Run workers until there were enough inputs; a crash ends a worker, and so do many inputs."""
    row = {"target": target, "inputs": 0, "accepted": 0, "refused": 0, "crashes": 0}
    row |= {"slowest s": 0.0, "peak MB": 0.0}
    while row["inputs"] < inputs and time.monotonic() < until:
        before = row["inputs"]
        with tempfile.TemporaryDirectory() as folder:
            worker = _Worker(target, min(inputs - before, PER_WORKER), seed, Path(folder))
            worker.drain(row, until, keep)
        # The next worker makes different inputs.
        seed += 1000
        if row["inputs"] == before and time.monotonic() < until:
            raise RuntimeError(f"the worker of {target} does not start: {worker.errors()}")
    return row


class _Worker:
    """A process that makes and reads inputs, and prints a line of JSON for each."""

    def __init__(self, target: str, inputs: int, seed: int, folder: Path) -> None:
        self.target, self.folder = target, folder
        self.limit = COMMAND_SECONDS if target in COMMANDS else WATCHDOG_SECONDS
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        words = ["--seed", str(seed), "--worker", target, str(inputs), str(folder)]
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), *words],
            stdout=subprocess.PIPE,
            stderr=self.log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.lines: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def drain(self, row: dict[str, Any], until: float, keep: Path | None) -> None:
        """Count the worker's results until it ends, hangs, or the time is up."""
        begun, since, spent = False, time.monotonic(), 0.0
        while time.monotonic() < until:
            try:
                line = self.lines.get(timeout=1)
            except queue.Empty:
                waited, used = time.monotonic() - since, self._cpu_seconds() - spent
                if waited < STALL_SECONDS and not (begun and used > self.limit):
                    continue
                line = b'{"outcome": "crash", "error": "no answer in time"}' if begun else None
            if line is None:
                if begun:
                    status = self.process.wait()
                    self._count(row, {"outcome": "crash", "error": f"exit status {status}"}, keep)
                break
            said = json.loads(line)
            begun = said.get("begin", False)
            since, spent = time.monotonic(), self._cpu_seconds()
            if not begun:
                self._count(row, said, keep)
                if "seconds" not in said:
                    break
        self.process.kill()
        self.process.wait()

    def _cpu_seconds(self) -> float:
        """Return the worker's processor time, which excludes stalls of the machine."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _count(self, row: dict[str, Any], said: dict[str, Any], keep: Path | None) -> None:
        row["inputs"] += 1
        row[{"crash": "crashes"}.get(said["outcome"], said["outcome"])] += 1
        row["slowest s"] = max(row["slowest s"], said.get("seconds", self.limit))
        row["peak MB"] = max(row["peak MB"], said.get("peak", 0.0))
        if said["outcome"] == "crash":
            print(f"{self.target}: {said['error']}", file=sys.stderr)
            for path in self.folder.glob("input.*") if keep else ():
                keep.mkdir(parents=True, exist_ok=True)
                name = f"{self.target.replace(' ', '_')}-{row['crashes']}{path.suffix}"
                (keep / name).write_bytes(path.read_bytes())

    def errors(self) -> str:
        """Return the end of the worker's standard error."""
        self.log.seek(0)
        return self.log.read()[-2000:].decode(errors="replace")


def _work(target: str, inputs: int, seed: int, folder: Path) -> None:
    """Run a worker: make inputs, read them, print the results."""
    import hypothesis
    from fuzz_targets import TARGETS

    answers = os.dup(1)
    os.dup2(2, 1)
    strategy, suffix, read = TARGETS[target](folder)
    path = folder / f"input{suffix}"
    _limit_memory(COMMAND_MEMORY if target in COMMANDS else MEMORY)
    start = report.memory("VmRSS")

    def say(**words: Any) -> None:
        os.write(answers, json.dumps(words).encode() + b"\n")

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def once(data: bytes) -> None:
        path.write_bytes(data)
        say(begin=True)
        begin = time.process_time()
        outcome, error = _outcome(read, path)
        seconds = time.process_time() - begin
        peak = (report.memory("VmHWM") - start) / 1e6
        say(outcome=outcome, error=error, seconds=seconds, peak=peak)

    once()


def _outcome(read: Any, path: Path) -> tuple[str, str]:
    from quantface_arch.errors import QuantFaceError

    try:
        read(path)
    except QuantFaceError as error:
        # An error because of the memory limit does not count as a refusal.
        causes = [error.__cause__, getattr(error.__cause__, "__cause__", None)]
        starved = [c for c in causes if isinstance(c, MemoryError) or "allocate memory" in str(c)]
        return ("crash", f"out of memory: {error}") if starved else ("refused", "")
    except BaseException as error:
        return "crash", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return "accepted", ""


def _limit_memory(more: int) -> None:
    most = report.memory("VmSize") + more
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    sys.exit(main())
