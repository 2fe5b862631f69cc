"""Distillation of a tiny decoder from a restorer's own, in BasicSR's loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.utils.registry import MODEL_REGISTRY
from quantface_arch.errors import QuantFaceError
from quantface_arch.models.loss_terms import build_loss_terms
from quantface_arch.models.restorer_model import RestorerModel
from quantface_arch.pretrained.zoo import load_model

__all__ = ["TinyDecoderModel"]

LEARNS = "fast_decoder."


@MODEL_REGISTRY.register()
class TinyDecoderModel(RestorerModel):
    """A restorer whose ``fast_decoder`` learns to decode as the VAE's decoder of its teacher does.

    Everything else of ``network_g`` is the teacher's and stays as it is. Both decoders are given
    the latents that the UNet makes of degraded pictures.

    Options under ``train`` beside RestorerModel's:
        teacher (str): a shipped model or checkpoint of the same architecture with its own decoder.
        losses (list): see ``QuantFaceModel``; of the picture alone.
        autocast (str | null): ``bfloat16`` runs forward passes in that type. Default null.
        clip_grad (float): largest norm of the gradient. Default 1.
    """

    train_options = frozenset(
        {
            "autocast",
            "clip_grad",
            "losses",
            "optim_g",
            "scheduler",
            "teacher",
            "total_iter",
            "warmup_iter",
        }
    )

    def init_training_settings(self) -> None:
        self.check_train_options()
        options = self.opt["train"]
        if not options.get("teacher"):
            raise QuantFaceError("train option teacher: missing; a shipped model or a checkpoint")
        self.terms = build_loss_terms(
            options.get("losses"), ("image",), ("teacher", "gt"), self.device
        )
        self.teacher = load_model(options["teacher"], "reference", str(self.device))
        self.teacher.requires_grad_(False)
        net = self.get_bare_model(self.net_g).eval()
        take_over(net, self.teacher, options["teacher"])
        for name, value in net.named_parameters():
            value.requires_grad_(name.startswith(LEARNS))
        self.setup_optimizers()
        self.setup_schedulers()

    def optimize_parameters(self, current_iter: int) -> None:
        """One step: losses, backward, update."""
        self.optimizer_g.zero_grad()
        with self.autocast():
            output = self.net_g(self.lq, return_all=True)
            with torch.no_grad():
                wanted = self.teacher.decode(output.x0).float()
        losses = {
            term.name: term(output.image.float(), self.gt if term.target == "gt" else wanted)
            for term in self.terms
        }
        self.check_finite(current_iter, losses)
        sum(losses.values()).backward()
        parameters = self.trained_parameters().values()
        nn.utils.clip_grad_norm_(parameters, self.opt["train"].get("clip_grad", 1.0))
        self.optimizer_g.step()
        self.log_dict = self.reduce_loss_dict(losses)

    def tested_network(self) -> nn.Module:
        return self.get_bare_model(self.net_g)

    def states(self) -> dict[str, dict[str, dict[str, Tensor]]]:
        state = self.get_bare_model(self.net_g).state_dict()
        return {"net_g": {"params": {name: value.cpu() for name, value in state.items()}}}

    def load_states(self, step: int) -> None:
        self.load_network(self.net_g, str(self.saved("net_g", step)))

    def final_network(self) -> tuple[nn.Module, Mapping[str, Any]]:
        return self.tested_network(), self.opt["network_g"]


def take_over(net: nn.Module, teacher: nn.Module, name: str) -> None:
    """Copy all but the tiny decoder from a teacher.

    Raises:
        QuantFaceError: no tiny decoder, or a teacher of another architecture.
    """
    if getattr(net, "fast_decoder", None) is None:
        raise QuantFaceError("network_g option fast_decoder: missing; {} takes TAESD's sizes")
    own, given = net.state_dict(), teacher.state_dict()
    wanted = {key: value.shape for key, value in own.items() if not key.startswith(LEARNS)}
    wrong = [key for key, shape in wanted.items() if key not in given or given[key].shape != shape]
    if wrong:
        raise QuantFaceError(
            f"train option teacher: {name}: of another architecture than network_g: {wrong[0]} "
            f"and {len(wrong) - 1} more are missing or of another shape"
        )
    net.load_state_dict({**own, **{key: given[key] for key in wanted}})
