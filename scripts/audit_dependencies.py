"""Check the tested versions of all dependencies for known vulnerabilities."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from quantface_arch.errors import UsageError, one_line
from quantface_arch.utils.cli import Parser, run

DESCRIPTION = """\
Check the versions in requirements-tested.txt for known vulnerabilities with pip-audit (pip install
pip-audit, into any environment: it reads only the file, not the installed packages).

Exit status: 0 all packages were checked and have no known vulnerability; 1 vulnerabilities are
known and listed; 2 wrong usage; 3 some packages could not be checked, because pip-audit is not
installed, or its service cannot be reached or does not know a package. Do not read 3 as safe.

examples:
  python scripts/audit_dependencies.py
  python scripts/audit_dependencies.py --service pypi
"""
TESTED = Path(__file__).resolve().parents[1] / "requirements-tested.txt"
EXIT_VULNERABLE = 1
EXIT_UNCHECKED = 3
REQUEST_SECONDS = 10


class Unchecked(Exception):
    """The packages could not be checked; the message gives the reason."""


def make_parser() -> Parser:
    """Build the command-line parser."""
    parser = Parser(description=DESCRIPTION)
    add = parser.add_argument
    add(
        "-r",
        "--requirements",
        type=Path,
        default=TESTED,
        metavar="FILE",
        help="file of NAME==VERSION lines",
    )
    add("--service", choices=("osv", "pypi"), default="osv", help="default: %(default)s")
    add("--seconds", type=float, default=600, help="time limit in total (%(default)s)")
    return parser


def main(args: argparse.Namespace) -> int:
    """Check the packages and print known vulnerabilities."""
    if not args.requirements.is_file():
        raise UsageError(f"{args.requirements}: no such file")
    try:
        packages = look_up(args.requirements, args.service, args.seconds)
    except Unchecked as error:
        print(f"not checked: {error}", file=sys.stderr)
        return EXIT_UNCHECKED
    for package in packages:
        for known in package.get("vulns", ()):
            fixed = ", ".join(known.get("fix_versions") or ()) or "none yet"
            print(f"{package['name']} {package['version']}: {known['id']}, fixed in: {fixed}")
    skipped = [package for package in packages if "skip_reason" in package]
    vulnerable = [package for package in packages if package.get("vulns")]
    print(
        f"{args.requirements.name}: packages: {len(packages)}, vulnerable: {len(vulnerable)}, "
        f"not looked up: {len(skipped)}"
    )
    if skipped or not packages:
        reason = one_line(skipped[0]["skip_reason"]) if skipped else "no package in the file"
        print(f"not checked: {reason}", file=sys.stderr)
    if vulnerable:
        return EXIT_VULNERABLE
    return EXIT_UNCHECKED if skipped or not packages else 0


def look_up(requirements: Path, service: str, seconds: float) -> list[dict[str, Any]]:
    """Return pip-audit's entry for every package in the file.

    Raises:
        Unchecked: pip-audit is not installed, or gives no answer.
    """
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(requirements)]
    command += ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    command += ["--vulnerability-service", service, "--timeout", str(REQUEST_SECONDS)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise Unchecked(f"the service {service} gave no answer in {seconds:g} seconds") from error
    if "No module named pip_audit" in done.stderr:
        raise Unchecked("pip-audit is not installed: pip install pip-audit")
    try:
        return json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError) as error:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise Unchecked(f"no answer of the service {service}: {one_line(lines[-1])}") from error


if __name__ == "__main__":
    run(main, make_parser())
