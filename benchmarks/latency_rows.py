"""Measure a row of latency.py: time one runtime of a restorer in this process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from report import peak_gb
from torch import Tensor, nn

from quantface_arch.archs.build import ARCH_BUILDER
from quantface_arch.pretrained.zoo import load_model
from quantface_arch.quant import read_metadata
from quantface_arch.quant.nn.traits import traits_of
from quantface_arch.runtime.lowering import Lowering
from quantface_arch.runtime.onnx_file import ANY_SIZE, write_onnx
from quantface_arch.runtime.parts import record
from quantface_arch.runtime.processor import FULL, SPARE, has_vnni
from quantface_arch.utils.threads import set_thread_count

__all__ = ["KINDS", "NNCF", "ONNX", "QUANTIZED", "measure"]

NNCF = "openvino nncf w8a8"
ONNX = ("onnx runtime fp32", "onnx runtime quantized")
QUANTIZED = ("quantized", ONNX[1])
# Each type of device has these rows. The first is the one that the others are compared with.
KINDS = {
    "cpu": (
        "torch fp32",
        "torch bf16",
        "openvino fp32",
        "openvino bf16",
        NNCF,
        "quantized",
        *ONNX,
    ),
    "cuda": ("torch fp16", "torch fp16 compiled", "quantized"),
}


@torch.inference_mode()
def measure(row: dict[str, Any]) -> dict[str, Any]:
    """Load and run a network; return seconds by part, loading time, memory and file size."""
    set_thread_count(row["threads"])
    torch.manual_seed(0)
    on_gpu = row["device"] == "cuda"
    x = (torch.rand(row["batch"], 3, row["size"], row["size"]) * 2 - 1).to(row["device"])
    start = time.perf_counter()
    network, dtype = (_network_on_gpu(row), x.dtype) if on_gpu else _network(row, x)
    weights = torch.cuda.memory_allocated() if on_gpu else 0
    network(x.to(dtype))
    loaded = time.perf_counter() - start
    names = ("whole",) if isinstance(network, OnnxFile) else traits_of(network).parts
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        vars(network)[name] = _timed(getattr(network, name), seconds[name])
    for _ in range(row["repeats"]):
        network(x.to(dtype))
    path = Path(row["path"])
    prefix = "onnx runtime " if row["kind"] in ONNX else ""
    return {
        "kind": row["kind"],
        "arch": read_metadata(path)["arch"],
        "name": f"{prefix}{path.stem} {row['mode']}" if row["kind"] in QUANTIZED else row["kind"],
        "parts": {name: min(found) for name, found in seconds.items()},
        "load s": loaded,
        "peak GB": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else peak_gb(),
        "file MB": path.stat().st_size / 1e6,
        **({"weights GB": weights / 1e9} if on_gpu else {}),
    }


def _timed(method: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    def run(*inputs: Tensor) -> Any:
        _wait()
        start = time.perf_counter()
        outputs = method(*inputs)
        _wait()
        seconds.append(time.perf_counter() - start)
        return outputs

    return run


def _wait() -> None:
    """Wait until a GPU has finished its work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _network_on_gpu(row: dict[str, Any]) -> nn.Module:
    """Load a row's network on a GPU; compiled ones use CUDA graphs, like the runtime cuda."""
    path = Path(row["path"])
    if row["kind"] == "quantized":
        from quantface_arch.runtime import cuda

        return cuda.load(path, ARCH_BUILDER, row["mode"])
    from quantface_arch.runtime.cuda.graph import GraphedPart

    network = load_model(path, runtime="reference", device="cuda")
    network = network.to(torch.float16, memory_format=torch.channels_last)
    for name in traits_of(network).parts:
        method, graphed = getattr(network, name), row["kind"].endswith("compiled")
        vars(network)[name] = GraphedPart(name, method, torch.float16, graphed)
    return network


class OnnxFile:
    """A network exported to ONNX, which has one part, in ONNX Runtime.

    Args:
        path: the checkpoint. Its ONNX file is written to the cache folder unless it is there.
    """

    def __init__(self, path: Path, mode: str, threads: int) -> None:
        import onnxruntime

        target = Path(os.environ["QUANTFACE_CACHE"]) / f"{path.stem}-{mode}.onnx"
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            write_onnx(path, ARCH_BUILDER, Lowering(mode, FULL if has_vnni() else SPARE), target)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(target, options, ["CPUExecutionProvider"])

    def __call__(self, x: Tensor) -> None:
        self.whole(x)

    def whole(self, x: Tensor) -> None:
        """Restore images (N, 3, H, W)."""
        self.session.run(None, {ANY_SIZE.input: x.numpy()})


def _network(row: dict[str, Any], x: Tensor) -> tuple[Any, torch.dtype]:
    """Load a row's network; return it with the dtype of its input."""
    kind, path = row["kind"], Path(row["path"])
    if kind in ONNX:
        return OnnxFile(path, row.get("mode", "auto"), row["threads"]), torch.float32
    if kind.startswith("torch"):
        dtype = torch.float32 if kind == "torch fp32" else torch.bfloat16
        network = load_model(path)
        if dtype == torch.bfloat16:
            network = network.to(dtype, memory_format=torch.channels_last)
        return network, dtype
    from quantface_arch.runtime import openvino

    if kind == "quantized":
        return openvino.load(path, ARCH_BUILDER, row["mode"]), torch.float32
    network = openvino.load(path, ARCH_BUILDER)
    inputs = record(network, x) if kind == NNCF else {}
    for name in network.parts:
        part = vars(network)[name].part
        if kind == "openvino bf16":
            part.options["INFERENCE_PRECISION_HINT"] = "bf16"
        elif kind == NNCF:
            _quantize(part, inputs[name][0])
    return network, torch.float32


def _quantize(part: Any, inputs: tuple[Tensor, ...]) -> None:
    """Replace a part by NNCF's 8-bit quantization of it, calibrated on one batch."""
    import nncf
    import openvino

    model = openvino.Core().read_model(part.path)
    model.reshape({place: list(x.shape) for place, x in enumerate(inputs)})
    data = nncf.Dataset([[x.numpy() for x in inputs]])
    model = nncf.quantize(model, data, subset_size=1)
    del part.options["INFERENCE_PRECISION_HINT"]
    compiled = openvino.Core().compile_model(model, "CPU", part.options)
    part.compiled.clear()
    part.compiled[tuple(tuple(x.shape) for x in inputs)] = compiled
