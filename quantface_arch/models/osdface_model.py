"""Training and testing of one-step diffusion face restorers in BasicSR's loop."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.utils.registry import MODEL_REGISTRY
from quantface_arch.archs.pipeline import Pipeline
from quantface_arch.errors import QuantFaceError
from quantface_arch.models.checkpoints import saved_network
from quantface_arch.models.discriminator import Discriminator
from quantface_arch.models.loss_terms import build_loss_terms, require_clean
from quantface_arch.models.options import OSDFaceOptions
from quantface_arch.models.restorer_model import RestorerModel

__all__ = ["OSDFaceModel"]


@MODEL_REGISTRY.register()
class OSDFaceModel(RestorerModel):
    """Training of a full-precision restorer on pairs of degraded and clean faces.

    ``OSDFaceOptions`` lists its options under ``train``.
    """

    option_class = OSDFaceOptions
    options: OSDFaceOptions

    def init_training_settings(self) -> None:
        """Build the losses, the discriminator, the optimizers and the EMA."""
        self.read_train_options()
        if not hasattr(self.net_g, "latent_shape"):
            raise QuantFaceError(
                f"network_g: {type(self.net_g).__name__} has no latent; OSDFaceModel trains OSDFace"
            )
        self.terms = build_loss_terms(self.options.losses, ("image",), ("gt",), self.device)
        self.discriminator: Discriminator | None = None
        if self.options.discriminator is not None:
            self.discriminator = Discriminator(
                self.options.discriminator, self.device, self.autocast
            )
            self.use_fast_layout(self.discriminator.net)
        self.use_fast_layout(self.net_g)
        self.net_g.train()
        # A step that only encodes and decodes leaves the UNet and the VRE without gradients.
        self.net_g = self.parallel(self.net_g, bool(self.options.autoencode_every))
        self.setup_training()

    def use_fast_layout(self, net: nn.Module) -> None:
        """Store a network's weights in the layout in which bfloat16 convolutions are fastest."""
        if self.options.autocast is not None:
            net.to(memory_format=torch.channels_last)

    def setup_optimizers(self) -> None:
        """Make the optimizers of the network and of the discriminator."""
        super().setup_optimizers()
        if self.discriminator is not None:
            self.optimizers.append(self.discriminator.optimizer)

    def noise(self, batch: int, current_iter: int) -> Tensor:
        """Return the posterior's noise at an iteration, for this process's part of the batch.

        A sample gets the same noise for any number of processes.
        """
        rank, processes = self.opt["rank"], self.opt["world_size"]
        net = cast("Pipeline", self.get_bare_model(self.net_g))
        shape = net.latent_shape(batch * processes, *self.lq.shape[-2:])
        seed = self.opt["manual_seed"] * 1_000_003 + current_iter
        generator = torch.Generator().manual_seed(seed)
        # The sampler gives samples to the processes in turn, see ``ResumableSampler``.
        return torch.randn(shape, generator=generator)[rank::processes].to(self.device)

    def restore_batch(self, lq: Tensor, gt: Tensor, current_iter: int) -> dict[str, Tensor]:
        """Run the forward pass of one step, set ``output``, and return the network's own losses."""
        every = self.options.autoencode_every
        autoencode = every > 0 and current_iter % every == 0
        noise = self.noise(len(lq), current_iter)
        with self.autocast():
            output = self.net_g(
                gt if autoencode else lq, noise, return_all=True, autoencode=autoencode
            )
        self.output = output.image.float()
        losses = {
            "l_vre": self.options.vre_weight * output.vre_loss.float(),
            "l_kl": self.options.kl_weight * output.kl.float(),
        }
        if autoencode and self.options.latent_color_weight:
            distance = latent_color_distance(output.latent.float(), gt)
            losses["l_latent_color"] = self.options.latent_color_weight * distance
        return losses

    def losses(self, lq: Tensor, gt: Tensor | None, current_iter: int) -> dict[str, Tensor]:
        """Return the losses of a batch that count at an iteration, by log name."""
        gt = require_clean(gt)
        losses = self.restore_batch(lq, gt, current_iter)
        for term in self.terms:
            if term.counts_at(current_iter):
                losses[term.name] = term(self.output, gt)
        discriminator = self.active_discriminator(current_iter)
        if discriminator is not None:
            losses["l_g"] = discriminator.generator_loss(self.output)
        return losses

    def active_discriminator(self, current_iter: int) -> Discriminator | None:
        """Return the discriminator if it takes part at an iteration."""
        if self.discriminator is None or current_iter < self.discriminator.start_iter:
            return None
        return self.discriminator

    def train_others(self, current_iter: int) -> dict[str, Tensor]:
        """Train the discriminator on the batch, and return its loss."""
        discriminator = self.active_discriminator(current_iter)
        if discriminator is None:
            return {}
        return {"l_d": discriminator.step(self.output.detach(), self.gt)}

    def states(self) -> dict[str, dict[str, dict[str, Tensor]]]:
        """Return the states of the network and of the discriminator."""
        states = super().states()
        if self.discriminator is not None:
            net = self.discriminator.net
            state = {name: value.cpu() for name, value in net.state_dict().items()}
            states["net_d"] = {"params": state}
        return states

    def load_states(self, step: int) -> None:
        """Load the networks that ``save`` wrote at iteration ``step``."""
        super().load_states(step)
        if self.discriminator is not None:
            path = str(saved_network(Path(self.opt["path"]["models"]), "net_d", step))
            self.load_network(self.discriminator.net, path, True, "params")


def latent_color_distance(latent: Tensor, image: Tensor) -> Tensor:
    """Return the L1 distance of a latent's first three channels from an image's mean colours.

    Args:
        latent: (N, C, h, w).
        image: (N, 3, H, W) in [-1, 1]; each position of the latent stands for a block of pixels.
    """
    height, width = latent.shape[-2:]
    colors = F.adaptive_avg_pool2d(image, (height, width))
    return (latent[:, :3] - colors).abs().mean()
