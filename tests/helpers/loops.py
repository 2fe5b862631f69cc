"""BasicSR's training loop, run in this process on random images."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest
import torch
import yaml
from small_networks import TINY

# Two levels instead of three: half as many layers, and images of 32 pixels are enough.
SMALL = {
    **TINY,
    "vae": {
        "block_out_channels": [16, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "latent_channels": 4,
    },
    "unet": {
        **TINY["unet"],
        "block_out_channels": [32, 32],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [1, 1],
    },
}


def load_options(path):
    """Return an options file as BasicSR reads it, as plain dictionaries."""
    return yaml.safe_load(path.read_text())


def write_images(folder, count=5, side=80):
    """Write smooth random images 0.png, 1.png, ... of one size."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for index in range(count):
        small = rng.integers(0, 255, (6, 6, 3), np.uint8)
        image = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{index}.png"), image)


def write_noise(folder, count, side):
    """Write random images 0.png, 1.png, ... of one size, drawn from numpy's global generator."""
    folder.mkdir()
    for number in range(count):
        image = np.random.randint(0, 256, (side, side, 3), np.uint8)
        assert cv2.imwrite(str(folder / f"{number}.png"), image)


def shrink_data(opt, faces, arch=SMALL):
    """Make options those of another network on small images, without workers."""
    opt["num_gpu"] = 0
    opt["network_g"] = {"type": "QuantFaceArch", "arch": arch, "weights": None}
    opt["datasets"]["train"].update(
        dataroot_gt=str(faces), gt_size=32, batch_size_per_gpu=2, num_worker_per_gpu=0
    )
    opt["datasets"]["train"].update(dataset_enlarge_ratio=2, persistent_workers=False)
    opt["quant"]["calibration"] = {"num_images": 2, "batch_size": 2}
    opt["logger"].update(print_freq=1, save_checkpoint_freq=2)
    return opt


def shrink_training(opt, steps=2):
    """Make options a training of few steps, without the losses whose weights are downloaded."""
    losses = [loss for loss in opt["train"]["losses"] if not loss.get("download")]
    opt["train"].update(total_iter=steps, warmup_iter=-1, losses=losses)
    opt["train"]["scheduler"].update(periods=[steps], restart_weights=[1], eta_min=0)


def shrink(opt, faces, arch=SMALL, steps=2):
    """Make options a run of seconds: another network, small images, few steps, a plain method."""
    shrink_training(shrink_data(opt, faces, arch), steps)
    # Of networks as narrow as these even small ranks are a large share.
    opt["quant"]["branch"] = {"svd": 1, "distill": 2, "budget": 1.0}
    # The map of another network does not fit.
    opt["quant"]["bit_map"] = None
    # One strength: the search for the best is most of what a small network takes.
    opt["quant"]["balance"] = {"kind": "scale", "alpha": 0.5}
    return opt


def train(monkeypatch, root, opt, *extra):
    """Run the loop with its experiments below ``root``; return the folder of its models."""
    from basicsr.train import train_pipeline

    root.mkdir(exist_ok=True)
    path = root / "options.yml"
    path.write_text(yaml.safe_dump(opt))
    monkeypatch.setattr(sys, "argv", ["train.py", "-opt", str(path), *extra])
    train_pipeline(str(root))
    return root / "experiments" / opt["name"] / "models"


def train_until_killed(monkeypatch, root, opt, model, iteration):
    """Run the loop as ``train`` does, and interrupt it before an iteration of a model class."""
    optimize = model.optimize_parameters

    def killed(self, current):
        if current == iteration:
            raise KeyboardInterrupt
        optimize(self, current)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model, "optimize_parameters", killed)
        train(patch, root, opt)


def saved(models, step="latest"):
    """Return the tensors of a network's file, by BasicSR's parameter keys."""
    return torch.load(models / f"net_g_{step}.pth", weights_only=True)


def shrink_restorer(opt, faces, steps=6, save_every=2):
    """Make the options of a full-precision training one of few steps of a small network.

    The losses need no files, and the discriminator takes part from the third step on.
    """
    opt.update(num_gpu=0, network_g=SMALL)
    opt["path"]["pretrain_network_g"] = None
    opt["datasets"]["train"].update(
        dataroot_gt=str(faces),
        gt_size=32,
        batch_size_per_gpu=2,
        num_worker_per_gpu=0,
        persistent_workers=False,
        dataset_enlarge_ratio=4,
        repeat={},
        holdout={},
        equalize_skin_tones=False,
    )
    opt["logger"].update(print_freq=1, save_checkpoint_freq=save_every)
    shrink_training(opt, steps)
    opt["train"].update(autoencode_every=2, losses=[{"type": "L1Loss"}])
    opt["train"]["discriminator"]["network"]["num_feat"] = 4
    opt["train"]["discriminator"]["start_iter"] = 3
    return opt
