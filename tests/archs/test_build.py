"""Networks are built from their options, and wrong options are named."""

from __future__ import annotations

import pytest

from quantface_arch.archs.build import build_arch
from quantface_arch.errors import QuantFaceError


def test_networks_that_basicsr_registers_with_a_suffix_are_found_without_it():
    names = ("SRVGGNetCompact", "SRVGGNetCompact_basicsr")
    assert len({type(build_arch({"type": name, "num_feat": 8})) for name in names}) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"type": "NoSuchNet"}, "network type: found 'NoSuchNet', allowed is one of .*OSDFace"),
        ({"type": "RRDBNet", "num_feat": 8}, "network RRDBNet: .*num_in_ch"),
        ({"type": "RRDBNet", "num_in_ch": 3, "num_out_ch": 0}, r"conv_last.weight is empty, \(0, "),
        ({"type": "RRDBNet", "num_in_ch": 3, "num_out_ch": 3, "num_feat": "8"}, "network RRDBNet"),
        ({"type": "RRDBNet", "num_in_ch": 1.5, "num_out_ch": 3}, "network RRDBNet: "),
    ],
)
def test_wrong_options_are_named(options, said):
    with pytest.raises(QuantFaceError, match=said):
        build_arch(options)
