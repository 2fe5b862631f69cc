"""Every options file can be used as it stands."""

from __future__ import annotations

import pytest
from accelerate import init_empty_weights
from loops import load_options

import quantface_arch.register  # noqa: F401
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY
from quantface_arch.archs.build import build_arch
from quantface_arch.models.quantize_stage import read_quant_options
from quantface_arch.quant import convert
from quantface_arch.quant.calibration.selection import branch_ranks

SETTINGS = {"w8": "w8a8", "w4a8": "w4a8", "w6": "w6a6", "w4a6": "w4a6", "w4": "w4a4", "mp": "w4a4"}
SR = ("rrdbnet_w4a8", "swinir_w4a8")
QUANTIZING = [
    *(f"{folder}quantface_{key}" for folder in ("", "osdface/") for key in SETTINGS),
    *(f"sr/{name}" for name in SR),
]


def read(repo, name):
    return load_options(repo / f"options/{name}.yml")


def test_every_setting_has_its_file(repo):
    found = {str(p.relative_to(repo / "options")) for p in (repo / "options").rglob("*quantface_*")}
    assert found == {f"{name}.yml" for name in QUANTIZING if "quantface" in name}


def test_every_file_says_how_it_is_run_and_names_what_is_registered(repo):
    for path in (repo / "options").rglob("*.yml"):
        if "maps" in path.parts:
            continue
        opt = load_options(path)
        assert f"-opt {path.relative_to(repo)}" in path.read_text().split("\nname:")[0], path
        arch = opt["network_g"]
        assert arch["type"] in ARCH_REGISTRY, path
        assert arch.get("arch", arch)["type"] in ARCH_REGISTRY, path
        for data in opt.get("datasets", {}).values():
            assert data["type"] in DATASET_REGISTRY, path
        if "model_type" in opt:
            assert opt["model_type"] in MODEL_REGISTRY, path
        for loss in opt.get("train", {}).get("losses", []):
            assert loss["type"] in LOSS_REGISTRY, path


@pytest.mark.slow
@pytest.mark.parametrize("name", QUANTIZING)
def test_the_recipe_fits_the_network(repo, name):
    opt = read(repo, name)
    with init_empty_weights():
        net = build_arch(opt["network_g"]["arch"])
    opt["quant"].pop("bit_map", None)
    recipe, bits, balance = read_quant_options(opt["quant"], net)
    assert bits is balance is None
    report = convert(net, recipe)
    key = name.rpartition("_")[2]
    widths = SETTINGS.get(key, key)
    assert recipe.name == widths
    assert {f"w{w}a{a}" for w, a in report.bits.values()} <= {widths, "w8a8"}
    # Ranks within the cap and the budget; W8A8 needs none.
    assert bool(branch_ranks(net, recipe.branch)) == (widths != "w8a8")


def test_the_files_of_a_folder_differ_in_little(repo):
    same = ("datasets", "network_g", "model_type", "scale", "logger")
    for folder in ("", "osdface/"):
        first = read(repo, f"{folder}quantface_w4")
        for key in SETTINGS:
            other = read(repo, f"{folder}quantface_{key}")
            assert all(other[part] == first[part] for part in same), (folder, key)
            assert other["train"]["losses"] == first["train"]["losses"]
