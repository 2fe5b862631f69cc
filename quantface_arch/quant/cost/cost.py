"""Compute a network's cost: the bytes of its checkpoint, multiply-accumulates and bit-operations.

Nothing is run or stored here. The cost follows from the shapes of the layers, their bit widths,
ranks and balancing, and the positions at which they are applied (``macs.count_work``), so networks
on the meta device can be counted too. Per position of its input or output, a layer does

- Cout·Cin·taps multiply-accumulates at its two bit widths;
- for a branch of rank r, r·(Cin·taps + Cout) multiply-accumulates at 16 bits;
- for a scale, Cin multiplications of 16 by 16 bits;
- for a rotation, Cin·Σf additions of 16-bit values, where f are the orders of its Kronecker factors
  in ``hadamard.rotate``; an addition counts as a product with ±1, of 1 bit.

Rounding, dynamic ranges, biases, norms and activation functions are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields

from torch import Tensor, nn

from quantface_arch.quant.config.specs import FLOAT_BITS
from quantface_arch.quant.cost.macs import LAYERS, LayerWork
from quantface_arch.quant.nn.layers import QuantLayer
from quantface_arch.quant.ops.balance import LayerBalance
from quantface_arch.quant.ops.hadamard import factors
from quantface_arch.quant.ops.lowrank import branch_parameters
from quantface_arch.quant.ops.packing import packed_size

__all__ = ["REFERENCE_BITS", "Cost", "Entry", "network_cost", "total_cost"]

# Reductions are relative to a network of this bit width.
REFERENCE_BITS = 32
# Each layer stores four float32 numbers for its activation range.
RANGE_BYTES = 16


@dataclass(frozen=True)
class Cost:
    """Counts that add up over the parts of a network.

    Attributes:
        parameters: parameters of the float network, without branches and balancing.
        weight_bytes: bytes of the packed integers.
        step_bytes: bytes of the weights' scales and zero points, and of the activation ranges.
        branch_bytes: bytes of the branches' factors.
        balance_bytes: bytes of the channels' scales; rotations take none.
        float_bytes: bytes of all that stays in floating point: biases, norms, codebooks, float
            layers.
        macs: multiply-accumulates of the layers.
        mac_bits: the same, each times the bit width of the weight and that of the input.
        mac_widths: the same, each times the larger of the two bit widths.
        branch_macs: multiply-accumulates of the branches.
        scalings: multiplications by balancing scales.
        additions: additions of balancing rotations.
        product_macs: multiply-accumulates outside of layers, as in attention; they are not part of
            ``operations`` and ``bit_operations``.
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
        """Return the bytes of all tensors in a checkpoint."""
        stored = (self.weight_bytes, self.step_bytes, self.branch_bytes, self.balance_bytes)
        return sum(stored) + self.float_bytes

    @property
    def main_operations(self) -> float:
        """Return the layers' part of ``operations``."""
        return self.mac_widths / REFERENCE_BITS

    @property
    def branch_operations(self) -> float:
        """Return the branches' part of ``operations``."""
        return self.branch_macs * FLOAT_BITS / REFERENCE_BITS

    @property
    def balance_operations(self) -> float:
        """Return the balancing's part of ``operations``."""
        return (self.scalings + self.additions) * FLOAT_BITS / REFERENCE_BITS

    @property
    def operations(self) -> float:
        """Return the operations; a multiply-accumulate of w by a bits counts as max(w, a)/32."""
        return self.main_operations + self.branch_operations + self.balance_operations

    @property
    def bit_operations(self) -> int:
        """Return the bit-operations; a multiply-accumulate of w by a bits counts as w·a."""
        square = FLOAT_BITS**2
        balance = self.scalings * square + self.additions * FLOAT_BITS
        return self.mac_bits + self.branch_macs * square + balance

    @property
    def reductions(self) -> dict[str, float]:
        """Return the shares saved relative to the 32-bit network.

        The share of ``parameters`` is that of their bits.
        """
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
    """The cost of one layer, one float tensor, or the products in a module's own code.

    Attributes:
        name: name of the layer, tensor or module in the network.
        kind: the layer's type, ``tensor`` or ``products``.
        weight_bits, activation_bits: bit widths of a layer; 16 if it is in floating point.
        rank: rank of its branches together.
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
        """Return whether the entry is of a linear layer or a convolution."""
        return self.kind not in ("tensor", "products")


def total_cost(entries: Iterable[Entry]) -> Cost:
    """Return the sum of all entries' costs."""
    return sum((entry.cost for entry in entries), Cost())


