"""Check the options that BasicSR's own loops read before BasicSR uses them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.option_fields import Limits, option, parse_options, split_options

__all__ = ["LoaderOptions", "LoopOptions", "SavingOptions", "TestingOptions", "check_loop", "force"]


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """Options at the top level of an options file."""

    name: str = option("name of the folder of results.")
    model_type: str = option("a model of BasicSR's registry.")
    num_gpu: int | str = option("number of GPUs, or `auto` for all.")
    manual_seed: int | None = option("seed; null draws one.", None, limits=Limits(least=0))
    scale: int = option("how much the network enlarges.", 1, limits=Limits(least=1))
    datasets: Mapping[str, Any] = option("data set options by phase, such as `train` and `val`.")
    network_g: Mapping[str, Any] = option("type and options of the network.")
    path: Mapping[str, Any] = option("files of weights and of a training to resume.")
    train: Mapping[str, Any] = option("see below.", {}, shown="none")
    val: Mapping[str, Any] = option("see below.", {}, shown="none")
    logger: Mapping[str, Any] = option("see below.", {}, shown="none")
    dist_params: Mapping[str, Any] = option("options of distributed training.", {}, shown="none")


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """Options under ``datasets: PHASE`` that BasicSR reads."""

    type: str = option("a data set of BasicSR's registry.")
    name: str = option("what logs call the data set.")
    dataroot_gt: str | None = option("folder or LMDB of the clean images.", None)
    dataroot_lq: str | None = option("folder or LMDB of the degraded images.", None)
    io_backend: Mapping[str, Any] = option("`type: disk` or `type: lmdb`.", {"type": "disk"})
    batch_size_per_gpu: int = option("images in a batch.", 1, limits=Limits(least=1))
    num_worker_per_gpu: int = option("processes that load images.", 0, limits=Limits(least=0))
    dataset_enlarge_ratio: float = option(
        "how often an epoch goes through the images.", 1, limits=Limits(above=0)
    )
    prefetch_mode: str | None = option("how batches are prefetched.", None)


@dataclass(frozen=True, kw_only=True)
class SavingOptions:
    """Options under ``logger`` that BasicSR reads."""

    print_freq: int = option("steps between lines of the log.", 100, limits=Limits(least=1))
    save_checkpoint_freq: int = option("steps between checkpoints.", 5000, limits=Limits(least=1))
    use_tb_logger: bool = option("write a log for TensorBoard.", False)
    wandb: Mapping[str, Any] | None = option("options of Weights & Biases.", None)


@dataclass(frozen=True, kw_only=True)
class TestingOptions:
    """Options under ``val`` that BasicSR reads."""

    __test__ = False  # not a test, whatever pytest makes of its name

    val_freq: int = option("steps between evaluations.", 5000, limits=Limits(least=1))
    save_img: bool = option("write the restored images.", False)
    suffix: str | None = option("suffix of the names of restored images.", None)
    metrics: Mapping[str, Any] | None = option("metrics by name.", None)


def check_loop(opt: Any) -> None:
    """Check what BasicSR's loops read without a check of their own.

    Raises:
        QuantFaceError: an option is missing or wrong. The message names the option, what was found
            and what is allowed.
    """
    if not isinstance(opt, Mapping):
        raise QuantFaceError(f"options file: found {opt!r}, allowed is a mapping of options")
    options = _check(LoopOptions, "options file", opt)
    for block in ("train", "logger"):
        # BasicSR reads these without asking whether they are null.
        if block in opt and opt[block] is None:
            raise QuantFaceError(f"options file option {block}: found None, allowed is a mapping")
    if options.name in ("", ".", "..") or {*options.name} & {os.sep, "\0"}:
        raise QuantFaceError(f"options file option name: found {options.name!r}, not a folder name")
    if not isinstance(options.network_g.get("type"), str):
        found = options.network_g.get("type")
        raise QuantFaceError(f"network_g option type: found {found!r}, allowed is a string")
    _check_devices(options.num_gpu)
    for phase, data in options.datasets.items():
        if not isinstance(phase, str):
            raise QuantFaceError(f"datasets: found {phase!r}, allowed are names such as train, val")
        _check(LoaderOptions, f"datasets: {phase}", data)
    for key, value in options.path.items():
        is_file = "pretrain_network" in str(key) or "resume_state" in str(key)
        if is_file and not isinstance(value, (str, type(None))):
            raise QuantFaceError(f"path option {key}: found {value!r}, allowed is a string or null")
    _check(SavingOptions, "logger", options.logger)
    metrics = _check(TestingOptions, "val", options.val).metrics or {}
    for name, metric in metrics.items():
        if not isinstance(metric, Mapping) or not isinstance(metric.get("type"), str):
            raise QuantFaceError(
                f"val option metrics: {name}: found {metric!r}, allowed is {{type: METRIC, ...}}"
            )


def force(opt: Any, words: Sequence[str], value_of: Any) -> Any:
    """Apply the entries ``NAME:NAME=VALUE`` of ``--force_yml`` to options, as BasicSR does.

    Args:
        opt: the options file's content; it is changed.
        words: the command line's arguments.
        value_of: turns the text of a value into the value.

    Raises:
        QuantFaceError: an entry names a block that does not exist.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--force_yml", nargs="+", default=[])
    for entry in parser.parse_known_args(words)[0].force_yml:
        name, _, text = entry.partition("=")
        *blocks, key = name.strip().split(":")
        inner = opt
        for block in blocks:
            inner = inner.get(block) if isinstance(inner, dict) else None
        if not isinstance(inner, dict):
            raise QuantFaceError(f"--force_yml {entry}: no block {':'.join(blocks)} in the options")
        inner[key] = value_of(text.strip())
        if not blocks and key == "manual_seed" and inner[key] is None:
            # BasicSR draws a seed before it forces options.
            raise QuantFaceError(f"--force_yml {entry}: allowed is a whole number")
    return opt


def _check(kind: type[Any], block: str, given: Any) -> Any:
    """Return the options of a block that a dataclass declares; others are left to their readers.

    Whole numbers of the type float become int: 2.0 becomes 2.
    """
    if not isinstance(given, Mapping):
        return parse_options(kind, block, given)
    own, _ = split_options(kind, given)
    options = parse_options(kind, block, own)
    for key in own:
        value = getattr(options, key)
        if isinstance(own[key], float) and isinstance(value, int):
            cast("dict[str, Any]", given)[key] = value
    return options


def _check_devices(found: int | str) -> None:
    import torch

    most = torch.cuda.device_count()
    if found != "auto" and not (isinstance(found, int) and 0 <= found <= most):
        raise QuantFaceError(
            f"options file option num_gpu: found {found!r}, allowed is auto or 0 to {most}, the "
            "GPUs of this machine"
        )
