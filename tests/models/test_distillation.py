"""Distillation of quantized networks: what learns, from which losses, and what is refused."""

from __future__ import annotations

import pytest
import torch
from distillation_helpers import batch, build, make_comparable, ready, relative_error, step, values
from loops import saved

from quantface_arch.errors import QuantFaceError
from quantface_arch.models import quantize_stage as stage_module
from quantface_arch.models.quantize_stage import calibration_images
from quantface_arch.pretrained.zoo import load_model
from quantface_arch.quant import LayerBalance, quant_layers, save_balance
from quantface_arch.quant.config.bitmap import LayerChoice, save_bit_map

BLOCK = "unet.mid_block.resnets.0"


@pytest.mark.slow
def test_only_branches_and_bounds_learn_and_the_rest_is_shared(tmp_path, w4_options):
    w4_options["train"].update(bounds=True, bounds_lr=0.25, warmup_iter=-1)
    model = build(w4_options, tmp_path)
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
    # Bounds have a learning rate of their own.
    rates = {
        id(p): group["lr"] for group in model.optimizer_g.param_groups for p in group["params"]
    }
    for name, parameter in model.trained_parameters().items():
        assert (rates[id(parameter)] == 0.25) == name.endswith("act_bounds"), name


@pytest.mark.slow
def test_training_brings_the_student_closer_to_the_teacher(tmp_path, w4_options):
    w4_options["train"].update(accumulate=1, ema_decay=0)
    w4_options["train"]["optim_g"].update(lr=1e-3)
    w4_options["train"]["losses"] = [{"type": "MSELoss"}]
    model = build(w4_options, tmp_path)
    data = batch(4)
    errors = [float(step(model, data, iteration)["l_MSELoss"]) for iteration in range(1, 31)]
    assert errors[-1] < 0.8 * errors[0]


@pytest.mark.slow
def test_a_batch_in_pieces_gives_the_step_of_the_whole_batch(tmp_path, w4_options):
    make_comparable(w4_options)
    data, after, logs = batch(3, side=16), [], []
    for pieces in (1, 2):
        w4_options["train"].update(accumulate=pieces)
        model = build(w4_options, tmp_path / str(pieces))
        before = values(model)
        logs.append(step(model, data))
        after.append(values(model))
    assert logs[0]["l_MSELoss"] == pytest.approx(logs[1]["l_MSELoss"], rel=0.01)
    assert relative_error(before, *after) < 0.01


@pytest.mark.slow
def test_checkpointing_computes_activations_again_and_changes_no_gradient(tmp_path, w4_options):
    data, gradients, calls = batch(), [], []
    for checkpointing in (False, True):
        w4_options["train"].update(checkpointing=checkpointing, autocast=None, clip_grad=1e9)
        model = build(w4_options, tmp_path / str(checkpointing))
        block = model.net_g.unet.up_blocks[0].resnets[0]
        block.register_forward_pre_hook(lambda *_, place=checkpointing: calls.append(place))
        step(model, data)
        gradients.append([p.grad for p in model.trained_parameters().values()])
    # The batch goes through in two pieces, and the backward pass computes each of them again.
    assert calls == [False] * 2 + [True] * 4
    for plain, again in zip(*gradients, strict=True):
        assert torch.allclose(plain, again, atol=1e-6)


@pytest.mark.slow
def test_the_ema_is_tested_and_written(tmp_path, w4_options):
    model = build(w4_options, tmp_path)
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


