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
from quantface_arch.errors import QuantFaceError, check_choice

__all__ = ["LossTerm", "build_loss_terms"]


@dataclass(frozen=True)
class LossTerm:
    """One term.

    Attributes:
        name: in the log, of its own within the loss.
        of: which output of the network it compares.
        target: ``teacher``, the same output of the teacher, or ``gt``, the clean picture.
        loss: called with what was found and what is wanted; its weight is its own.
        start_iter: first iteration at which it counts.
        every: it counts at the iterations that this number divides.
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

    def __call__(self, found: Tensor, wanted: Tensor) -> Tensor:
        """The weighted loss, a scalar; the parts of a loss that returns several are added."""
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

    Options of a term, beside the loss's own:
        type (str): a loss of BasicSR's registry.
        of (str): which output of the network is compared: ``image``, in [-1, 1], or where the
            architecture returns them ``latent``, ``eps``, ``x0``. Default image.
        target (str): what it is compared with: ``teacher``, the full-precision network's same
            output, or ``gt``, the clean picture. Default teacher, without a teacher gt.
        start_iter (int): first iteration at which the term counts. Default 0.
        every (int): the term counts at iterations that this number divides: 4 with
            ``whole_every: 4`` of the data set has a term see whole faces alone. Default 1.

    Args:
        options: one mapping per term.
        outputs: of the network, that ``of`` may name.
        targets: that ``target`` may name; the first is the default.

    Raises:
        QuantFaceError: an empty list, or a term that cannot be built; the message says which.
    """
    if not options:
        raise QuantFaceError("train option losses: empty; list at least one registered loss")
    terms: list[LossTerm] = []
    for index, given in enumerate(options):
        place = f"train option losses, entry {index + 1}"
        rest = dict(given)
        of, target = rest.pop("of", "image"), rest.pop("target", targets[0])
        start_iter, every = int(rest.pop("start_iter", 0)), int(rest.pop("every", 1))
        if every < 1:
            raise QuantFaceError(f"{place}: every: found {every}, 1 or more is allowed")
        check_choice(f"{place}: of", of, outputs)
        check_choice(f"{place}: target", target, targets)
        if target == "gt" and of != "image":
            raise QuantFaceError(f"{place}: target gt is a picture, found of: {of}")
        loss = _build(place, rest).to(device).requires_grad_(False)
        kind = rest["type"] if of == "image" else f"{of}_{rest['type']}"
        same = sum(term.name.startswith(f"l_{kind}") for term in terms)
        name = f"l_{kind}_{same + 1}" if same else f"l_{kind}"
        terms.append(LossTerm(name, of, target, loss, start_iter, every))
    return terms


def _build(place: str, options: dict[str, Any]) -> nn.Module:
    kind = options.get("type")
    if kind not in LOSS_REGISTRY:
        known = ", ".join(sorted(name for name, _ in LOSS_REGISTRY))
        raise QuantFaceError(f"{place}: type: found {kind!r}, allowed are {known}")
    try:
        return build_loss(options)
    except (TypeError, ValueError) as error:
        if isinstance(error, QuantFaceError):
            raise
        raise QuantFaceError(f"{place} ({kind}): {error}") from error
