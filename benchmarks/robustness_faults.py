"""Inject faults into long commands and resume them: ``benchmarks/robustness.py faults``.

Each command runs undisturbed once. Then each fault is injected half-way. The row has the exit code
and the message of the command; ``damaged`` counts results that exist but differ, and ``resumed
equal`` says whether the resumed command gives the same bytes as the undisturbed run. A full disk
and a read-only folder are small file systems in memory, which only root can mount.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from batch_runs import REPO, Run, end, faces_folder, restore_command
from tqdm import tqdm

from quantface_arch.archs.build import build_arch
from quantface_arch.quant import save_checkpoint
from quantface_arch.utils.files import file_digest

# A tiny restorer with the mini's architecture: the results do not depend on its weights.
VRE = {"resolution": 32, "channels": 8, "channel_mult": [1, 2], "z_channels": 16}
SMALL = {
    "type": "OSDFace",
    "preset": "mini",
    "vre": {**VRE, "num_codes": 16, "num_tokens": 4, "prompt_dim": 32},
    "vae": {"block_out_channels": [16, 16, 16], "latent_channels": 4},
    "unet": {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [32, 32, 32],
        "attention_head_dim": [1, 1, 1],
        "cross_attention_dim": 32,
    },
}
TRAIN = (
    "import pathlib, sys, quantface_arch.launch; "
    "quantface_arch.launch.launch('train', pathlib.Path(sys.argv.pop(1)))"
)
SECONDS = 300


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
    options.write_text(yaml.safe_dump(_options(faces)))
    save_checkpoint(build_arch(SMALL), model, SMALL)
    few = ["--model", str(model), "--runtime", "reference"]
    python, scripts = sys.executable, REPO / "scripts"
    quantize = ["--recipe", "w4a8", "--include", "unet.*", "--balance", "none", "--rank", "0"]
    quantize += ["--num-images", "8", "--batch-size", "1", "--size", "128"]

    def restore(count: int) -> Command:
        return Command(
            lambda folder: restore_command(faces, folder, count, few),
            ("--resume",),
            "restored_faces/*.png",
            lambda folder, _: len(list(folder.glob("restored_faces/0*.png"))) > 1,
            2_000_000,
            count,
        )

    return {
        "restore": restore(1),
        "restore, 2 processes": restore(2),
        "train": Command(
            lambda folder: [python, "-c", TRAIN, str(folder), "-opt", str(options)],
            ("--auto_resume",),
            "experiments/faults/models/net_g_latest.safetensors",
            lambda folder, _: any(folder.glob("experiments/faults/training_states/*.state")),
            700_000,
        ),
        "allocate": Command(
            lambda folder: [
                *(python, str(scripts / "allocate_bits.py"), "-opt", str(options)),
                *("--out", str(folder / "map.yml")),
            ],
            (),
            "map.yml",
            lambda _, output: "measuring" in output,
            4096,
        ),
        "quantize": Command(
            lambda folder: [
                *(python, str(scripts / "quantize.py"), "--model", "mini", "-i", str(faces)),
                *("-o", str(folder / "out.safetensors"), *quantize),
            ],
            (),
            "out.safetensors",
            lambda folder, _: any(folder.glob("*.calib.safetensors")),
            10_000_000,
        ),
    }


def _options(faces: Path) -> dict[str, Any]:
    """Return options for a training and an allocation that take seconds."""
    arch = {"type": "RRDBNet", "num_in_ch": 3, "num_out_ch": 3, "scale": 1, "num_feat": 8}
    return {
        "name": "faults",
        "model_type": "QuantFaceModel",
        "num_gpu": 0,
        "manual_seed": 0,
        "scale": 1,
        "datasets": {
            "train": {
                "name": "faces",
                "type": "QuantFaceDataset",
                "dataroot_gt": str(faces),
                "io_backend": {"type": "disk"},
                "gt_size": 64,
                "batch_size_per_gpu": 2,
                "num_worker_per_gpu": 0,
                "dataset_enlarge_ratio": 10,
            }
        },
        "network_g": {
            "type": "QuantFaceArch",
            "arch": {**arch, "num_block": 1, "num_grow_ch": 4},
            "weights": None,
        },
        "path": {"pretrain_network_g": None, "resume_state": None},
        "quant": {
            "name": "w4a8",
            "eight_bit": ["conv_first", "conv_last"],
            "balance": {"kind": "scale"},
            "branch": {"svd": 1, "distill": 1, "budget": 1.0},
            "calibration": {"num_images": 4, "batch_size": 2},
        },
        "train": {
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
        },
        "logger": {"print_freq": 10, "save_checkpoint_freq": 5, "use_tb_logger": False},
        "dist_params": {"backend": "gloo", "port": 29500},
        "allocate": {
            "activations": [3, 4, 5, 6, 8],
            "budget": {"activation_bits": 4.5},
            "macs_size": 64,
        },
    }


def _faults(command: Command) -> dict[str, Callable[[Run], None] | None]:
    """Return the faults by name; None stands for faults of the disk."""

    def kill(run: Run) -> None:
        end(run.workers()[-1])

    def interrupt(run: Run) -> None:
        # Signal the whole group, as a terminal does.
        for pid in {run.process.pid, *run.workers()}:
            end(pid, signal.SIGINT)

    several = {"torchrun killed": lambda run: end(run.process.pid)}
    plain = {"disk full": None, "a process killed": kill, "Ctrl-C": interrupt, "read-only": None}
    return {**plain, **(several if command.processes > 1 else {})}


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each command and fault."""
    found = []
    with tempfile.TemporaryDirectory() as root:
        faces = faces_folder(Path(root) / "faces", 24)
        all_commands = commands(faces)
        cases = [
            (name, fault)
            for name, command in all_commands.items()
            for fault in _faults(command)
            if name in (args.commands or [name]) and fault in (args.faults or [fault])
        ]
        named = {*(args.commands or ()), *(args.faults or ())}
        if unknown := named - {word for case in cases for word in case}:
            raise SystemExit(f"error: no case has the command or fault {min(unknown)!r}")
        if args.smoke:
            cases = [("restore", "Ctrl-C")]
        undisturbed: dict[str, dict[str, str]] = {}
        for number, (name, fault) in enumerate(tqdm(cases, desc="faults", file=sys.stderr)):
            command = all_commands[name]
            if name not in undisturbed:
                folder = Path(root) / "whole" / str(number)
                folder.mkdir(parents=True)
                status, output = Run(command.words(folder)).wait()
                if status:
                    raise SystemExit(f"{name} failed:\n{output}")
                undisturbed[name] = command.digests(folder)
            folder = Path(root) / str(number)
            folder.mkdir()
            outcome = _outcome(command, fault, folder, undisturbed[name])
            found.append({"command": name, "fault": fault, **outcome})
            tqdm.write(" | ".join(map(str, found[-1].values())), file=sys.stderr)
    return found


