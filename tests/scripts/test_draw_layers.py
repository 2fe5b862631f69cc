"""scripts/draw_layers.py and the measures that it draws."""

from __future__ import annotations

import copy

import cv2
import numpy as np
import pytest
import torch
from small_networks import RRDB

from quantface_arch.archs.build import build_arch
from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import CalibrationData, prepare, quant_layers, save_checkpoint
from quantface_arch.reports.layer_plots import find_layers, layer_errors, sample_inputs

PLAIN = {"balance": {"kind": "none"}, "branch": {"svd": 0}}


def images(count=2):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def quantized(teacher, recipe):
    student = copy.deepcopy(teacher)
    prepare(student, recipe, CalibrationData(images(), progress=False))
    return student


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return build_arch(RRDB).eval()


@pytest.fixture(scope="module")
def student(teacher):
    return quantized(teacher, {**PLAIN, "name": "w4a4", "balance": {"kind": "both"}})


@pytest.fixture
def script(load_script):
    return load_script("draw_layers")


@pytest.fixture
def work(tmp_path, teacher, student):
    (tmp_path / "faces").mkdir()
    for number in range(2):
        picture = np.random.randint(0, 256, (32, 32, 3), np.uint8)
        assert cv2.imwrite(str(tmp_path / "faces" / f"{number}.png"), picture)
    save_checkpoint(teacher, tmp_path / "float.safetensors", RRDB)
    save_checkpoint(student, tmp_path / "w4.safetensors", RRDB)
    save_checkpoint(
        quantized(teacher, {**PLAIN, "name": "w8a8"}), tmp_path / "w8.safetensors", RRDB
    )
    return tmp_path


@pytest.fixture
def command(script, work, run_script):
    """Run the command in this process: (exit status, stdout, stderr)."""

    def run(*words, quantized=("w4",), model="float"):
        paths = [work / f"{name}.safetensors" for name in quantized]
        command = ["--model", work / f"{model}.safetensors", "--quantized", *paths]
        command += ["-i", work / "faces", "-o", work / "out", "--size", 32]
        return run_script(script, *command, *words)

    return run


@pytest.mark.slow
def test_samples_are_the_layers_inputs_before_and_after_balancing(teacher, student):
    layers = find_layers(student, ["body.0.rdb1.conv2", "conv_first"])
    samples = sample_inputs(teacher, layers, [images()])
    before, after = samples["body.0.rdb1.conv2"]
    assert before.shape == after.shape and before.shape[1] == 24
    # RRDBNet unshuffles pictures by 2 before its first layer: 12 channels of 16×16 positions each.
    first, _ = samples["conv_first"]
    pixels = torch.nn.functional.pixel_unshuffle(images(), 2).movedim(1, -1).reshape(-1, 12)
    assert torch.equal(first, pixels)
    # Scaling and rotation keep the product with the weight.
    layer = layers["body.0.rdb1.conv2"]
    weight = teacher.get_submodule(layer.name).weight.detach().flatten(2).sum(2)
    balanced = layer.balance.weight(teacher.get_submodule(layer.name).weight.detach())
    products = before @ weight.T, after @ balanced.flatten(2).sum(2).T
    assert torch.allclose(*products, atol=1e-4)
    assert not torch.allclose(before, after)


def test_errors_follow_the_width_and_the_order_of_execution(teacher, student):
    coarse = layer_errors(teacher, student, [images()])
    fine = layer_errors(teacher, quantized(teacher, {**PLAIN, "name": "w8a8"}), [images()])
    assert coarse.keys() == fine.keys() == {layer.name for layer in quant_layers(student)}
    assert all(fine[name] > coarse[name] + 6 for name in fine)
    assert next(iter(fine)) == "conv_first" and list(fine)[-1] == "conv_last"
    same = layer_errors(student, student, [images()])
    assert set(same.values()) == {150}


def test_an_error_is_the_ratio_of_signal_and_noise(teacher):
    scaled = quantized(teacher, {**PLAIN, "name": "w8a8"})
    with torch.no_grad():
        for layer in quant_layers(scaled):
            layer.weight.copy_(teacher.get_submodule(layer.name).weight)
            layer.quantize_input = lambda x: x
        scaled.conv_first.weight.mul_(1.1)
        scaled.conv_first.bias.mul_(1.1)
    errors = layer_errors(teacher, scaled, [images()])
    assert errors["conv_first"] == pytest.approx(20, abs=1e-3)


def test_hooks_are_gone_afterwards(teacher, student):
    layer_errors(teacher, student, [images(1)])
    with pytest.raises(AssertionError):
        layer_errors(teacher, student, [images(1)[:, :, :, :1]])
    for net in (teacher, student):
        assert not any(module._forward_hooks for module in net.modules())


def test_an_unknown_layer_is_answered_with_names_near_it(student):
    with pytest.raises(QuantFaceError, match=r"layer 'conv_frist'.*similar names are conv_first"):
        find_layers(student, ["conv_frist"])


@pytest.mark.slow
def test_pictures_are_written(command, work):
    status, out, _ = command(
        "--errors", "--layer", "conv_last", "body.0.rdb1.conv2", quantized=("w4", "w8")
    )
    assert status == 0
    names = {path.name for path in (work / "out").iterdir()}
    layers = ("conv_last", "body.0.rdb1.conv2")
    assert names == {f"{w}-{n}.png" for w in ("w4", "w8") for n in layers} | {"errors.png"}
    for path in (work / "out").iterdir():
        picture = cv2.imread(str(path))
        assert min(picture.shape[:2]) > 400
        # More than paper and the letters on it.
        assert (picture < 240).mean() > 0.1
        assert str(path) in out
    assert "layers with the largest error" in out


@pytest.mark.parametrize(
    ("words", "options", "status", "message"),
    [
        ((), {}, 2, "nothing to draw"),
        (("--layer", "conv_lust"), {}, 1, "similar names are conv_last"),
        (("--errors", "--num-images", "0"), {}, 2, "--num-images"),
        (("--errors",), {"quantized": ("float",)}, 1, "expected quantized"),
        (("--errors",), {"model": "w4"}, 1, "expected a float model"),
    ],
)
def test_mistakes_are_one_line(command, work, words, options, status, message):
    found, out, err = command(*words, **options)
    assert (found, out) == (status, "")
    assert err.startswith("error: ") and message in err
    assert len(err.strip().splitlines()) == 1
    assert not (work / "out").exists()


def test_help_teaches(script):
    text = script.make_parser().format_help()
    assert "examples:" in text and "--errors" in text
