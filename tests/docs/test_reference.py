"""docs/yaml_reference.md says what the code reads."""

from __future__ import annotations

import sys

import pytest

from quantface_arch.data.degradation import Degradation
from quantface_arch.errors import QuantFaceError
from quantface_arch.models.options import OSDFaceOptions
from quantface_arch.quant.config.specs import QuantSpec


@pytest.fixture
def writer(load_script, monkeypatch):
    monkeypatch.delitem(sys.modules, "reference_tables", raising=False)
    return load_script("write_reference")


def test_the_page_is_what_the_script_writes(writer, run_script, repo, tmp_path, monkeypatch):
    status, out, _ = run_script(writer, "--check")
    assert status == 0, out
    stale = tmp_path / "page.md"
    stale.write_text((repo / "docs/yaml_reference.md").read_text().replace("99.9", "99.8"))
    monkeypatch.setattr(writer, "PAGE", stale)
    assert run_script(writer, "--check")[0] == 1
    assert run_script(writer)[0] == 0 and run_script(writer, "--check")[0] == 0


def test_types_defaults_and_values_come_from_the_code(writer):
    table = writer.table(writer.Section("x", QuantSpec, allowed={"range": ("minmax", "mse")}))
    rows = {line.split("|")[1].strip(): line.split("|") for line in table.splitlines()}
    assert rows["`percentile`"][2:4] == [" float ", " 99.9 "]
    assert rows["`bits`"][3] == " required " and "Allowed: minmax, mse." in rows["`range`"][4]
    assert "[0.5, 8.0]" in writer.table(writer.Section("x", Degradation))


def test_a_parameter_without_a_line_in_its_docstring_is_refused(writer):
    def weather(rain: float) -> None:
        """Change the weather."""

    with pytest.raises(QuantFaceError, match=r"weather.*does not describe rain"):
        writer.table(writer.Section("x", weather))


def test_fields_say_their_type_default_limits_and_old_name(writer):
    table = writer.table(writer.Section("x", OSDFaceOptions, own=True))
    rows = {line.split("|")[1].strip(): line for line in table.splitlines()}
    assert "`clip_grad`" not in rows
    assert rows["`ema_decay`"].split("|")[2:4] == [" float ", " 0: none "]
    assert rows["`ema_decay`"].endswith("Allowed: from 0, below 1. |")
    assert rows["`discriminator`"].endswith("Old name: `adversary`. |")
