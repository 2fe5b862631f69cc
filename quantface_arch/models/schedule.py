"""The optimizer and the learning rate schedule of a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.models import lr_scheduler
from quantface_arch.errors import QuantFaceError
from quantface_arch.models.options import TrainOptions

__all__ = ["SCHEDULERS", "check_schedule", "make_optimizer"]

# BasicSR's loop supports these schedules.
SCHEDULERS = {
    "MultiStepLR": lr_scheduler.MultiStepRestartLR,
    "MultiStepRestartLR": lr_scheduler.MultiStepRestartLR,
    "CosineAnnealingRestartLR": lr_scheduler.CosineAnnealingRestartLR,
}


def make_optimizer(options: Mapping[str, Any], parameters: Any) -> torch.optim.Optimizer:
    """Make any optimizer of torch.optim by name; BasicSR itself supports only Adam.

    Raises:
        QuantFaceError: there is no such optimizer, or it does not take the options.
    """
    rest = dict(options)
    kind = rest.pop("type", None)
    if not (isinstance(kind, str) and hasattr(torch.optim, kind)):
        raise QuantFaceError(f"train option optim_g type: torch.optim has no {kind!r}")
    try:
        return getattr(torch.optim, kind)(parameters, **rest)
    except (TypeError, ValueError) as error:
        raise QuantFaceError(f"train option optim_g: {error}") from error


def check_schedule(options: TrainOptions) -> None:
    """Check the optimizer and the schedule by making them for an unused parameter.

    Raises:
        QuantFaceError: one of them cannot be made, or the schedule ends before the training does.
    """
    for name in ("optim_g", "scheduler"):
        if "type" not in getattr(options, name):
            raise QuantFaceError(f"train option {name}: no type is given")
    optimizer = make_optimizer(options.optim_g, [nn.Parameter(torch.zeros(1))])
    rest = dict(options.scheduler)
    kind = rest.pop("type")
    if kind not in SCHEDULERS:
        raise QuantFaceError(
            f"train option scheduler type: found {kind!r}, allowed are {', '.join(SCHEDULERS)}"
        )
    try:
        SCHEDULERS[kind](optimizer, **rest)
    except (TypeError, ValueError, AssertionError) as error:
        raise QuantFaceError(f"train option scheduler: {error}") from error
    periods = rest.get("periods")
    if periods and sum(periods) < options.total_iter:
        raise QuantFaceError(
            f"train option scheduler: periods {periods} end before total_iter {options.total_iter}"
        )
