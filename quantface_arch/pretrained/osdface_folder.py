"""OSDFace, loaded from its authors' files and a folder of Stable Diffusion 2.1-base."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from accelerate import init_empty_weights
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from quantface_arch.archs.osdface_arch import OSDFace
from quantface_arch.errors import QuantFaceError, one_line
from quantface_arch.pretrained.diffusers_folder import read_network
from quantface_arch.pretrained.lora import merge_lora
from quantface_arch.pretrained.names import resolve_base
from quantface_arch.quant.nn.traits import set_traits
from quantface_arch.utils.safetensors_header import check_header
from quantface_arch.utils.state_dict import fill, unpickle

__all__ = ["load_osdface_folder"]

VRE_FILE = "associate_2.ckpt"
EMBEDDING_FILE = "embedding_change_weights.pth"
LORA_FILE = "pytorch_lora_weights.safetensors"

VRE_PREFIX = "vqvae_LQ."
# These keys are of the VQGAN's decoder, and of the attention's norm of a second input, which
# self-attention lacks.
VRE_UNUSED = re.compile(
    r"decoder.*|post_quant_conv\..*|encoder\.(down\.\d+\.attn\.\d+|mid\.attn_1)\.norm2\..*"
)


def load_osdface_folder(
    folder: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    *,
    alpha: float | None = None,
    preset: str = "osdface",
    overrides: Mapping[str, Any] | None = None,
    local_files_only: bool = False,
) -> OSDFace:
    """Build OSDFace from the files that its authors published, with the UNet's LoRA merged.

    ``folder`` holds ``associate_2.ckpt`` (the VRE), ``embedding_change_weights.pth`` and
    ``pytorch_lora_weights.safetensors``. A ``.safetensors`` file with the same stem is preferred to
    either of the first two.

    Args:
        folder: the folder of the three files.
        base: Stable Diffusion 2.1-base in diffusers' layout (``unet/``, ``vae/``, ``scheduler/``),
            see ``resolve_base``.
        alpha: the LoRA's alpha. None takes the value in its file, or 16 if there is none.
        preset, overrides: sizes and other options of ``OSDFace``.
        local_files_only: load a hub id from the local cache only.

    Returns:
        the model on the CPU in float32, in evaluation mode, with the trait ``arch_options``.

    Raises:
        QuantFaceError: a file is missing or unreadable, or has other keys or shapes than the
            architecture. The message names the file and the keys.
    """
    folder, source = Path(folder), resolve_base(Path(folder), base)
    offline = local_files_only or Path(source).is_dir()
    options = {"preset": preset, **(overrides or {}), **_read_schedule(source, offline)}
    with init_empty_weights():
        model = OSDFace(**options)
    fill(model.vre, *_read_vre(folder), assign=True)
    fill(model.embedding_change, *_read_tensors(folder, EMBEDDING_FILE), assign=True)
    _fill_from_base(model, source, offline, folder / LORA_FILE, alpha)
    set_traits(model, arch_options={"type": "OSDFace", **options})
    return model.eval()


def _fill_from_base(
    model: OSDFace, source: str, offline: bool, lora: Path, alpha: float | None
) -> None:
    """Fill the VAE and the UNet from Stable Diffusion, the UNet with the LoRA merged."""
    vae = read_network(AutoencoderKL, source, "vae", model.vae.config, offline)
    fill(model.vae, f"{source}/vae", vae.state_dict(), assign=True)
    unet = read_network(UNet2DConditionModel, source, "unet", model.unet.config, offline)
    unet = merge_lora(unet, lora, alpha)
    fill(model.unet, f"{source}/unet", unet.state_dict(), assign=True)


def _read_schedule(source: str, offline: bool) -> dict[str, float]:
    """Return the noise schedule's betas after checking that the model implements the schedule."""
    name = f"{source}/scheduler/scheduler_config.json"
    try:
        found = DDPMScheduler.load_config(source, subfolder="scheduler", local_files_only=offline)
    except (OSError, ValueError) as error:
        raise QuantFaceError(f"{name}: {one_line(error)}") from error
    config = cast("dict[str, Any]", found)
    defaults = DDPMScheduler().config
    wanted = {
        "prediction_type": "epsilon",
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "trained_betas": None,
    }
    for key, value in wanted.items():
        found = config.get(key, defaults[key])
        if found != value:
            raise QuantFaceError(f"{name}: {key}: found {found!r}, expected {value!r}")
    return {key: float(config.get(key, defaults[key])) for key in ("beta_start", "beta_end")}


def _read_tensors(folder: Path, name: str) -> tuple[Path, dict[str, Tensor]]:
    """Read the tensors of a pickled checkpoint, or of the ``.safetensors`` file with its stem."""
    pickled, plain = folder / name, (folder / name).with_suffix(".safetensors")
    path = plain if plain.is_file() else pickled
    if not path.is_file():
        raise QuantFaceError(f"{pickled}: no such file (nor {plain.name} beside it)")
    if path is plain:
        check_header(path)
    try:
        found = load_file(path) if path is plain else unpickle(path, foreign=True)
    except (SafetensorError, OSError) as error:
        raise QuantFaceError(f"{path}: damaged, or not a checkpoint ({one_line(error)})") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping):
        raise QuantFaceError(f"{path}: found {type(found).__name__}, expected a state dict")
    return path, {key: value for key, value in found.items() if isinstance(value, Tensor)}


def _read_vre(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """Read the VRE's tensors from an association checkpoint, which also holds a second VQGAN."""
    path, tensors = _read_tensors(folder, VRE_FILE)
    names = {
        key.removeprefix(VRE_PREFIX): value
        for key, value in tensors.items()
        if key.startswith(VRE_PREFIX)
    }
    if not names:
        raise QuantFaceError(f"{path}: no key begins with {VRE_PREFIX}")
    return path, {key: value for key, value in names.items() if not VRE_UNUSED.fullmatch(key)}
