"""Render the doctor's findings as one screen of text, with a verdict."""

from __future__ import annotations

import textwrap
from typing import Any

from quantface_arch.doctor.findings import Findings, Package
from quantface_arch.utils.runtime_names import RUNTIME_NAMES

__all__ = ["render"]

WIDTH = 100
INT8_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8", "i8mm"}


def render(findings: Findings) -> tuple[list[str], bool]:
    """Return the lines of the report, and whether a restoration would work."""
    results = findings.results
    works, verdict = judge(results)
    lines = [f"quantface {findings.version}, Python {findings.python}, {findings.system}", ""]
    lines += _packages(findings.packages)
    lines += ["", _processor(findings.cpu), "", "runtimes"]
    lines += [_wrapped(f"{name:10}{state(results[f'runtime {name}'])}") for name in RUNTIME_NAMES]
    lines += ["", "weights"]
    sizes = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in findings.models.items())
    lines.append(_wrapped(f"shipped   {sizes or 'none: the installation is incomplete'}"))
    lines.append(_wrapped(f"detector  {_detector(results['detector'])}"))
    lines.append(_wrapped(f"cache     {_cache(results['cache'])}"))
    todo = advice(findings)
    if todo:
        lines += ["", "what to do", *(_wrapped(f"- {line}") for line in todo)]
    return [*lines, "", verdict], works


def judge(results: dict[str, dict[str, Any]]) -> tuple[bool, str]:
    """Return whether ``inference/restore.py`` would work with its defaults, and a verdict."""
    for step in ("restore", "detector"):
        if "error" in results[step]:
            return False, f"A restoration would NOT work: {step}: {results[step]['error']}"
    auto = results["restore"]["auto"]
    reason = trouble(results[f"runtime {auto}"])
    if reason:
        return False, f"A restoration would NOT work: runtime {auto}: {reason}"
    device = results["restore"]["device"]
    return True, f"A restoration works: on {device}, by the runtime {auto}."


def trouble(result: dict[str, Any]) -> str | None:
    """Return why something cannot be used; None if it can."""
    return result.get("error") or result.get("missing")


def state(result: dict[str, Any]) -> str:
    """Return ``works``, or why it does not."""
    if "error" in result:
        return f"BROKEN: {result['error']}"
    return f"not here: {result['missing']}" if "missing" in result else "works"


def advice(findings: Findings) -> list[str]:
    """Return one sentence for each problem on how to fix it."""
    todo = []
    if not findings.packages:
        todo.append("the package is not installed, so versions are not checked: pip install -e .")
    for package in findings.packages:
        if package.extra is None and (package.version is None or package.fits is False):
            todo.append(f'pip install "{package.wanted}"')
        elif package.error and "libGL" in package.error:
            todo.append("OpenCV needs the system library libGL (Debian: apt-get install libgl1)")
        elif package.error and package.cause is None:
            todo.append(
                f'{package.name} is broken: pip install --force-reinstall "{package.wanted}"'
            )
    results = findings.results
    auto = results["restore"].get("auto")
    if auto and auto != "reference" and trouble(results[f"runtime {auto}"]):
        todo.append(f"until the runtime {auto} works: --runtime reference, which is slower")
    todo += [f"{name}: {why}" for name, why in results["models"].get("damaged", {}).items()]
    cache = results["cache"]
    if cache.get("writable") is False:
        todo.append(
            f"{cache['folder']} cannot be written, so every run compiles models again: "
            "set QUANTFACE_CACHE to another folder"
        )
    return todo


def _packages(packages: list[Package]) -> list[str]:
    needed = [package for package in packages if package.extra is None]
    lines = ["packages"]
    cells = [f"{package.name} {package.version}".ljust(24) for package in needed if _fine(package)]
    lines += ["  " + "".join(cells[i : i + 4]).rstrip() for i in range(0, len(cells), 4)]
    lines += [_wrapped(f"{p.name}: {_problem(p)}") for p in needed if not _fine(p)]
    extras: dict[str, list[str]] = {}
    for package in packages:
        if package.extra is not None:
            shown = package.version or "-"
            outside = "" if package.fits in (None, True) else f" (expected {package.wanted})"
            extras.setdefault(package.extra, []).append(f"{package.name} {shown}{outside}")
    if extras:
        listed = "; ".join(f"[{extra}] {', '.join(names)}" for extra, names in extras.items())
        lines.append(_wrapped(f"optional, - is not installed: {listed}"))
    return lines


def _fine(package: Package) -> bool:
    return bool(package.version) and package.fits is not False and not package.error


def _problem(package: Package) -> str:
    if package.version is None:
        return f"MISSING, expected {package.wanted}"
    if package.cause:
        return f"cannot be imported because of {package.cause}"
    if package.error:
        return f"BROKEN, {package.version}: {package.error}"
    return f"found {package.version}, expected {package.wanted}"


def _processor(cpu: dict[str, Any]) -> str:
    if cpu["flags"] is None:
        ability = "int8 abilities are not known on this system"
    elif INT8_FLAGS.isdisjoint(cpu["flags"]):
        ability = "no VNNI and no AMX: int8 weights are rounded to 7 bits, and gain less"
    else:
        ability = f"int8 products at full speed ({' '.join(cpu['flags'])})"
    return _wrapped(f"processor: {cpu['name']}, {cpu['cores']} cores; {ability}", "", "  ")


def _detector(result: dict[str, Any]) -> str:
    return f"BROKEN: {result['error']}" if "error" in result else result["name"]


def _cache(result: dict[str, Any]) -> str:
    if "error" in result:
        return f"not known: {result['error']}"
    writable = "writable" if result["writable"] else "NOT writable"
    return f"{result['folder']}, {result['bytes'] / 1e6:.1f} MB, {writable}"


def _wrapped(text: str, first: str = "  ", other: str = "            ") -> str:
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=other,
        break_long_words=False,
        break_on_hyphens=False,
    )
