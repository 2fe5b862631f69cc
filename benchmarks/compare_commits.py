"""Compare this checkout with an earlier commit: images to the last bit, and start-up.

    python benchmarks/compare_commits.py                    # against the release 0.1.0
    python benchmarks/compare_commits.py --commit COMMIT --repeats 5

The commit's files are unpacked into a folder of their own and run by the same Python.

- Images: every checkpoint that the commit ships restores one shipped face through the runtime
  ``reference``, and every network and recipe in its options files is built from the same random
  weights and run, by the commit's code and by this one's. Both read the commit's files.
- Start-up: ``inference/restore.py`` restores inputs/astronaut.jpg with each detector. The two
  versions take turns; the first turn, which fills the caches, does not count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

from report import data_root, parser, table, write

from quantface_arch.errors import QuantFaceError

ROOT = Path(__file__).resolve().parents[1]
# This commit is the release 0.1.0.
RELEASE = "c592999"
PROBE = Path(__file__).with_name("commit_probe.py")
# Both versions know these names of detectors.
DETECTORS = ("haar", "retinaface_mobile0.25")


def unpack(commit: str, folder: Path) -> Path:
    """Write the files of a commit to ``folder``.

    Raises:
        QuantFaceError: this checkout's history does not hold the commit.
    """
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True)
    if archive.returncode:
        reason = archive.stderr.decode().strip()
        raise QuantFaceError(f"commit {commit} is not in the history of {ROOT}: {reason}")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


def digests(code: Path, files: Path, smoke: bool) -> dict[str, str]:
    """Return the digest of each image that one tree's code makes from one tree's files."""
    smoke_option = ["--smoke"] if smoke else []
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(PROBE), str(files), *smoke_option],
        cwd=code,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise QuantFaceError(f"the code in {code} failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def image_rows(before: Path, smoke: bool) -> list[dict[str, Any]]:
    """Return a row for each image, and whether both versions agree on it."""
    old, new = digests(before, before, smoke), digests(ROOT, before, smoke)
    return [
        {"image of": name, "same to the last bit": "yes" if new.get(name) == digest else "NO"}
        for name, digest in old.items()
    ]


def start_up(code: Path, detector: str, folder: Path) -> tuple[float, float]:
    """Return the seconds and the peak memory in MB of one run of ``inference/restore.py``."""
    options = ["--offline", "--detector", detector, "-o", str(folder), "--device", "cpu"]
    if detector.startswith("retinaface"):
        options += ["--weights-dir", str(data_root() / "weights/facexlib")]
    command = [sys.executable, "inference/restore.py", "-i", str(ROOT / "inputs/astronaut.jpg")]
    timed = (
        "import resource, subprocess, sys, time; start = time.perf_counter(); "
        "code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode; "
        "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000; "
        "print(code, time.perf_counter() - start, peak)"
    )
    done = subprocess.run(
        [sys.executable, "-c", timed, *command, *options],
        cwd=code,
        env={**os.environ, "PYTHONPATH": str(code)},
        capture_output=True,
        text=True,
    )
    status, seconds, peak = done.stdout.split()
    if status != "0":
        raise QuantFaceError(f"restore.py in {code} failed: {done.stderr.strip()[-2000:]}")
    return float(seconds), float(peak)


def start_up_rows(before: Path, repeats: int) -> list[dict[str, Any]]:
    """Return a row for each version and each detector whose weights exist."""
    detectors = [
        name
        for name in DETECTORS
        if not name.startswith("retinaface") or (data_root() / "weights/facexlib").is_dir()
    ]
    rows = []
    for detector in detectors:
        runs: dict[str, list[tuple[float, float]]] = {"before": [], "now": []}
        for turn in range(repeats + 1):
            for version, code in (("before", before), ("now", ROOT)):
                folder = before / "results" / f"{detector}-{version}-{turn}"
                runs[version].append(start_up(code, detector, folder))
        for version, measured in runs.items():
            seconds, peaks = zip(*measured[1:], strict=True)
            row = {"detector": detector, "version": version}
            rows.append({**row, "seconds": median(seconds), "peak MB": round(max(peaks))})
    return rows


def main() -> int:
    """Compare and print; return 1 if an image differs."""
    options = parser(__doc__)
    options.add_argument("--commit", default=RELEASE, help="what to compare with: %(default)s")
    options.add_argument("--repeats", type=int, default=3, help="runs that count: %(default)s")
    options.add_argument("--only", choices=("images", "start-up"), help="one of the comparisons")
    args = options.parse_args()
    repeats = 1 if args.smoke else args.repeats
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        before = unpack(args.commit, Path(folder))
        if args.only != "start-up":
            rows += image_rows(before, args.smoke)
            table(rows)
        if args.only != "images":
            measured = start_up_rows(before, repeats)
            print()
            table(measured)
            rows += measured
    write(rows, args.json)
    return int(any("NO" in row.values() for row in rows))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except QuantFaceError as error:
        sys.exit(f"error: {error}")
