"""Distillation of quantized networks in BasicSR's loop, on tiny networks."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from loops import load_options, saved, shrink, train, write_pictures
from tiny import RRDB

import quantface_arch.register  # noqa: F401
from basicsr.models import build_model
from quantface_arch.errors import QuantFaceError
from quantface_arch.models import QuantFaceModel
from quantface_arch.models import first_stage as stage_module
from quantface_arch.quant import quant_layers, read_metadata
from quantface_arch.quant.bitmap import save_bit_map
from quantface_arch.zoo import load_model

BLOCK = "unet.mid_block.resnets.0"


@pytest.fixture
def options(repo, tmp_path):
    """The shipped W4A4 options, shrunk, with moving averages and accumulated gradients."""
    write_pictures(tmp_path / "faces")
    opt = shrink(load_options(repo / "options/quantface_w4.yml"), tmp_path / "faces", steps=6)
    opt["train"].update(ema_decay=0.5, accumulate=2)
    return opt


def ready(opt, folder):
    """Options as BasicSR's pipeline hands them to a model."""
    opt = copy.deepcopy(opt)
    opt.update(is_train=True, dist=False, rank=0, world_size=1, auto_resume=False)
    opt["datasets"]["train"].update(phase="train", scale=1)
    opt["path"].update(models=str(folder / "models"), training_states=str(folder / "states"))
    return opt


def build(opt, folder):
    torch.manual_seed(0)
    return build_model(ready(opt, folder))


def batch(count=2, side=32):
    return {name: torch.rand(count, 3, side, side) for name in ("lq", "gt")}


def step(model, data, iteration=1):
    model.feed_data(data)
    model.optimize_parameters(iteration)
    return model.log_dict


def test_a_killed_run_resumes_to_the_weights_of_an_uninterrupted_one(
    tmp_path, options, monkeypatch
):
    whole = train(monkeypatch, tmp_path / "whole", options)
    optimize = QuantFaceModel.optimize_parameters

    def killed(self, iteration):
        if iteration == 6:
            raise KeyboardInterrupt
        optimize(self, iteration)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(QuantFaceModel, "optimize_parameters", killed)
        train(patch, tmp_path / "broken", options)
    with monkeypatch.context() as patch:
        # Resuming loads the first stage's result; it does not calibrate again.
        patch.delattr(stage_module, "prepare")
        broken = train(patch, tmp_path / "broken", options, "--auto_resume")
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


def test_the_first_stage_of_a_run_killed_before_its_first_state_is_used(
    tmp_path, options, monkeypatch
):
    first = train(monkeypatch, tmp_path, options)
    for state in (first.parent / "training_states").iterdir():
        state.unlink()
    with monkeypatch.context() as patch:
        patch.delattr(stage_module, "prepare")
        again = train(patch, tmp_path, options, "--auto_resume")
    assert torch.equal(
        *(saved(m, 2)["params"]["vae.decoder.conv_out.bias"] for m in (again, again))
    )
    changed = {**options, "quant": {**options["quant"], "name": "w6a6"}}
    for state in (again.parent / "training_states").iterdir():
        state.unlink()
    other = train(monkeypatch, tmp_path, changed, "--auto_resume")
    assert read_metadata(other / "prepared.safetensors")["recipe"]["name"] == "w6a6"


def test_resuming_with_other_widths_is_refused(tmp_path, options, monkeypatch):
    options["train"]["total_iter"] = 2
    train(monkeypatch, tmp_path, options)
    options["quant"]["name"] = "w6a6"
    with pytest.raises(QuantFaceError, match="options under quant have changed"):
        train(monkeypatch, tmp_path, options, "--auto_resume")


