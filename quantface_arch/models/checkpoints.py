"""Write the checkpoints and states of a training, remove old ones, and check those resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.utils import get_root_logger
from quantface_arch.errors import QuantFaceError
from quantface_arch.models.options import TrainOptions
from quantface_arch.utils.files import atomic_path

__all__ = [
    "check_resumed",
    "options_record",
    "remove_old_checkpoints",
    "saved_network",
    "write_checkpoint",
    "write_torch_file",
]

# These options only say where a network's weights are, so a resumed training may change them.
PLACES = ("weights", "param_key", "base")


def saved_network(models: Path, label: str, step: int) -> Path:
    """Return the file of a network that belongs to a training state.

    Raises:
        QuantFaceError: the file is missing.
    """
    path = models / f"{label}_{step}.pth"
    if not path.is_file():
        raise QuantFaceError(f"resume from iteration {step}: {path} is missing")
    return path


def write_checkpoint(
    models: Path,
    networks: Mapping[str, Any],
    step: int | str,
    state_path: Path | None = None,
    state: Mapping[str, Any] | None = None,
) -> None:
    """Write networks, then the training state that belongs to them.

    Args:
        models: folder of the networks' files.
        networks: label of a file → its content.
        step: the iteration, or ``latest``, at the end of the files' names.
        state_path, state: the training state; None if there is none.

    Raises:
        WriteError: a file cannot be written. The networks are useless without their state, so they
            are removed; files that an earlier state needs are kept.
    """
    written: list[Path] = []
    try:
        for label, content in networks.items():
            path = models / f"{label}_{step}.pth"
            write_torch_file(path, content)
            written.append(path)
        if state_path is not None:
            write_torch_file(state_path, state)
    except Exception:
        if state_path is not None and not state_path.exists():
            for path in written:
                path.unlink(missing_ok=True)
        raise


def write_torch_file(path: Path, content: Any) -> None:
    """Write plain data and tensors atomically with ``torch.save``.

    Raises:
        WriteError: the path cannot be written.
    """
    # We open the file here, because torch.save reports less clearly why it cannot be written.
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def remove_old_checkpoints(models: Path, states: Path, keep: int) -> None:
    """Remove all but the newest training states and their networks.

    Args:
        keep: number of states to keep; 0 keeps all.
    """
    if keep == 0:
        return
    found = [path for path in states.glob("*.state") if path.stem.isdigit()]
    found.sort(key=lambda path: (path.stat().st_mtime_ns, int(path.stem)))
    for state in found[:-keep]:
        # We remove the state last, so that a killed process leaves it to be removed next time.
        for path in models.glob(f"net_*_{state.stem}.pth"):
            path.unlink(missing_ok=True)
        state.unlink(missing_ok=True)


def options_record(network: Mapping[str, Any], options: TrainOptions) -> dict[str, Any]:
    """Return the options with which a training state should be resumed, as plain data."""
    record = {
        "network_g": {key: value for key, value in network.items() if key not in PLACES},
        "train": asdict(options),
    }
    return json.loads(json.dumps(record, default=str))


def check_resumed(state: Mapping[str, Any], record: Mapping[str, Any], optimizers: int) -> None:
    """Compare the options with which a state was saved to those of the resuming training.

    Other differences, such as in losses or learning rates, are named in a warning in the log.

    Args:
        state: a training state; states of earlier versions hold no options.
        record: the current ``options_record``.
        optimizers: number of optimizers of the current training.

    Raises:
        QuantFaceError: the network differs, or only one of the two trainings has a discriminator or
            an EMA.
    """
    step = state["iter"]
    saved = state.get("options")
    if saved is not None:
        _check_network(step, saved, record)
    if len(state["optimizers"]) != optimizers:
        found, before = (
            "with" if count > 1 else "without" for count in (optimizers, len(state["optimizers"]))
        )
        raise QuantFaceError(
            f"resume from iteration {step}: train option discriminator: found a training {found} "
            f"one, the state was saved {before}; resume with the same options, or start anew"
        )
    changes = list(_changes(saved["train"], record["train"])) if saved is not None else []
    if changes:
        listed = "; ".join(changes)
        get_root_logger().warning(f"Resuming with other options than saved: train: {listed}")


def _check_network(step: int, saved: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    changes = [f"network_g option {c}" for c in _changes(saved["network_g"], record["network_g"])]
    before, now = saved["train"], record["train"]
    if bool(before.get("ema_decay")) != bool(now.get("ema_decay")):
        changes.append(_change("train option ema_decay", before["ema_decay"], now["ema_decay"]))
    old, new = ((options.get("discriminator") or {}).get("network") for options in (before, now))
    if old and new:
        named = _changes(old, new)
        changes += [f"train option discriminator: network: {change}" for change in named]
    if changes:
        raise QuantFaceError(
            f"resume from iteration {step}: {'; '.join(changes)}; "
            "resume with the same options, or start anew"
        )


def _change(place: str, before: Any, now: Any) -> str:
    return f"{place}: found {json.dumps(now)}, saved was {json.dumps(before)}"


def _changes(before: Any, now: Any, place: str = "") -> Iterator[str]:
    """Yield every option in which two blocks differ, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            name = f"{place}: {key}" if place else key
            yield from _changes(before.get(key), now.get(key), name)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (old, new) in enumerate(zip(before, now, strict=True), start=1):
            yield from _changes(old, new, f"{place}, entry {index}")
    elif before != now:
        yield _change(place, before, now)
