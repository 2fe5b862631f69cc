"""Half a tiny autoencoder's weights, from a folder or the hub, in the place of a network's half."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderTiny
from torch import Tensor

from quantface_arch.archs.osdface_arch import OSDFace
from quantface_arch.archs.tiny import HALVES
from quantface_arch.errors import QuantFaceError, check_choice
from quantface_arch.pretrained.diffusers_folder import read_network
from quantface_arch.quant.nn.traits import set_traits, traits_of
from quantface_arch.utils.state_dict import fill

__all__ = ["load_half"]


def load_half(net: OSDFace, half: str, source: str, offline: bool = False) -> None:
    """Put half a tiny autoencoder, with its weights, in the place of a network's; in place.

    The network's ``arch_options`` say so afterwards.

    Args:
        net: in full precision.
        half: see ``tiny_half``.
        source: a folder or hub id in diffusers' layout, of TAESD for example (madebyollin/taesd).
        offline: take a hub id from the local cache, never from the network.

    Raises:
        QuantFaceError: nothing there, not all of a tiny autoencoder or of other sizes, a latent of
            another scale.
    """
    check_choice("half", half, HALVES)
    offline = offline or Path(source).is_dir()
    try:
        tiny = read_network(AutoencoderTiny, source, "", {"scaling_factor": 1.0}, offline)
    except QuantFaceError as error:
        raise QuantFaceError(f"{source}: no tiny autoencoder ({error})") from error
    options = {
        "num_blocks": list(tiny.config[f"num_{half}_blocks"]),
        "block_out_channels": list(tiny.config[f"{half}_block_out_channels"]),
    }
    net.use_tiny(half, options)
    state: dict[str, Tensor] = getattr(tiny, half).state_dict()
    fill(getattr(net, f"fast_{half}"), Path(source), state)
    set_traits(net, arch_options={**traits_of(net).arch_options, f"fast_{half}": options})
