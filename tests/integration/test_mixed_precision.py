"""Bit widths of a restorer are measured on a few faces and kept."""

from __future__ import annotations

from quant_helpers import TinyNet

from quantface_arch.data.calibration_faces import open_faces
from quantface_arch.data.default_faces import SHIPPED_FACES
from quantface_arch.integration.mixed_precision import allocated
from quantface_arch.quant.config.bitmap import bits_of, load_bit_map
from quantface_arch.quant.nn.traits import set_traits


def test_inputs_have_four_bits_on_average_and_are_measured_once(tmp_path):
    loaded = []

    def load():
        loaded.append(TinyNet().eval())
        set_traits(loaded[-1], eight_bit_patterns=("conv_out",))
        return loaded[-1]

    faces = open_faces(None, 32, 2, SHIPPED_FACES / "train")
    found = allocated(load, faces, tmp_path / "net.bits.yml")
    assert found == bits_of(load_bit_map(tmp_path / "net.bits.yml"))
    assert found["conv_out"] == (8, 8)
    chosen = {widths for name, widths in found.items() if name != "conv_out"}
    assert {weight for weight, _ in chosen} == {4}
    assert len({inputs for _, inputs in chosen}) > 1
    assert allocated(load, faces, tmp_path / "net.bits.yml") == found and len(loaded) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["net.bits.yml"]
