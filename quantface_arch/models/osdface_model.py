"""Training and testing of one-step diffusion face restorers in BasicSR's loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.archs import build_network
from basicsr.utils.registry import MODEL_REGISTRY
from quantface_arch.models.discriminator import Discriminator
from quantface_arch.models.loss_terms import build_loss_terms
from quantface_arch.models.restorer_model import RestorerModel

__all__ = ["OSDFaceModel"]


@MODEL_REGISTRY.register()
class OSDFaceModel(RestorerModel):
    """Training of a full-precision restorer on pairs of degraded and clean faces.

    Options under ``train`` beside RestorerModel's:
        losses (list): registered losses of the restored and the clean picture, both in [-1, 1],
            each with its ``loss_weight``; their log names are their types.
        clip_grad (float): largest norm of the gradient. Default 1.0.
        autoencode_every (int): every so many steps the clean picture itself is encoded and
            decoded, without the UNet, so that the latent keeps what the decoder needs. Default 0:
            never.
        vre_weight, kl_weight (float): weights of the codebook loss and of the VAE's KL divergence.
            Default 0.
        autocast (str | null): ``bfloat16`` runs forward passes in that type. Default null.
        ema_decay (float): of the moving average of the weights, which is then what is tested and
            written in the end. Default 0: none.
        adversary (dict): see ``Discriminator``. Default: none.
    """

    train_options = frozenset(
        {
            "adversary",
            "autocast",
            "autoencode_every",
            "clip_grad",
            "ema_decay",
            "kl_weight",
            "losses",
            "optim_g",
            "scheduler",
            "total_iter",
            "vre_weight",
            "warmup_iter",
        }
    )

    def init_training_settings(self) -> None:
        self.check_train_options()
        options = self.opt["train"]
        self.net_g.train()
        self.ema_decay = options.get("ema_decay", 0)
        if self.ema_decay > 0:
            self.net_g_ema = build_network(self.opt["network_g"]).to(self.device)
            self.net_g_ema.load_state_dict(self.get_bare_model(self.net_g).state_dict())
            self.net_g_ema.eval().requires_grad_(False)
        self.terms = build_loss_terms(options.get("losses"), ("image",), ("gt",), self.device)
        self.autoencode_every = int(options.get("autoencode_every", 0))
        self.setup_optimizers()
        self.adversary = None
        if options.get("adversary"):
            self.adversary = Discriminator(options["adversary"], self.device, self.autocast)
            self.optimizers.append(self.adversary.optimizer)
        self.setup_schedulers()

    def restore_batch(self, current_iter: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Forward pass of one step: the picture and the losses that come with it."""
        net = self.get_bare_model(self.net_g)
        options = self.opt["train"]
        shape = net.latent_shape(self.lq.shape[0], *self.lq.shape[-2:])
        generator = torch.Generator().manual_seed(
            self.opt["manual_seed"] * 1_000_003 + current_iter
        )
        noise = torch.randn(shape, generator=generator).to(self.device)
        autoencode = bool(self.autoencode_every) and current_iter % self.autoencode_every == 0
        picture = self.gt if autoencode else self.lq
        with self.autocast():
            output = self.net_g(picture, noise, return_all=True, autoencode=autoencode)
        extra = {
            "l_vre": options.get("vre_weight", 0) * output.vre_loss.float(),
            "l_kl": options.get("kl_weight", 0) * output.kl.float(),
        }
        return output.image.float(), extra

    def optimize_parameters(self, current_iter: int) -> None:
        """One step: losses, backward, update, moving average."""
        self.optimizer_g.zero_grad()
        self.output, losses = self.restore_batch(current_iter)
        for term in self.terms:
            if term.counts_at(current_iter):
                losses[term.name] = term(self.output, self.gt)
        playing = self.adversary is not None and current_iter >= self.adversary.start_iter
        if playing:
            losses["l_g"] = self.adversary.generator_loss(self.output)
        self.check_finite(current_iter, losses)
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(self.net_g.parameters(), self.opt["train"].get("clip_grad", 1.0))
        self.optimizer_g.step()
        if playing:
            losses["l_d"] = self.adversary.step(self.output.detach(), self.gt)
        self.log_dict = self.reduce_loss_dict(losses)
        if self.ema_decay > 0:
            self.model_ema(decay=self.ema_decay)

    def tested_network(self) -> nn.Module:
        return getattr(self, "net_g_ema", None) or self.get_bare_model(self.net_g)

    def states(self) -> dict[str, dict[str, dict[str, Tensor]]]:
        nets = {"params": self.get_bare_model(self.net_g)}
        if self.ema_decay > 0:
            nets["params_ema"] = self.net_g_ema
        states = {"net_g": {key: _on_cpu(net) for key, net in nets.items()}}
        if self.adversary is not None:
            states["net_d"] = {"params": _on_cpu(self.adversary.net)}
        return states

    def load_states(self, step: int) -> None:
        path = str(self.saved("net_g", step))
        self.load_network(self.net_g, path, True, "params")
        if self.ema_decay > 0:
            self.load_network(self.net_g_ema, path, True, "params_ema")
        if self.adversary is not None:
            path = str(self.saved("net_d", step))
            self.load_network(self.adversary.net, path, True, "params")

    def final_network(self) -> tuple[nn.Module, Mapping[str, Any]]:
        return self.tested_network(), self.opt["network_g"]


def _on_cpu(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in net.state_dict().items()}
