"""The training options in options files, each declared and checked in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantface_arch.faces.choices import COLOR_FIXES
from quantface_arch.quant.finetune.trainable import BOUNDS
from quantface_arch.quant.finetune.weight_trainers import WEIGHT_TRAINERS
from quantface_arch.utils.option_fields import Limits, option

__all__ = [
    "CalibrationOptions",
    "DiscriminatorOptions",
    "LoggerOptions",
    "LossTermOptions",
    "OSDFaceOptions",
    "QuantBlockOptions",
    "QuantFaceOptions",
    "ReconstructionOptions",
    "TinyDecoderOptions",
    "TrainOptions",
    "ValidationOptions",
]


@dataclass(frozen=True, kw_only=True)
class LoggerOptions:
    """Options under ``logger`` that this project adds to BasicSR's."""

    keep_checkpoints: int = option(
        "number of checkpoints and training states to keep, of those saved every "
        "`save_checkpoint_freq` steps; 0 keeps all. The oldest one is removed once a new one is "
        "complete.",
        3,
        limits=Limits(least=0),
    )


@dataclass(frozen=True, kw_only=True)
class ValidationOptions:
    """Options under ``val`` that this project adds to BasicSR's."""

    color_fix: str = option(
        "what the tested image takes from its input, see [colours](pasting.md#colours); "
        "with `none`, metrics score the network alone.",
        "none",
        allowed=COLOR_FIXES,
    )


@dataclass(frozen=True, kw_only=True)
class LossTermOptions:
    """Options of an entry of ``train: losses``, besides those of the loss itself."""

    type: str = option("a loss of BasicSR's registry.")
    of: str = option(
        "output of the network that is compared: `image`, in [-1, 1], or `latent`, `eps` or `x0`, "
        "if the architecture returns them.",
        "image",
    )
    target: str | None = option(
        "what the output is compared with: `teacher`, the same output of the full-precision "
        "network, or `gt`, the clean image.",
        None,
        shown="teacher; gt if there is none",
    )
    start_iter: int = option("first iteration at which the loss counts.", 0, limits=Limits(least=0))
    every: int = option(
        "the loss counts at iterations that are multiples of this number. With `whole_every: 4` of "
        "the data set, 4 applies the loss to whole faces only.",
        1,
        limits=Limits(least=1),
    )


@dataclass(frozen=True, kw_only=True)
class DiscriminatorOptions:
    """Options under ``train: discriminator``."""

    network: Mapping[str, Any] = option("a discriminator of BasicSR's registry.")
    loss: Mapping[str, Any] = option("a GAN loss of BasicSR's registry.")
    lr: float = option("learning rate of the discriminator.", limits=Limits(above=0))
    start_iter: int = option(
        "first iteration at which the discriminator is used.", 0, limits=Limits(least=0)
    )


