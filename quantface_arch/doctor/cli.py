"""The command line of ``python -m quantface_arch.doctor``, and the checks of packages and CPU."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantface_arch import __version__
from quantface_arch.doctor.findings import Findings, Package
from quantface_arch.doctor.report import render
from quantface_arch.errors import one_line
from quantface_arch.pretrained.names import WEIGHTS, shipped_models
from quantface_arch.utils.cli import EXIT_FAILED, Parser, ending
from quantface_arch.utils.runtime_names import RUNTIME_NAMES

DESCRIPTION = """\
Check what works on this machine: packages and their versions, runtimes (each tried on a tiny
network), the processor's int8 arithmetic, weights and the cache. Say how to fix what does not work.
Nothing is downloaded or changed.

examples:
  python -m quantface_arch.doctor
  python -m quantface_arch.doctor --json > doctor.json     to attach to a bug report
"""

# The modules of these packages have other names.
MODULES = {"opencv-python": "cv2", "pillow": "PIL", "pyyaml": "yaml"}
# Only people who develop this project need these extras.
DEVELOPMENT = {"test", "docs"}
CPU_FLAGS = ("avx2", "avx512_vnni", "avx_vnni", "amx_int8", "avx512_bf16", "amx_bf16", "i8mm")
PATIENCE_SECONDS = 120


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="python -m quantface_arch.doctor",
        description=DESCRIPTION,
        epilog=ending(
            "QUANTFACE_CACHE",
            done="inference/restore.py would work",
            failed="it would not; the output says why",
            wrong="wrong usage",
        ),
    )
    parser.add_argument("--json", action="store_true", help="print everything found, as JSON")
    return parser


def main(args: argparse.Namespace) -> int:
    """Run all checks and print the findings; return 0 if a restoration would work, else 1."""
    findings = examine()
    lines, works = render(findings)
    if args.json:
        print(json.dumps({"works": works, **asdict(findings)}, indent=1))
    else:
        print("\n".join(lines))
    return 0 if works else EXIT_FAILED


def examine() -> Findings:
    """Check packages, processor and files here, and try the rest in another process."""
    packages = [looked_up(package) for package in wanted_packages()]
    files = {name: WEIGHTS / f"{name}.safetensors" for name in shipped_models()}
    findings = Findings(
        version=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        packages=packages,
        cpu=processor(),
        models={name: path.stat().st_size for name, path in files.items()},
    )
    needed = [package for package in packages if package.extra is None and package.version]
    imports = {f"import {MODULES.get(p.name, p.name)}": p for p in needed}
    rest = [f"runtime {name}" for name in RUNTIME_NAMES]
    results = attempt([*imports, "cache", "models", *rest, "detector", "restore"])
    for step, package in imports.items():
        found = results.pop(step)
        package.error, package.cause = found.get("error"), found.get("cause")
    findings.results = results
    return findings


def wanted_packages() -> list[Package]:
    """Return the requirements of the installed package, except those for development."""
    try:
        metadata = importlib.metadata.metadata("quantface")
    except importlib.metadata.PackageNotFoundError:
        return []
    try:
        from packaging.requirements import Requirement
    except ImportError:
        # Without it no requirement can be parsed, so only this package is known to be missing.
        return [Package("packaging", "packaging", None)]
    extras = [extra for extra in metadata.get_all("Provides-Extra", []) if extra not in DEVELOPMENT]
    requirements = metadata.get_all("Requires-Dist", [])
    found: dict[str, Package] = {}
    for extra in (None, *extras):
        for line in requirements:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or marker.evaluate({"extra": extra or ""}):
                wanted = line.partition(";")[0].strip()
                found.setdefault(requirement.name, Package(requirement.name, wanted, extra))
    return list(found.values())


def looked_up(package: Package) -> Package:
    """Return the package with its installed version and whether that version fits."""
    try:
        package.version = importlib.metadata.version(package.name)
    except importlib.metadata.PackageNotFoundError:
        return package
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return package
    specifier = Requirement(package.wanted).specifier
    package.fits = specifier.contains(package.version, prereleases=True)
    return package


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Return the processor's name, the cores available to this process, and the relevant flags."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        text = ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    known = set(flags[1].split()) if flags else set()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": name[1] if name else platform.processor() or platform.machine(),
        "cores": cores,
        "flags": [flag for flag in CPU_FLAGS if flag in known] if flags else None,
    }


def attempt(steps: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Run steps of ``doctor.steps`` in a child process; a step that kills it counts as failed."""
    results: dict[str, dict[str, Any]] = {}
    left = list(steps)
    while left:
        lines, end = _child(left)
        for line in lines:
            step, result = json.loads(line)
            results[step] = result
        left = [step for step in left if step not in results]
        if left:
            results[left[0]] = {"error": end}
            left = left[1:]
    return results


def _child(steps: Sequence[str]) -> tuple[list[str], str]:
    """Return the lines that a child process wrote, and how it ended."""
    command = [sys.executable, "-m", "quantface_arch.doctor.steps", *steps]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, errors="replace"
        )
    except subprocess.TimeoutExpired as late:
        output = late.stdout or b""
        text = output.decode(errors="replace") if isinstance(output, bytes) else output
        # Drop a last line that was cut off.
        return text.splitlines()[: text.count("\n")], f"no answer in {PATIENCE_SECONDS} s"
    if done.returncode < 0:
        return done.stdout.splitlines(), f"crashed with signal {-done.returncode}"
    last = one_line(Exception((done.stderr.strip().splitlines() or ["no message"])[-1]))
    return done.stdout.splitlines(), f"ended with status {done.returncode}: {last}"
