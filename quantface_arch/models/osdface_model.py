"""Training and testing of one-step diffusion face restorers in BasicSR's loop."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.archs import build_network
from basicsr.losses import build_loss
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from quantface_arch.errors import QuantFaceError, check_keys
from quantface_arch.models.adversary import Adversary

__all__ = ["OSDFaceModel"]

TRAIN_OPTIONS = {
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


@MODEL_REGISTRY.register()
class OSDFaceModel(SRModel):
    """BasicSR's SRModel for a restorer that sees pictures in [-1, 1].

    Options under ``train`` beside SRModel's:
        losses (list): registered losses of the restored and the clean picture, both in [-1, 1],
            each with its ``loss_weight``; their log names are their types.
        clip_grad (float): largest norm of the gradient. Default 1.
        autoencode_every (int): every so many steps the clean picture itself is encoded and
            decoded, without the UNet, so that the latent keeps what the decoder needs. 0: never.
        vre_weight, kl_weight (float): weights of the codebook loss and of the VAE's KL divergence.
        autocast (str | null): ``bfloat16`` runs forward passes in that type.
        adversary (dict): see ``Adversary``; absent: none.

    ``path: pretrain_network_g`` may name a checkpoint of this project (``.safetensors``) or one of
    its shipped models as well as BasicSR's ``.pth``.
    """

    def init_training_settings(self) -> None:
        options = self.opt["train"]
        check_keys("train options", options, TRAIN_OPTIONS)
        self.net_g.train()
        self.ema_decay = options.get("ema_decay", 0)
        if self.ema_decay > 0:
            self.net_g_ema = build_network(self.opt["network_g"]).to(self.device)
            self.net_g_ema.load_state_dict(self.get_bare_model(self.net_g).state_dict())
            self.net_g_ema.eval().requires_grad_(False)
        if not options.get("losses"):
            raise QuantFaceError("train option losses: empty; list at least one registered loss")
        self.losses = [
            (loss["type"], build_loss(loss).to(self.device)) for loss in options["losses"]
        ]
        self.autoencode_every = int(options.get("autoencode_every", 0))
        name = options.get("autocast")
        self.autocast_dtype = getattr(torch, name) if name else None
        self.setup_optimizers()
        self.adversary = None
        if options.get("adversary"):
            self.adversary = Adversary(options["adversary"], self.device)
            self.optimizers.append(self.adversary.optimizer)
        self.setup_schedulers()

    def get_optimizer(self, optim_type: str, params: Any, lr: float, **kwargs: Any) -> Any:
        """Any optimizer of torch.optim by name; BasicSR knows Adam alone."""
        if not hasattr(torch.optim, optim_type):
            raise QuantFaceError(f"train option optim_g type: torch.optim has no {optim_type!r}")
        return getattr(torch.optim, optim_type)(params, lr, **kwargs)

    def feed_data(self, data: Mapping[str, Tensor]) -> None:
        """Take a batch of pictures in [0, 1] and bring them to [-1, 1]."""
        self.lq = data["lq"].to(self.device) * 2 - 1
        if "gt" in data:
            self.gt = data["gt"].to(self.device) * 2 - 1

    def get_current_visuals(self) -> OrderedDict[str, Tensor]:
        """Pictures in [0, 1] for BasicSR's metrics and files."""
        return OrderedDict((k, (v + 1) / 2) for k, v in super().get_current_visuals().items())

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
        enabled = self.autocast_dtype is not None
        with torch.autocast(self.device.type, self.autocast_dtype, enabled=enabled):
            output = self.net_g(picture, noise, return_all=True, autoencode=autoencode)
        extra = {
            "l_vre": options.get("vre_weight", 0) * output.vre_loss.float(),
            "l_kl": options.get("kl_weight", 0) * output.kl.float(),
        }
        return output.image.float(), extra

    def optimize_parameters(self, current_iter: int) -> None:
        """One step: losses, backward, update, moving average."""
        self.optimizer_g.zero_grad()
        self.output, loss_dict = self.restore_batch(current_iter)
        for name, loss in self.losses:
            loss_dict[f"l_{name}"] = loss(self.output, self.gt)
        playing = self.adversary is not None and current_iter >= self.adversary.start_iter
        if playing:
            loss_dict["l_g"] = self.adversary.generator_loss(self.output)
        total = sum(loss_dict.values())
        if not torch.isfinite(total):
            raise QuantFaceError(f"training step {current_iter}: loss is {total.item()}")
        total.backward()
        nn.utils.clip_grad_norm_(self.net_g.parameters(), self.opt["train"].get("clip_grad", 1.0))
        self.optimizer_g.step()
        if playing:
            loss_dict["l_d"] = self.adversary.step(self.output.detach(), self.gt)
        self.log_dict = self.reduce_loss_dict(loss_dict)
        if self.ema_decay > 0:
            self.model_ema(decay=self.ema_decay)

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str = "params"
    ) -> None:
        """Load a ``.pth`` as BasicSR does, or a checkpoint or shipped model of this project."""
        if str(load_path).endswith(".pth"):
            super().load_network(net, load_path, strict, param_key)
            return
        from quantface_arch.zoo import load_into

        get_root_logger().info(f"Loading {load_path} into {type(net).__name__}.")
        load_into(self.get_bare_model(net), load_path)

    @contextmanager
    def _staged(self, kind: str) -> Iterator[None]:
        """Let BasicSR write into a side folder, then move whole files into place."""
        final = Path(self.opt["path"][kind])
        stage = final / ".partial"
        stage.mkdir(parents=True, exist_ok=True)
        self.opt["path"][kind] = str(stage)
        try:
            yield
        finally:
            self.opt["path"][kind] = str(final)
        for path in stage.iterdir():
            path.replace(final / path.name)

    def save(self, epoch: int, current_iter: int) -> None:
        """Save networks, this project's checkpoint at the end, and the training state last.

        A run that is killed meanwhile leaves whole files only, and no state without its networks.
        """
        if self.opt["rank"] != 0:
            return
        with self._staged("models"):
            nets = [self.net_g, self.net_g_ema] if self.ema_decay > 0 else [self.net_g]
            self.save_network(nets, "net_g", current_iter, ["params", "params_ema"][: len(nets)])
            if self.adversary is not None:
                self.save_network(self.adversary.net, "net_d", current_iter)
        if epoch == -1:
            self.save_final()
        with self._staged("training_states"):
            self.save_training_state(epoch, current_iter)

    def save_final(self) -> None:
        """Write ``net_g_latest.safetensors``, which ``--model`` of every command takes."""
        from quantface_arch.quant.checkpoint import save_checkpoint

        net = self.net_g_ema if self.ema_decay > 0 else self.get_bare_model(self.net_g)
        path = Path(self.opt["path"]["models"]) / "net_g_latest.safetensors"
        save_checkpoint(net, path, arch=dict(self.opt["network_g"]))

    def resume_training(self, resume_state: Mapping[str, Any]) -> None:
        """Load the networks that belong to the state, then optimizers and schedulers."""
        models = Path(self.opt["path"]["models"])
        step = resume_state["iter"]
        saved = models / f"net_g_{step}.pth"
        if not saved.is_file():
            raise QuantFaceError(f"resume from iteration {step}: {saved} is missing")
        self.load_network(self.net_g, str(saved), True, "params")
        if self.ema_decay > 0:
            self.load_network(self.net_g_ema, str(saved), True, "params_ema")
        if self.adversary is not None and (models / f"net_d_{step}.pth").is_file():
            self.load_network(self.adversary.net, str(models / f"net_d_{step}.pth"), True, "params")
        super().resume_training(resume_state)
