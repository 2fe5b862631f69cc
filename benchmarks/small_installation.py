"""Measure the small installation in an empty environment of each Python: size and seconds.

    python benchmarks/small_installation.py --pythons python3.10 python3.11 python3.12 python3.13

Each environment gets what restoring needs, and restores a photograph twice. Its image must be that
of this environment, to the last bit.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from report import parser, report

REPO = Path(__file__).resolve().parents[1]
PHOTOGRAPH = REPO / "inputs/astronaut.jpg"
COMMANDS = ("restore", "app", "quantize", "allocate", "balance", "export", "evaluate", "cost")


def measured(python: str, scratch: Path, wanted: bytes) -> dict[str, object]:
    """Measure one Python.

    The program ends if it gives another image than this environment.
    """
    environment = Path(tempfile.mkdtemp(dir=scratch))
    call([python, "-m", "venv", environment])
    empty = megabytes(environment)
    pip = [environment / "bin/pip", "install", "--quiet", "--disable-pip-version-check"]
    start = time.perf_counter()
    call([*pip, "-r", REPO / "requirements-runtime.txt"])
    packages = megabytes(environment) - empty
    call([*pip, "--no-deps", REPO])
    command = [environment / "bin/quantface"]
    place = Path(tempfile.mkdtemp(dir=scratch))
    image, _ = restored(command, place)
    first = time.perf_counter() - start
    again, seconds = restored(command, place)
    if not wanted == image == again:
        sys.exit(f"{python}: its image is not that of {sys.executable}")
    return {
        "python": call([python, "-c", "import platform; print(platform.python_version())"]),
        "packages MB": packages,
        "in all MB": megabytes(environment),
        "pip install to first face s": first,
        "next run s": seconds,
        "slowest --help s": max(seconds_of([*command, name, "--help"]) for name in COMMANDS),
    }


def restored(command: Sequence[str | Path], place: Path) -> tuple[bytes, float]:
    """Restore the photograph with a cache in ``place``; return the file and the seconds."""
    out = place / "out"
    words = ["restore", "-i", PHOTOGRAPH, "-o", out, "--offline"]
    seconds = seconds_of([*command, *words], QUANTFACE_CACHE=str(place / "cache"))
    return (out / "restored/astronaut.png").read_bytes(), seconds


def seconds_of(words: Sequence[str | Path], **environment: str) -> float:
    """Return how long a command takes."""
    start = time.perf_counter()
    call(words, **environment)
    return time.perf_counter() - start


def call(words: Sequence[str | Path], **environment: str) -> str:
    """Run a command, and return what it prints; the program ends if the command fails."""
    settings = {"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), **environment}
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, env=settings)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


def megabytes(folder: Path) -> float:
    """Return the size of a folder's files."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files) / 1e6


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--pythons", nargs="+", default=[sys.executable], metavar="PYTHON")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wanted, _ = restored([sys.executable, "-m", "quantface_arch"], Path(folder, "own"))
        report(
            [measured(shutil.which(it) or it, Path(folder), wanted) for it in args.pythons],
            args.json,
        )
