"""Calibration images: one bundle for every stage; images that do not fit are refused by name."""

from __future__ import annotations

import re

import pytest
import torch
from quant_helpers import TinyNet, pictures, sqnr
from torch import nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import CalibrationData, prepare, quantize


@pytest.mark.slow
def test_a_bundle_gives_what_the_separate_arguments_give():
    images, outputs = pictures(5), []
    for given in (
        (images, 2, False),
        (CalibrationData(images, batch_size=2, progress=False),),
        (CalibrationData(iter(images), batch_size=2, progress=False),),
    ):
        torch.manual_seed(1)
        net = TinyNet()
        quantize(net, "w4a4", *given)
        outputs.append(net(images))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_the_stages_take_images_alone():
    net = TinyNet()
    prepare(net, "w8a8", pictures(2))
    assert net(pictures(1)).isfinite().all()


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_refused(batch_size):
    with pytest.raises(QuantFaceError, match=f"batch_size: found {batch_size}"):
        CalibrationData(pictures(), batch_size)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pictures().half(), "calibration_images: found float16, expected images of float32"),
        (pictures().double(), "calibration_images: found float64, expected images of float32"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "calibration_images: found uint8"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.bool), "calibration_images: found bool"),
        (pictures()[:, :1], r"TinyNet cannot run on float32 \(4, 1, 16, 16\); expected .*\(N, 3"),
        ([pictures()[0], pictures()[0].half()], "calibration_images: found float16"),
    ],
)
@pytest.mark.parametrize("kind", ["none", "auto"])
def test_images_that_the_network_does_not_take_are_named(images, message, kind):
    with pytest.raises(QuantFaceError, match=message):
        quantize(TinyNet(), {"name": "w8a8", "balance": {"kind": kind}}, images, progress=False)


def test_a_network_of_another_dtype_may_have_images_of_its_own():
    net = TinyNet().bfloat16()
    images = pictures().bfloat16()
    quantize(net, {"name": "w8a8", "balance": {"kind": "none"}}, images, progress=False)
    assert net(images).isfinite().all()


class WithTime(nn.Module):
    """A network with a second argument and a keyword, as UNets have."""

    def __init__(self):
        super().__init__()
        self.net, self.time = TinyNet(), nn.Linear(1, 3)

    def forward(self, x, time, *, shift):
        return self.net(x + self.time(time)[..., None, None]) + shift


def test_a_network_of_several_arguments_is_quantized_by_calls():
    torch.manual_seed(1)
    net = WithTime().eval()
    calls = [((images, torch.rand(2, 1)), {"shift": 0.5}) for images in pictures(4).split(2)]
    with torch.no_grad():
        wanted = [net(*args, **kwargs) for args, kwargs in calls]
        report = quantize(net, "w8a8", calls, progress=False)
        found = [net(*args, **kwargs) for args, kwargs in calls]
    assert "time" in report.bits
    assert all(sqnr(want, have) > 25 for want, have in zip(wanted, found, strict=True))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([((pictures(1),), {"speed": 2}), ()], "cannot run on float32 (1, 3, 16, 16)"),
        (
            [((pictures(1), torch.rand(1, 1)), {"shift": 0}), pictures(1)],
            "found Tensor after calls",
        ),
        ([], "found none"),
    ],
)
def test_wrong_calls_are_refused(given, said):
    with pytest.raises(QuantFaceError, match=re.escape(said)):
        quantize(WithTime(), "w8a8", given, progress=False)
