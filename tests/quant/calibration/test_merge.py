"""Calibration by several processes gives what one gives."""

from __future__ import annotations

import copy

import pytest
import torch
from quant_helpers import TinyNet, pictures
from threads import together

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import CalibrationData, CalibrationStore, Recipe, calibrating, prepare
from quantface_arch.quant.calibration.run import watch
from quantface_arch.quant.nn.convert import convert

RECIPE = {"name": "w4a8", "branch": {"svd": 1, "distill": 1, "budget": 1}}


def growing(count=9):
    """Pictures whose values grow and shrink, so that histograms are doubled at different times."""
    scales = torch.tensor([1.0, 0.3, 5.0, 0.1, 40.0, 2.0, 0.5, 90.0, 1.0])[:count]
    return pictures(count) * scales.view(-1, 1, 1, 1)


# Every channel has a histogram of its own.
CHANNELS = {**RECIPE, "name": "w4a4", "activations": {"zero_points": "channel"}}


def quantized(net, images, recipe=RECIPE, **options):
    net = copy.deepcopy(net)
    prepare(net, recipe, CalibrationData(images, batch_size=1, progress=False, **options))
    return net.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "recipe"), [(2, RECIPE), (3, RECIPE), (12, RECIPE), (2, CHANNELS)]
)
def test_the_quantized_network_is_the_same(count, recipe):
    """Balancing is chosen by crops, ranges by histograms, steps by extremes; 12 have too few."""
    net, images = TinyNet(), growing()
    expected = quantized(net, images, recipe)
    for found in together(count, lambda shard: quantized(net, images, recipe, shard=shard)):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(value, found[name]), name


def observed(net, images, shard=None):
    """Statistics of every layer."""
    net = copy.deepcopy(net)
    convert(net, Recipe.of("w4a8"))
    watched = calibrating(net, keep_samples=True)
    data = CalibrationData(images, batch_size=1, progress=False, shard=shard)
    return watch(net, watched, data, "").state_dict()


def test_statistics_are_the_same_but_for_the_order_of_sums():
    net, images = TinyNet(), growing()
    expected = observed(net, images)
    for found in together(2, lambda shard: observed(net, images, shard)):
        for name, value in expected.items():
            if name.endswith(":squares"):
                torch.testing.assert_close(found[name], value, rtol=1e-14, atol=0)
            elif name.endswith(":counts"):
                # Values on the edge between two bins.
                assert found[name].sum() == value.sum()
                assert (found[name] - value).abs().sum() <= 1e-3 * value.sum()
            elif not name.endswith((":average", ":stride")):
                assert torch.equal(found[name], value), name


def test_every_process_sees_its_share(monkeypatch):
    """Nine batches by three processes: three each, and the first one to fix the histograms."""
    net, images = TinyNet(), pictures(9)
    seen = []
    forward = TinyNet.forward
    monkeypatch.setattr(TinyNet, "forward", lambda net, x: (seen.append(1), forward(net, x))[1])
    plain = {"name": "w4a8", "balance": {"kind": "none"}, "branch": {"svd": 0}}
    together(3, lambda shard: quantized(net, images, plain, shard=shard))
    assert len(seen) == 9 + 2


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_killed_run_goes_on_with_each_process_where_it_was(tmp_path, monkeypatch):
    net, images = TinyNet(), growing()
    expected = quantized(net, images)
    path = tmp_path / "calib.safetensors"
    seen, limit = [], 12
    forward = TinyNet.forward

    def counted(net, x):
        if len(seen) >= limit:
            raise Killed
        seen.append(1)
        return forward(net, x)

    def work(shard):
        store = CalibrationStore(path, "key", every=1)
        return quantized(net, images, shard=shard, store=store)

    monkeypatch.setattr(TinyNet, "forward", counted)
    with pytest.raises((Killed, Exception)):
        together(2, work)
    first, limit = len(seen), 1000
    for found in together(2, work):
        assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert len(seen) - first < 2 * 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activations": {"range": "ema"}}, "conv_in: range ema"),
        ({"weights": {"rounding": "gptq"}}, "conv_in: rounding gptq"),
    ],
)
def test_what_depends_on_the_order_is_refused_before_any_work(options, message):
    net, images = TinyNet(), pictures()
    with pytest.raises(QuantFaceError, match=message):
        together(2, lambda shard: quantized(net, images, {**RECIPE, **options}, shard=shard))


def test_histograms_that_do_not_fit_are_refused():
    """The first picture tells nothing about the edges where all that a layer sees of it is zero."""
    net, images = TinyNet(), torch.cat((torch.zeros(1, 3, 16, 16), pictures(5)))
    with pytest.raises(QuantFaceError, match="layer conv_in: its first input was all zero"):
        together(2, lambda shard: quantized(net, images, shard=shard))
