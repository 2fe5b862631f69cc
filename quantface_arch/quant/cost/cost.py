"""What a network costs: the bytes of its checkpoint, its multiply-accumulates and bit-operations.

Nothing is run or stored here: the shapes of the layers, their widths, ranks and balancing, and the
positions at which they are applied (``macs.count_work``) say it all, so networks on the meta device
are counted as well. Per position of its input or output a layer does

- Cout·Cin·taps multiply-accumulates at its two widths;
- for a branch of rank r, r·(Cin·taps + Cout) at 16 bits;
- for a scale, Cin multiplications of 16 by 16 bits; for an offset, Cin additions;
- for a rotation, Cin·Σf additions of 16-bit values, f the orders of its Kronecker factors as
  ``hadamard.rotate`` applies them; an addition is a product with ±1, of 1 bit.

Rounding, dynamic ranges, biases, norms and activation functions are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields

from torch import Tensor, nn

from quantface_arch.quant.cost.macs import LAYERS, LayerWork
from quantface_arch.quant.nn.layers import QuantLayer
from quantface_arch.quant.ops.balance import LayerBalance
from quantface_arch.quant.ops.hadamard import factors
from quantface_arch.quant.ops.lowrank import branch_parameters
from quantface_arch.quant.ops.packing import packed_size

__all__ = ["FLOAT_BITS", "REFERENCE_BITS", "Cost", "Entry", "network_cost", "total_cost"]

# Of everything that is not quantized, as checkpoints hold it.
FLOAT_BITS = 16
# Of the network that reductions are relative to.
REFERENCE_BITS = 32
# Per layer: four float32 numbers of its activation range.
RANGE_BYTES = 16


@dataclass(frozen=True)
class Cost:
    """Counts that add up over the parts of a network.

    Attributes:
        parameters: of the float network; branches and balancing come on top.
        weight_bytes: packed integers.
        step_bytes: steps and zero points of weights, ranges of activations.
        branch_bytes: factors of the branches.
        balance_bytes: scales and offsets of the channels; rotations take none.
        float_bytes: all that stays in floating point: biases, norms, codebooks, float layers.
        macs: multiply-accumulates of the layers.
        mac_bits: the same, each times the width of the weight and of the input.
        mac_widths: the same, each times the larger of the two widths.
        branch_macs: multiply-accumulates of the branches.
        scalings: multiplications by balancing scales.
        additions: of balancing rotations, and of offsets.
        product_macs: multiply-accumulates outside of layers, as in attention; in no sum below.
    """

    parameters: int = 0
    weight_bytes: int = 0
    step_bytes: int = 0
    branch_bytes: int = 0
    balance_bytes: int = 0
    float_bytes: int = 0
    macs: int = 0
    mac_bits: int = 0
    mac_widths: int = 0
    branch_macs: int = 0
    scalings: int = 0
    additions: int = 0
    product_macs: int = 0

    def __add__(self, other: Cost) -> Cost:
        names = (item.name for item in fields(self))
        return Cost(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def bytes(self) -> int:
        """Of the tensors in a checkpoint."""
        stored = (self.weight_bytes, self.step_bytes, self.branch_bytes, self.balance_bytes)
        return sum(stored) + self.float_bytes

    @property
    def main_operations(self) -> float:
        """The layers' share of ``operations``."""
        return self.mac_widths / REFERENCE_BITS

    @property
    def branch_operations(self) -> float:
        """The branches' share of ``operations``."""
        return self.branch_macs * FLOAT_BITS / REFERENCE_BITS

    @property
    def balance_operations(self) -> float:
        """The balancing's share of ``operations``."""
        return (self.scalings + self.additions) * FLOAT_BITS / REFERENCE_BITS

    @property
    def operations(self) -> float:
        """Linear in the width: one at 32 bits is 1, one at w and a bits max(w, a)/32."""
        return self.main_operations + self.branch_operations + self.balance_operations

    @property
    def bit_operations(self) -> int:
        """Quadratic in the width: a multiply-accumulate of w by a bits is w·a."""
        square = FLOAT_BITS**2
        balance = self.scalings * square + self.additions * FLOAT_BITS
        return self.mac_bits + self.branch_macs * square + balance

    @property
    def reductions(self) -> dict[str, float]:
        """Shares saved of the 32-bit network: ``parameters`` (in bits), and both operations."""
        full = {
            "parameters": self.parameters * REFERENCE_BITS / 8,
            "operations": self.macs,
            "bit_operations": self.macs * REFERENCE_BITS**2,
        }
        found = (self.bytes, self.operations, self.bit_operations)
        return {
            name: 1 - value / whole if whole else 0.0
            for (name, whole), value in zip(full.items(), found, strict=True)
        }


@dataclass(frozen=True)
class Entry:
    """A line of the account: a layer, a float tensor, or a module that multiplies by itself.

    Attributes:
        name: of the layer, tensor or module in the network.
        kind: the layer's type, ``tensor`` or ``products``.
        weight_bits, activation_bits: of a layer; 16 where it is in floating point.
        rank: of its branches together.
        balance: ``none``, ``scale``, ``rotate`` or ``both``.
    """

    name: str
    kind: str
    cost: Cost
    weight_bits: int = FLOAT_BITS
    activation_bits: int = FLOAT_BITS
    rank: int = 0
    balance: str = "none"

    @property
    def is_layer(self) -> bool:
        """Whether it is a linear layer or a convolution."""
        return self.kind not in ("tensor", "products")


