"""Running statistics of one layer's input, a few small crops of it, and its Hessian."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.config.specs import QuantSpec
from quantface_arch.quant.ops.ranges import histogram_range

__all__ = ["BINS", "CROPS", "ActivationObserver", "widened"]

BINS = 8192
# The histograms of single channels are coarser.
CHANNEL_BINS = 512
# About this many values of one call enter the histogram; the extremes are taken over all values.
SAMPLES = 2**20
# At most CROPS crops are kept, PER_CALL of them from one call, with KEEP values altogether.
CROPS, PER_CALL, KEEP = 8, 2, 2**18
# LARGEST is float32's largest number; SQUARABLE is the largest one whose square float32 holds.
LARGEST = torch.finfo(torch.float32).max
SQUARABLE = LARGEST**0.5
# The Hessian is summed over a crop of each input with this side.
HESSIAN_SIDE = 48
# The moving average of the extremes has this momentum, as in Q-Diffusion, MixDQ and PassionSR.
MOMENTUM = 0.95


class ActivationObserver:
    """Minimum and maximum per channel, and a histogram over [-reach, reach].

    If a value falls outside, the reach doubles and pairs of bins merge. This is exact, so the order
    of the batches does not matter, except that the first one sets the initial reach.

    Attributes:
        minimum, maximum: float32 (channels,), over everything seen.
        average: float64 (2,), moving average of the smallest and largest value of each input.
        squares: float64 (channels,), sums of the squares of ``positions`` values each.
        samples: crops of some inputs, float32 (crops, ...), with the input's channel axis; at most
            ``KEEP`` values, and empty unless ``keep_samples`` is set.
        hessian: float64 (columns, columns), sum of x xᵀ over the vectors x that multiply the weight
            in a crop of every input; empty unless ``columns`` is given.
        counts: int64 (BINS,), the histogram.
        channel_counts: int32 (channels, CHANNEL_BINS), a histogram for each channel; empty unless
            ``per_channel`` is set.
        reach: outer edge of the histograms; 0 while nothing but zeros has been seen.
        places: int64 (crops,), the value of ``calls`` when each of ``samples`` was seen.
        calls: number of inputs so far, including those that other processes saw in between.
        stride: number of inputs per batch; 0 until another process's batch is skipped.

    Args:
        name: the layer's name, for messages.
        channel_axis: negative index of the input's channel axis.
        keep_samples: keep crops of the input, for measuring a layer's output error.
        columns: the layer's ``QuantLayer.columns``; if given, the Hessian is kept.
        per_channel: keep a histogram for each channel.
    """

    def __init__(
        self,
        name: str,
        channel_axis: int,
        keep_samples: bool = False,
        columns: Callable[[Tensor], Tensor] | None = None,
        per_channel: bool = False,
    ) -> None:
        self.name = name
        self.channel_axis = channel_axis
        self.keep_samples = keep_samples
        self.columns = columns
        self.per_channel = per_channel
        self.hessian = torch.empty(0, dtype=torch.float64)
        self.samples = torch.empty(0)
        self.places = torch.empty(0, dtype=torch.int64)
        self.squares = torch.empty(0, dtype=torch.float64)
        self.positions = 0
        self.minimum = torch.empty(0)
        self.maximum = torch.empty(0)
        self.average = torch.zeros(2, dtype=torch.float64)
        self.counts = torch.zeros(BINS, dtype=torch.int64)
        self.channel_counts = torch.zeros(0, CHANNEL_BINS, dtype=torch.int32)
        self.reach = 0.0
        self.calls = 0
        self.stride = 0

    def forget(self) -> None:
        """Discard the first batch, which another process counts, but keep the histogram's range."""
        reach, stride = self.reach, self.calls
        self.__init__(
            self.name, self.channel_axis, self.keep_samples, self.columns, self.per_channel
        )
        self.reach, self.stride = reach, stride

    def seek(self, batch: int) -> None:
        """Skip to a batch, counted from 0; other processes take the batches in between."""
        if batch:
            self.stride = self.stride or self.calls
            self.calls = batch * self.stride

    @torch.no_grad()
    def __call__(self, x: Tensor) -> None:
        """Add an input to the statistics.

        Raises:
            QuantFaceError: the input holds NaN or infinity.
        """
        if x.ndim == -self.channel_axis:
            x = x.unsqueeze(0)
        channels = x.detach().movedim(self.channel_axis, 0).flatten(1)
        minimum, maximum = (end.float().cpu() for end in channels.aminmax(dim=1))
        if not bool((minimum.isfinite() & maximum.isfinite()).all()):
            raise QuantFaceError(f"layer {self.name}: its input holds NaN or infinity")
        ends = torch.stack((minimum.min(), maximum.max())).double()
        precise = channels.double() if float(ends.abs().max()) > SQUARABLE else channels.float()
        squares = precise.square().sum(1, dtype=torch.float64).cpu()
        is_first = self.minimum.numel() == 0
        self.average = ends if is_first else self.average.lerp(ends, 1 - MOMENTUM)
        if not is_first:
            minimum = torch.minimum(self.minimum, minimum)
            maximum = torch.maximum(self.maximum, maximum)
            squares = squares + self.squares
        self.minimum, self.maximum, self.squares = minimum, maximum, squares
        self.positions += channels.shape[1]
        if self.keep_samples and len(self.samples) < CROPS:
            self._keep(x.detach())
        if self.columns is not None:
            self._add_outer_products(x.detach())
        self.calls += 1
        self._widen(max(-float(minimum.min()), float(maximum.max())))
        self._count(x)
        if self.per_channel:
            self._count_channels(channels)

    def _keep(self, x: Tensor) -> None:
        """Keep crops of random images at random positions; all have the shape of the first one."""
        generator = torch.Generator().manual_seed(self.calls)
        channels = x.shape[self.channel_axis]
        side = max(1, int((KEEP / CROPS / channels) ** (1 / max(1, x.ndim - 2))))
        for _ in range(min(PER_CALL, len(x), CROPS - len(self.samples))):
            crop = self._crop(x[_random(len(x), generator) :][:1], side, generator).float().cpu()
            if self.samples.numel() == 0:
                self.samples = crop.clone()
            elif crop.shape[1:] == self.samples.shape[1:]:
                self.samples = torch.cat((self.samples, crop))
            else:
                continue
            self.places = torch.cat((self.places, torch.tensor([self.calls])))

    def _crop(self, x: Tensor, side: int, generator: torch.Generator) -> Tensor:
        """Return a part of all images, at most ``side`` long along every axis but the channels'."""
        for axis in range(1, x.ndim):
            if axis != x.ndim + self.channel_axis:
                length = min(side, x.shape[axis])
                x = x.narrow(axis, _random(x.shape[axis] - length + 1, generator), length)
        return x

    def _add_outer_products(self, x: Tensor) -> None:
        """Add a crop of every image to the Hessian."""
        assert self.columns is not None
        generator = torch.Generator().manual_seed(self.calls)
        columns = self.columns(self._crop(x, HESSIAN_SIDE, generator).float())
        outer = (columns.T @ columns).double().cpu()
        self.hessian = outer if self.hessian.numel() == 0 else self.hessian + outer

    def _widen(self, absmax: float) -> None:
        if self.reach == 0:
            # All values so far were zeros, which belong to the first bin right of the middle at any
            # reach.
            self.reach = absmax
        while self.reach < absmax:
            self.counts = widened(self.counts)
            self.channel_counts = widened(self.channel_counts)
            self.reach *= 2

    def _count(self, x: Tensor) -> None:
        flat = x.detach().reshape(-1)
        # An odd stride visits all columns and channels, whose numbers are mostly even.
        sample = flat[:: flat.numel() // SAMPLES | 1].float()
        if self.reach == 0:
            self.counts[BINS // 2] += sample.numel()
            return
        if 2 * BINS * self.reach > LARGEST:
            # In float32, the computation of the bins' indices would overflow.
            sample = sample.double()
        counts = torch.histc(sample, BINS, -self.reach, self.reach)
        self.counts += counts.to("cpu", torch.int64)

    def _count_channels(self, channels: Tensor) -> None:
        """Add (channels, positions) to the histograms of the channels."""
        sample = channels[:, :: channels.numel() // SAMPLES | 1].float()
        share = sample / self.reach if self.reach else sample
        places = ((share + 1) * (CHANNEL_BINS / 2)).long().clamp_(0, CHANNEL_BINS - 1)
        places += torch.arange(len(places), device=places.device)[:, None] * CHANNEL_BINS
        counts = torch.bincount(places.flatten(), minlength=len(places) * CHANNEL_BINS)
        counts = counts.view(-1, CHANNEL_BINS).to("cpu", torch.int32)
        is_first = self.channel_counts.numel() == 0
        self.channel_counts = counts if is_first else self.channel_counts + counts

    @property
    def mean_square(self) -> Tensor:
        """Return the mean square of each channel, float32 (channels,), at most ``LARGEST``."""
        return (self.squares / self.positions).clamp(max=LARGEST).float()

    @property
    def absmax(self) -> Tensor:
        """Return the largest magnitude of each channel, float32 (channels,)."""
        return torch.maximum(self.maximum.abs(), self.minimum.abs())

    def range(self, spec: QuantSpec) -> tuple[float, float]:
        """Return the range, low and high, that a quantizer of this input should cover."""
        low, high = float(self.minimum.min()), float(self.maximum.max())
        if spec.range == "ema":
            low, high = self.average.tolist()
        return histogram_range(self.counts, self.reach, low, high, spec)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the statistics as tensors, for ``load_state_dict``."""
        return {
            "minimum": self.minimum,
            "maximum": self.maximum,
            "average": self.average,
            "counts": self.counts,
            "channel_counts": self.channel_counts,
            "reach": torch.tensor(self.reach, dtype=torch.float64),
            "calls": torch.tensor(self.calls),
            "squares": self.squares,
            "positions": torch.tensor(self.positions),
            "samples": self.samples,
            "places": self.places,
            "stride": torch.tensor(self.stride),
            "hessian": self.hessian,
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from statistics that ``state_dict`` returned."""
        self.minimum, self.maximum = state["minimum"], state["maximum"]
        self.average = state["average"]
        self.counts = state["counts"].clone()
        self.channel_counts = state["channel_counts"]
        self.reach, self.calls = float(state["reach"]), int(state["calls"])
        self.squares, self.positions = state["squares"], int(state["positions"])
        self.samples, self.hessian = state["samples"], state["hessian"]
        self.places, self.stride = state["places"], int(state["stride"])


def widened(counts: Tensor) -> Tensor:
    """Return histograms (..., bins) over twice the reach by merging pairs of bins."""
    pairs = counts.unflatten(-1, (-1, 2)).sum(-1, dtype=counts.dtype)
    return torch.nn.functional.pad(pairs, (pairs.shape[-1] // 2,) * 2)


def _random(end: int, generator: torch.Generator) -> int:
    return int(torch.randint(end, (), generator=generator))
