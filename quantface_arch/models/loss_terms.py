"""The weighted terms of a training loss, each a registered loss of one output of the network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.losses import build_loss
from basicsr.utils.registry import LOSS_REGISTRY
from quantface_arch.errors import QuantFaceError, check_choice, one_line
from quantface_arch.models.options import LossTermOptions
from quantface_arch.utils.option_fields import parse_options, split_options

__all__ = [
    "LossTerm",
    "build_loss_terms",
    "check_finite",
    "check_terms",
    "refuse_basicsr_losses",
    "require_clean",
]

# BasicSR's own models read losses from these options.
BASICSR_LOSSES = ("pixel_opt", "perceptual_opt", "gan_opt", "ldl_opt", "fft_opt", "edge_opt")


@dataclass(frozen=True)
class LossTerm:
    """One term of a loss.

    Attributes:
        name: its name in the log, which no other term of the loss has.
        of: the output of the network that it compares.
        target: ``teacher``, the same output of the teacher, or ``gt``, the clean image.
        loss: called with the output and its target; it applies its own weight.
        start_iter: first iteration at which it counts.
        every: it counts at iterations that are multiples of this number.
    """

    name: str
    of: str
    target: str
    loss: nn.Module
    start_iter: int = 0
    every: int = 1

    def counts_at(self, iteration: int) -> bool:
        """Return whether the term is part of the loss at an iteration."""
        return iteration >= self.start_iter and iteration % self.every == 0

    @property
    def counts_always(self) -> bool:
        """Return whether the term is part of the loss at every iteration."""
        return self.every == 1 and self.start_iter <= 1

    def __call__(self, found: Tensor, wanted: Tensor) -> Tensor:
        """Return the weighted loss as a scalar, the sum of its parts if it has several."""
        value = self.loss(found, wanted)
        if isinstance(value, Tensor):
            return value
        return torch.stack([part for part in value if part is not None]).sum()


def build_loss_terms(
    options: Sequence[Mapping[str, Any]] | None,
    outputs: Iterable[str],
    targets: Sequence[str],
    device: torch.device,
) -> list[LossTerm]:
    """Build the list ``train: losses`` of an options file.

    Args:
        options: one mapping per term: ``LossTermOptions`` and the loss's own options.
        outputs: outputs of the network that ``of`` may name.
        targets: targets that ``target`` may name; the first is the default.

    Raises:
        QuantFaceError: the list is empty, or a term cannot be built; the message names the term.
    """
    if not options:
        raise QuantFaceError("train option losses: empty; list at least one registered loss")
    terms: list[LossTerm] = []
    for index, given in enumerate(options):
        place = f"train option losses, entry {index + 1}"
        if not isinstance(given, Mapping):
            raise QuantFaceError(f"{place}: found {given!r}, allowed is {{type: NAME, ...}}")
        own, rest = split_options(LossTermOptions, given)
        parsed = parse_options(LossTermOptions, place, own)
        of, target = parsed.of, parsed.target or targets[0]
        check_choice(f"{place}: of", of, outputs)
        check_choice(f"{place}: target", target, targets)
        if target == "gt" and of != "image":
            raise QuantFaceError(f"{place}: target gt is an image, found of: {of}")
        loss = _build(place, {"type": parsed.type, **rest}).to(device).requires_grad_(False)
        kind = parsed.type if of == "image" else f"{of}_{parsed.type}"
        same = sum(term.name.startswith(f"l_{kind}") for term in terms)
        name = f"l_{kind}_{same + 1}" if same else f"l_{kind}"
        terms.append(LossTerm(name, of, target, loss, parsed.start_iter, parsed.every))
    return terms


def refuse_basicsr_losses(train: Mapping[str, Any]) -> None:
    """Raise QuantFaceError if a loss is given by an option of BasicSR's own models."""
    for key in train:
        if key in BASICSR_LOSSES:
            raise QuantFaceError(
                f"train option {key}: losses are entries of `losses` here, such as losses: "
                "[{type: L1Loss, loss_weight: 1.0}]"
            )


def check_terms(terms: Iterable[LossTerm]) -> None:
    """Raise QuantFaceError if there are iterations at which no loss counts."""
    if not any(term.counts_always for term in terms):
        raise QuantFaceError(
            "train option losses: every entry has a start_iter or an every, so that no loss counts "
            "at some iterations; at least one entry must have neither"
        )


def require_clean(clean: Tensor | None) -> Tensor:
    """Return the clean images of a batch, with which a loss compares.

    Raises:
        QuantFaceError: the data set has none.
    """
    if clean is None:
        raise QuantFaceError("train option losses: target gt, but the data set has no gt")
    return clean


def check_finite(iteration: int, losses: Mapping[str, Tensor]) -> None:
    """Raise QuantFaceError if a loss is NaN or infinite, naming it."""
    for name, value in losses.items():
        if not torch.isfinite(value):
            raise QuantFaceError(
                f"training step {iteration}: loss {name} is {value.item()}; "
                "a lower learning rate may help"
            )


def _build(place: str, options: dict[str, Any]) -> nn.Module:
    kind = options["type"]
    if kind not in LOSS_REGISTRY:
        known = ", ".join(sorted(name for name, _ in LOSS_REGISTRY))
        raise QuantFaceError(f"{place}: type: found {kind!r}, allowed are {known}")
    try:
        return build_loss(options)
    except QuantFaceError as error:
        reason = str(error).removeprefix(f"{kind}: ")
        raise QuantFaceError(f"{place} ({kind}): {reason}") from error
    except (TypeError, ValueError) as error:
        raise QuantFaceError(f"{place} ({kind}): {error}") from error
    except (OSError, RuntimeError) as error:
        raise QuantFaceError(
            f"{place} ({kind}): its weights could not be loaded ({one_line(error)}); download them "
            "on a machine with a connection, or use QuantFaceFeatureLoss, which needs none"
        ) from error
