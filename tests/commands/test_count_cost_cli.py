"""scripts/count_cost.py: the paper's reductions, the shipped files' bytes, what it refuses."""

from __future__ import annotations

import csv
import json

import cv2
import pytest
import torch
import yaml
from safetensors import safe_open
from small_networks import RRDB, TINY

from quantface_arch.archs.build import build_arch
from quantface_arch.pretrained.names import resolve_model
from quantface_arch.pretrained.zoo import load_model
from quantface_arch.quant import Recipe, convert, quantize, save_checkpoint
from quantface_arch.quant.config.bitmap import bits_of, load_bit_map, save_bit_map
from quantface_arch.quant.cost.stand_in import StandIn

# At W4A4, QuantFace (arXiv 2506.00820), in percent.
PAPER = {"parameters": 84.85, "operations": 82.91}
# Of options/osdface/quantface_w4.yml, in docs/method.md.
DOCUMENTED = {"parameters": 84.91, "operations": 79.74, "bit_operations": 95.02}
OSDFACE = "options/osdface/quantface_w4.yml"


@pytest.fixture
def script(load_script):
    return load_script("count_cost")


@pytest.fixture
def command(script, tmp_path, monkeypatch, run_script):
    """Run the command in this process, in an empty folder: (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*words, options=None):
        if options is not None:
            (tmp_path / "options.yml").write_text(yaml.safe_dump(options))
            words = ("-opt", "options.yml", *words)
        return run_script(script, *words)

    def figures(*words, options=None):
        status, _, err = run(*words, "--json", "found.json", options=options)
        assert status == 0, err
        return json.loads((tmp_path / "found.json").read_text())

    run.figures = figures
    return run


def percent(figures):
    return {name: 100 * share for name, share in figures["reductions"].items()}


@pytest.mark.slow
def test_osdface_is_counted_in_seconds_without_its_weights(run_program, tmp_path):
    out = {name: tmp_path / f"cost.{name}" for name in ("png", "csv", "json")}
    files = ("--picture", out["png"], "--csv", out["csv"], "--json", out["json"])
    stdout = run_program("scripts/count_cost.py", "-opt", OSDFACE, "--top", "3", *files)
    figures = json.loads(out["json"].read_text())
    assert percent(figures) == pytest.approx(DOCUMENTED, abs=0.01)
    assert abs(percent(figures)["parameters"] - PAPER["parameters"]) < 1
    assert "parameters -84.91 %, operations -79.74 %, bit-operations -95.02 %" in stdout
    assert "the most expensive choice is counted" in stdout
    parts = figures["parts"]
    giga = {
        name: (parts[name]["macs"] + parts[name]["product_macs"]) / 1e9
        for name in ("VAE encoder", "VAE decoder")
    }
    unet = [part for name, part in parts.items() if name.startswith("UNet")]
    giga["UNet"] = sum(part["macs"] + part["product_macs"] for part in unet) / 1e9
    known = {"VAE encoder": 558, "VAE decoder": 1257, "UNet": 402}
    assert {name: round(value) for name, value in giga.items()} == known
    assert sum(part["parameters"] for part in unet) == 865_910_724
    vae = parts["VAE encoder"]["parameters"] + parts["VAE decoder"]["parameters"]
    assert vae == 83_653_863
    rows = list(csv.DictReader(out["csv"].open()))
    for key in ("bytes", "macs", "parameters", "bit_operations"):
        assert sum(int(row[key]) for row in rows) == figures["total"][key]
        assert sum(part[key] for part in parts.values()) == figures["total"][key]
    assert len([line for line in stdout.splitlines() if "| w4a4 |" in line]) == 3
    picture = cv2.imread(str(out["png"]))
    assert picture is not None and picture.std() > 5


@pytest.mark.slow
def test_the_papers_operations_are_those_of_fewer_ranks(command, repo):
    options = yaml.safe_load((repo / OSDFACE).read_text())
    shares = {}
    for rank in (16, 20):
        options["quant"]["branch"] = {"svd": rank, "distill": 0}
        shares[rank] = percent(command.figures(options=options))
    assert shares[16]["operations"] == pytest.approx(PAPER["operations"], abs=0.1)
    for name, wanted in PAPER.items():
        assert abs(shares[20][name] - wanted) < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mini-w4a4", "mini-mp"])
def test_bytes_of_shipped_models_are_those_of_their_files(command, name):
    figures = command.figures("--checkpoint", name, "--size", "64")
    with safe_open(resolve_model(name), framework="pt") as file:
        tensors = [file.get_tensor(key) for key in set(file.keys())]
    assert figures["total"]["bytes"] == sum(t.numel() * t.element_size() for t in tensors)
    assert figures["total"]["parameters"] == 7_791_212
    size = resolve_model(name).stat().st_size
    assert f"{name}.safetensors has {size:,} with its header" in figures["note"]


def test_the_allocators_estimate_is_near_the_file(repo):
    net = load_model("mini")
    options = yaml.safe_load((repo / "options/allocate_mini.yml").read_text())
    recipe = Recipe.from_dict(
        {k: v for k, v in options["quant"].items() if k != "calibration"}
        | {"eight_bit": list(net.eight_bit_patterns)}
    )
    choices = load_bit_map(repo / "options/maps/mini_w4a4.yml")
    recipe = recipe.with_choices(choices)
    convert(net, recipe, bits_of(choices))
    actual = resolve_model("mini-w4a4").stat().st_size
    assert StandIn.of(net, recipe, net.arch_options).bytes == pytest.approx(actual, rel=0.01)


@pytest.mark.slow
def test_options_that_load_a_checkpoint_count_it(command, tmp_path):
    torch.manual_seed(0)
    net = build_arch(RRDB).eval()
    recipe = {"name": "w4a6", "branch": {"svd": 1, "budget": 1}}
    quantize(net, recipe, torch.rand(1, 3, 16, 16), progress=False)
    save_checkpoint(net, tmp_path / "q.safetensors", RRDB)
    wrapped = {"type": "QuantFaceArch", "weights": "q.safetensors"}
    expected = command.figures("--checkpoint", "q.safetensors", "--size", "16")
    assert {row["weight_bits"] for row in expected["entries"] if row["kind"] == "Conv2d"} == {4}
    for options in (
        {"network_g": wrapped},
        {"network_g": {**wrapped, "arch": RRDB}, "quant": {"name": "w8a8"}},
        {"network_g": RRDB, "path": {"pretrain_network_g": "q.safetensors"}},
    ):
        found = command.figures("--size", "16", options=options)
        assert found["total"] == expected["total"]
    other = {"network_g": {**wrapped, "arch": {**RRDB, "num_feat": 24}}}
    status, _, err = command("--size", "16", options=other)
    assert status == 1 and "q.safetensors: of another arch: num_feat: found 16" in err


@pytest.mark.slow
def test_bit_maps_ranks_and_balancing_of_the_options_are_counted(command, tmp_path):
    model = build_arch(TINY)
    recipe = Recipe.from_dict({"name": "w4a4", "eight_bit": list(model.eight_bit_patterns)})
    bits = convert(model, recipe).bits
    name = "unet.mid_block.resnets.0.conv1"
    save_bit_map(tmp_path / "map.yml", {**bits, name: (3, 5)})
    quant = {
        "name": "w4a4",
        "bit_map": "map.yml",
        "balance": {"kind": "scale", "layers": {name: "both"}},
        "branch": {"svd": 2, "ranks": {name: [3, 2]}, "budget": 1},
    }
    options = {"network_g": {"type": "QuantFaceArch", "arch": TINY, "weights": "gone.pth"}}
    status, out, err = command(
        "--size", "64", "--top", "0", "--csv", "x.csv", options={**options, "quant": quant}
    )
    assert status == 0, err
    assert "recipe w4a4" in out and "most that it can cost" not in out and "| layer |" not in out
    rows = {row["name"]: row for row in csv.DictReader((tmp_path / "x.csv").open())}
    row = rows[name]
    keys = ("part", "weight_bits", "activation_bits", "rank", "balance")
    assert [row[key] for key in keys] == ["UNet mid", "3", "5", "5", "both"]
    others = [row for key, row in rows.items() if key in bits and key != name]
    assert {row["balance"] for row in others} == {"scale", "none"}
    # The narrowest layers have room for one; those at 8 bits have no branch.
    assert {row["rank"] for row in others} == {"0", "1", "2"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "note"),
    [
        ("quantface_mp.yml", "recipe w4a4\n"),
        ("train_mini.yml", "not quantized: counted at 16 bits"),
        ("sr/swinir_w4a8.yml", "recipe w4a8; calibration chooses"),
        ("peers/passionsr.yml", "recipe w4a4\n"),
    ],
)
def test_options_of_the_project_are_counted(command, repo, monkeypatch, options, note):
    monkeypatch.chdir(repo)
    status, out, err = command("-opt", f"options/{options}", "--size", "64")
    assert status == 0, err
    assert "| total |" in out and f" bytes in tensors; {note}" in out


def test_training_that_learns_scales_is_counted_with_them(command):
    options = {"network_g": RRDB, "quant": {"name": "w4a4", "balance": {"kind": "none"}}}
    plain = command.figures("--size", "16", options=options)["total"]
    options["train"] = {"weights": "scale"}
    found = command.figures("--size", "16", options=options)["total"]
    assert plain["balance_bytes"] == plain["additions"] == 0
    assert found["scalings"] > 0 and found["balance_bytes"] > 0 == found["additions"]


@pytest.mark.parametrize(
    ("words", "options", "status", "message"),
    [
        ((), None, 2, "give -opt OPTIONS.yml or --checkpoint FILE"),
        (("--size", "0"), {"network_g": RRDB}, 2, "--size: allowed are whole numbers from 1"),
        (("--csv", "x.txt"), {"network_g": RRDB}, 2, "--csv x.txt: the file is written as .csv"),
        (("--picture", "x.jpg"), {"network_g": RRDB}, 2, "the file is written as .png"),
        (("--checkpoint", "nothing"), None, 1, "model 'nothing': neither a shipped model"),
        (("--checkpoint", "."), None, 1, "a folder, expected a .safetensors file"),
        (("-opt", "none.yml"), None, 1, "options file none.yml: cannot be read: No such file"),
        ((), {"quant": {"name": "w4a4"}}, 1, "the block network_g is missing"),
        ((), {"network_g": {"type": "Nothing"}}, 1, "network type: found 'Nothing'"),
        ((), {"network_g": {"type": "QuantFaceArch"}}, 1, "network_g option arch: missing"),
        ((), {"network_g": RRDB, "quant": {"name": "w9a9"}}, 1, "recipe weights: no bits"),
        (("--size", "60"), {"network_g": TINY}, 1, "both sides must be multiples of"),
        (("--size", "1"), {"network_g": RRDB}, 1, "RRDBNet cannot be counted on a 3x1x1 image"),
        (("--size", "8"), {"network_g": {**RRDB, "num_in_ch": 4}}, 1, "cannot be counted on a 3x8"),
        (
            (),
            {"network_g": RRDB, "quant": {"name": "w4a4", "bit_map": "gone.yml"}},
            1,
            "gone.yml: no bit map: cannot be read: No such file",
        ),
    ],
)
def test_mistakes_are_one_line(command, tmp_path, words, options, status, message):
    found, out, err = command(*words, options=options)
    assert (found, out) == (status, "")
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert {item.name for item in tmp_path.iterdir()} <= {"options.yml"}


def test_help_teaches(script):
    text = script.make_parser().format_help()
    assert "examples:" in text and "--checkpoint mini-w4a4" in text and "max(w, a)/32" in text
