"""Range search: never worse than the full range, and better where outliers are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quant_helpers import sqnr

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.calibration.observer import BINS, ActivationObserver
from quantface_arch.quant.config.specs import QuantSpec
from quantface_arch.quant.ops import ranges
from quantface_arch.quant.ops.quantizer import fake_quantize, grid, scale_and_zero_point
from quantface_arch.quant.ops.ranges import weight_range


def rounded_weight(weight, spec):
    low, high = weight_range(weight, spec)
    scale, zero = scale_and_zero_point(low, high, spec.bits, spec.symmetric)
    shape = (-1, *[1] * (weight.ndim - 1))
    return fake_quantize(
        weight, scale.view(shape), zero.view(shape), *grid(spec.bits, spec.symmetric)
    )


def rounded_input(x, spec):
    observer = ActivationObserver("x", -1)
    observer(x)
    low, high = (torch.tensor(end) for end in observer.range(spec))
    scale, zero = scale_and_zero_point(low, high, spec.bits, spec.symmetric)
    return fake_quantize(x, scale, zero, *grid(spec.bits, spec.symmetric))


def heavy_tailed(*shape):
    return torch.randn(*shape) * torch.randn(*shape).square()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_mse_of_weights_is_never_worse_than_minmax(bits, symmetric, granularity):
    weight = heavy_tailed(12, 8, 3, 3)
    mse = QuantSpec(bits, symmetric, granularity, "mse")
    errors = [
        (rounded_weight(weight, spec) - weight).square().flatten(1).sum(1)
        for spec in (mse, replace(mse, range="minmax"))
    ]
    if granularity == "tensor":
        errors = [error.sum() for error in errors]
    assert (errors[0] <= errors[1]).all()
    assert errors[0].sum() < errors[1].sum() or bits == 8


def test_search_in_chunks_gives_the_same(monkeypatch):
    weight, spec = heavy_tailed(12, 8, 3, 3), QuantSpec(4, True, "channel")
    whole = weight_range(weight, spec)
    monkeypatch.setattr(ranges, "CHUNK", 200)
    assert all(torch.equal(a, b) for a, b in zip(whole, weight_range(weight, spec), strict=True))


def test_per_channel_is_better_than_per_tensor():
    weight = torch.randn(16, 8, 3, 3) * torch.logspace(-2, 0, 16).view(-1, 1, 1, 1)
    ratios = [
        sqnr(weight, rounded_weight(weight, QuantSpec(4, True, granularity, "minmax")))
        for granularity in ("tensor", "channel")
    ]
    assert ratios[1] > ratios[0] + 1


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_weight_sqnr_rises_with_bits(method, symmetric):
    weight = torch.randn(16, 64)
    ratios = [
        sqnr(weight, rounded_weight(weight, QuantSpec(bits, symmetric, "channel", method, 100)))
        for bits in (2, 3, 4, 6, 8)
    ]
    assert ratios == sorted(ratios)


def test_percentile_of_weights_drops_the_tail():
    weight = torch.cat([torch.linspace(-1, 1, 2001), torch.tensor([50.0])])[None]
    low, high = weight_range(weight, QuantSpec(8, False, "channel", "percentile", 99.9))
    assert low.item() == pytest.approx(-1, abs=0.01)
    assert high.item() == pytest.approx(1, abs=0.01)
    low, high = weight_range(weight, QuantSpec(8, True, "channel", "percentile", 99.9))
    assert high.item() == -low.item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", ["normal", "heavy", "silu", "positive"])
def test_mse_of_inputs_is_not_worse_than_minmax(bits, symmetric, kind):
    x = heavy_tailed(4, 5000) if kind == "heavy" else torch.randn(4, 5000)
    x = torch.nn.functional.silu(3 * x) if kind == "silu" else x
    x = x.abs() + 1 if kind == "positive" else x
    mse = QuantSpec(bits, symmetric)
    found = sqnr(x, rounded_input(x, mse))
    # The search sees bins, not values: it may lose what a bin's width hides.
    assert found >= sqnr(x, rounded_input(x, replace(mse, range="minmax"))) - 0.05
    if kind == "heavy" and bits <= 4:
        assert found > sqnr(x, rounded_input(x, replace(mse, range="minmax"))) + 3


def test_minmax_of_inputs_is_exact_per_channel_and_overall():
    batches = [torch.randn(2, 5, 7, 7) * (step + 1) for step in range(4)]
    observer = ActivationObserver("x", -3)
    for batch in batches:
        observer(batch)
    everything = torch.cat(batches)
    assert torch.equal(observer.minimum, everything.amin((0, 2, 3)))
    assert torch.equal(observer.maximum, everything.amax((0, 2, 3)))
    low, high = observer.range(QuantSpec(8, range="minmax"))
    assert (low, high) == (everything.min().item(), everything.max().item())


def test_percentile_of_inputs_matches_the_values():
    x = torch.randn(100_000)[None]
    observer = ActivationObserver("x", -1)
    observer(x)
    low, high = observer.range(QuantSpec(8, range="percentile", percentile=99))
    assert low == pytest.approx(x.quantile(0.01).item(), abs=0.01)
    assert high == pytest.approx(x.quantile(0.99).item(), abs=0.01)


def test_histogram_grows_without_losing_a_value():
    observer = ActivationObserver("x", -1)
    for scale in (0.0, 0.01, 3.0, 500.0, 0.1):
        observer(torch.randn(1, 1000) * scale)
    assert observer.counts.sum() == 5000
    assert observer.counts.shape == (BINS,)
    low, high = observer.range(QuantSpec(8, range="minmax"))
    assert observer.reach >= max(-low, high)
    # Half of the values are tiny: merging may not move them away from the middle.
    assert observer.counts[BINS // 2 - 200 : BINS // 2 + 200].sum() >= 4000


def test_statistics_have_a_fixed_size_and_come_back():
    observer = ActivationObserver("x", -1)
    observer(torch.randn(3, 8))
    size = sum(value.numel() for value in observer.state_dict().values())
    for _ in range(5):
        observer(torch.randn(400, 8))
    state = observer.state_dict()
    assert sum(value.numel() for value in state.values()) == size
    copy = ActivationObserver("x", -1)
    copy.load_state_dict(state)
    later = torch.randn(10, 8) * 5
    observer(later)
    copy(later)
    assert copy.range(QuantSpec(4)) == observer.range(QuantSpec(4))


@pytest.mark.slow
@given(st.floats(2**60, torch.finfo(torch.float32).max, width=32), st.booleans())
@pytest.mark.parametrize("range", ["minmax", "ema", "percentile", "mse"])
def test_inputs_and_weights_up_to_the_limits_of_float32_have_finite_ranges(range, size, symmetric):
    spec = QuantSpec(4, symmetric, "tensor", range)
    x = torch.linspace(-1, 1, 64).repeat(2, 1)
    observer = ActivationObserver("x", -1)
    for part in (0.6, -0.3, 1.0):
        observer(x * part * size)
    assert observer.mean_square.isfinite().all()
    low, high = observer.range(spec)
    assert -size <= low < 0 < high <= size
    if range != "ema":
        ends = weight_range(x * size, replace(spec, range=range), observer.mean_square)
        assert all(end.isfinite().all() for end in ends)
        assert ends[0] < 0 < ends[1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_name_the_layer(bad):
    with pytest.raises(QuantFaceError, match=r"layer unet\.mid: its input holds NaN or infinity"):
        ActivationObserver("unet.mid", -1)(torch.tensor([[1.0, bad]]))


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("shape", [(12, 24), (12, 24, 3, 3)])
def test_a_search_by_importance_has_the_least_error_of_the_output(granularity, shape):
    weight, spec = heavy_tailed(*shape), QuantSpec(3, True, granularity)
    importance = torch.exp(2 * torch.randn(24))
    cost = importance.view(-1, *[1] * (len(shape) - 2))

    def errors(importance, every=1):
        low, high = weight_range(weight, spec, importance, every)
        scale, zero = scale_and_zero_point(low, high, spec.bits, spec.symmetric)
        steps = [end.view(-1, *[1] * (len(shape) - 1)) for end in (scale, zero)]
        rounded = fake_quantize(weight, *steps, *grid(spec.bits, spec.symmetric))
        squares = ((rounded - weight).square() * cost).flatten(1).sum(1)
        return squares if granularity == "channel" else squares.sum()

    weighed, plain = errors(importance), errors(None)
    assert bool((weighed <= plain * 1.0001).all())
    assert weighed.sum() < 0.99 * plain.sum()
    # Alike everywhere, it is no other search; a coarser one is no better.
    assert torch.equal(errors(torch.ones(24)), plain)
    assert bool((weighed <= errors(importance, every=6) * 1.0001).all())


def test_inputs_that_were_never_seen_leave_a_finite_range():
    low, high = weight_range(torch.randn(4, 8), QuantSpec(4, True, "channel"), torch.zeros(8))
    assert bool((low.isfinite() & high.isfinite() & (low < high)).all())


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((2, 6, 9, 9), -3), ((2, 6, 9), -2), ((3, 5, 6), -1), ((6, 9, 9), -3), ((6,), -1)],
)
def test_samples_are_crops_of_what_was_seen(shape, axis):
    observer = ActivationObserver("x", axis, keep_samples=True)
    inputs = [torch.randn(shape) for _ in range(20)]
    for x in inputs:
        observer(x)
    samples = observer.samples
    assert samples.shape[axis] == 6
    assert samples.ndim == max(len(shape), 1 - axis)
    assert 2 <= len(samples) <= 16
    seen = torch.cat([x.flatten() for x in inputs])
    assert bool(torch.isin(samples.flatten(), seen).all())
    assert observer.mean_square.shape == observer.absmax.shape == (6,)
    everything = torch.stack(inputs).movedim(axis, 0).flatten(1)
    torch.testing.assert_close(observer.mean_square, everything.square().mean(1))
    assert torch.equal(observer.absmax, everything.abs().amax(1))
