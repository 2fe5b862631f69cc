"""Conversion: exactly the layers that the patterns name, all others with a reason."""

from __future__ import annotations

import pytest
import torch
from quant_helpers import TinyNet, pictures
from torch import nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import QuantConv2d, QuantLayer, Recipe, convert, quantize
from quantface_arch.quant.nn.convert import convert_layers, register

NAMES = ["conv_in", "body", "linear", "line", "conv_out"]


def recipe(**options):
    return Recipe.from_dict({"name": "w4a6", **options})


def converted(model):
    return [name for name, module in model.named_modules() if isinstance(module, QuantLayer)]


def test_everything_by_default():
    model = TinyNet()
    report = convert(model, recipe())
    assert converted(model) == list(report.bits) == NAMES
    assert report.skipped == ()


def test_patterns_choose_layers_and_widths():
    model = TinyNet()
    report = convert(
        model, recipe(include=["conv_*", "b*", "line*"], exclude=["line"], eight_bit=["conv_*"])
    )
    assert report.bits == {
        "conv_in": (8, 8),
        "body": (4, 6),
        "linear": (4, 6),
        "conv_out": (8, 8),
    }
    assert [layer.name for layer in report.skipped] == ["line"]
    text = str(report)
    assert "4 layers quantized (2 at w4a6, 2 at w8a8), 1 left in floating point" in text
    assert "float: excluded by the recipe" in text


@pytest.mark.parametrize("what", ["include", "exclude", "eight_bit"])
def test_a_pattern_that_matches_nothing_is_named(what):
    model = TinyNet()
    with pytest.raises(QuantFaceError, match=rf"{what}: pattern 'unet\.\*' matches no layer"):
        convert(model, recipe(**{what: ["conv_*", "unet.*"]}))
    assert converted(model) == []


def test_subclasses_other_types_and_hooked_layers_are_left_with_a_reason():
    class Special(nn.Conv2d):
        pass

    model = nn.Sequential(
        Special(3, 3, 1), nn.ConvTranspose2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    )
    model[2].register_forward_hook(lambda *_: None)
    report = convert(model, recipe())
    assert list(report.bits) == ["3"]
    reasons = {layer.name: (layer.kind, layer.reason) for layer in report.skipped}
    assert reasons["0"][0] == "Special"
    assert "none of Linear, Conv1d, Conv2d" in reasons["0"][1]
    assert reasons["1"][0] == "ConvTranspose2d"
    assert "hooks" in reasons["2"][1]
    assert type(model[0]) is Special


def test_a_module_under_two_names_is_converted_once_and_stays_shared():
    model = TinyNet()
    model.again = model.body
    report = convert(model, recipe())
    assert model.again is model.body
    assert isinstance(model.again, QuantConv2d)
    assert list(report.bits) == NAMES


def test_nothing_to_convert_is_an_error():
    with pytest.raises(QuantFaceError, match="no layer of the model"):
        convert(TinyNet(), recipe(exclude=["*"]))
    with pytest.raises(QuantFaceError, match="no layer of the model"):
        convert(nn.Conv2d(3, 3, 1), recipe())
    model = TinyNet()
    convert(model, recipe())
    with pytest.raises(QuantFaceError, match="no layer of the model"):
        convert(model, recipe())


def test_a_bit_map_with_wrong_names_is_refused():
    with pytest.raises(QuantFaceError, match="no layer 'head'"):
        convert_layers(TinyNet(), recipe(), {"head": (4, 4)})
    with pytest.raises(QuantFaceError, match="layer 'norm' cannot be quantized"):
        convert_layers(TinyNet(), recipe(), {"norm": (4, 4)})


def test_a_type_is_registered_once():
    with pytest.raises(QuantFaceError, match="Conv2d: already converted to QuantConv2d"):
        register(nn.Conv2d, QuantConv2d)


@pytest.mark.slow
def test_quantize_takes_pictures_in_any_form():
    images = pictures(5)
    outputs = []
    for form in (images, list(images), iter([images[:2], images[2], images[3:]])):
        torch.manual_seed(1)
        model = TinyNet()
        quantize(model, "w8a8", form, batch_size=2, progress=False)
        outputs.append(model(images))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_quantize_takes_pictures_of_several_sizes():
    model = TinyNet()
    quantize(model, "w8a8", [pictures(1, 8)[0], pictures(1, 16)[0]], progress=False)
    assert model(pictures(1, 8)).isfinite().all()


def test_quantize_keeps_the_mode():
    model = TinyNet().train()
    quantize(model, "w8a8", pictures(), progress=False)
    assert model.training


@pytest.mark.parametrize(
    ("images", "message"),
    [([], "found none"), ([torch.zeros(3)], r"found \(3,\)"), (["a.png"], "found str")],
)
def test_wrong_pictures_are_named(images, message):
    with pytest.raises(QuantFaceError, match=message):
        quantize(TinyNet(), "w8a8", images, progress=False)
    with pytest.raises(QuantFaceError, match="batch_size: found 0"):
        quantize(TinyNet(), "w8a8", images, batch_size=0, progress=False)


@pytest.mark.slow
def test_the_saving_of_other_libraries_is_refused(tmp_path):
    from diffusers import AutoencoderKL

    net = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(32,),
        norm_num_groups=8,
    ).eval()
    net.save_pretrained(tmp_path / "float")
    quantize(net, "w4a4", pictures(2), progress=False)
    with pytest.raises(QuantFaceError, match="save_checkpoint"):
        net.save_pretrained(tmp_path / "quantized")
    assert not (tmp_path / "quantized").exists()
