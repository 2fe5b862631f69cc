"""Define small networks of spandrel's architectures for benchmarks/architectures.py."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from quantface_arch.archs.spandrel_net import registry

__all__ = ["NETWORKS", "descriptor"]

_WINDOWS = {"embed_dim": 24, "depths": [2], "num_heads": [2]}
_DIRECT = {"upscale": 2, "upsampler": "pixelshuffledirect"}
# Name of a row: architecture, class, options. Sizes are those of networks that run in seconds.
NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ATD": ("ATD", "ATD", {**_WINDOWS, **_DIRECT, "category_size": 64, "num_tokens": 16}),
    "Compact": ("Compact", "SRVGGNetCompact", {"num_feat": 24, "num_conv": 4}),
    "CRAFT": ("CRAFT", "CRAFT", {"embed_dim": 48, "depths": [2], "num_heads": [6]}),
    "DAT": (
        "DAT",
        "DAT",
        {"embed_dim": 48, "depth": [2], "num_heads": [2], "split_size": [4, 8], **_DIRECT},
    ),
    "DCTLSA": ("DCTLSA", "DCTLSA", {"nf": 25}),
    "DITN": ("DITN", "DITN_Real", {"dim": 24, "ITL_blocks": 1, "SAL_blocks": 1}),
    "DnCNN": ("DnCNN", "DnCNN", {"in_nc": 3, "out_nc": 3, "nc": 24, "nb": 5}),
    "DRCT": (
        "DRCT",
        "DRCT",
        {**_WINDOWS, "window_size": 8, "gc": 8, "upscale": 2, "upsampler": "pixelshuffle"},
    ),
    "DRUNet": ("DRUNet", "DRUNet", {"in_nc": 4, "out_nc": 3, "nc": [16, 24, 32, 48], "nb": 2}),
    "ESRGAN": ("ESRGAN", "RRDBNet", {"num_filters": 24, "num_blocks": 1}),
    "FBCNN": ("FBCNN", "FBCNN", {"nc": [16, 24, 32, 512], "nb": 2}),
    "FDAT": ("FDAT", "FDAT", {"embed_dim": 32, "num_groups": 1, "depth_per_group": 2}),
    "FFTformer": ("FFTformer", "FFTformer", {"dim": 16, "num_blocks": [1, 1, 1]}),
    "GFPGAN": ("GFPGAN", "GFPGANv1Clean", {}),
    "GRL": (
        "GRL",
        "GRL",
        {"embed_dim": 32, "depths": [2], "num_heads_window": [2], "num_heads_stripe": [2]}
        | {"upscale": 2, "upsampler": "pixelshuffledirect"},
    ),
    "HAT": (
        "HAT",
        "HAT",
        {**_WINDOWS, "window_size": 8, "upscale": 2, "upsampler": "pixelshuffle"}
        | {"squeeze_factor": 4, "compress_ratio": 3},
    ),
    "HVICIDNet": ("HVICIDNet", "CIDNet", {"channels": [12, 12, 24, 48]}),
    "IPT": ("IPT", "IPT", {"n_feats": 16, "num_layers": 1, "patch_size": 24, "scale": [2]}),
    "KBNet_s": (
        "KBNet",
        "KBNet_s",
        {"width": 16, "middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]},
    ),
    "MixDehazeNet": ("MixDehazeNet", "MixDehazeNet", {"embed_dims": [16, 24, 32, 24, 16]}),
    "MMRealSR": (
        "MMRealSR",
        "MMRRDBNet_test",
        {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 24, "num_block": 1, "num_grow_ch": 16},
    ),
    "MoESR": ("MoESR", "MoESR", {"dim": 24, "n_blocks": 1, "n_block": 1}),
    "MoSR": ("MoSR", "MoSR", {"dim": 32, "n_block": 2}),
    "NAFNet": ("NAFNet", "NAFNet", {"enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}),
    "OmniSR": ("OmniSR", "OmniSR", {"num_feat": 32, "res_num": 1}),
    "PLKSR": ("PLKSR", "PLKSR", {"dim": 32, "n_blocks": 2}),
    "RealPLKSR": ("PLKSR", "RealPLKSR", {"dim": 32, "n_blocks": 2}),
    "RCAN": ("RCAN", "RCAN", {"n_resgroups": 1, "n_resblocks": 2, "n_feats": 32}),
    "RealCUGAN": ("RealCUGAN", "UpCunet2x", {}),
    "RestoreFormer": (
        "RestoreFormer",
        "RestoreFormer",
        {"ch": 32, "n_embed": 64, "num_res_blocks": 1},
    ),
    "RetinexFormer": ("RetinexFormer", "RetinexFormer", {"n_feat": 16, "stage": 1}),
    "RGT": ("RGT", "RGT", {"embed_dim": 48, "depth": [2], "num_heads": [2]}),
    "SAFMN": ("SAFMN", "SAFMN", {"dim": 32, "n_blocks": 2}),
    "SAFMNBCIE": ("SAFMNBCIE", "SAFMN_BCIE", {"dim": 32, "n_blocks": 2, "num_layers": 2}),
    "SCUNet": ("SCUNet", "SCUNet", {"config": [1] * 7}),
    "SeemoRe": ("SeemoRe", "SeemoRe", {"num_layers": 1, "embedding_dim": 24}),
    "SPAN": ("SPAN", "SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 24}),
    "SwiftSRGAN": ("SwiftSRGAN", "Generator", {"num_channels": 32, "num_blocks": 2}),
    "Swin2SR": ("Swin2SR", "Swin2SR", {**_WINDOWS, "window_size": 8, **_DIRECT}),
    "SwinIR": ("SwinIR", "SwinIR", {**_WINDOWS, "window_size": 8, **_DIRECT}),
    "Uformer": ("Uformer", "Uformer", {"embed_dim": 16, "depths": [1] * 9}),
}


def descriptor(name: str) -> Any:
    """Return spandrel's description of a small network with random weights from seed 0."""
    id, cls, options = NETWORKS[name]
    package = next(
        type(entry.architecture).__module__ for entry in registry() if entry.architecture.id == id
    )
    torch.manual_seed(0)
    net = _class(package, cls)(**options)
    return registry().load(net.state_dict())


def _class(package: str, name: str) -> Any:
    """Return a network's class from the names that its architecture's package imports."""
    found = vars(importlib.import_module(package)).values()
    return next(item for item in found if getattr(item, "__name__", None) == name)
