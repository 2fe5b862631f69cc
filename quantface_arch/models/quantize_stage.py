"""Quantize a network before its training steps, and keep the result in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.data import build_dataset
from basicsr.utils import get_root_logger
from quantface_arch.data.degradation import seeded
from quantface_arch.errors import QuantFaceError
from quantface_arch.models.options import (
    CalibrationOptions,
    QuantBlockOptions,
    QuantFaceOptions,
    ReconstructionOptions,
)
from quantface_arch.quant import (
    CalibrationData,
    Recipe,
    load_checkpoint,
    prepare,
    read_metadata,
    save_checkpoint,
)
from quantface_arch.quant.calibration.store import digest
from quantface_arch.quant.checkpoint.balance_file import load_balance
from quantface_arch.quant.config.bitmap import bits_of, load_bit_map
from quantface_arch.quant.finetune.reconstruct import reconstruct
from quantface_arch.quant.nn.convert import BitMap
from quantface_arch.quant.nn.traits import traits_of
from quantface_arch.utils.images import find_images, load_rgb, resize
from quantface_arch.utils.option_fields import parse_options, split_options

__all__ = ["QuantizeStage", "calibration_images", "read_quant_options"]

# Other processes wait this long for the first one, because calibrating a large network takes hours.
PATIENCE = timedelta(days=2)


def read_quant_options(
    options: Mapping[str, Any] | None, net: nn.Module
) -> tuple[Recipe, BitMap | None, dict[str, Any] | None]:
    """Read the block ``quant`` of an options file, except its ``calibration``.

    ``QuantBlockOptions`` lists the options besides those of ``Recipe``.

    Args:
        options: the block.
        net: the float network; its ``eight_bit_patterns`` apply unless ``eight_bit`` is given.

    Returns:
        the recipe, changed by the bit map; its bit widths; and the balancing. The last two are None
        if no file is named.

    Raises:
        QuantFaceError: the block is missing, a value in it is not allowed, or two files give the
            balancing.
    """
    if not isinstance(options, Mapping):
        raise QuantFaceError("options file: the block quant is missing; give at least name: w4a4")
    own, given = split_options(QuantBlockOptions, options)
    block = parse_options(QuantBlockOptions, "quant", {**own, "calibration": None})
    balance = dict(block.balance)
    balance_file = balance.pop("file", None)
    if not isinstance(balance_file, str | None):
        raise QuantFaceError(f"quant: balance: file: found {balance_file!r}, allowed is a path")
    if balance:
        given["balance"] = balance
    recipe = Recipe.from_dict(given)
    if "eight_bit" not in given:
        recipe = replace(recipe, eight_bit=traits_of(net).eight_bit_patterns)
    plan = load_balance(balance_file) if balance_file else None
    choices = load_bit_map(block.bit_map) if block.bit_map else {}
    if plan is not None and any(choice.balance for choice in choices.values()):
        raise QuantFaceError(
            f"quant: balance: file: found {balance_file}, but {block.bit_map} gives it too"
        )
    return recipe.with_choices(choices), bits_of(choices) or None, plan


def calibration_images(
    opt: Mapping[str, Any], net: nn.Module, count: int | None = None, size: int | None = None
) -> list[Tensor]:
    """Return degraded images to calibrate a network on, in the network's range.

    Args:
        opt: a whole options file.
        net: the network, for its ``input_range``.
        count, size: number and side of the images, instead of those in the options file.

    Returns:
        float32 (3, H, W) each, the same in every run.

    Raises:
        QuantFaceError: an option is unknown, or there are no images.
    """
    options = _calibration_options(opt)
    wanted = count or options.num_images
    folder, size = options.dataroot_lq, size or options.size
    read = _from_folder(folder, size) if folder else _from_dataset(opt, size)
    low, high = traits_of(net).input_range
    return [image * (high - low) + low for image in read(wanted)]


def _calibration_options(opt: Mapping[str, Any]) -> CalibrationOptions:
    return parse_options(CalibrationOptions, "quant calibration", opt["quant"].get("calibration"))


def _spread(wanted: int, available: int) -> list[int]:
    count = min(wanted, available)
    return [place * available // count for place in range(count)]


def _from_folder(folder: str, size: int | None) -> Any:
    root = Path(folder)
    paths = find_images(root)
    if not paths:
        raise QuantFaceError(
            f"quant calibration dataroot_lq: no image in {root}; degraded images belong there"
        )

    def read(wanted: int) -> list[Tensor]:
        arrays = [load_rgb(paths[index]) for index in _spread(wanted, len(paths))]
        if size is not None:
            arrays = [resize(array, size, size) for array in arrays]
        return [torch.tensor(array).permute(2, 0, 1).float() / 255 for array in arrays]

    return read


def _from_dataset(opt: Mapping[str, Any], size: int | None) -> Any:
    options = dict(opt["datasets"]["train"])
    if size is not None:
        options["gt_size"] = size
    dataset = build_dataset(options)

    def read(wanted: int) -> list[Tensor]:
        images = []
        for index in _spread(wanted, len(dataset)):
            # We set the seed, because BasicSR's data sets crop and flip at random.
            with seeded(opt["manual_seed"], index):
                images.append(dataset[index]["lq"])
        return images

    return read


@dataclass
class QuantizeStage:
    """The stage that quantizes a copy of the teacher, or loads the result of an earlier run.

    The result is ``prepared.safetensors`` among the experiment's models.

    Args:
        opt: the whole options file.
        train: its block ``train``.
        teacher: the float network, with its weights.
    """

    opt: Mapping[str, Any]
    train: QuantFaceOptions
    teacher: nn.Module

    def __post_init__(self) -> None:
        quant = self.opt.get("quant")
        self.recipe, self.bits, self.balance = read_quant_options(quant, self.teacher)
        self.path = Path(self.opt["path"]["models"]) / "prepared.safetensors"
        self.arch = traits_of(self.teacher).arch_options or self.opt["network_g"]
        self.reconstruction = self.train.reconstruction
        if self.reconstruction is not None:
            self._check_blocks(self.reconstruction.blocks)

    def _check_blocks(self, patterns: Sequence[str]) -> None:
        """Raise QuantFaceError before calibration, not after it, if a pattern matches nothing."""
        names = [name for name, _ in self.teacher.named_modules()]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise QuantFaceError(
                    f"train option reconstruction: block {pattern!r} matches no part of the network"
                )

    def run(self, student: nn.Module) -> nn.Module:
        """Quantize ``student``, a copy of the teacher, in place; the first process does the work.

        Raises:
            QuantFaceError: see ``prepare``; or the file to resume from was made with other bit
                widths or weights.
        """
        found = self._found()
        made = found is None and self.opt["rank"] == 0
        if made:
            self._make(student)
        if self.opt["dist"]:
            # We make a new group, because processes of the main one stop waiting within minutes.
            group = dist.new_group(backend="gloo", timeout=PATIENCE)
            # Every process is a member, so each gets a group and not a placeholder.
            dist.barrier(group=cast("dist.ProcessGroup", group))
        if not made:
            source = found or self.path
            get_root_logger().info(f"Quantize stage: loading {source}.")
            load_checkpoint(source, lambda _: student)
        return student.to(next(self.teacher.parameters()).device)

    def _found(self) -> Path | None:
        """Return the file of an earlier run that this run can reuse, or None."""
        resumes = bool(self.opt["path"].get("resume_state"))
        if resumes and self.path.is_file():
            self._check_resumed(read_metadata(self.path))
            return self.path
        experiment = self.path.parents[1]
        paths = [self.path]
        if self.opt.get("auto_resume"):
            # A run that was killed before its first training state cannot be resumed, so BasicSR
            # has archived its folder.
            archived = experiment.parent.glob(f"{experiment.name}_archived_*/models")
            paths += [folder / self.path.name for folder in sorted(archived, reverse=True)]
        for path in paths:
            if path.is_file() and read_metadata(path)["extra"] == self._key():
                return path
        return None

    def _check_resumed(self, metadata: Mapping[str, Any]) -> None:
        recipe = json.loads(json.dumps(self.recipe.to_dict()))
        widths = {name: {"w": w, "a": a} for name, (w, a) in (self.bits or {}).items()}
        # Layers that calibration never reached are only in the bit map.
        same_bits = not widths or all(
            widths.get(name) == bits for name, bits in metadata["bits"].items()
        )
        same_recipe = metadata["recipe"] == recipe and same_bits
        if not same_recipe or metadata["extra"].get("teacher") != digest(self.teacher):
            what = "teacher's weights" if same_recipe else "options under quant"
            raise QuantFaceError(
                f"{self.path}: the {what} have changed since; resume with the same, or start anew"
            )

    def _key(self) -> dict[str, Any]:
        """Return everything that the stage's result depends on."""
        parts = {
            "quant": self.opt["quant"],
            "bits": self.bits,
            "recipe": self.recipe.to_dict(),
            "data": {k: v for k, v in self.opt["datasets"]["train"].items() if k != "name"},
            "reconstruction": self.opt["train"].get("reconstruction"),
            "seed": self.opt["manual_seed"],
            "balance": {
                name: (balance.to_dict(), str(balance.scale))
                for name, balance in (self.balance or {}).items()
            },
        }
        text = json.dumps(parts, sort_keys=True, default=str)
        return {
            "teacher": digest(self.teacher),
            "options": hashlib.sha256(text.encode()).hexdigest(),
        }

    def _make(self, student: nn.Module) -> None:
        batch_size = _calibration_options(self.opt).batch_size
        images = calibration_images(self.opt, self.teacher)
        report = prepare(
            student,
            self.recipe,
            CalibrationData(images, batch_size),
            bits=self.bits,
            balance=self.balance,
        )
        get_root_logger().info(f"Quantize stage: {report}")
        if self.reconstruction is not None:
            self._reconstruct(student, self.reconstruction, batch_size)
        save_checkpoint(student, self.path, self.arch, self._key(), dtype=torch.float32)

    def _reconstruct(
        self, student: nn.Module, options: ReconstructionOptions, batch_size: int
    ) -> None:
        images = calibration_images(self.opt, self.teacher, options.num_images, options.size)
        errors = reconstruct(
            student,
            self.teacher,
            images,
            options.blocks,
            options.steps,
            options.lr,
            batch_size,
            self.train.bounds if options.bounds is None else options.bounds,
            options.train_weights,
        )
        lines = (f"{name}: {before:.3e} -> {after:.3e}" for name, (before, after) in errors.items())
        get_root_logger().info("Reconstruction, error of each block:\n" + "\n".join(lines))