def total_cost(entries: Iterable[Entry]) -> Cost:
    """Sum of all entries."""
    return sum((entry.cost for entry in entries), Cost())


def network_cost(
    model: nn.Module,
    work: Mapping[str, LayerWork],
    products: Mapping[str, int] | None = None,
    ranks: Mapping[str, int] | None = None,
    balances: Mapping[str, LayerBalance] | None = None,
    widths: Mapping[str, int] | None = None,
) -> list[Entry]:
    """The account of a network, an entry per layer and per float tensor, each counted once.

    Args:
        model: on any device, converted or not.
        work: of its layers by name; without any, only bytes are counted.
        products: see ``count_products``.
        ranks: of the branches that layers are to have; None: those that they have.
        balances: balancing that layers are to have; None: that which they have.
        widths: bytes per value of float tensors, by key in the file, that are not of 16 bits.
    """
    stored = _FloatSizes(widths or {})
    entries: list[Entry] = []
    seen: set[int] = set()
    for name, layer in model.named_modules():
        if not isinstance(layer, LAYERS):
            continue
        fresh = {key: value for key, value in _parameters(layer) if id(value) not in seen}
        done = work.get(name, LayerWork())
        if isinstance(layer, QuantLayer):
            rank = layer.rank if ranks is None else ranks.get(name, 0)
            plan = layer.balance if balances is None else balances.get(name, LayerBalance())
            entries.append(_quant_entry(name, layer, fresh, done, rank, plan, stored))
            seen |= {id(value) for value in (*layer.parameters(False), *layer.buffers(False))}
        else:
            entries.append(_float_entry(name, layer, fresh, done, stored))
            seen |= {id(value) for value in fresh.values()}
    entries += _tensor_entries(model, seen, stored)
    for name, macs in (products or {}).items():
        entries.append(Entry(name, "products", Cost(product_macs=macs)))
    return entries


class _FloatSizes:
    """Bytes that float tensors take in the file; whole numbers are kept as they are."""

    def __init__(self, widths: Mapping[str, int]) -> None:
        self.widths = widths

    def of(self, key: str, value: Tensor | int) -> int:
        """Of a tensor, or of so many float values."""
        if isinstance(value, Tensor):
            if not value.is_floating_point():
                return value.numel() * value.element_size()
            value = value.numel()
        return value * self.widths.get(key, FLOAT_BITS // 8)


def _parameters(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Of the float layer: of a quantized one the weight and the bias."""
    for key, value in layer.named_parameters(recurse=False):
        if key in ("weight", "bias") or not isinstance(layer, QuantLayer):
            yield key, value


def _tensor_entries(model: nn.Module, seen: set[int], stored: _FloatSizes) -> Iterator[Entry]:
    """Yield the tensors of a model that are not of the layers; ``seen`` holds ids to leave out."""
    trained = {id(value) for value in model.parameters()}
    for name, value in model.state_dict(keep_vars=True).items():
        is_part = isinstance(value, Tensor) and not name.endswith("_extra_state")
        if is_part and id(value) not in seen:
            seen.add(id(value))
            parameters = value.numel() if id(value) in trained else 0
            yield Entry(name, "tensor", Cost(parameters, float_bytes=stored.of(name, value)))


def _float_entry(
    name: str,
    layer: nn.Module,
    fresh: Mapping[str, Tensor],
    done: LayerWork,
    stored: _FloatSizes,
) -> Entry:
    cost = Cost(
        parameters=sum(value.numel() for value in fresh.values()),
        float_bytes=sum(stored.of(f"{name}.{key}", value) for key, value in fresh.items()),
        macs=done.macs,
        mac_bits=done.macs * FLOAT_BITS**2,
        mac_widths=done.macs * FLOAT_BITS,
    )
    return Entry(name, type(layer).__name__, cost)


def _quant_entry(
    name: str,
    layer: QuantLayer,
    fresh: Mapping[str, Tensor],
    done: LayerWork,
    rank: int,
    balance: LayerBalance,
    stored: _FloatSizes,
) -> Entry:
    weight = layer.weight
    bits = (layer.weight_spec.bits, layer.activation_spec.bits)
    outputs, inputs = done.macs // weight.numel(), done.inputs // layer.channels
    branch = {"branch_down": rank * weight[0].numel(), "branch_up": rank * weight.shape[0]}
    scaled = 0 if balance.scale is None else layer.channels
    shifted = 0 if layer.act_offset is None else layer.channels
    rotated = sum(count * size * sum(factors(size) or ()) for count, size in balance.segments)
    step = 4 if layer.weight_spec.symmetric else 5
    cost = Cost(
        parameters=sum(value.numel() for value in fresh.values()),
        weight_bytes=packed_size(weight.numel(), bits[0]),
        step_bytes=step * layer.weight_scale.numel() + RANGE_BYTES,
        branch_bytes=sum(stored.of(f"{name}.{key}", count) for key, count in branch.items()),
        balance_bytes=4 * scaled + stored.of(f"{name}.act_offset", shifted),
        float_bytes=stored.of(f"{name}.bias", fresh["bias"]) if "bias" in fresh else 0,
        macs=done.macs,
        mac_bits=done.macs * bits[0] * bits[1],
        mac_widths=done.macs * max(bits),
        branch_macs=outputs * branch_parameters(weight, rank),
        scalings=inputs * scaled,
        additions=inputs * (rotated + shifted),
    )
    kind = type(layer).__name__.removeprefix("Quant")
    return Entry(name, kind, cost, *bits, rank, balance.kind)
