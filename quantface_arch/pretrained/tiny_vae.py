"""A pretrained half of a tiny autoencoder, which replaces half of a network's VAE."""

from __future__ import annotations

from pathlib import Path

from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor

from quantface_arch.archs.osdface_arch import OSDFace
from quantface_arch.archs.tiny import HALVES
from quantface_arch.errors import QuantFaceError, check_choice
from quantface_arch.pretrained.diffusers_folder import read_network
from quantface_arch.quant.nn.traits import set_traits, traits_of
from quantface_arch.utils.state_dict import fill

__all__ = ["load_half"]


def load_half(net: OSDFace, half: str, source: str, offline: bool = False) -> None:
    """Replace half of a network's VAE by a pretrained tiny one, in place.

    The network's trait ``arch_options`` is updated.

    Args:
        net: the network in full precision.
        half: see ``tiny_half``.
        source: a folder or hub id in diffusers' layout, such as TAESD's (madebyollin/taesd).
        offline: load a hub id from the local cache only.

    Raises:
        QuantFaceError: the source is missing or incomplete, or its sizes or the scale of its latent
            differ.
    """
    check_choice("half", half, HALVES)
    offline = offline or Path(source).is_dir()
    try:
        tiny = read_network(AutoencoderTiny, source, "", {"scaling_factor": 1.0}, offline)
    except QuantFaceError as error:
        raise QuantFaceError(f"{source}: not a tiny autoencoder ({error})") from error
    options = {
        "num_blocks": list(tiny.config[f"num_{half}_blocks"]),
        "block_out_channels": list(tiny.config[f"{half}_block_out_channels"]),
    }
    net.use_tiny(half, options)
    state: dict[str, Tensor] = getattr(tiny, half).state_dict()
    fill(getattr(net, f"fast_{half}"), Path(source), state)
    set_traits(net, arch_options={**traits_of(net).arch_options, f"fast_{half}": options})
