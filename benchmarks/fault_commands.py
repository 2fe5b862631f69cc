"""Define long commands with small inputs, into which ``robustness_faults`` injects faults."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from batch_runs import REPO, restore_command
from small_networks import RRDB, TINY

from quantface_arch.archs.build import build_arch
from quantface_arch.quant import save_checkpoint
from quantface_arch.utils.files import file_digest

DATA = {
    "name": "faces",
    "type": "QuantFaceDataset",
    "io_backend": {"type": "disk"},
    "gt_size": 64,
    "batch_size_per_gpu": 2,
    "num_worker_per_gpu": 0,
    "dataset_enlarge_ratio": 10,
}
TRAINING = {
    "total_iter": 60,
    "warmup_iter": -1,
    "optim_g": {"type": "AdamW", "lr": 0.001},
    "scheduler": {
        "type": "CosineAnnealingRestartLR",
        "periods": [60],
        "restart_weights": [1],
        "eta_min": 0.00001,
    },
    "losses": [{"type": "L1Loss", "loss_weight": 1.0}],
}
TRAIN = (
    "import pathlib, sys, quantface_arch.launch; "
    "quantface_arch.launch.launch('train', pathlib.Path(sys.argv.pop(1)))"
)


@dataclass(frozen=True)
class Command:
    """A long-running command.

    Attributes:
        words: the command line for a working folder.
        resume: arguments that resume it.
        results: pattern of its result files.
        under_way: tells from its folder and output whether it is half-way.
        room: size in bytes of a disk that it fills half-way.
        processes: number of processes.
    """

    words: Callable[[Path], list[str]]
    resume: tuple[str, ...]
    results: str
    under_way: Callable[[Path, str], bool]
    room: int
    processes: int = 1

    def digests(self, folder: Path) -> dict[str, str]:
        paths = sorted(folder.glob(self.results))
        return {str(p.relative_to(folder)): file_digest(p) for p in paths if p.name[0] != "."}


def commands(faces: Path) -> dict[str, Command]:
    """Return this project's long commands with small inputs."""
    options, model = faces.with_name("options.yml"), faces.with_name("small.safetensors")
    options.write_text(yaml.safe_dump(small_options(faces)))
    save_checkpoint(build_arch(TINY), model, TINY)
    few = ["--model", str(model), "--runtime", "reference"]
    return {
        "restore": _restore(faces, few, 1),
        "restore, 2 processes": _restore(faces, few, 2),
        "train": _train(options),
        "allocate": _allocate(options),
        "quantize": _quantize(faces),
    }


def _restore(faces: Path, words: list[str], processes: int) -> Command:
    return Command(
        lambda folder: restore_command(faces, folder, processes, words),
        ("--resume",),
        "restored_faces/*.png",
        lambda folder, _: len(list(folder.glob("restored_faces/0*.png"))) > 1,
        2_000_000,
        processes,
    )


def _train(options: Path) -> Command:
    return Command(
        lambda folder: [sys.executable, "-c", TRAIN, str(folder), "-opt", str(options)],
        ("--auto_resume",),
        "experiments/faults/models/net_g_latest.safetensors",
        lambda folder, _: any(folder.glob("experiments/faults/training_states/*.state")),
        700_000,
    )


def _allocate(options: Path) -> Command:
    script = str(REPO / "scripts/allocate_bits.py")
    return Command(
        lambda folder: [
            *(sys.executable, script, "-opt", str(options)),
            *("--out", str(folder / "map.yml")),
        ],
        (),
        "map.yml",
        lambda _, output: "measuring" in output,
        4096,
    )


def _quantize(faces: Path) -> Command:
    words = ["--recipe", "w4a8", "--include", "unet.*", "--balance", "none", "--rank", "0"]
    words += ["--num-images", "8", "--batch-size", "1", "--size", "128"]
    script = str(REPO / "scripts/quantize.py")
    return Command(
        lambda folder: [
            *(sys.executable, script, "--model", "mini", "-i", str(faces)),
            *("-o", str(folder / "out.safetensors"), *words),
        ],
        (),
        "out.safetensors",
        lambda folder, _: any(folder.glob("*.calib.safetensors")),
        10_000_000,
    )


def small_options(faces: Path) -> dict[str, Any]:
    """Return options for a training and an allocation that take seconds."""
    return {
        "name": "faults",
        "model_type": "QuantFaceModel",
        "num_gpu": 0,
        "manual_seed": 0,
        "scale": 1,
        "datasets": {"train": {**DATA, "dataroot_gt": str(faces)}},
        "network_g": {"type": "QuantFaceArch", "arch": {**RRDB, "scale": 1}, "weights": None},
        "path": {"pretrain_network_g": None, "resume_state": None},
        "quant": {
            "name": "w4a8",
            "eight_bit": ["conv_first", "conv_last"],
            "balance": {"kind": "scale"},
            "branch": {"svd": 1, "distill": 1, "budget": 1.0},
            "calibration": {"num_images": 4, "batch_size": 2},
        },
        "train": TRAINING,
        "logger": {"print_freq": 10, "save_checkpoint_freq": 5, "use_tb_logger": False},
        "dist_params": {"backend": "gloo", "port": 29500},
        "allocate": {
            "activations": [3, 4, 5, 6, 8],
            "budget": {"activation_bits": 4.5},
            "image_size": 64,
        },
    }
