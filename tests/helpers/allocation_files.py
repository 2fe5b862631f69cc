"""A folder with a small network and faces, and options that allocate its bits."""

from __future__ import annotations

from loops import write_noise
from small_networks import RRDB

from quantface_arch.archs.build import build_arch
from quantface_arch.quant import save_checkpoint

OPTIONS = {
    "network_g": {"type": "QuantFaceArch", "arch": RRDB, "weights": "float.safetensors"},
    "quant": {"name": "w4a4", "calibration": {"num_images": 2, "size": 32, "dataroot_lq": "faces"}},
    "allocate": {
        "activations": [3, 4, 8],
        "budget": {"activation_bits": 4.0},
        "protect": {"conv_first": 8},
        "image_size": 32,
    },
}


def changed(**parts):
    """Return OPTIONS with some entries of ``allocate`` replaced."""
    return {**OPTIONS, "allocate": {**OPTIONS["allocate"], **parts}}


def enter(folder, monkeypatch):
    """Make ``folder``, with what OPTIONS names, the working folder; return it."""
    monkeypatch.chdir(folder)
    write_noise(folder / "faces", 2, 32)
    save_checkpoint(build_arch(RRDB), folder / "float.safetensors", RRDB)
    return folder
