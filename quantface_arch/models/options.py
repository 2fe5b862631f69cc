"""The options of a training, as options files give them: declared and checked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantface_arch.faces.color import COLOR_FIXES
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
        "how many of the checkpoints and training states saved every `save_checkpoint_freq` steps "
        "are kept, the newest ones; 0 keeps all. Older ones are removed once a new one is "
        "complete.",
        3,
        limits=Limits(least=0),
    )


@dataclass(frozen=True, kw_only=True)
class ValidationOptions:
    """Options under ``val`` that this project adds to BasicSR's."""

    color_fix: str = option(
        "what the tested image takes over from its input, see [colours](pasting.md#colours); with "
        "`none`, figures are those of the network alone.",
        "none",
        allowed=COLOR_FIXES,
    )


@dataclass(frozen=True, kw_only=True)
class LossTermOptions:
    """Options of an entry of ``train: losses``, beside those of the loss itself."""

    type: str = option("a loss of BasicSR's registry.")
    of: str = option(
        "which output of the network is compared: `image`, in [-1, 1], or where the architecture "
        "returns them `latent`, `eps`, `x0`.",
        "image",
    )
    target: str | None = option(
        "what it is compared with: `teacher`, the full-precision network's same output, or `gt`, "
        "the clean image.",
        None,
        shown="teacher, without a teacher gt",
    )
    start_iter: int = option("first iteration at which the loss counts.", 0, limits=Limits(least=0))
    every: int = option(
        "the loss counts at iterations that this number divides: 4 with `whole_every: 4` of the "
        "data set has a loss see whole faces alone.",
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
        "first iteration at which the discriminator takes part.", 0, limits=Limits(least=0)
    )


@dataclass(frozen=True, kw_only=True)
class ReconstructionOptions:
    """Options under ``train: reconstruction``, see ``quant.reconstruct``."""

    blocks: Sequence[str] = option(
        "name patterns of the blocks; of nested matches the outermost is the block."
    )
    steps: int = option("steps of Adam for each block.", limits=Limits(least=1))
    lr: float = option(
        "learning rate at the start; it falls to 0 by a cosine.", limits=Limits(above=0)
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

    total_iter: int = option("steps of the training.", limits=Limits(least=0))
    warmup_iter: int = option(
        "steps in which the learning rate rises to its full height.", -1, shown="-1: none"
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
        "`bfloat16` runs forward passes in that type.", None, allowed=("bfloat16", None)
    )
    clip_grad: float = option("largest norm of the gradient.", 1.0, limits=Limits(above=0))


EMA_DECAY = Limits(least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class OSDFaceOptions(TrainOptions):
    """Options under ``train`` with ``OSDFaceModel``."""

    ema_decay: float = option(
        "decay of an exponential moving average (EMA) of the weights, which is then what is tested "
        "and written in the end.",
        0.0,
        limits=EMA_DECAY,
        shown="0: none",
    )
    autoencode_every: int = option(
        "every so many steps the clean image itself is encoded and decoded, without the UNet, so "
        "that the latent keeps what the decoder needs.",
        0,
        limits=Limits(least=0),
        shown="0: never",
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
        "train the activation ranges' ends too; `step`: only the distance of their levels.",
        False,
        allowed=BOUNDS,
    )
    train_weights: str | None = option(
        "train the rounded weights too: `merged`, by a low-rank change that is rounded with them "
        "(EfficientDM), or `scale`, by scales and offsets of the input's channels (PassionSR).",
        None,
        allowed=(None, "merged", "scale"),
        old_name="weights",
    )
    accumulate: int = option(
        "a batch goes through in so many pieces whose gradients add up: the memory of one piece, "
        "the same step.",
        1,
        limits=Limits(least=1),
    )
    ema_decay: float = option(
        "decay of an exponential moving average (EMA) of what is trained, which is then what is "
        "tested and written in the end.",
        0.0,
        limits=EMA_DECAY,
        shown="0: none",
    )
    checkpointing: bool = option(
        "keep fewer activations and compute them again in the backward pass.", False
    )
    reconstruction: ReconstructionOptions | None = option(
        "tune block by block before, see `train: reconstruction` below.", None, shown="none"
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
        "images to use, spread evenly over what there is.", 32, limits=Limits(least=1)
    )
    batch_size: int = option("images at a time.", 4, limits=Limits(least=1))
    size: int | None = option(
        "side in pixels.", None, limits=Limits(least=1), shown="null: as in training"
    )
    dataroot_lq: str | None = option(
        "folder of degraded images.", None, shown="null: samples of `datasets: train`"
    )


@dataclass(frozen=True, kw_only=True)
class QuantBlockOptions:
    """Options under ``quant`` beside those of a recipe."""

    bit_map: str | None = option(
        "file of bit widths by layer, see bit maps below; it overrules the widths of `name`.", None
    )
    balance: Mapping[str, Any] = option(
        "see `quant: balance` below; or `file`, which `scripts/balance.py` wrote.",
        {},
        shown="as there",
    )
    calibration: CalibrationOptions = option(
        "see `quant: calibration` below.", CalibrationOptions(), shown="as there"
    )
