"""The shipped trainings of the mini in two processes, which must end with the same networks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from loops import SMALL, load_options, shrink, shrink_restorer, write_images

import quantface_arch.register  # noqa: F401
from basicsr.models import build_model
from quantface_arch.archs.build import build_arch
from quantface_arch.models.quantize_stage import read_quant_options
from quantface_arch.quant import convert, read_metadata, save_checkpoint
from quantface_arch.quant.config.bitmap import save_bit_map

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
WIDTHS = {"w8": (8, 8), "w4a8": (4, 8), "w6": (6, 6), "w4a6": (4, 6), "w4": (4, 4), "mp": (4, 4)}
NAMES = ["train_mini", "train_mini_fast", *(f"quantface_{key}" for key in WIDTHS)]
PEERS = ["efficientdm", "passionsr"]
FAST = {"num_blocks": [1, 1], "block_out_channels": [16, 16]}


def shrunk(repo, folder, name):
    """The options of a training, of a small network on the faces of a folder."""
    subfolder = "peers/" if name in PEERS else ""
    opt = load_options(repo / f"options/{subfolder}{name}.yml")
    faces = folder / "faces"
    if name == "train_mini":
        return shrink_restorer(opt, faces)
    if name == "train_mini_fast":
        opt["quant"] = {}
        opt = shrink(opt, faces)
        opt.update(network_g={**SMALL, "fast_decoder": FAST})
        opt["train"]["teacher"] = str(folder / "teacher.safetensors")
        return opt
    opt = shrink(opt, faces)
    if name == "quantface_mp":
        net = build_arch(SMALL)
        recipe, *_ = read_quant_options({"name": "w4a4"}, net)
        save_bit_map(folder / "map.yml", convert(net, recipe).bits)
        opt["quant"]["bit_map"] = str(folder / "map.yml")
    return opt


@pytest.fixture(scope="module")
def trained(repo, tmp_path_factory):
    """Train with all files in one pair of processes: what each says, and the experiments."""
    folder = tmp_path_factory.mktemp("processes")
    write_images(folder / "faces")
    save_checkpoint(build_arch(SMALL), folder / "teacher.safetensors", SMALL)
    paths = []
    for name in (*NAMES, *PEERS):
        paths.append(folder / f"{name}.yml")
        paths[-1].write_text(yaml.safe_dump(shrunk(repo, folder, name)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", str(HELPERS / "train_in_processes.py"), str(folder)]
    command += [*map(str, paths), "--", "--force_yml", "train:total_iter=3"]
    command += ["train:scheduler:periods=[3]", "datasets:train:gt_size=32"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=900)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)], folder


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, *PEERS])
def test_both_processes_end_with_the_same_network(trained, name):
    (first, second), folder = trained
    assert first[name]["network"] == second[name]["network"]
    assert all(value == value for value in first[name]["log"].values())
    experiment = yaml.safe_load((folder / f"{name}.yml").read_text())["name"]
    assert (folder / f"experiments/{experiment}/models/net_g_latest.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("key", WIDTHS)
def test_the_checkpoint_has_the_widths_of_the_options(trained, key):
    (found,) = trained[1].glob(f"experiments/*{key}/models/net_g_latest.safetensors")
    metadata = read_metadata(found)
    assert dict(zip("wa", WIDTHS[key], strict=True)) in metadata["bits"].values()
    assert bool(metadata["ranks"]) == (key != "w8")


@pytest.mark.slow
def test_both_processes_end_with_the_same_discriminator(trained):
    first, second = (found["train_mini"] for found in trained[0])
    assert "l_d" in first["log"]
    assert first["discriminator"] == second["discriminator"]


@pytest.mark.slow
def test_processes_share_the_noise_of_one_process_with_the_whole_batch(trained, repo, tmp_path):
    first, second = (found["train_mini"]["noise"] for found in trained[0])
    assert not set(first) & set(second)
    opt = shrunk(repo, trained[1], "train_mini")
    opt.update(is_train=True, dist=False, rank=0, world_size=1)
    opt["train"].pop("discriminator")
    alone = build_model(opt)
    alone.feed_data({name: torch.rand(4, 3, 32, 32) for name in ("lq", "gt")})
    wanted = [float(sample.sum()) for sample in alone.noise(4, 1)]
    assert [first[0], second[0], first[1], second[1]] == pytest.approx(wanted)


@pytest.mark.slow
def test_the_command_starts_two_processes_without_a_gpu(repo, trained):
    folder = trained[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", str(repo / "basicsr/train.py")]
    command += ["-opt", str(folder / "train_mini.yml"), "--launcher", "pytorch"]
    command += ["--force_yml", "train:total_iter=9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    # BasicSR's own start would divide by the number of GPUs.
    assert "periods [6] end before total_iter 9" in done.stdout + done.stderr