def test_only_branches_and_bounds_learn_and_the_rest_is_shared(tmp_path, options):
    model = build(options, tmp_path)
    teacher = {name: value.clone() for name, value in model.teacher.state_dict().items()}
    before = {name: value.clone() for name, value in model.net_g.named_parameters()}
    for iteration in range(1, 4):
        step(model, batch(), iteration)
    moved = {n for n, p in model.net_g.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all(n.endswith(("branch_up", "branch_down", "act_bounds")) for n in moved)
    assert all(torch.equal(value, teacher[n]) for n, value in model.teacher.state_dict().items())
    shared = {id(p) for p in model.teacher.parameters()} & {id(p) for p in model.net_g.parameters()}
    weights = {id(layer.weight) for layer in quant_layers(model.net_g)}
    frozen = [p for p in model.net_g.parameters() if not p.requires_grad and id(p) not in weights]
    assert frozen and all(id(p) in shared for p in frozen)


def test_training_brings_the_student_closer_to_the_teacher(tmp_path, options):
    options["train"].update(accumulate=1, ema_decay=0)
    options["train"]["losses"] = [{"type": "MSELoss"}]
    model = build(options, tmp_path)
    data = batch(4)
    errors = [float(step(model, data, iteration)["l_MSELoss"]) for iteration in range(1, 31)]
    assert errors[-1] < 0.8 * errors[0]


def make_comparable(options):
    """Few bits make a random network chaotic: summed in another order, it gives another picture."""
    options["network_g"]["arch"] = RRDB
    options["quant"]["name"] = "w6a8"
    options["train"].update(autocast=None, clip_grad=1e9, losses=[{"type": "MSELoss"}])
    options["train"]["optim_g"] = {"type": "SGD", "lr": 0.1}


def relative_error(before, wanted, found):
    """Squared error of a step of the parameters, relative to the step."""
    pairs = [(wanted[name] - before[name], found[name] - wanted[name]) for name in before]
    step, error = (sum(float(pair[i].square().sum()) for pair in pairs) for i in (0, 1))
    return error / step


def values(model):
    return {name: value.detach().clone() for name, value in model.trained_parameters().items()}


def test_a_batch_in_pieces_gives_the_step_of_the_whole_batch(tmp_path, options):
    make_comparable(options)
    data, after, logs = batch(3, side=16), [], []
    for pieces in (1, 2):
        options["train"].update(accumulate=pieces)
        model = build(options, tmp_path / str(pieces))
        before = values(model)
        logs.append(step(model, data))
        after.append(values(model))
    assert logs[0]["l_MSELoss"] == pytest.approx(logs[1]["l_MSELoss"], rel=0.01)
    assert relative_error(before, *after) < 0.01


def test_checkpointing_changes_no_gradient(tmp_path, options):
    data, gradients = batch(), []
    for checkpointing in (False, True):
        options["train"].update(checkpointing=checkpointing, autocast=None, clip_grad=1e9)
        model = build(options, tmp_path / str(checkpointing))
        step(model, data)
        gradients.append([p.grad for p in model.trained_parameters().values()])
    assert model.net_g.unet.is_gradient_checkpointing
    for plain, again in zip(*gradients, strict=True):
        assert torch.allclose(plain, again, atol=1e-6)


def test_moving_averages_are_tested_and_written(tmp_path, options):
    model = build(options, tmp_path)
    for iteration in range(1, 4):
        step(model, batch(), iteration)
    model.save(-1, -1)
    states = saved(tmp_path / "models")
    changed = [
        n for n, v in states["params"].items() if not torch.equal(v, states["params_ema"][n])
    ]
    assert set(changed) == set(model.trained_parameters())
    final, _ = model.final_network()
    written = load_model(tmp_path / "models/net_g_latest.safetensors").state_dict()
    for name, value in final.state_dict().items():
        assert torch.allclose(value, written[name], rtol=1e-3, atol=1e-4), name
    picture = torch.rand(1, 3, 32, 32)
    model.feed_data({"lq": picture})
    with model.averaged():
        model.test()
    with torch.no_grad():
        assert torch.equal(model.output, final(picture * 2 - 1))
    model.test()
    assert not torch.equal(model.output, final(picture * 2 - 1))
    # Writing the checkpoint does not end the training.
    assert step(model, batch(), 4)


def test_losses_name_outputs_and_targets(tmp_path, options):
    options["train"]["losses"] = [
        {"type": "L1Loss"},
        {"type": "L1Loss", "target": "gt", "loss_weight": 2.0},
        {"type": "MSELoss", "of": "latent"},
        {"type": "MSELoss", "of": "eps"},
        {"type": "L1Loss", "of": "x0"},
    ]
    options["train"]["accumulate"] = 1
    model = build(options, tmp_path)
    data = batch()
    log = step(model, data)
    assert list(log) == [
        "l_L1Loss",
        "l_L1Loss_2",
        "l_latent_MSELoss",
        "l_eps_MSELoss",
        "l_x0_L1Loss",
    ]
    teacher = build(options, tmp_path / "again").teacher
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        restored = teacher(data["lq"] * 2 - 1, return_all=True).image.float()
    far = (restored - (data["gt"] * 2 - 1)).abs().mean() * 2
    assert log["l_L1Loss_2"] == pytest.approx(float(far), rel=0.2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda opt: opt["train"].update(boundss=True), ["boundss"]),
        (lambda opt: opt["train"].update(losses=[]), ["losses"]),
        (lambda opt: opt["train"]["losses"].append({"type": "NoLoss"}), ["entry 3", "NoLoss"]),
        (lambda opt: opt["train"]["losses"].append({"type": "L1Loss", "of": "z"}), ["'z'", "x0"]),
        (
            lambda opt: opt["train"]["losses"].append({"type": "L1Loss", "weight": 1}),
            ["entry 3", "weight"],
        ),
        (lambda opt: opt["train"].update(total_iter=9), ["periods", "total_iter"]),
        (lambda opt: opt["train"]["optim_g"].update(type="Adamm"), ["Adamm"]),
        (lambda opt: opt["train"]["optim_g"].update(momentun=1), ["optim_g", "momentun"]),
        (lambda opt: opt["train"]["scheduler"].update(type="Cosine"), ["scheduler", "Cosine"]),
        (lambda opt: opt["train"]["scheduler"].update(period=1), ["scheduler", "period"]),
        (lambda opt: opt["train"].update(autocast="float61"), ["float61", "bfloat16"]),
        (
            lambda opt: opt["train"].update(
                reconstruction={"blocks": ["nothing.*"], "steps": 1, "lr": 0.1}
            ),
            ["nothing.*"],
        ),
        (lambda opt: opt.pop("quant"), ["quant"]),
        (lambda opt: opt["quant"].update(name="w1a9"), ["bits"]),
        (lambda opt: opt["quant"].update(kalibration={}), ["kalibration"]),
        (lambda opt: opt["quant"].update(calibration={"images": 3}), ["images", "num_images"]),
        (lambda opt: opt["quant"].update(calibration={"dataroot_lq": "no/such"}), ["no/such"]),
        (lambda opt: opt["quant"].update(bit_map="no/map.yml"), ["no/map.yml"]),
        (lambda opt: opt["quant"].update(balance={"file": "no.safetensors"}), ["no.safetensors"]),
        (lambda opt: opt["datasets"]["train"].update(dataroot_gt="no/faces"), ["no/faces"]),
        (lambda opt: opt["network_g"].update(weights="mini"), ["mini.safetensors"]),
        (lambda opt: opt["network_g"].update(arch=None, weights="mini-w4a8"), ["float"]),
    ],
)
def test_mistakes_are_found_before_calibration(tmp_path, options, monkeypatch, change, words):
    change(options)
    monkeypatch.delattr(stage_module, "prepare")
    with pytest.raises(QuantFaceError) as error:
        build(options, tmp_path)
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda opt: opt["quant"]["branch"].update(
                ranks={"unet.mid_block.resnets.0.conv1": [999, 0]}
            ),
            [f"{BLOCK}.conv1", "999"],
        ),
        (lambda opt: opt["quant"]["branch"].update(svd=0, distill=0), ["branch"]),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused(tmp_path, options, change, words):
    change(options)
    options["train"]["bounds"] = False
    with pytest.raises(QuantFaceError) as error:
        build(options, tmp_path)
    assert all(word in str(error.value) for word in words)


