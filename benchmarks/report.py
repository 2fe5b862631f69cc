"""Share options, Markdown tables and JSON files among all benchmarks."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["data_root", "faces_folder", "memory", "parser", "peak_gb", "report", "table", "write"]


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with ``--json`` and ``--smoke``."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the results to this file"
    )
    made.add_argument("--smoke", action="store_true", help="a short run that checks that it works")
    return made


def data_root() -> Path:
    """Return the folder of faces and weights: QUANTFACE_DATA, else ``../shared``."""
    return Path(os.environ.get("QUANTFACE_DATA", Path(__file__).resolve().parents[2] / "shared"))


def faces_folder(name: str) -> Path:
    """Return a subfolder of the data's ``faces/``, or the shipped faces if there are no data."""
    folder = data_root() / "faces" / name
    if data_root().is_dir():
        return folder
    shipped = Path(__file__).resolve().parents[1] / "quantface_arch/data/faces/val"
    print(f"no folder {data_root()}: using the shipped faces in {shipped}", file=sys.stderr)
    return shipped


def memory(what: str, pid: int | str = "self") -> int:
    """Return a process's memory in bytes by Linux's names: VmRSS, VmHWM (its peak), VmSize.

    Raises:
        OSError, KeyError: the process has ended.
    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == what:
            return int(value.split()[0]) * 1024
    raise KeyError(what)


def peak_gb() -> float:
    """Return this process's peak memory; getrusage would include the parent's."""
    return memory("VmHWM") / 1e9


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def report(rows: Sequence[Mapping[str, Any]], path: Path | None) -> None:
    """Print rows as a Markdown table with a line on the machine; write them to ``path``."""
    table(rows)
    write(rows, path)


def table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows, which all have the same keys, as a Markdown table."""
    names = list(rows[0])
    print("| " + " | ".join(names) + " |")
    print("|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(_cell(row[name]) for name in names) + " |")


def write(rows: Sequence[Mapping[str, Any]], path: Path | None) -> None:
    """Print a line on the machine and write rows to ``path``, if given."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"\nMachine: {machine}")
    if path is not None:
        path.write_text(json.dumps({"machine": machine, "rows": list(rows)}, indent=2) + "\n")
