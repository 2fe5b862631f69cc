"""Distillation of a tiny decoder from a restorer's own, in BasicSR's loop."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.utils.registry import MODEL_REGISTRY
from quantface_arch.archs.pipeline import Pipeline
from quantface_arch.errors import QuantFaceError
from quantface_arch.models.loss_terms import build_loss_terms, check_terms, require_clean
from quantface_arch.models.options import TinyDecoderOptions
from quantface_arch.models.restorer_model import RestorerModel
from quantface_arch.pretrained.zoo import load_model

__all__ = ["TinyDecoderModel"]

LEARNS = "fast_decoder."


@MODEL_REGISTRY.register()
class TinyDecoderModel(RestorerModel):
    """A restorer whose ``fast_decoder`` learns to decode like the VAE's decoder of its teacher.

    Everything else of ``network_g`` is copied from the teacher and not trained. Both decoders get
    the latents that the UNet predicts from degraded images.

    ``TinyDecoderOptions`` lists its options under ``train``; its losses compare only the image.
    """

    option_class = TinyDecoderOptions
    options: TinyDecoderOptions

    def init_training_settings(self) -> None:
        """Build the losses and the teacher, and make only the tiny decoder trainable."""
        self.read_train_options()
        name = self.options.teacher
        targets = ("teacher", "gt")
        self.terms = build_loss_terms(self.options.losses, ("image",), targets, self.device)
        check_terms(self.terms)
        teacher = load_model(name, "reference", str(self.device)).requires_grad_(False)
        net = self.get_bare_model(self.net_g).eval()
        take_over(net, teacher, name)
        self.teacher = cast("Pipeline", teacher)
        for key, value in net.named_parameters():
            value.requires_grad_(key.startswith(LEARNS))
        self.net_g = self.parallel(net)
        self.setup_training()

    def losses(self, lq: Tensor, gt: Tensor | None, current_iter: int) -> dict[str, Tensor]:
        """Return the losses of a batch that count at an iteration, by log name."""
        with self.autocast():
            output = self.net_g(lq, return_all=True)
            with torch.no_grad():
                wanted = self.teacher.decode(output.x0).float()
        image = output.image.float()
        return {
            term.name: term(image, require_clean(gt) if term.target == "gt" else wanted)
            for term in self.terms
            if term.counts_at(current_iter)
        }


def take_over(net: nn.Module, teacher: nn.Module, name: str) -> None:
    """Copy everything but the tiny decoder from a teacher.

    Raises:
        QuantFaceError: there is no tiny decoder, or the teacher has another architecture.
    """
    if getattr(net, "fast_decoder", None) is None:
        raise QuantFaceError("network_g option fast_decoder: missing; {} takes TAESD's sizes")
    own, given = net.state_dict(), teacher.state_dict()
    wanted = {key: value.shape for key, value in own.items() if not key.startswith(LEARNS)}
    wrong = [key for key, shape in wanted.items() if key not in given or given[key].shape != shape]
    if wrong:
        raise QuantFaceError(
            f"train option teacher: {name}: its architecture is not network_g's: {wrong[0]} "
            f"and {len(wrong) - 1} more are missing or have another shape"
        )
    net.load_state_dict({**own, **{key: given[key] for key in wanted}})