def _outcome(
    command: Command, fault: str, folder: Path, wanted: Mapping[str, str]
) -> dict[str, Any]:
    inflict = _faults(command)[fault]
    with _disk(folder, None if inflict else command.room) as disk:
        if disk is None and inflict is None:
            text = "skipped: only root can mount a small disk"
            return {"exit code": "", "message": text, "damaged": "", "resumed equal": ""}
        if disk and fault == "read-only":
            disk("ro")
        run = Run(command.words(folder))
        if inflict:
            limit = time.monotonic() + SECONDS
            while run.process.poll() is None and time.monotonic() < limit:
                if command.under_way(folder, run.printed()):
                    inflict(run)
                    break
                time.sleep(0.02)
        status, output = run.wait()
        damaged = sum(wanted.get(name) != it for name, it in command.digests(folder).items())
        if disk:
            disk("rw,size=1g")
        resumed, _ = Run([*command.words(folder), *command.resume]).wait()
        equal = resumed == 0 and command.digests(folder) == wanted
    return {
        "exit code": 128 - status if status < 0 else status,
        "message": _message(output, folder),
        "damaged": damaged,
        "resumed equal": "yes" if equal else "NO",
    }


def _message(output: str, folder: Path) -> str:
    """Return the line with the error, without this run's folder."""
    said = [line for line in output.splitlines() if line.startswith(("error: ", "interrupted"))]
    if not said and "SIGKILL" in output:
        return "torchrun: Signal 9 (SIGKILL) received by PID ..."
    return said[0].replace(f"{folder}/", "") if said else ""


@contextmanager
def _disk(folder: Path, size: int | None) -> Iterator[Callable[[str], None] | None]:
    """Mount a small disk and yield a function that remounts it; None without a disk."""
    if size is None or os.geteuid() != 0:
        yield None
        return
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        yield None
        return

    def change(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)

    try:
        yield change
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
