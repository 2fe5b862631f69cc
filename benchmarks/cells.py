"""Fill the cells of a table: train networks in BasicSR's loop and score them face by face.

A cell's experiment, scores and some images are kept in a folder, so that a killed run resumes,
even in the middle of a training, and a finished cell is not computed again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
import torch
import yaml
from make_lq import degrade_file
from mini_quality import restore
from report import faces_folder

from quantface_arch import load_model
from quantface_arch.pretrained.names import resolve_model
from quantface_arch.utils.files import atomic_path
from quantface_arch.utils.progress import progress_bar

__all__ = [
    "FULL",
    "REPO",
    "Cells",
    "add_arguments",
    "faces_of",
    "identified",
    "save",
    "set_steps",
    "shrink",
]

# This is the folder of the full-precision network's images, and the name of its scores.
FULL = "full-precision"
REPO = Path(__file__).resolve().parents[1]
# This equals basicsr/train.py, but writes experiments below the folder in the first argument.
LAUNCH = """\
import pathlib, sys, quantface_arch.launch
quantface_arch.launch.launch("train", pathlib.Path(sys.argv.pop(1)))
"""

Image = np.ndarray
# A scorer maps (restored, clean, full precision's) images, BGR uint8, to scores by name.
Scorer = Callable[[Image, Image, Image], dict[str, float]]
AnyScorer = TypeVar("AnyScorer", bound=Scorer)


def save(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def faces_of(folder: str, limit: int | None) -> list[Path]:
    """Return the first faces of a subfolder of ``faces/``, or end the program if it has none."""
    root = faces_folder(folder)
    faces = sorted(root.glob("*.jpg"))[:limit]
    if not faces:
        sys.exit(f"error: no faces in {root}; set QUANTFACE_DATA")
    return faces


def add_arguments(made: argparse.ArgumentParser, cache: str) -> None:
    """Add the options that every table shares; ``cache`` is a folder name below results/."""
    add = made.add_argument
    add("--faces", default="val512", help="subfolder of faces/ to score (%(default)s)")
    add("--train-faces", type=Path, help="clean training faces (default: from the options)")
    add("--cache", type=Path, default=Path("results") / cache, help="folder of finished cells")
    add("--threads", type=int, default=os.cpu_count() or 1, help="threads of torch (all cores)")


def shrink(opt: dict[str, Any]) -> None:
    """Reduce the options so that a cell takes seconds."""
    opt["quant"].update(include=["vae.decoder.up_blocks.*"], bit_map=None)
    opt["quant"]["calibration"] = {"num_images": 2, "batch_size": 2, "size": 64}
    opt["datasets"]["train"].update(
        dataroot_gt=str(faces_folder("tune512")), gt_size=64, batch_size_per_gpu=1
    )


def set_steps(opt: dict[str, Any], steps: int) -> None:
    """Set the number of training steps; with 0 the loop only quantizes and saves."""
    train = opt["train"]
    train["total_iter"] = steps
    if steps:
        train["warmup_iter"] = min(train.get("warmup_iter", -1), steps // 10) or -1
        train["scheduler"].update(periods=[steps], restart_weights=[1])
    opt["logger"].update(print_freq=max(1, min(20, steps // 4)), use_tb_logger=False)
    opt["logger"]["save_checkpoint_freq"] = max(1, min(50, steps // 4))
    opt.pop("val", None)
    opt["datasets"].pop("val", None)


def identified(name: str, opt: dict[str, Any], faces: Sequence[Path], *more: Any) -> dict[str, Any]:
    """Return the options with a name that ends in a hash of everything the scores depend on.

    Only the last part of absolute paths counts, because data folders differ between machines. Of a
    bit map, its contents count.
    """
    bit_map = (opt.get("quant") or {}).get("bit_map")
    if bit_map is not None and (REPO / bit_map).is_file():
        more = (*more, (REPO / bit_map).read_text())
    key = json.dumps([_portable(opt), [_named(path) for path in faces], *more], sort_keys=True)
    return {**opt, "name": f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"}


def _portable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _portable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_portable(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _named(face: Path) -> str:
    """Return folder and stem, because other folders may hold faces of the same name."""
    return f"{face.parent.name}/{face.stem}"


@dataclass
class Cells(Generic[AnyScorer]):
    """Settings that the cells of a table share.

    Attributes:
        faces: clean faces, degraded as in make_lq.py (seed 0).
        cache: folder of finished cells.
        teacher: name or path of the full-precision network.
        threads: number of torch's threads.
        scorer: function that scores one image.
        shown: number of faces whose images are kept.
    """

    faces: Sequence[Path]
    cache: Path
    teacher: str
    threads: int
    scorer: AnyScorer
    shown: int = 0

    def train(self, opt: Mapping[str, Any]) -> None:
        """Run BasicSR's training loop below the cache."""
        name = opt["name"]
        self.cache.mkdir(parents=True, exist_ok=True)
        path = self.cache / f"{name}.yml"
        path.write_text(yaml.safe_dump(dict(opt), sort_keys=False))
        command = [sys.executable, "-c", LAUNCH, str(self.cache), "-opt", str(path)]
        log = self.cache / f"{name}.log"
        with log.open("w") as output:
            status = subprocess.run(
                [*command, "--auto_resume"],
                cwd=REPO,
                env={**os.environ, "OMP_NUM_THREADS": str(self.threads)},
                stdout=output,
                stderr=subprocess.STDOUT,
            ).returncode
        if status:
            last = log.read_text().strip().splitlines()[-1:]
            sys.exit(f"error: training of cell {name} failed, see {log}: {''.join(last)}")

    def checkpoint(self, name: str) -> Path:
        """Return the path of a cell's network, which exists once it is trained."""
        return self.cache / "experiments" / name / "models/net_g_latest.safetensors"

    def run(self, opt: Mapping[str, Any]) -> dict[str, Any]:
        """Return a cell's ``faces`` (name → scores) and the ``bytes`` of its checkpoint."""
        kept = self.cache / f"{opt['name']}.json"
        if not kept.exists():
            path = self.checkpoint(opt["name"])
            # The loop writes this file last, so it is complete if a run was killed while scoring.
            if not path.exists():
                self.train(opt)
            model = load_model(path, runtime="reference")
            figures = self.score(model, opt["name"])
            save(kept, {"faces": figures, "bytes": path.stat().st_size})
        return json.loads(kept.read_text())

    def run_teacher(self, *names: str) -> dict[str, Any]:
        """Return what ``run`` does, for the full-precision network; ``names`` name the scores."""
        path = resolve_model(self.teacher)
        key = {"teacher": self.teacher, "bytes": path.stat().st_size}
        kept = self.cache / f"{identified(FULL, key, self.faces, names)['name']}.json"
        if not kept.exists():
            save(kept, {"faces": self.score(None, FULL), "bytes": key["bytes"]})
        return json.loads(kept.read_text())

    def score(self, model: torch.nn.Module | None, name: str) -> dict[str, dict[str, float]]:
        """Return scores by face; None scores the full-precision network itself."""
        rows = {}
        for place, path in enumerate(progress_bar(self.faces, desc=name, unit="face", leave=False)):
            clean, low, _ = degrade_file(path)
            first = self.full_precision(path, low)
            image = first if model is None else restore(model, low)
            rows[path.stem] = self.scorer(image, clean, first)
            if place < self.shown:
                _write(self.image(name, path), image)
        return rows

    def image(self, name: str, face: Path) -> Path:
        """Return the path of a cell's image of a face."""
        return self.cache / "pictures" / name / f"{_named(face)}.png"

    @cached_property
    def _teacher(self) -> torch.nn.Module:
        return load_model(self.teacher, runtime="reference")

    def full_precision(self, face: Path, low: Image) -> Image:
        """Restore a degraded face in full precision, as BGR uint8."""
        kept = self.image(FULL, face)
        if not kept.exists():
            _write(kept, restore(self._teacher, low))
        return cv2.imread(str(kept))


def _write(path: Path, image: Image) -> None:
    with atomic_path(path) as temporary:
        cv2.imwrite(str(temporary), image)