def network_cost(
    model: nn.Module,
    work: Mapping[str, LayerWork],
    products: Mapping[str, int] | None = None,
    ranks: Mapping[str, int] | None = None,
    balances: Mapping[str, LayerBalance] | None = None,
    widths: Mapping[str, int] | None = None,
) -> list[Entry]:
    """Return the cost of a network, with an entry per layer and per float tensor.

    A tensor that several modules share is counted once.

    Args:
        model: a network on any device, converted or not.
        work: the layers' work by name, see ``count_work``; if empty, only bytes are counted.
        products: see ``count_products``.
        ranks: branch ranks by layer to assume; None takes the layers' own.
        balances: balancing by layer to assume; None takes the layers' own.
        widths: bytes per value of float tensors that do not have 16 bits, by key in the file.
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
    """The bytes that tensors take in the file; integer tensors keep their size."""

    def __init__(self, widths: Mapping[str, int]) -> None:
        self.widths = widths

    def of(self, key: str, value: Tensor | int) -> int:
        """Return the bytes of a tensor, or of a number of float values."""
        if isinstance(value, Tensor):
            if not value.is_floating_point():
                return value.numel() * value.element_size()
            value = value.numel()
        return value * self.widths.get(key, FLOAT_BITS // 8)


def _parameters(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of the float layer; of a quantized layer, only weight and bias."""
    for key, value in layer.named_parameters(recurse=False):
        if key in ("weight", "bias") or not isinstance(layer, QuantLayer):
            yield key, value


def _tensor_entries(model: nn.Module, seen: set[int], stored: _FloatSizes) -> Iterator[Entry]:
    """Yield an entry for every tensor outside of layers; ``seen`` holds ids to leave out."""
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


def _branch_bytes(name: str, layer: QuantLayer, rank: int, stored: _FloatSizes) -> int:
    """Return the bytes of a branch; a rounded one has two float32 scales per component."""
    down, up = rank * layer.weight[0].numel(), rank * layer.weight.shape[0]
    if layer.branch_bits == FLOAT_BITS:
        return stored.of(f"{name}.branch_down", down) + stored.of(f"{name}.branch_up", up)
    sizes = (packed_size(count, layer.branch_bits) for count in (down, up))
    return sum(sizes) + 2 * 4 * rank


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
    scaled = 0 if balance.scale is None else layer.channels
    rotated = sum(count * size * sum(factors(size) or ()) for count, size in balance.segments)
    step = 4 if layer.weight_spec.symmetric else 5
    cost = Cost(
        parameters=sum(value.numel() for value in fresh.values()),
        weight_bytes=packed_size(weight.numel(), bits[0]),
        step_bytes=step * layer.weight_scale.numel() + RANGE_BYTES + sum(layer.zero_points_shape),
        branch_bytes=_branch_bytes(name, layer, rank, stored),
        balance_bytes=4 * scaled,
        float_bytes=stored.of(f"{name}.bias", fresh["bias"]) if "bias" in fresh else 0,
        macs=done.macs,
        mac_bits=done.macs * bits[0] * bits[1],
        mac_widths=done.macs * max(bits),
        branch_macs=outputs * branch_parameters(weight, rank),
        scalings=inputs * scaled,
        additions=inputs * rotated,
    )
    kind = type(layer).__name__.removeprefix("Quant")
    return Entry(name, kind, cost, *bits, rank, balance.kind)