@pytest.mark.slow
def test_losses_name_outputs_and_targets(tmp_path, w4_options):
    w4_options["train"]["losses"] = [
        {"type": "L1Loss"},
        {"type": "L1Loss", "target": "gt", "loss_weight": 2.0},
        {"type": "MSELoss", "of": "latent"},
        {"type": "MSELoss", "of": "eps"},
        {"type": "L1Loss", "of": "x0"},
    ]
    w4_options["train"]["accumulate"] = 1
    model = build(w4_options, tmp_path)
    data = batch()
    log = step(model, data)
    assert list(log) == [
        "l_L1Loss",
        "l_L1Loss_2",
        "l_latent_MSELoss",
        "l_eps_MSELoss",
        "l_x0_L1Loss",
    ]
    teacher = build(w4_options, tmp_path / "again").teacher
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        restored = teacher(data["lq"] * 2 - 1, return_all=True).image.float()
    far = (restored - (data["gt"] * 2 - 1)).abs().mean() * 2
    assert log["l_L1Loss_2"] == pytest.approx(float(far), rel=0.2)


@pytest.mark.slow
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
def test_mistakes_are_found_before_calibration(tmp_path, w4_options, monkeypatch, change, words):
    change(w4_options)
    monkeypatch.delattr(stage_module, "prepare")
    with pytest.raises(QuantFaceError) as error:
        build(w4_options, tmp_path)
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


@pytest.mark.slow
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
def test_a_network_that_cannot_be_trained_is_refused(tmp_path, w4_options, change, words):
    change(w4_options)
    w4_options["train"]["bounds"] = False
    with pytest.raises(QuantFaceError) as error:
        build(w4_options, tmp_path)
    assert all(word in str(error.value) for word in words)


@pytest.mark.slow
def test_a_bit_map_decides_every_width_rank_and_balancing(tmp_path, w4_options):
    plain = build(w4_options, tmp_path / "plain")
    names = [layer.name for layer in quant_layers(plain.net_g)]
    widths = {name: (4, 3 + index % 6) for index, name in enumerate(names)}
    save_bit_map(tmp_path / "map.yml", widths)
    w4_options["quant"]["bit_map"] = str(tmp_path / "map.yml")
    model = build(w4_options, tmp_path / "mapped")
    found = {layer.name: layer.activation_spec.bits for layer in quant_layers(model.net_g)}
    assert found == {name: pair[1] for name, pair in widths.items()}
    chosen = next(
        layer.name
        for layer in quant_layers(plain.net_g)
        if (layer.rank, layer.balance.kind) not in ((0, "none"), (3, "none"))
        and min(layer.weight.shape[0], layer.weight[0].numel()) >= 12
    )
    save_bit_map(tmp_path / "map.yml", {**widths, chosen: LayerChoice(4, 4, 3, "none")})
    layer = build(w4_options, tmp_path / "chosen").net_g.get_submodule(chosen)
    assert (layer.rank, layer.balance.kind) == (3, "none")
    w4_options["quant"]["balance"] = {"file": str(tmp_path / "balance.safetensors")}
    save_balance({chosen: LayerBalance()}, tmp_path / "balance.safetensors")
    with pytest.raises(QuantFaceError, match=r"balance: file: found .*map\.yml gives it too"):
        build(w4_options, tmp_path / "both")
    del w4_options["quant"]["balance"]
    widths.pop(names[3])
    save_bit_map(tmp_path / "map.yml", widths)
    with pytest.raises(QuantFaceError, match=names[3]):
        build(w4_options, tmp_path / "short")


@pytest.mark.slow
def test_reconstruction_comes_first_and_helps(tmp_path, w4_options):
    def error(model):
        # Of the images on which the blocks are tuned.
        opt = ready(w4_options, tmp_path)
        data = torch.stack(calibration_images(opt, model.teacher, 4))
        with torch.no_grad():
            return float((model.net_g(data) - model.teacher(data)).square().mean())

    plain = error(build(w4_options, tmp_path / "plain"))
    w4_options["train"]["reconstruction"] = {
        "blocks": ["vae.decoder.up_blocks.*"],
        "steps": 20,
        "lr": 0.003,
        "num_images": 4,
    }
    assert error(build(w4_options, tmp_path / "tuned")) < plain
    w4_options["train"]["reconstruction"]["size"] = 22
    with pytest.raises(QuantFaceError, match="22x22"):
        # Of another side, and so one that this network cannot halve.
        build(w4_options, tmp_path / "sized")
