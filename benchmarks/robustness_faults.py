"""Inject faults into long commands and resume them: ``benchmarks/robustness.py faults``.

Each command runs undisturbed once. Then each fault is injected half-way. A row has the exit code
and the message of the command; ``damaged`` counts results that exist but differ, and ``resumed
equal`` says whether the resumed command gives the same bytes as the undisturbed run. A full disk
and a read-only folder are small file systems in memory, which only root can mount.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from batch_runs import Run, end, faces_folder
from fault_commands import Command, commands
from tqdm import tqdm

from quantface_arch.utils.progress import progress_bar

SECONDS = 300


def _faults(command: Command) -> dict[str, Callable[[Run], None] | None]:
    """Return the faults by name; None stands for faults of the disk."""

    def kill(run: Run) -> None:
        end(run.workers()[-1])

    def interrupt(run: Run) -> None:
        # Signal the whole group, as a terminal does.
        for pid in {run.process.pid, *run.workers()}:
            end(pid, signal.SIGINT)

    several = {"torchrun killed": lambda run: end(run.process.pid)}
    plain = {"disk full": None, "a process killed": kill, "Ctrl-C": interrupt, "read-only": None}
    return {**plain, **(several if command.processes > 1 else {})}


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each command and fault."""
    found = []
    with tempfile.TemporaryDirectory() as root:
        faces = faces_folder(Path(root) / "faces", 8 if args.smoke else 24)
        all_commands = commands(faces)
        cases = [
            (name, fault)
            for name, command in all_commands.items()
            for fault in _faults(command)
            if name in (args.commands or [name]) and fault in (args.faults or [fault])
        ]
        named = {*(args.commands or ()), *(args.faults or ())}
        if unknown := named - {word for case in cases for word in case}:
            raise SystemExit(f"error: no case has the command or fault {min(unknown)!r}")
        if args.smoke:
            cases = [("restore", "Ctrl-C")]
        undisturbed: dict[str, dict[str, str]] = {}
        for number, (name, fault) in enumerate(progress_bar(cases, desc="faults")):
            command = all_commands[name]
            if name not in undisturbed:
                folder = Path(root) / "whole" / str(number)
                folder.mkdir(parents=True)
                status, output = Run(command.words(folder)).wait()
                if status:
                    raise SystemExit(f"{name} failed:\n{output}")
                undisturbed[name] = command.digests(folder)
            folder = Path(root) / str(number)
            folder.mkdir()
            outcome = _outcome(command, fault, folder, undisturbed[name])
            found.append({"command": name, "fault": fault, **outcome})
            tqdm.write(" | ".join(map(str, found[-1].values())), file=sys.stderr)
    return found


def _outcome(
    command: Command, fault: str, folder: Path, wanted: Mapping[str, str]
) -> dict[str, Any]:
    inflict = _faults(command)[fault]
    with _disk(folder, None if inflict else command.room) as disk:
        if disk is None and inflict is None:
            text = "skipped: only root can mount a small disk"
            return {"exit code": "", "message": text, "damaged": "", "resumed equal": ""}
        if disk and fault == "read-only":
            disk("ro")
        run = Run(command.words(folder))
        if inflict:
            limit = time.monotonic() + SECONDS
            while run.process.poll() is None and time.monotonic() < limit:
                if command.under_way(folder, run.printed()):
                    inflict(run)
                    break
                time.sleep(0.02)
        status, output = run.wait()
        damaged = sum(wanted.get(name) != it for name, it in command.digests(folder).items())
        if disk:
            disk("rw,size=1g")
        resumed, _ = Run([*command.words(folder), *command.resume]).wait()
        equal = resumed == 0 and command.digests(folder) == wanted
    return {
        "exit code": 128 - status if status < 0 else status,
        "message": _message(output, folder),
        "damaged": damaged,
        "resumed equal": "yes" if equal else "NO",
    }


def _message(output: str, folder: Path) -> str:
    """Return the line with the error, without this run's folder."""
    said = [line for line in output.splitlines() if line.startswith(("error: ", "interrupted"))]
    if not said and "SIGKILL" in output:
        return "torchrun: Signal 9 (SIGKILL) received by PID ..."
    return said[0].replace(f"{folder}/", "") if said else ""


@contextmanager
def _disk(folder: Path, size: int | None) -> Iterator[Callable[[str], None] | None]:
    """Mount a small disk and yield a function that remounts it; None without a disk."""
    if size is None or os.geteuid() != 0:
        yield None
        return
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        yield None
        return

    def change(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)

    try:
        yield change
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
