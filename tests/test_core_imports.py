"""The core runs on torch alone; ``lint-imports`` checks which room imports which."""

from __future__ import annotations

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
# These are imported where they are needed, never with the core.
LATE = ("onnx", "scipy", "yaml")


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
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
