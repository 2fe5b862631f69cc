"""BasicSR's own loops, run as a user runs them, on a tiny restorer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import cv2
import numpy as np
import pytest
import torch
import yaml
from loops import shrink_training
from programs import run_program
from small_networks import TINY

from quantface_arch.archs.build import build_arch
from quantface_arch.errors import QuantFaceError
from quantface_arch.models.discriminator import Discriminator
from quantface_arch.models.options import DiscriminatorOptions
from quantface_arch.models.osdface_model import latent_color_distance
from quantface_arch.pretrained.zoo import load_model
from quantface_arch.quant import Recipe, quantize, save_checkpoint
from quantface_arch.quant.checkpoint.save_load import read_metadata
from quantface_arch.utils.option_fields import parse_options


@pytest.fixture
def options(repo, tmp_path):
    """The shipped training options, shrunk: 64-pixel faces, 6 steps, a state every 2 of them."""
    rng = np.random.default_rng(0)
    (tmp_path / "faces").mkdir()
    for index in range(5):
        small = rng.integers(0, 255, (6, 6, 3), np.uint8)
        image = cv2.resize(small, (80, 80), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(tmp_path / "faces" / f"{index}.png"), image)
    opt = yaml.safe_load((repo / "options/train_mini.yml").read_text())
    shrink_training(opt, 6)
    opt["train"]["optim_g"]["lr"] = 1e-3
    opt["train"].update(warmup_iter=2, kl_weight=1e-6)
    opt["train"]["scheduler"]["eta_min"] = 1e-5
    opt["train"]["discriminator"] = {
        "network": {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 4},
        "loss": {"type": "GANLoss", "gan_type": "vanilla", "loss_weight": 0.1},
        "lr": 1e-4,
        "start_iter": 3,
    }
    opt["network_g"] = TINY
    opt["path"]["pretrain_network_g"] = None
    opt["num_gpu"] = 0
    opt["datasets"]["train"].update(
        dataroot_gt=str(tmp_path / "faces"),
        gt_size=[[0, 32], [4, 64]],
        batch_size_per_gpu=2,
        num_worker_per_gpu=1,
        dataset_enlarge_ratio=2,
    )
    opt["logger"].update(print_freq=1, save_checkpoint_freq=2)
    return opt


def prepare(repo, folder, opt, phase="train"):
    """Write options and a launcher with its experiments below ``folder``; return its command."""
    launcher = folder / "basicsr" / f"{phase}.py"
    launcher.parent.mkdir(parents=True, exist_ok=True)
    launcher.write_bytes((repo / "basicsr" / f"{phase}.py").read_bytes())
    (folder / "options.yml").write_text(yaml.safe_dump(opt))
    return [str(launcher), "-opt", str(folder / "options.yml")]


def run(repo, folder, opt, *extra, phase="train"):
    """Run a launcher to its end; return its exit status and what it printed."""
    done = run_program(*prepare(repo, folder, opt, phase), *extra, cwd=folder)
    return done.returncode, done.stdout + done.stderr


def weights(folder, step="latest"):
    path = folder / f"experiments/train_mini/models/net_g_{step}.pth"
    return torch.load(path, weights_only=True)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_weights_of_an_uninterrupted_one(repo, tmp_path, options):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    status, output = run(repo, whole, options)
    assert status == 0, output
    command = [sys.executable, *prepare(repo, broken, options)]
    with (broken / "output.txt").open("w") as output:
        outputs = {"stdout": output, "stderr": output}
        process = subprocess.Popen(command, cwd=broken, start_new_session=True, **outputs)
    # Iteration 4 is saved in the middle of an epoch of 5 iterations.
    state = broken / "experiments/train_mini/training_states/4.state"
    deadline = time.monotonic() + 200
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    # The loader's workers too, as when a machine goes down.
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert state.exists()
    for late in ("6", "latest"):
        (broken / f"experiments/train_mini/models/net_g_{late}.pth").unlink(missing_ok=True)
    (state.parent / "6.state").unlink(missing_ok=True)
    status, output = run(repo, broken, options, "--auto_resume")
    assert status == 0, output
    assert "Resuming training from epoch: 0, iter: 4" in output
    expected, resumed = weights(whole), weights(broken)
    for key in ("params", "params_ema"):
        for name, value in expected[key].items():
            assert torch.equal(value, resumed[key][name]), name
    metadata = read_metadata(broken / "experiments/train_mini/models/net_g_latest.safetensors")
    assert metadata["state"] == "float"
    assert metadata["arch"]["type"] == "OSDFace"


@pytest.mark.slow
def test_training_in_bfloat16_changes_every_part_in_the_fast_layout(repo, tmp_path, options):
    options["train"].update(autocast="bfloat16", autoencode_every=2, latent_color_weight=1.0)
    status, output = run(repo, tmp_path, options)
    assert status == 0, output
    before, after = weights(tmp_path, 2)["params"], weights(tmp_path)["params"]
    for part in ("vre.encoder", "vre.quantize", "embedding_change", "vae.encoder", "unet"):
        assert any(
            not torch.equal(before[name], after[name]) for name in before if name.startswith(part)
        ), part
    assert output.count("l_latent_color") == 3
    for name, value in after.items():
        if value.ndim == 4:
            assert value.is_contiguous(memory_format=torch.channels_last), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda opt: opt["train"].update(totl_iter=3), "totl_iter"),
        (lambda opt: opt["network_g"].update(type="NoSuchNet"), "NoSuchNet"),
        (lambda opt: opt.update(model_type="NoSuchModel"), "NoSuchModel"),
        (lambda opt: opt["datasets"]["train"].update(dataroot_gt="no/faces"), "no/faces"),
        (lambda opt: opt["network_g"].update(presett="mini"), "presett"),
        (lambda opt: opt["train"]["losses"].append({"type": "NoSuchLoss"}), "NoSuchLoss"),
        (lambda opt: opt["path"].update(pretrain_network_g="no-model"), "no-model"),
        (lambda opt: opt["path"].update(pretrain_network_g="mini"), "'preset': 'mini2'"),
        (lambda opt: opt.update(logger=None), "option logger: found None"),
        (lambda opt: opt.update(train=None), "option train: found None"),
    ],
)
def test_mistakes_in_the_options_are_one_line(repo, tmp_path, options, change, word):
    options["network_g"] = dict(TINY)
    change(options)
    status, output = run(repo, tmp_path, options)
    assert status == 1
    last = output.strip().splitlines()[-1]
    assert last.startswith("error: ") and word in last
    assert "Traceback" not in output
    assert not (tmp_path / "experiments").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"start_itr": 3}, ": unknown key start_itr; allowed are loss"),
        ({"network": {}, "loss": {}}, ": lr: missing"),
        (
            {"network": {}, "loss": {}, "lr": "1e-4"},
            ": lr: found '1e-4', allowed is a number above 0",
        ),
    ],
)
def test_wrong_options_of_the_discriminator_are_named(options, complaint):
    place = "train option discriminator"
    with pytest.raises(QuantFaceError, match=f"{place}{complaint}"):
        parse_options(DiscriminatorOptions, place, options)


@pytest.mark.parametrize("part", ["network", "loss"])
def test_a_discriminator_that_cannot_be_built_says_which_part(part):
    options = {
        "network": {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 4},
        "loss": {"type": "GANLoss", "gan_type": "vanilla"},
        "lr": 1e-4,
    }
    options[part] = {**options[part], "colour": "red"}
    parsed = parse_options(DiscriminatorOptions, "train option discriminator", options)
    with pytest.raises(QuantFaceError, match=f"train option discriminator: {part}: .*colour"):
        Discriminator(parsed, torch.device("cpu"), nullcontext)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [None, "w4a8"])
def test_the_test_loop_restores_with_a_checkpoint(repo, tmp_path, recipe):
    model = build_arch(TINY).eval()
    if recipe:
        plain = {"name": recipe, "balance": {"kind": "none"}}
        quantize(model, Recipe.from_dict(plain), torch.rand(2, 3, 64, 64) * 2 - 1, progress=False)
    save_checkpoint(model, tmp_path / "model.safetensors", TINY)
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for folder in ("lq", "gt"):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "face.png"), picture)
    opt = yaml.safe_load((repo / "options/test_mini.yml").read_text())
    opt["num_gpu"] = 0
    opt["network_g"] = TINY
    opt["path"]["pretrain_network_g"] = str(tmp_path / "model.safetensors")
    opt["datasets"]["test_1"].update(
        dataroot_gt=str(tmp_path / "gt"), dataroot_lq=str(tmp_path / "lq")
    )
    status, output = run(repo, tmp_path, opt, phase="test")
    assert status == 0, output
    assert all(f"# {name}:" in output for name in ("psnr", "ssim", "edge_psnr", "sharpness"))
    saved = next((tmp_path / "results").rglob("face*.png"))
    loaded = load_model(tmp_path / "model.safetensors")
    x = torch.from_numpy(picture[:, :, ::-1].copy()).permute(2, 0, 1)[None] / 255.0
    with torch.no_grad():
        y = ((loaded(x * 2 - 1)[0] + 1) * 127.5).permute(1, 2, 0).numpy()[:, :, ::-1]
    # A rounding boundary may fall either way between two orders of summation.
    assert np.abs(cv2.imread(str(saved)).astype(float) - y).max() < 1.01


def test_the_latent_is_compared_with_the_mean_colours_of_its_blocks():
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    colors = torch.nn.functional.avg_pool2d(image, 4)
    latent = torch.cat((colors + 0.25, torch.rand(2, 5, 4, 4)), dim=1)
    assert latent_color_distance(latent, image) == pytest.approx(0.25, rel=1e-5)
