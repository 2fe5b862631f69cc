"""Define the options of bit allocation in options files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantface_arch.quant.config.specs import MAX_BITS, MIN_BITS
from quantface_arch.utils.option_fields import Limits, option

__all__ = ["WIDTHS", "AllocateOptions"]

WIDTHS = f"{MIN_BITS} to {MAX_BITS}"


@dataclass(frozen=True, kw_only=True)
class AllocateOptions:
    """The block ``allocate`` of an options file."""

    weight_bits: Sequence[int] = option(
        f"candidate bit widths of weights, {WIDTHS}.",
        [],
        old_name="weights",
        shown="[4, 6, 8] with a budget of megabytes or milliseconds, else [4]",
    )
    activations: Sequence[int] = option(
        f"candidate bit widths of inputs, {WIDTHS}.",
        [],
        shown="[4, 6, 8] with a budget of megabytes or milliseconds, else [3, 4, 5, 6, 8]",
    )
    ranks: Sequence[int] = option(
        "candidate ranks of a layer's branches together, only with a budget of megabytes or "
        "milliseconds; a layer gets at most `quant: branch: cap` of its full rank.",
        [],
        shown="[0, 8, 16]",
    )
    balances: Sequence[str] = option(
        "candidate kinds of balancing, only with a budget of megabytes or milliseconds; inputs of "
        "8 bits are not rotated.",
        [],
        shown="[none, scale, rotate, both]",
    )
    budget: Mapping[str, Any] = option(
        "upper limits, see `allocate: budget` below.", {}, shown="none"
    )
    # "lambda" is a keyword of Python.
    lambda_: float = option(
        "share of the quantization error in what a bit width costs; the rest is the perceptual "
        "distance.",
        0.5,
        limits=Limits(least=0, most=1),
        key="lambda",
    )
    perceptual: Mapping[str, Any] | None = option(
        "a registered loss, `{type: ..., ...}`.", None, shown="null: 1 - SSIM"
    )
    protect: Mapping[str, int] = option(
        "name pattern → bit width of layers that are not allocated.",
        {},
        shown="none besides the network's own 8-bit layers",
    )
    count: Sequence[str] = option(
        "name patterns of the layers that count towards averages.", ["*"], shown="all"
    )
    image_size: int = option(
        "side in pixels of the image whose multiply-accumulates are the weights of inputs, and "
        "which is timed.",
        512,
        limits=Limits(least=1),
        old_name="macs_size",
    )
