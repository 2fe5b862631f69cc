"""Sensitivities: equal to plain runs, nothing computed twice, nothing left changed, continued."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from quant_helpers import TinyNet, pictures
from torch import nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import Recipe, calibrating, convert, quant_layers
from quantface_arch.quant.allocation.distance import ssim_distance
from quantface_arch.quant.allocation.prefix_cache import PrefixCache
from quantface_arch.quant.allocation.sensitivity import measure
from quantface_arch.quant.allocation.sensitivity_file import LayerFacts, Sensitivities
from quantface_arch.quant.cost.macs import count_macs
from quantface_arch.quant.nn.layers import State
from quantface_arch.quant.ops.quantizer import fake_quantize, grid, scale_and_zero_point
from quantface_arch.quant.ops.ranges import weight_range


class Block(nn.Module):
    """Changes the output of its first layer in place, and calls its second layer twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.twice = nn.Linear(16, 16)

    def forward(self, x):
        h = nn.functional.leaky_relu_(self.first(x), 0.2)
        h = self.twice(self.twice(h.movedim(1, -1))).movedim(-1, 1)
        return x + 0.5 * h, h.mean()


class Greedy(nn.Sequential):
    """Overwrites what it is given: its caller would notice if it were skipped."""


class Deep(nn.Module):
    """Blocks that return tuples, one that overwrites its input, and a loop over one layer."""

    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.greedy = Greedy(nn.ReLU(inplace=True), nn.Conv2d(16, 16, 1))
        self.net = nn.Sequential(nn.Conv2d(16, 16, 1), nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1))

    def forward(self, x):
        h = self.conv_in(x)
        for block in self.blocks:
            h, mean = block(h)
            h = h + mean
        h = h + self.greedy(h)
        h = h + self.greedy(h)
        return self.net(h)


def prepared(kind=Deep):
    model = kind().eval()
    convert(model, Recipe.from_name("w4a4"))
    batches = list(pictures(4).split(2))
    with torch.no_grad(), calibrating(model) as calibration:
        for batch in batches:
            model(batch)
    return model, calibration, batches


def every_probe(model, widths=(3, 8)):
    return [(layer.name, kind, b) for layer in quant_layers(model) for kind in "wa" for b in widths]


def by_hand(model, calibration, batch, probe):
    """The float output, and the one with one quantizer, by hooks on a plain run."""
    name, kind, bits = probe
    layer, observer = model.get_submodule(name), calibration.observers[name]
    for other in quant_layers(model):
        other.state = State.FLOAT
    with torch.no_grad():
        target = model(batch)
        if kind == "w":
            spec, kept = layer.weight_spec.with_bits(bits), layer.weight
            importance = observer.mean_square if layer.groups == 1 else None
            ends = scale_and_zero_point(*weight_range(kept, spec, importance), bits, spec.symmetric)
            scales = (layer.per_weight(end) for end in ends)
            rounded = fake_quantize(kept, *scales, *grid(bits, spec.symmetric))
            layer.weight = nn.Parameter(rounded)
            output = model(batch)
            layer.weight = kept
        else:
            spec = layer.activation_spec.with_bits(bits)
            ends = torch.tensor(observer.range(spec))
            scale, zero = scale_and_zero_point(ends[0], ends[1], bits, spec.symmetric)
            handle = layer.register_forward_pre_hook(
                lambda _, x: fake_quantize(x[0], scale, zero, *grid(bits, spec.symmetric))
            )
            output = model(batch)
            handle.remove()
    for other in quant_layers(model):
        other.state = State.CALIBRATING
    return target, output


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Deep, TinyNet])
def test_measurements_equal_those_of_plain_runs_exactly(kind):
    model, calibration, batches = prepared(kind)
    probes = every_probe(model)
    measured = measure(model, calibration, batches, probes, ssim_distance, progress=False)
    assert list(measured) == probes
    for probe, values in measured.items():
        for batch, (error, distance) in zip(batches, values, strict=True):
            target, output = by_hand(model, calibration, batch, probe)
            gap = (output - target).double().square().mean() / target.double().square().mean()
            assert error == pytest.approx(float(gap), rel=1e-12)
            assert distance == float(ssim_distance(output, target))
    for name in {probe[0] for probe in probes}:
        assert measured[name, "a", 3] > measured[name, "a", 8]
        assert measured[name, "w", 3] > measured[name, "w", 8]


def test_layers_before_the_one_that_is_probed_are_not_computed_again():
    model, _, batches = prepared()
    for layer in quant_layers(model):
        layer.state = State.FLOAT
    cache = PrefixCache(model, batches[0])
    ran = []
    products = {}
    for layer in quant_layers(model):
        products[layer] = layer.product

        def product(*args, layer=layer):
            ran.append(layer.name)
            return products[layer](*args)

        layer.product = product
    probed = model.net[0]
    assert torch.equal(cache.run(probed, copy.deepcopy(probed)), cache.output)
    # greedy overwrites its input, so it is entered; the layer inside it is replayed all the same.
    assert ran == ["net.0", "net.2"]
    ran.clear()
    probed = model.blocks[1].twice
    cache.run(probed, copy.deepcopy(probed))
    assert ran == ["blocks.1.twice"] * 2 + ["greedy.1"] * 2 + ["net.0", "net.2"]


