"""The core stands on torch alone: quant ← runtime ← edge, and never the other way."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "quantface_arch"
FOREIGN = (
    "PIL",
    "basicsr",
    "cv2",
    "diffusers",
    "facexlib",
    "lpips",
    "matplotlib",
    "openvino",
    "peft",
    "piq",
    "pyiqa",
    "torchvision",
    "transformers",
    "triton",
)
# Imported where they are needed, never with the core.
LATE = ("onnx", "scipy", "yaml")
# Backends of a runtime are imported by the runtime that wraps them, and only there.
BACKENDS = ("openvino", "triton")
# What each layer may import of this package: itself, the layers below, and the tools.
TOOLS = (
    "quantface_arch.errors",
    "quantface_arch.utils",
    "quantface_arch.__version__",
)
ALLOWED = {
    "quant": (*TOOLS, "quantface_arch.quant"),
    "runtime": (*TOOLS, "quantface_arch.quant", "quantface_arch.runtime"),
}
FILES = [(layer, path) for layer in ALLOWED for path in sorted((PACKAGE / layer).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Dotted names of everything a file imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize(("layer", "path"), FILES, ids=lambda value: getattr(value, "name", value))
def test_files_import_only_what_their_layer_may(layer, path):
    for name in imported(path):
        top = name.partition(".")[0]
        if layer == "quant" or top not in BACKENDS:
            assert top not in FOREIGN, f"{path.name} imports {name}"
        if top == "quantface_arch":
            inside = any(name == root or name.startswith(f"{root}.") for root in ALLOWED[layer])
            assert inside, f"{path.name} imports {name}"


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_core_runs_where_nothing_else_is_installed():
    blocked = "\n".join(f"sys.modules[{name!r}] = None" for name in (*FOREIGN, *LATE))
    code = f"""
import sys
{blocked}
import importlib, pkgutil
import torch
import quantface_arch, quantface_arch.quant, quantface_arch.runtime
for module in pkgutil.walk_packages(quantface_arch.quant.__path__, "quantface_arch.quant."):
    importlib.import_module(module.name)
from quantface_arch.quant import quantize
model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3))
quantize(model, "w4a8", torch.rand(2, 3, 8, 8), progress=False)
print(quantface_arch.runtime.available())
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert "reference" in done.stdout


def test_importing_the_package_loads_nothing_heavy():
    heavy = ("torch", *FOREIGN)
    done = run(f"import sys, quantface_arch; print([m for m in {heavy!r} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
