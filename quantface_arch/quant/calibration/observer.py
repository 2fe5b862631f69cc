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
# Values of one call that enter the histogram; the extremes are taken over all of them.
SAMPLES = 2**20
# Crops that are kept, how many of one call, and how many values all of them may have.
CROPS, PER_CALL, KEEP = 8, 2, 2**18
# float32's largest number, and the largest whose square float32 holds.
LARGEST = torch.finfo(torch.float32).max
SQUARABLE = LARGEST**0.5
# Side of the crop of each input that the Hessian sees.
HESSIAN_SIDE = 48
# What a moving average of extremes keeps at each input (Q-Diffusion, MixDQ, PassionSR).
MOMENTUM = 0.95


class ActivationObserver:
    """Minimum and maximum per channel, and a histogram over [-reach, reach].

    Where a value falls outside, the reach doubles and pairs of bins merge, which is exact, so the
    order of batches does not matter beyond the first one's reach.

    Attributes:
        minimum, maximum: float32 (channels,), over everything seen.
        average: float64 (2,), moving average of the smallest and largest value of each input.
        squares: float64 (channels,), sums of the squares of ``positions`` values each.
        samples: crops of some inputs, float32 (crops, ...), channels where the input has them; at
            most ``KEEP`` values, and none unless the observer is told to keep them.
        hessian: float64 (columns, columns), sum of x xᵀ over what the weight is multiplied by in
            a crop of every input; empty unless ``columns`` is given.
        counts: int64 (BINS,).
        reach: outer edge of the histogram; 0 while nothing but zeros has been seen.
        places: int64 (crops,), during which call each of ``samples`` was seen.
        calls: how many inputs were seen, by all processes before this one's last.
        stride: of these, how many a batch has; 0 while no batch has been left out.

    Args:
        name: of the layer, for messages.
        channel_axis: negative index of the input's channel axis.
        keep_samples: keep crops of the input, for measuring a layer's output error.
        columns: of the layer, see ``QuantLayer.columns``; the Hessian is kept.
    """

    def __init__(
        self,
        name: str,
        channel_axis: int,
        keep_samples: bool = False,
        columns: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.name = name
        self.channel_axis = channel_axis
        self.keep_samples = keep_samples
        self.columns = columns
        self.hessian = torch.empty(0, dtype=torch.float64)
        self.samples = torch.empty(0)
        self.places = torch.empty(0, dtype=torch.int64)
        self.squares = torch.empty(0, dtype=torch.float64)
        self.positions = 0
        self.minimum = torch.empty(0)
        self.maximum = torch.empty(0)
        self.average = torch.zeros(2, dtype=torch.float64)
        self.counts = torch.zeros(BINS, dtype=torch.int64)
        self.reach = 0.0
        self.calls = 0
        self.stride = 0

    def forget(self) -> None:
        """Discard the first batch, which another process counts, but keep the histogram's range."""
        reach, stride = self.reach, self.calls
        self.__init__(self.name, self.channel_axis, self.keep_samples, self.columns)
        self.reach, self.stride = reach, stride

    def seek(self, batch: int) -> None:
        """Skip to a batch, counted from 0; other processes take the batches in between."""
        if batch:
            self.stride = self.stride or self.calls
            self.calls = batch * self.stride

    @torch.no_grad()
    def __call__(self, x: Tensor) -> None:
        """Take an input into the statistics.

        Raises:
            QuantFaceError: it holds NaN or infinity.
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

    def _keep(self, x: Tensor) -> None:
        """Add crops of random images at random places; all have the first one's shape."""
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
        """A part of all images, at most ``side`` long along every axis but the channels'."""
        for axis in range(1, x.ndim):
            if axis != x.ndim + self.channel_axis:
                length = min(side, x.shape[axis])
                x = x.narrow(axis, _random(x.shape[axis] - length + 1, generator), length)
        return x

    def _add_outer_products(self, x: Tensor) -> None:
        """Take a crop of every image into the Hessian."""
        assert self.columns is not None
        generator = torch.Generator().manual_seed(self.calls)
        columns = self.columns(self._crop(x, HESSIAN_SIDE, generator).float())
        outer = (columns.T @ columns).double().cpu()
        self.hessian = outer if self.hessian.numel() == 0 else self.hessian + outer

    def _widen(self, absmax: float) -> None:
        if self.reach == 0:
            # Zeros seen so far belong to the first bin right of the middle at any reach.
            self.reach = absmax
        while self.reach < absmax:
            self.counts = widened(self.counts)
            self.reach *= 2

    def _count(self, x: Tensor) -> None:
        flat = x.detach().reshape(-1)
        # An odd stride visits all columns and channels, whose numbers are mostly even.
        sample = flat[:: flat.numel() // SAMPLES | 1].float()
        if self.reach == 0:
            self.counts[BINS // 2] += sample.numel()
            return
        if 2 * BINS * self.reach > LARGEST:
            # In float32 the numbers of the bins would overflow.
            sample = sample.double()
        counts = torch.histc(sample, BINS, -self.reach, self.reach)
        self.counts += counts.to("cpu", torch.int64)

    @property
    def mean_square(self) -> Tensor:
        """Mean square of each channel, float32 (channels,), at most float32's largest number."""
        return (self.squares / self.positions).clamp(max=LARGEST).float()

    @property
    def absmax(self) -> Tensor:
        """Largest magnitude of each channel, float32 (channels,)."""
        return torch.maximum(self.maximum.abs(), self.minimum.abs())

    def range(self, spec: QuantSpec) -> tuple[float, float]:
        """Low and high that a quantizer of this input should cover."""
        low, high = float(self.minimum.min()), float(self.maximum.max())
        if spec.range == "ema":
            low, high = self.average.tolist()
        return histogram_range(self.counts, self.reach, low, high, spec)

    def state_dict(self) -> dict[str, Tensor]:
        """The statistics as tensors, for ``load_state_dict``."""
        return {
            "minimum": self.minimum,
            "maximum": self.maximum,
            "average": self.average,
            "counts": self.counts,
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
        """Go on from statistics that ``state_dict`` returned."""
        self.minimum, self.maximum = state["minimum"], state["maximum"]
        self.average = state["average"]
        self.counts = state["counts"].clone()
        self.reach, self.calls = float(state["reach"]), int(state["calls"])
        self.squares, self.positions = state["squares"], int(state["positions"])
        self.samples, self.hessian = state["samples"], state["hessian"]
        self.places, self.stride = state["places"], int(state["stride"])


def widened(counts: Tensor) -> Tensor:
    """A histogram over twice the reach, int64 (BINS,): pairs of bins merge in the middle."""
    return torch.nn.functional.pad(counts.view(-1, 2).sum(1), (BINS // 4, BINS // 4))


def _random(end: int, generator: torch.Generator) -> int:
    return int(torch.randint(end, (), generator=generator))
