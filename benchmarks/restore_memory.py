"""Measure time and memory of the restore command on a folder of aligned faces.

    python benchmarks/restore_memory.py                 # 100 faces
    python benchmarks/restore_memory.py --runs mini:reference mini-w4a8:openvino --faces 40

The command runs as a user would run it. Its resident memory is sampled ten times a second; "first
half" and "second half" are the peaks of the two halves of the run, which reveals a leak. Seconds
per face include start-up; "model s/face" is the time that the command itself reports. One face is
restored beforehand, because the runtime openvino compiles a model in its first run.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
from report import faces_folder, memory, parser, report

REPO = Path(__file__).resolve().parents[1]
GIB = 2**30


def resident(pid: int) -> int:
    """Return the resident bytes of a process, or 0 if it has ended."""
    try:
        return memory("VmRSS", pid)
    except (OSError, KeyError):
        return 0


def command_of(run: str, source: Path, out: Path) -> list[str]:
    """Build the command that restores aligned faces; ``run`` is MODEL or MODEL:RUNTIME."""
    model, _, runtime = run.partition(":")
    command = [sys.executable, str(REPO / "inference/restore.py"), "-i", str(source)]
    command += ["-o", str(out), "--aligned", "--offline", "--model", model]
    return [*command, "--runtime", runtime or "auto"]


def measure(run: str, faces: Path, out: Path) -> dict[str, float | str]:
    """Run the command on one face, then on all faces while sampling its memory."""
    count = len(list(faces.iterdir()))
    subprocess.run(command_of(run, next(faces.iterdir()), out / "first"), capture_output=True)
    command = command_of(run, faces, out / "all")
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    samples = []
    while process.poll() is None:
        samples.append(resident(process.pid))
        time.sleep(0.1)
    seconds = time.perf_counter() - start
    output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        sys.exit(f"restore.py failed:\n{output}")
    own = re.search(r"([\d.]+) s(?:econds)? ?(?:per|/) ?face", output)
    middle = len(samples) // 2
    return {
        "run": run,
        "faces": count,
        "s/face": seconds / count,
        "model s/face": float(own.group(1)) if own else float("nan"),
        "peak GiB": max(samples) / GIB,
        "first half GiB": max(samples[:middle]) / GIB,
        "second half GiB": max(samples[middle:]) / GIB,
    }


def main() -> None:
    args_parser = parser(__doc__)
    args_parser.add_argument(
        "--runs",
        nargs="+",
        metavar="MODEL:RUNTIME",
        default=["mini:reference", "mini:openvino", "mini-w4a8:openvino"],
        help="(%(default)s)",
    )
    args_parser.add_argument("--faces", type=int, default=100, help="number of faces (100)")
    args = args_parser.parse_args()
    if args.smoke:
        args.runs = args.runs[-1:]
    root = faces_folder("val512")
    sources = sorted(root.glob("*.jpg"))[: 2 if args.smoke else args.faces]
    if not sources:
        args_parser.error(f"no faces in {root}; set QUANTFACE_DATA")
    with tempfile.TemporaryDirectory() as folder:
        faces = Path(folder) / "faces"
        faces.mkdir()
        for source in sources:
            small = cv2.resize(cv2.imread(str(source)), (128, 128), interpolation=cv2.INTER_AREA)
            cv2.imwrite(str(faces / f"{source.stem}.png"), cv2.resize(small, (512, 512)))
        rows = [
            measure(run, faces, Path(folder) / str(place)) for place, run in enumerate(args.runs)
        ]
    report(rows, args.json)


if __name__ == "__main__":
    main()
