"""Run, watch and kill the restore command: helpers of the robustness benchmarks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import report

from quantface_arch.utils.files import file_digest

__all__ = ["REPO", "Run", "digests", "end", "faces_folder", "lines", "restore_command", "tallied"]

REPO = Path(__file__).resolve().parents[1]
SIDE = 128


def faces_folder(folder: Path, count: int) -> Path:
    """Fill a folder with small aligned faces, repeated under other names if needed."""
    root = report.faces_folder("val512")
    sources = sorted(root.glob("*.jpg"))
    if not sources:
        sys.exit(f"no faces in {root}; set QUANTFACE_DATA")
    folder.mkdir(parents=True)
    for index in range(count):
        path = folder / f"{index:05d}.png"
        if index < len(sources):
            face = cv2.imread(str(sources[index]))
            cv2.imwrite(str(path), cv2.resize(face, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
        else:
            path.hardlink_to(folder / f"{index % len(sources):05d}.png")
    return folder


def restore_command(
    source: Path, out: Path, processes: int = 1, options: Sequence[str] = ()
) -> list[str]:
    """Build the restore command for aligned faces, under torchrun for several processes."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(processes)]
    command = [*launcher, str(REPO / "inference/restore.py"), "-i", str(source), "-o", str(out)]
    return [*command, "--aligned", "--offline", *options]


class Run:
    """A command that runs in its own processes, as if a user had typed it.

    Args:
        environment: variables to change.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self.output = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by wait)
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(REPO), **(environment or {})},
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.known: list[int] = []
        self.distributed = "torch.distributed.run" in command

    def printed(self) -> str:
        """Return the output so far."""
        size = os.fstat(self.output.fileno()).st_size
        return os.pread(self.output.fileno(), size, 0).decode(errors="replace")

    def workers(self) -> list[int]:
        """Return the ids of the processes that restore."""
        if not self.distributed:
            return [self.process.pid]
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
            # The list is empty if torchrun was killed but its children are still alive.
            self.known = [int(word) for word in children.read_text().split()] or self.known
        return self.known

    def wait(self) -> tuple[int, str]:
        """Return exit status and output; after a kill, also end the remaining processes."""
        workers = self.workers()
        status = self.process.wait()
        while any(_alive(pid) for pid in workers):
            time.sleep(0.02)
        printed = self.printed()
        self.output.close()
        return status, printed


def _alive(pid: int) -> bool:
    try:
        # State Z is a zombie: the process has ended, but its parent has not collected it yet.
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def end(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process that may already have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def lines(out: Path) -> Iterator[dict[str, Any]]:
    """Yield the complete manifest lines of an output folder that report a finished image."""
    for path in sorted(out.glob("manifest-*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if record["error"] is None:
                    yield record


def tallied(source: Path, out: Path) -> tuple[int, int]:
    """Count the images of a folder with no finished line, and those with several."""
    counts = Counter(record["name"] for record in lines(out))
    lost = sum(path.stem not in counts for path in source.iterdir())
    return lost, sum(count > 1 for count in counts.values())


def digests(out: Path) -> dict[str, str]:
    """Return the digest of every image in an output folder, by name."""
    return {str(path.relative_to(out)): file_digest(path) for path in sorted(out.rglob("*.png"))}
