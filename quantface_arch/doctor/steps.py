"""Run the doctor's steps in a process of their own, so that a crash ends only that process.

``python -m quantface_arch.doctor.steps STEP ...`` writes one line of JSON, ``[step, result]``, per
step. The result of a step that raises is ``{"error": one line}``.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from traceback import walk_tb
from typing import Any

from quantface_arch.errors import QuantFaceError, one_line

__all__ = ["run_steps"]

# A runtime's output may be off by this share of the standard deviation of the reference's output.
TOLERANCE = 0.05


def try_import(module: str) -> dict[str, Any]:
    """Import a module; on failure return its location, or the module that is the cause."""
    try:
        if module == "basicsr":
            # This patches the module that basicsr's import needs.
            import quantface_arch.compat  # noqa: F401
        import_module(module)
    except Exception as error:
        spec = find_spec(module)
        where = f" ({spec.origin})" if spec and spec.origin else ""
        cause = _raised_in(error)
        return {
            "error": f"{type(error).__name__}: {one_line(error)}{where}",
            "cause": None if cause == module else cause,
        }
    return {}


def _raised_in(error: BaseException) -> str | None:
    """Return the top-level package of the deepest frame outside Python's own modules."""
    frames = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    packages = [name.partition(".")[0] for name in frames]
    foreign = [name for name in packages if name not in sys.stdlib_module_names]
    return foreign[-1] if foreign else None


def try_runtime(name: str) -> dict[str, Any]:
    """Quantize a network of one layer and execute it by a runtime."""
    import torch
    from torch import nn

    from quantface_arch import runtime
    from quantface_arch.quant import quantize, save_checkpoint

    hint = runtime.RUNTIMES[name].missing()
    if hint is not None:
        return {"missing": hint}
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Conv2d(3, 8, 3)).eval(), torch.rand(2, 3, 16, 16)
    quantize(model, "w4a8", images, progress=False)
    device = "cuda" if "cpu" not in runtime.RUNTIMES[name].devices else "cpu"
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "tiny.safetensors"
        save_checkpoint(model, path, {"type": "tiny"})
        loaded = runtime.load(path, lambda _: nn.Sequential(nn.Conv2d(3, 8, 3)), name, device)
        wanted, found = model(images), loaded(images.to(device)).cpu()
    error = float((found - wanted).square().mean().sqrt() / wanted.std())
    if not error < TOLERANCE:
        return {"error": f"its relative error is {error:.2f}"}
    return {}


def try_detector() -> dict[str, Any]:
    """Build the default detector without downloading, and run it on a blank image."""
    import numpy as np

    from quantface_arch.faces.detect import build_detector

    detector = build_detector("auto", offline=True)
    detector.detect(np.zeros((64, 64, 3), np.uint8))
    return {"name": detector.name}


def read_models() -> dict[str, Any]:
    """Read the headers of the shipped checkpoints."""
    from quantface_arch.pretrained.names import resolve_model, shipped_models
    from quantface_arch.quant.checkpoint.save_load import read_metadata

    damaged = {}
    for name in shipped_models():
        try:
            read_metadata(resolve_model(name))
        except QuantFaceError as error:
            damaged[name] = one_line(error)
    return {"damaged": damaged}


def look_at_cache() -> dict[str, Any]:
    """Return the folder of compiled models, its bytes, and whether it can be written."""
    from quantface_arch.utils.disk_cache import cache_root

    root = cache_root()
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    folder = root
    while not folder.exists():
        folder = folder.parent
    writable = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
    return {"folder": str(root), "bytes": size, "writable": writable}


def try_restore() -> dict[str, Any]:
    """Restore one face of noise with the default model, by the reference if it is installed."""
    import numpy as np

    from quantface_arch import runtime
    from quantface_arch.pretrained.names import DEFAULT_MODEL
    from quantface_arch.restore.restorer import FaceRestorer
    from quantface_arch.utils.devices import has_cuda
    from quantface_arch.utils.installation import is_full

    device = "cuda" if has_cuda() else "cpu"
    how = "reference" if is_full() else "auto"
    restorer = FaceRestorer.from_pretrained(DEFAULT_MODEL, how, device, offline=True)
    face = np.random.default_rng(0).integers(0, 255, (512, 512, 3), np.uint8)
    restored = next(iter(restorer.restore_aligned([face])))
    if restored.shape != face.shape or np.array_equal(restored, face):
        return {"error": f"{DEFAULT_MODEL} does not restore"}
    return {"device": device, "auto": runtime.resolve("auto", device)}


STEPS: dict[str, Callable[..., dict[str, Any]]] = {
    "import": try_import,
    "runtime": try_runtime,
    "detector": try_detector,
    "models": read_models,
    "cache": look_at_cache,
    "restore": try_restore,
}


def run_steps(names: list[str], report: Callable[[str], None]) -> None:
    """Run steps such as ``import torch``, and report each as a line of JSON when it is done."""
    for name in names:
        started = time.monotonic()
        kind, *arguments = name.split(" ", 1)
        try:
            result = STEPS[kind](*arguments)
        except Exception as error:
            shown = one_line(error)
            if not isinstance(error, QuantFaceError):
                shown = f"{type(error).__name__}: {shown}"
            result = {"error": shown}
        seconds = round(time.monotonic() - started, 2)
        report(json.dumps([name, {**result, "seconds": seconds}]))


if __name__ == "__main__":
    # Libraries may print to stdout, so the results get a channel of their own.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    run_steps(sys.argv[1:], lambda line: print(line, file=channel, flush=True))
