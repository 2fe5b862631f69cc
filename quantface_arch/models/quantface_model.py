"""Distillation of a quantized network from its full-precision original, in BasicSR's loop."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.utils.registry import MODEL_REGISTRY
from quantface_arch.errors import QuantFaceError, check_choice, check_keys
from quantface_arch.models.ema import EMA
from quantface_arch.models.loss_terms import build_loss_terms
from quantface_arch.models.quantize_stage import QuantizeStage
from quantface_arch.models.restorer_model import RestorerModel
from quantface_arch.quant import quant_layers
from quantface_arch.quant.finetune.trainable import BOUNDS, fold_trained, trainable
from quantface_arch.quant.nn.traits import traits_of
from quantface_arch.utils.state_dict import fill, read_state

__all__ = ["QuantFaceModel"]

OUTPUTS = ("image", "latent", "eps", "x0")


@MODEL_REGISTRY.register()
class QuantFaceModel(RestorerModel):
    """QD-LoRA's training (QuantFace, arXiv 2506.00820): only the student's branches learn.

    The network of the options file, in full precision, is the frozen teacher. The student begins as
    a copy that shares its weights; the first stage (block ``quant``, see ``QuantizeStage``) quantizes
    it. Both run in evaluation mode, on the posterior's mean, so that they differ by the
    quantization alone. Beside BasicSR's files, ``net_g_latest.safetensors`` is written at the end.

    Options under ``train`` beside RestorerModel's:
        losses (list): terms of the loss, see ``build_loss_terms``.
        bounds (bool | str): train the activation ranges' ends too; ``step``: only the distance of
            their levels. Default false.
        weights (str | null): train the rounded weights too: ``merged``, by a low-rank change that
            is rounded with them (EfficientDM), or ``scale``, by scales and offsets of the input's
            channels (PassionSR). Default null.
        autocast (str | null): ``bfloat16`` runs forward passes in that type. Default null.
        accumulate (int): a batch goes through in so many pieces whose gradients add up: the memory
            of one piece, the same step. Default 1.
        clip_grad (float): largest norm of the gradient. Default 1.0.
        ema_decay (float): of moving averages of what is trained, which are then what is tested and
            written in the end. Default 0: none.
        checkpointing (bool): keep fewer activations and compute them again in the backward pass.
            Default false.
        reconstruction (dict): tune block by block before. Default: not.

    Options under ``train: reconstruction``, see ``quant.reconstruct``:
        blocks (list): name patterns of the blocks; of nested matches the outermost is the block.
        steps (int): of Adam, per block.
        lr (float): learning rate at the start; it falls to 0 by a cosine.
        num_images, size (int): pictures and their side. Default: those of the calibration.
        bounds (bool | str): as above. Default: as above.
        weights (str | null): as above, also ``rounding`` (AdaRound). Default null.

    With ``total_iter: 0`` the network is quantized, reconstructed if that is wanted, and saved; of
    the options above only ``reconstruction`` is read then.

    For testing, ``path: pretrain_network_g`` or ``network_g: weights`` names a checkpoint.
    """

    train_options = frozenset(
        {
            "accumulate",
            "autocast",
            "bounds",
            "checkpointing",
            "clip_grad",
            "ema_decay",
            "losses",
            "optim_g",
            "reconstruction",
            "scheduler",
            "total_iter",
            "warmup_iter",
            "weights",
        }
    )

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """The teacher just moves: without gradients there is nothing to synchronize."""
        if not hasattr(self, "teacher"):
            return net.to(self.device)
        return super().model_to_device(net)

    def init_training_settings(self) -> None:
        self.check_train_options()
        options = self.opt["train"]
        self.teacher = self.net_g.eval().requires_grad_(False)
        if any(True for _ in quant_layers(self.teacher)):
            raise QuantFaceError(
                "network_g weights: found a quantized model, a float one is wanted"
            )
        self.returns_all = "return_all" in inspect.signature(self.teacher.forward).parameters
        if options["total_iter"]:
            outputs = OUTPUTS if self.returns_all else OUTPUTS[:1]
            self.terms = build_loss_terms(
                options.get("losses"), outputs, ("teacher", "gt"), self.device
            )
        student = _sharing_copy(self.teacher)
        if options.get("checkpointing"):
            _enable_checkpointing(student)
        student = QuantizeStage(self.opt, self.teacher).run(student)
        self.net_g = student.eval().requires_grad_(False)
        if options["total_iter"]:
            bounds, weights = options.get("bounds", False), options.get("weights")
            trainable(student, bounds, weights, self.teacher)
            self.net_g = self.model_to_device(student)
            self.setup_optimizers()
            self.setup_schedulers()
        self.averages = EMA(self.trained_parameters(), options.get("ema_decay", 0))

    def check_train_options(self) -> None:
        """Also what is trained beside the branches, before the first stage takes its time."""
        options = self.opt["train"]
        if options["total_iter"]:
            super().check_train_options()
        else:
            check_keys("train options", options, self.train_options)
        for name, allowed in (("bounds", BOUNDS), ("weights", (None, "merged", "scale"))):
            check_choice(f"train option {name}", options.get(name, allowed[0]), allowed)

    def outputs(self, net: nn.Module, lq: Tensor) -> dict[str, Tensor]:
        """Everything that a term may look at, in float32; the picture in [-1, 1]."""
        found = net(lq, return_all=True)._asdict() if self.returns_all else {"image": net(lq)}
        found = {name: value.float() for name, value in found.items()}
        return {**found, "image": self.to_signed(found["image"])}

    def losses(self, lq: Tensor, gt: Tensor | None, current_iter: int) -> dict[str, Tensor]:
        """Return the terms of the loss that count at an iteration, for one piece of a batch."""
        if gt is None and any(term.target == "gt" for term in self.terms):
            raise QuantFaceError("train option losses: target gt, but the data set has no gt")
        with self.autocast():
            with torch.no_grad():
                wanted = self.outputs(self.teacher, lq)
            found = self.outputs(self.net_g, lq)
        return {
            term.name: term(found[term.of], gt if term.target == "gt" else wanted[term.of])
            for term in self.terms
            if term.counts_at(current_iter)
        }

    def optimize_parameters(self, current_iter: int) -> None:
        """One step: the losses of every piece of the batch, backward, update, moving averages."""
        self.optimizer_g.zero_grad()
        options, log = self.opt["train"], {}
        pieces = self.lq.chunk(options.get("accumulate", 1))
        clean = self.gt.chunk(len(pieces)) if hasattr(self, "gt") else [None] * len(pieces)
        for place, (lq, gt) in enumerate(zip(pieces, clean, strict=True), start=1):
            with self.synchronized(place == len(pieces)):
                losses = self.losses(lq, gt, current_iter)
                self.check_finite(current_iter, losses)
                share = len(lq) / len(self.lq)
                (sum(losses.values()) * share).backward()
            for name, value in losses.items():
                log[name] = log.get(name, 0) + value.detach() * share
        nn.utils.clip_grad_norm_(self.trained_parameters().values(), options.get("clip_grad", 1.0))
        self.optimizer_g.step()
        self.averages.update()
        self.log_dict = self.reduce_loss_dict(log)

    def synchronized(self, wanted: bool) -> AbstractContextManager[None]:
        """Whether a backward pass inside the context averages gradients over the processes."""
        if wanted or not isinstance(self.net_g, DistributedDataParallel):
            return nullcontext()
        return self.net_g.no_sync()

    def validation(self, *args: Any, **kwargs: Any) -> None:
        with self.averaged():
            super().validation(*args, **kwargs)

    def averaged(self) -> AbstractContextManager[None]:
        """The student computes with the moving averages inside the context, if there are any."""
        return self.averages.applied() if self.is_train else nullcontext()

    def tested_network(self) -> nn.Module:
        return self.get_bare_model(self.net_g)

    def states(self) -> dict[str, dict[str, dict[str, Tensor]]]:
        net = self.get_bare_model(self.net_g)
        params = {name: value.cpu() for name, value in net.state_dict().items()}
        states = {"params": params}
        if self.opt["train"].get("ema_decay"):
            with self.averages.applied():
                trained = {name: p.detach().cpu() for name, p in self.trained_parameters().items()}
            # What is not trained is stored once for both.
            states["params_ema"] = {**params, **trained}
        return {"net_g": states}

    def load_states(self, step: int) -> None:
        path = self.saved("net_g", step)
        fill(self.get_bare_model(self.net_g), path, read_state(path, ("params",)))
        if self.opt["train"].get("ema_decay"):
            self.averages.load(read_state(path, ("params_ema",)))

    def final_network(self) -> tuple[nn.Module, Mapping[str, Any]]:
        """A copy with the averages, its bounds folded into its grids; training could go on."""
        with self.averaged():
            final = _sharing_copy(self.get_bare_model(self.net_g))
        fold_trained(final)
        return final, traits_of(self.teacher).arch_options or self.opt["network_g"]


def _sharing_copy(net: nn.Module) -> nn.Module:
    """A copy that shares every frozen parameter; modules, buffers and what is trained are new."""
    return copy.deepcopy(net, {id(p): p for p in net.parameters() if not p.requires_grad})


def _enable_checkpointing(net: nn.Module) -> None:
    able = [
        module
        for module in net.modules()
        if hasattr(module, "enable_gradient_checkpointing")
        and getattr(module, "_supports_gradient_checkpointing", True)
    ]
    if not able:
        raise QuantFaceError(
            f"train option checkpointing: {type(net).__name__} has no part that supports it"
        )
    for module in able:
        module.enable_gradient_checkpointing()