def test_nothing_is_left_changed_even_after_an_exception():
    model, calibration, batches = prepared()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}

    def fails(*_):
        raise RuntimeError("stop")

    for distance in (ssim_distance, fails):
        if distance is fails:
            with pytest.raises(RuntimeError, match="stop"):
                measure(model, calibration, batches, every_probe(model), distance, progress=False)
        else:
            measure(model, calibration, batches, every_probe(model), distance, progress=False)
        after = model.state_dict()
        assert all(torch.equal(value, after[key]) for key, value in before.items())
        assert attributes == {name: set(vars(module)) for name, module in model.named_modules()}
        assert all(layer.state is State.CALIBRATING for layer in quant_layers(model))


@pytest.mark.slow
def test_a_killed_measurement_is_continued_not_repeated(tmp_path):
    model, calibration, batches = prepared()
    probes = every_probe(model)
    whole = measure(model, calibration, batches, probes, ssim_distance, progress=False)
    facts = {layer.name: LayerFacts(1, 1) for layer in quant_layers(model)}
    kept = Sensitivities("key", len(batches), facts, 0)
    count = iter(range(1000))

    def interrupted(pred, target):
        if next(count) == len(probes) + 5:
            raise KeyboardInterrupt
        return ssim_distance(pred, target)

    def save(_):
        kept.save(tmp_path / "s.json")

    options = {"measured": kept.measured, "save": save, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        measure(model, calibration, batches, probes, interrupted, **options)
    loaded = Sensitivities.load(tmp_path / "s.json")
    assert (loaded.key, loaded.layers) == ("key", facts)
    assert len(list(loaded.missing(probes))) == len(probes) - 5
    calls = []

    def counted(pred, target):
        calls.append(1)
        return ssim_distance(pred, target)

    measure(model, calibration, batches, probes, counted, measured=loaded.measured, progress=False)
    assert len(calls) == len(probes) - 5
    assert loaded.measured == whole
    assert list(loaded.missing(probes)) == []


def test_what_is_not_finite_or_not_there_is_named():
    model, calibration, batches = prepared()

    def measured(probe, batches=batches, distance=ssim_distance):
        return measure(model, calibration, batches, [probe], distance, progress=False)

    with pytest.raises(QuantFaceError, match=r"no quantizable layer 'net\.1'"):
        measured(("net.1", "a", 4))
    with pytest.raises(QuantFaceError, match=r"layer net\.2: .*not finite"):
        measured(("net.2", "a", 4), [torch.full_like(batches[0], torch.nan)])
    calibration.apply()
    with pytest.raises(QuantFaceError, match="layer conv_in: quantized already"):
        measured(("net.2", "a", 4))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": 7}'])
def test_what_is_no_file_of_sensitivities_is_refused(tmp_path, text):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(QuantFaceError, match=r"s\.json: no file of sensitivities"):
        Sensitivities.load(tmp_path / "s.json")


def test_macs_are_those_of_the_formulas():
    model = TinyNet()
    model.mixed = nn.Linear(4, 4)  # never runs
    expected = {
        "conv_in": 256 * 16 * 3 * 9,
        "body": 256 * 16 * 8 * 9,
        "linear": 256 * 16 * 16,
        "line": 256 * 16 * 16,
        "conv_out": 256 * 3 * 16 * 9,
    }
    assert count_macs(model, pictures(1)) == expected
    assert not model.conv_in._forward_hooks
    convert(model, Recipe.from_dict({"name": "w4a4", "exclude": ["mixed"]}))
    for layer in quant_layers(model):
        layer.state = State.FLOAT
    assert count_macs(model, pictures(2)) == {key: 2 * value for key, value in expected.items()}


def test_ssim_distance_grows_with_noise_and_is_zero_for_equal_pictures():
    clean = torch.nn.functional.interpolate(pictures(2, 8), scale_factor=4, mode="bilinear")
    noise = torch.randn_like(clean)
    assert float(ssim_distance(clean, clean, 2.0)) == pytest.approx(0, abs=1e-6)
    near, far = (float(ssim_distance(clean + s * noise, clean, 2.0)) for s in (0.02, 0.1))
    assert 0 < near < far < 1


def test_ssim_distance_is_that_of_the_formula():
    a = pictures(1, 12)
    b = 0.5 * a + 0.5 * pictures(1, 12)
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    values = []
    for y, x in ((0, 0), (0, 4), (4, 0), (4, 4)):
        for channel in range(3):
            p, q = (t[0, channel, y : y + 8, x : x + 8].flatten().numpy() for t in (a, b))
            cov = np.cov(p, q, ddof=0)
            light = (2 * p.mean() * q.mean() + c1) / (p.mean() ** 2 + q.mean() ** 2 + c1)
            values.append(light * (2 * cov[0, 1] + c2) / (cov[0, 0] + cov[1, 1] + c2))
    assert float(ssim_distance(a, b, 2.0)) == pytest.approx(1 - np.mean(values), abs=1e-5)
