"""Measure memory and time of training OSDFace, stage by stage, with random weights.

    python benchmarks/osdface_training_memory.py                # one 512×512 face, 979 M weights
    python benchmarks/osdface_training_memory.py --size 256 --no-checkpointing

Teacher and student are in float32 at W4A4 with the ranks of options/osdface; forward passes use
bfloat16 and gradient checkpointing. "memory GB" is the memory after the stage, and "peak GB" the
maximum so far, in 10⁹ bytes: resident memory of the process on a CPU, allocated memory on a GPU.
The first stage is the cheapest possible: a single image, no balancing, ranges from extremes.
"""

from __future__ import annotations

import copy
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from osdface_memory import SMOKE
from report import parser, peak_gb, report

import quantface_arch.register  # noqa: F401
from quantface_arch.models import QuantFaceModel

OPTIONS = Path(__file__).resolve().parents[1] / "options/osdface/quantface_w4.yml"


class StagedModel(QuantFaceModel):
    """A model that loads only the teacher; ``prepare`` does the rest."""

    def init_training_settings(self) -> None:
        pass

    def prepare(self) -> None:
        """Run the first stage and create the student and its optimizer."""
        super().init_training_settings()


class Meter:
    """A table of the time and memory of every stage."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rows: list[dict[str, Any]] = []

    def run(self, stage: str, work: Callable[[], Any]) -> Any:
        """Run a stage and add its row."""
        start = time.perf_counter()
        result = work()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        memory, peak = self._memory()
        row = {"stage": stage, "seconds": seconds, "memory GB": memory, "peak GB": peak}
        self.rows.append(row)
        print(f"{stage}: {seconds:.1f} s, {memory:.2f} GB, peak {peak:.2f} GB", file=sys.stderr)
        return result

    def _memory(self) -> tuple[float, float]:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated() / 1e9, torch.cuda.max_memory_allocated() / 1e9
        statm = Path("/proc/self/statm")
        if not statm.exists():
            return peak_gb(), peak_gb()
        pages = int(statm.read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e9, peak_gb()


def make_options(folder: Path, size: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """Return the shipped options as BasicSR passes them, with a random network and face."""
    opt = yaml.safe_load(OPTIONS.read_text())
    faces = folder / "faces"
    faces.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8)
    cv2.imwrite(str(faces / "noise.png"), noise)
    arch = {"type": "OSDFace", "preset": "osdface", **overrides}
    opt["network_g"] = {"type": "QuantFaceArch", "arch": arch, "weights": None}
    opt["datasets"]["train"].update(dataroot_gt=str(faces), gt_size=size, phase="train", scale=1)
    opt["quant"].update(
        balance={"kind": "none"},
        weights={"range": "minmax"},
        activations={"range": "minmax"},
        calibration={"num_images": 1, "batch_size": 1},
    )
    opt["train"]["accumulate"] = 1
    opt.update(is_train=True, dist=False, rank=0, world_size=1, auto_resume=False)
    opt["num_gpu"] = min(1, torch.cuda.device_count())
    opt["path"].update(models=str(folder), training_states=str(folder))
    return opt


def measure(opt: dict[str, Any], size: int, steps: int) -> list[dict[str, Any]]:
    """Build the model, run some training steps, and return a row per stage."""
    torch.manual_seed(0)
    meter = Meter(torch.device("cuda" if opt["num_gpu"] else "cpu"))
    meter.run("start", lambda: None)
    model = meter.run("teacher", lambda: StagedModel(copy.deepcopy(opt)))
    meter.run("first stage, student and optimizer", model.prepare)
    data = {name: torch.rand(1, 3, size, size) for name in ("lq", "gt")}
    for step in range(1, steps + 1):
        model.feed_data(data)
        meter.run(f"training step {step}", lambda step=step: model.optimize_parameters(step))
    return meter.rows


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--size", type=int, default=512, help="side of the face (%(default)s)")
    options.add_argument("--steps", type=int, default=2, help="training steps (%(default)s)")
    options.add_argument("--no-checkpointing", action="store_true", help="keep all activations")
    args = options.parse_args()
    size = 64 if args.smoke else args.size
    with tempfile.TemporaryDirectory() as folder:
        opt = make_options(Path(folder), size, SMOKE if args.smoke else {})
        opt["train"]["checkpointing"] = not args.no_checkpointing
        if args.smoke:
            # In a network this narrow, even small ranks are a large share.
            opt["quant"]["branch"] = {"svd": 1, "distill": 1, "budget": 1.0}
        report(measure(opt, size, args.steps), args.json)


if __name__ == "__main__":
    main()
