"""Whole runs of distillation in BasicSR's loop: resumed, of other networks, in two processes."""

from __future__ import annotations

import itertools

import pytest
import torch
from distillation_helpers import batch, build, make_comparable, ready, relative_error, step, values
from loops import saved, shrink, train, train_until_killed, write_images
from small_networks import RRDB

import quantface_arch.register  # noqa: F401
from basicsr.models import build_model
from quantface_arch.errors import QuantFaceError
from quantface_arch.models import QuantFaceModel
from quantface_arch.models import quantize_stage as stage_module
from quantface_arch.pretrained.zoo import load_model
from quantface_arch.quant import read_metadata


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_weights_of_an_uninterrupted_one(
    tmp_path, w4_options, monkeypatch
):
    whole = train(monkeypatch, tmp_path / "whole", w4_options)
    train_until_killed(monkeypatch, tmp_path / "broken", w4_options, QuantFaceModel, 6)
    with monkeypatch.context() as patch:
        # Resuming loads the first stage's result; it does not calibrate again.
        patch.delattr(stage_module, "prepare")
        broken = train(patch, tmp_path / "broken", w4_options, "--auto_resume")
    for key in ("params", "params_ema"):
        expected, resumed = saved(whole)[key], saved(broken)[key]
        assert expected.keys() == resumed.keys()
        for name, value in expected.items():
            assert torch.equal(value, resumed[name]), name
    states = [saved(whole, step)["params"] for step in (2, 4, 6)]
    assert all(
        any(not torch.equal(value, b[name]) for name, value in a.items())
        for a, b in itertools.pairwise(states)
    )


@pytest.mark.slow
def test_the_first_stage_of_a_run_killed_before_its_first_state_is_used(
    tmp_path, w4_options, monkeypatch
):
    first = train(monkeypatch, tmp_path, w4_options)
    expected = saved(first, 2)["params"]
    for state in (first.parent / "training_states").iterdir():
        state.unlink()
    with monkeypatch.context() as patch:
        patch.delattr(stage_module, "prepare")
        again = train(patch, tmp_path, w4_options, "--auto_resume")
    found = saved(again, 2)["params"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    changed = {**w4_options, "quant": {**w4_options["quant"], "name": "w6a6"}}
    for state in (again.parent / "training_states").iterdir():
        state.unlink()
    other = train(monkeypatch, tmp_path, changed, "--auto_resume")
    assert read_metadata(other / "prepared.safetensors")["recipe"]["name"] == "w6a6"


@pytest.mark.slow
def test_resuming_with_other_widths_is_refused(tmp_path, w4_options, monkeypatch):
    w4_options["train"]["total_iter"] = 2
    train(monkeypatch, tmp_path, w4_options)
    w4_options["quant"]["name"] = "w6a6"
    with pytest.raises(QuantFaceError, match="options under quant have changed"):
        train(monkeypatch, tmp_path, w4_options, "--auto_resume")


@pytest.mark.slow
def test_an_sr_network_is_distilled_and_tested_without_code(tmp_path, w4_options, monkeypatch):
    write_images(tmp_path / "gt", side=64)
    write_images(tmp_path / "lq", side=32)
    shrink(w4_options, tmp_path / "gt", RRDB)
    w4_options["scale"] = 2
    w4_options["datasets"] = {
        "train": {
            "name": "pairs",
            "type": "PairedImageDataset",
            "dataroot_gt": str(tmp_path / "gt"),
            "dataroot_lq": str(tmp_path / "lq"),
            "io_backend": {"type": "disk"},
            "gt_size": 32,
            "use_hflip": True,
            "use_rot": False,
            "batch_size_per_gpu": 2,
            "num_worker_per_gpu": 0,
        }
    }
    w4_options["train"]["losses"] = [{"type": "L1Loss"}, {"type": "L1Loss", "of": "x0"}]
    with pytest.raises(QuantFaceError, match="entry 2"):
        train(monkeypatch, tmp_path, w4_options)
    w4_options["train"]["losses"].pop()
    models = train(monkeypatch, tmp_path, w4_options)
    assert read_metadata(models / "net_g_latest.safetensors")["arch"]["type"] == "RRDBNet"
    opt = {**ready(w4_options, tmp_path), "is_train": False}
    opt["path"]["pretrain_network_g"] = str(models / "net_g_latest.safetensors")
    tested = build_model(opt)
    picture = torch.rand(1, 3, 24, 20)
    tested.feed_data({"lq": picture})
    tested.test()
    visuals = tested.get_current_visuals()
    assert visuals["result"].shape == (1, 3, 48, 40)
    assert torch.allclose(visuals["lq"], picture, atol=1e-6)
    with torch.no_grad():
        wanted = load_model(models / "net_g_latest.safetensors")(picture)
    assert torch.allclose(visuals["result"], wanted, atol=1e-5)


def test_windows_are_padded_for_testing(tmp_path, w4_options):
    swin = {"type": "SwinIR", "upscale": 2, "in_chans": 3, "img_size": 16, "window_size": 8}
    swin |= {"embed_dim": 16, "depths": [1], "num_heads": [2], "upsampler": "pixelshuffledirect"}
    w4_options["network_g"]["arch"] = swin
    opt = {**ready(w4_options, tmp_path), "is_train": False}
    model = build_model(opt)
    model.feed_data({"lq": torch.rand(1, 3, 20, 13)})
    model.test()
    assert model.output.shape == (1, 3, 40, 26)


def train_one_of_two(rank, opt, folder):
    """One process: build, take a step on its half of the data; what is trained, afterwards."""

    rendezvous = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    try:
        torch.manual_seed(0)
        model = build_model({**opt, "rank": rank, "world_size": 2, "dist": True})
        data = torch.load(folder / "data.pt", weights_only=True)
        step(model, {name: value[rank::2] for name, value in data.items()})
        model.save(-1, -1)
    finally:
        torch.distributed.destroy_process_group()
    torch.save(values(model), folder / f"{rank}.pt")
    return values(model)


@pytest.mark.slow
def test_two_processes_train_as_one_with_both_batches(tmp_path, w4_options):
    make_comparable(w4_options)
    w4_options["train"]["accumulate"] = 2
    data = batch(4, side=16)
    torch.save(data, tmp_path / "data.pt")
    opt = ready(w4_options, tmp_path)
    context = torch.multiprocessing.get_context("spawn")
    other = context.Process(target=train_one_of_two, args=(1, opt, tmp_path), daemon=True)
    other.start()
    first = train_one_of_two(0, opt, tmp_path)
    other.join()
    second = torch.load(tmp_path / "1.pt", weights_only=True)
    single = build(w4_options, tmp_path / "single")
    before = values(single)
    step(single, data)
    assert all(torch.equal(first[name], value) for name, value in second.items())
    assert relative_error(before, values(single), first) < 0.01