def test_a_bit_map_decides_every_width(tmp_path, options):
    plain = build(options, tmp_path / "plain")
    names = [layer.name for layer in quant_layers(plain.net_g)]
    widths = {name: (4, 3 + index % 6) for index, name in enumerate(names)}
    save_bit_map(tmp_path / "map.yml", widths)
    options["quant"]["bit_map"] = str(tmp_path / "map.yml")
    model = build(options, tmp_path / "mapped")
    found = {layer.name: layer.activation_spec.bits for layer in quant_layers(model.net_g)}
    assert found == {name: pair[1] for name, pair in widths.items()}
    widths.pop(names[3])
    save_bit_map(tmp_path / "map.yml", widths)
    with pytest.raises(QuantFaceError, match=names[3]):
        build(options, tmp_path / "short")


def test_reconstruction_comes_first_and_helps(tmp_path, options):
    def error(model):
        data = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
        with torch.no_grad():
            return float((model.net_g(data) - model.teacher(data)).square().mean())

    plain = error(build(options, tmp_path / "plain"))
    options["train"]["reconstruction"] = {
        "blocks": ["vae.decoder.up_blocks.*"],
        "steps": 20,
        "lr": 0.003,
        "num_images": 4,
    }
    assert error(build(options, tmp_path / "tuned")) != plain
    options["train"]["reconstruction"]["size"] = 22
    with pytest.raises(QuantFaceError, match="22x22"):
        # Of another side, and so one that this network cannot halve.
        build(options, tmp_path / "sized")


