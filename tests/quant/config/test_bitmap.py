"""Bit maps on disk: what is written reads back, and what is wrong is named."""

from __future__ import annotations

import pytest
import yaml
from quant_helpers import TinyNet, pictures

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import CalibrationData, Recipe, prepare
from quantface_arch.quant.config.bitmap import LayerChoice, load_bit_map, save_bit_map

BITS = {
    "unet.conv_in": LayerChoice(8, 8),
    "unet.mid.0": LayerChoice(4, 5),
    "vae.0": LayerChoice(3, 4),
}


@pytest.mark.parametrize("suffix", [".yml", ".yaml", ".json"])
def test_what_is_written_reads_back(tmp_path, suffix):
    path = tmp_path / "deep" / f"map{suffix}"
    save_bit_map(path, BITS, {"weight_bits": 4.1, "activation_bits": 3.9}, "for tests")
    assert load_bit_map(path) == BITS
    names = list(reversed(BITS))
    assert list(load_bit_map(path, names)) == names
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_a_person_can_read_and_edit_it(tmp_path):
    path = tmp_path / "map.yml"
    save_bit_map(path, BITS, {"activation_bits": 3.9}, "for tests")
    text = path.read_text()
    assert "  unet.mid.0: {w: 4, a: 5}\n" in text and "note: for tests" in text
    path.write_text(text.replace("{w: 4, a: 5}", "{w: 4, a: 6}"))
    assert load_bit_map(path)["unet.mid.0"].bits == (4, 6)


def test_ranks_and_balancing_are_kept_and_change_the_recipe(tmp_path):
    path = tmp_path / "map.yml"
    choices = {
        **BITS,
        "vae.0": LayerChoice(4, 4, 8, "scale"),
        "vae.1": LayerChoice(8, 8, 0, "none"),
    }
    save_bit_map(path, choices)
    text = path.read_text()
    assert "format_version: 2\n" in text
    assert "  vae.0: {w: 4, a: 4, rank: 8, balance: scale}\n" in text
    assert load_bit_map(path) == choices
    recipe = Recipe.from_dict(
        {
            "name": "w4a4",
            "branch": {"distill": 1, "ranks": {"vae.*": [3, 0]}},
            "balance": {"layers": {"vae.0": "rotate", "*": "both"}},
        }
    ).with_choices(choices)
    # Layers at 8 bits have no branch, and the map comes before the recipe's patterns.
    assert list(recipe.branch.ranks.items()) == [("vae.0", (7, 1)), ("vae.*", (3, 0))]
    kinds = [recipe.balance.kinds(name) for name in ("vae.0", "vae.1", "unet.mid.0")]
    assert kinds == [("scale",), ("none",), ("both",)]


def test_a_map_that_gives_all_ranks_may_exceed_the_recipes_cap():
    net, recipe = TinyNet().eval(), Recipe.from_dict({"name": "w4a4", "branch": {"budget": 1}})
    names = [name for name, module in net.named_modules() if hasattr(module, "weight")]
    choices = {name: LayerChoice(4, 4, 0, "none") for name in names if name != "norm"}
    choices["linear"] = LayerChoice(4, 4, 8, "none")
    prepare(net, recipe.with_choices(choices), CalibrationData(pictures(2), progress=False))
    # A quarter of the full rank, the cap by default, would be 4.
    assert net.linear.rank == 8
    capped = recipe.with_choices({**choices, "line": LayerChoice(4, 4)})
    assert capped.branch.cap == recipe.branch.cap < recipe.with_choices(choices).branch.cap


def test_a_map_of_bit_widths_alone_has_the_first_version(tmp_path):
    save_bit_map(tmp_path / "map.yml", {"a": (4, 8)})
    text = (tmp_path / "map.yml").read_text()
    assert "format_version: 1\n" in text
    assert load_bit_map(tmp_path / "map.yml") == {"a": LayerChoice(4, 8)}
    (tmp_path / "map.yml").write_text(text.replace("a: 8", "a: 8, rank: 1"))
    with pytest.raises(QuantFaceError, match=r"layer 'a': found .* is wanted"):
        load_bit_map(tmp_path / "map.yml")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"unet.mid.0": {"w": 4, "a": 9}}, r"layer 'unet\.mid\.0': a: found 9, allowed .* 2 to 8"),
        ({"unet.mid.0": {"w": 1, "a": 4}}, r"layer 'unet\.mid\.0': w: found 1, allowed"),
        ({"unet.mid.0": {"w": 4.0, "a": 4}}, r"layer 'unet\.mid\.0': w: found 4\.0"),
        ({"unet.mid.0": {"w": True, "a": 4}}, r"layer 'unet\.mid\.0': w: found True"),
        ({"unet.mid.0": {"w": 4}}, r"layer 'unet\.mid\.0': found"),
        ({"unet.mid.0": 4}, r"layer 'unet\.mid\.0': found 4"),
        ({"unet.mid.0": {"w": 4, "a": 4, "rank": -1}}, r"rank: found -1, a whole number"),
        ({"unet.mid.0": {"w": 4, "a": 4, "balance": "auto"}}, r"balance: found 'auto', allowed"),
        ({"unet.mid.0": {"w": 4, "a": 4, "kind": "none"}}, r"found .* with or without rank"),
        ({"unet.mid.7": {"w": 4, "a": 4}}, r"layer 'unet\.mid\.7': the model has no such"),
        ({"unet.mid.0": None}, r"layer 'unet\.mid\.0' of the model is missing"),
    ],
)
def test_a_wrong_layer_is_named_with_the_file(tmp_path, edit, message):
    path = tmp_path / "map.yml"
    save_bit_map(path, BITS)
    document = yaml.safe_load(path.read_text())
    document["format_version"] = 2
    document["layers"].update(edit)
    document["layers"] = {k: v for k, v in document["layers"].items() if v is not None}
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(QuantFaceError, match=message) as error:
        load_bit_map(path, BITS)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.yml", None, "No such file"),
        ("a.yml", "layers: [", "no bit map"),
        ("a.json", "{", "no bit map"),
        ("a.yml", "4", "no bit map"),
        ("a.yml", "layers: {}", "format_version: found None"),
        ("a.yml", "{format_version: 3, layers: {}}", "format_version: found 3"),
        ("a.yml", "{format_version: 1, layer: {}, layers: {}}", "unknown key layer"),
        ("a.yml", "layers: !!python/object/apply:os.getcwd []", "no bit map"),
        ("a.txt", "", "bit maps end in"),
    ],
)
def test_what_is_no_bit_map_is_refused(tmp_path, name, text, message):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(QuantFaceError, match=message) as error:
        load_bit_map(path)
    assert str(path) in str(error.value)


def test_a_map_is_not_written_under_another_suffix(tmp_path):
    with pytest.raises(QuantFaceError, match="bit maps end in"):
        save_bit_map(tmp_path / "map.txt", BITS)
    assert list(tmp_path.iterdir()) == []