@dataclass(frozen=True, kw_only=True)
class ReconstructionOptions:
    """Options under ``train: reconstruction``, see ``quant.reconstruct``."""

    blocks: Sequence[str] = option(
        "name patterns of the blocks; of nested matches, the outermost is the block."
    )
    steps: int = option("steps of Adam for each block.", limits=Limits(least=1))
    lr: float = option(
        "learning rate at the start; it falls to 0 by a cosine schedule.", limits=Limits(above=0)
    )
    num_images: int | None = option(
        "number of images.", None, limits=Limits(least=1), shown="that of the calibration"
    )
    size: int | None = option(
        "side of the images in pixels.",
        None,
        limits=Limits(least=1),
        shown="that of the calibration",
    )
    bounds: bool | str | None = option(
        "see `train` above.", None, allowed=(*BOUNDS, None), shown="that of `train`"
    )
    train_weights: str | None = option(
        "see `train` above; also `rounding` (AdaRound).",
        None,
        allowed=(None, *WEIGHT_TRAINERS),
        old_name="weights",
    )


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options under ``train`` that every training has."""

    total_iter: int = option("number of training steps.", limits=Limits(least=0))
    warmup_iter: int = option(
        "number of steps in which the learning rate rises to its full value.", -1, shown="-1: none"
    )
    optim_g: Mapping[str, Any] = option(
        "`type`, a class of `torch.optim`, and its options.", {}, shown="required"
    )
    scheduler: Mapping[str, Any] = option(
        "`type` (`MultiStepLR`, `MultiStepRestartLR` or `CosineAnnealingRestartLR`) and its "
        "options; it may not end before `total_iter`.",
        {},
        shown="required",
    )
    losses: Sequence[Mapping[str, Any]] = option(
        "registered losses, see `train: losses` below.", (), shown="required"
    )
    autocast: str | None = option(
        "`bfloat16` runs forward passes in that dtype.", None, allowed=("bfloat16", None)
    )
    clip_grad: float = option("largest norm of the gradient.", 1.0, limits=Limits(above=0))


EMA_DECAY = Limits(least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class OSDFaceOptions(TrainOptions):
    """Options under ``train`` with ``OSDFaceModel``."""

    ema_decay: float = option(
        "decay of an exponential moving average (EMA) of the weights, which is then tested and "
        "written at the end.",
        0.0,
        limits=EMA_DECAY,
        shown="0: none",
    )
    autoencode_every: int = option(
        "at iterations that are multiples of this number, the clean image itself is encoded and "
        "decoded without the UNet, so that the latent keeps what the decoder needs.",
        0,
        limits=Limits(least=0),
        shown="0: never",
    )
    latent_color_weight: float = option(
        "weight of the L1 distance between the latent's first three channels and the image's mean "
        "colours, in steps that only encode and decode. A small encoder that sees few colours can "
        "lose one of their three dimensions.",
        0.0,
        limits=Limits(least=0),
    )
    vre_weight: float = option("weight of the codebook loss.", 0.0, limits=Limits(least=0))
    kl_weight: float = option("weight of the VAE's KL divergence.", 0.0, limits=Limits(least=0))
    discriminator: DiscriminatorOptions | None = option(
        "see `train: discriminator` below.", None, old_name="adversary", shown="none"
    )


@dataclass(frozen=True, kw_only=True)
class QuantFaceOptions(TrainOptions):
    """Options under ``train`` with ``QuantFaceModel``."""

    bounds: bool | str = option(
        "train the ends of the activation ranges too; `step` trains only their scale.",
        False,
        allowed=BOUNDS,
    )
    bounds_lr: float | None = option(
        "learning rate of the bounds, for which that of the branches is too small.",
        None,
        limits=Limits(above=0),
        shown="that of `optim_g`",
    )
    train_weights: str | None = option(
        "train the rounded weights too: `merged` by a low-rank change that is rounded with them "
        "(EfficientDM), `scale` by a scale of each input channel (PassionSR).",
        None,
        allowed=(None, "merged", "scale"),
        old_name="weights",
    )
    accumulate: int = option(
        "number of pieces into which a batch is split. Their gradients are added, so the step is "
        "the same, but only one piece is in memory at a time.",
        1,
        limits=Limits(least=1),
    )
    ema_decay: float = option(
        "decay of an exponential moving average (EMA) of the trained parameters, which is then "
        "tested and written at the end.",
        0.0,
        limits=EMA_DECAY,
        shown="0: none",
    )
    checkpointing: bool = option(
        "keep fewer activations and compute them again in the backward pass.", False
    )
    reconstruction: ReconstructionOptions | None = option(
        "train block by block first, see `train: reconstruction` below.", None, shown="none"
    )


@dataclass(frozen=True, kw_only=True)
class TinyDecoderOptions(TrainOptions):
    """Options under ``train`` with ``TinyDecoderModel``."""

    teacher: str = option(
        "a shipped model or checkpoint of the same architecture with its own decoder."
    )


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """Options under ``quant: calibration``."""

    num_images: int = option(
        "number of images, spread evenly over those available.", 32, limits=Limits(least=1)
    )
    batch_size: int = option("number of images per batch.", 4, limits=Limits(least=1))
    size: int | None = option(
        "side of the images in pixels.", None, limits=Limits(least=1), shown="null: as in training"
    )
    dataroot_lq: str | None = option(
        "folder of degraded images.", None, shown="null: samples of `datasets: train`"
    )


@dataclass(frozen=True, kw_only=True)
class QuantBlockOptions:
    """Options under ``quant`` besides those of a recipe."""

    bit_map: str | None = option(
        "file of bit widths, ranks and balancing by layer, see bit maps below; it overrides those "
        "of `name`, `branch` and `balance`.",
        None,
    )
    balance: Mapping[str, Any] = option(
        "see `quant: balance` below; or `file`, a file that `scripts/balance.py` wrote.",
        {},
        shown="as there",
    )
    calibration: CalibrationOptions = option(
        "see `quant: calibration` below.", CalibrationOptions(), shown="as there"
    )