def test_an_sr_network_is_distilled_and_tested_without_code(tmp_path, options, monkeypatch):
    write_pictures(tmp_path / "gt", side=64)
    write_pictures(tmp_path / "lq", side=32)
    shrink(options, tmp_path / "gt", RRDB)
    options["scale"] = 2
    options["datasets"] = {
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
    options["train"]["losses"] = [{"type": "L1Loss"}, {"type": "L1Loss", "of": "x0"}]
    with pytest.raises(QuantFaceError, match="entry 2"):
        train(monkeypatch, tmp_path, options)
    options["train"]["losses"].pop()
    models = train(monkeypatch, tmp_path, options)
    assert read_metadata(models / "net_g_latest.safetensors")["arch"]["type"] == "RRDBNet"
    opt = {**ready(options, tmp_path), "is_train": False}
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


def test_windows_are_padded_for_testing(tmp_path, options):
    swin = {"type": "SwinIR", "upscale": 2, "in_chans": 3, "img_size": 16, "window_size": 8}
    swin |= {"embed_dim": 16, "depths": [1], "num_heads": [2], "upsampler": "pixelshuffledirect"}
    options["network_g"]["arch"] = swin
    opt = {**ready(options, tmp_path), "is_train": False}
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


def test_two_processes_train_as_one_with_both_batches(tmp_path, options):
    make_comparable(options)
    options["train"]["accumulate"] = 2
    data = batch(4, side=16)
    torch.save(data, tmp_path / "data.pt")
    opt = ready(options, tmp_path)
    context = torch.multiprocessing.get_context("spawn")
    other = context.Process(target=train_one_of_two, args=(1, opt, tmp_path), daemon=True)
    other.start()
    first = train_one_of_two(0, opt, tmp_path)
    other.join()
    second = torch.load(tmp_path / "1.pt", weights_only=True)
    single = build(options, tmp_path / "single")
    before = values(single)
    step(single, data)
    assert all(torch.equal(first[name], value) for name, value in second.items())
    assert relative_error(before, values(single), first) < 0.01
