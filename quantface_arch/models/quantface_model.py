"""Distillation of a quantized network from its full-precision original, in BasicSR's loop."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.utils.registry import MODEL_REGISTRY
from quantface_arch.errors import QuantFaceError
from quantface_arch.models.ema import EMA
from quantface_arch.models.loss_terms import LossTerm, build_loss_terms, check_terms, require_clean
from quantface_arch.models.options import QuantFaceOptions
from quantface_arch.models.quantize_stage import QuantizeStage
from quantface_arch.models.restorer_model import RestorerModel
from quantface_arch.quant import quant_layers
from quantface_arch.quant.finetune.trainable import fold_trained, trainable
from quantface_arch.quant.nn.traits import traits_of

__all__ = ["QuantFaceModel"]

OUTPUTS = ("image", "latent", "eps", "x0")


@MODEL_REGISTRY.register()
class QuantFaceModel(RestorerModel):
    """QD-LoRA's training (QuantFace, arXiv 2506.00820), in which only the student's branches learn.

    The full-precision network of the options file is the frozen teacher. The student starts as a
    copy that shares its weights, and ``QuantizeStage`` quantizes it. Both run in evaluation mode,
    on the posterior's mean, so that they differ only by the quantization. Besides BasicSR's files,
    ``net_g_latest.safetensors`` is written at the end.

    ``QuantFaceOptions`` lists its options under ``train``. With ``total_iter: 0``, the network is
    quantized, reconstructed if ``reconstruction`` is given, and saved. The options of training
    steps are then ignored.

    For testing, ``path: pretrain_network_g`` or ``network_g: weights`` names a checkpoint.
    """

    option_class = QuantFaceOptions
    options: QuantFaceOptions

    def init_training_settings(self) -> None:
        """Build the losses, quantize a copy of the teacher, and choose its parameters to train."""
        self.read_train_options()
        self.teacher = self.net_g.eval().requires_grad_(False)
        if any(True for _ in quant_layers(self.teacher)):
            raise QuantFaceError(
                "network_g weights: found a quantized model, a float one is wanted"
            )
        self.returns_all = "return_all" in inspect.signature(self.teacher.forward).parameters
        if self.takes_steps:
            outputs, targets = OUTPUTS if self.returns_all else OUTPUTS[:1], ("teacher", "gt")
            self.terms = build_loss_terms(self.options.losses, outputs, targets, self.device)
            check_terms(self.terms)
        student = _sharing_copy(self.teacher)
        if self.options.checkpointing:
            _enable_checkpointing(student)
        student = QuantizeStage(self.opt, self.options, self.teacher).run(student)
        self.net_g = student.eval().requires_grad_(False)
        if self.takes_steps:
            trainable(student, self.options.bounds, self.options.train_weights, self.teacher)
            self.net_g = self.parallel(student.to(self.device), not _reach_all(self.terms))
            self.setup_training()
        else:
            self.ema = EMA({}, 0)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return all trained parameters but the bounds, and the bounds with their learning rate."""
        rate = self.options.bounds_lr
        if rate is None:
            return super().parameter_groups()
        split: dict[bool, list[Tensor]] = {False: [], True: []}
        for name, value in self.trained_parameters().items():
            split[name.endswith("act_bounds")].append(value)
        return [{"params": split[False]}, {"params": split[True], "lr": rate}]

    @property
    def takes_steps(self) -> bool:
        """Return whether the training has any step after the quantization."""
        return self.options.total_iter > 0

    def outputs(self, net: nn.Module, lq: Tensor) -> dict[str, Tensor]:
        """Return every output that a loss term may name, in float32, with the image in [-1, 1]."""
        found = net(lq, return_all=True)._asdict() if self.returns_all else {"image": net(lq)}
        found = {name: value.float() for name, value in found.items()}
        return {**found, "image": self.to_signed(found["image"])}

    def losses(self, lq: Tensor, gt: Tensor | None, current_iter: int) -> dict[str, Tensor]:
        """Return the loss terms that count at an iteration, for one piece of a batch."""
        if any(term.target == "gt" for term in self.terms):
            require_clean(gt)
        with self.autocast():
            with torch.no_grad():
                wanted = self.outputs(self.teacher, lq)
            found = self.outputs(self.net_g, lq)
        return {
            term.name: term(
                found[term.of], require_clean(gt) if term.target == "gt" else wanted[term.of]
            )
            for term in self.terms
            if term.counts_at(current_iter)
        }

    def final_network(self) -> tuple[nn.Module, Mapping[str, Any]]:
        """Return a copy with the EMA and all trained values folded in; training may continue."""
        with self.averaged():
            final = _sharing_copy(self.get_bare_model(self.net_g))
        fold_trained(final)
        return final, traits_of(self.teacher).arch_options or self.opt["network_g"]


def _sharing_copy(net: nn.Module) -> nn.Module:
    """Copy a network's modules, buffers and trained parameters, and share its frozen ones."""
    return copy.deepcopy(net, {id(p): p for p in net.parameters() if not p.requires_grad})


def _reach_all(terms: Sequence[LossTerm]) -> bool:
    """Return whether every trained parameter gets a gradient at every iteration."""
    return any(term.of == "image" and term.counts_always for term in terms)


@runtime_checkable
class _CheckpointingPart(Protocol):
    """A part of a network that can compute its activations again in the backward pass."""

    def enable_gradient_checkpointing(self) -> None: ...


def _enable_checkpointing(net: nn.Module) -> None:
    able = [
        module
        for module in net.modules()
        if isinstance(module, _CheckpointingPart)
        and getattr(module, "_supports_gradient_checkpointing", True)
    ]
    if not able:
        raise QuantFaceError(
            f"train option checkpointing: {type(net).__name__} has no part that supports it"
        )
    for module in able:
        module.enable_gradient_checkpointing()
