"""Packed integers come back bit by bit, and take no more room than their bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.ops import packing
from quantface_arch.quant.ops.packing import pack, packed_size, unpack


@given(st.integers(2, 8), st.integers(0, 300), st.integers(0, 2**31))
def test_round_trip(bits, count, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 2**bits, (count,), generator=generator)
    packed = pack(values, bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == packed_size(count, bits) == -(-count * bits // 8)
    assert torch.equal(unpack(packed, bits, count).long(), values)


@pytest.mark.parametrize("bits", [3, 4, 5, 8])
def test_chunks_join_without_gaps(bits, monkeypatch):
    values = torch.randint(0, 2**bits, (8 * 5 + 3,))
    whole = pack(values, bits)
    monkeypatch.setattr(packing, "CHUNK", 8)
    assert torch.equal(pack(values, bits), whole)
    assert torch.equal(unpack(whole, bits, values.numel()).long(), values)


def test_layout_is_lowest_bit_first():
    assert pack(torch.tensor([1, 2]), 4).tolist() == [0x21]
    assert pack(torch.tensor([[7], [1]]), 3).tolist() == [0b001111]


def test_wrong_values_and_sizes_are_refused():
    with pytest.raises(QuantFaceError, match="0 to 15"):
        pack(torch.tensor([16]), 4)
    with pytest.raises(QuantFaceError, match="0 to 15"):
        pack(torch.tensor([-1]), 4)
    with pytest.raises(QuantFaceError, match=r"shape \(2,\)"):
        unpack(torch.zeros(3, dtype=torch.uint8), 4, 4)
