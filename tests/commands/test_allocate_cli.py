"""scripts/allocate_bits.py: a bit map within its budget, solved again, continued, refused."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
import yaml
from allocation_files import OPTIONS, changed, enter
from small_networks import RRDB, TINY

from quantface_arch.archs.build import build_arch
from quantface_arch.quant import Recipe, convert, quantize, save_checkpoint
from quantface_arch.quant.allocation import distance, pipeline
from quantface_arch.quant.config.bitmap import bits_of, load_bit_map


@pytest.fixture
def script(load_script):
    return load_script("allocate_bits")


@pytest.fixture
def work(tmp_path, monkeypatch):
    return enter(tmp_path, monkeypatch)


@pytest.fixture
def command(script, work, run_script):
    """Run the command in this process, options as in OPTIONS: (exit status, stdout, stderr)."""

    def run(*words, options=OPTIONS, out="map.yml"):
        (work / "options.yml").write_text(yaml.safe_dump(options))
        return run_script(script, "-opt", "options.yml", "--out", out, *words)

    return run


def average_of(path):
    return yaml.safe_load(path.read_text())["average"]["activation_bits"]


@pytest.mark.slow
def test_a_map_within_the_budget_comes_out_and_convert_takes_it(command, work):
    status, out, _ = command()
    assert status == 0
    bits = bits_of(load_bit_map("map.yml"))
    assert bits["conv_first"] == (8, 8)
    assert {a for _, a in bits.values()} <= {3, 4, 8} and {w for w, _ in bits.values()} == {4, 8}
    assert 3.5 < average_of(work / "map.yml") <= 4.0
    assert f"inputs: {average_of(work / 'map.yml'):.4f} bits" in out
    plot = cv2.imread("map.png")
    assert plot is not None and plot.std() > 5
    left = {item.name for item in work.iterdir()} - {"faces", "float.safetensors", "options.yml"}
    assert left == {"map.yml", "map.png", "map.sensitivities.json"}
    model = build_arch(RRDB)
    recipe = Recipe.from_name("w4a4")
    assert convert(model, recipe, bits).bits == bits
    model = build_arch(RRDB).eval()
    quantize(model, recipe, torch.rand(1, 3, 32, 32), progress=False, bits=bits)
    save_checkpoint(model, work / "q.safetensors", RRDB)
    promised = int(out.split("about ")[1].split(" bytes")[0].replace(",", ""))
    assert promised == pytest.approx((work / "q.safetensors").stat().st_size, rel=0.15)


@pytest.mark.slow
def test_another_budget_is_solved_without_the_network(command, work):
    command()
    shutil.rmtree("faces")
    (work / "float.safetensors").unlink()
    known = ("--sensitivities", "map.sensitivities.json")
    status, _, _ = command(*known, "--activation-bits", "6", out="six.json")
    assert status == 0
    document = json.loads((work / "six.json").read_text())
    assert 5 < document["average"]["activation_bits"] <= 6
    assert not (work / "six.sensitivities.json").exists()
    assert command(*known, "--activations", "4", "--activation-bits", "8", out="four.json")[0] == 0
    widths = json.loads((work / "four.json").read_text())["layers"].values()
    assert {(row["w"], row["a"]) for row in widths} == {(8, 8), (4, 4)}
    status, _, err = command(*known, options=changed(activations=[3, 4, 5]))
    assert status == 1 and "activation bit width 5 was not measured" in err
    command(*known, options=changed(count=["conv_last"]), out="one.yml")
    assert average_of(work / "one.yml") in (3, 4)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_an_ended_one_is_not_repeated(command, work, monkeypatch):
    command()
    expected, sensitivities = (
        (work / name).read_bytes() for name in ("map.yml", "map.sensitivities.json")
    )
    (work / "map.sensitivities.json").unlink()
    plain = distance.ssim_distance
    calls = []

    def counted(*args, **options):
        calls.append(1)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return plain(*args, **options)

    monkeypatch.setattr(distance, "ssim_distance", counted)
    stop_at = 30
    assert command()[0] == 130
    first, stop_at = len(calls), None
    assert command()[0] == 0
    found = json.loads(sensitivities)["measured"]
    assert len(calls) == first + 2 * sum(len(probes) for probes in found.values()) - (first - 1)
    assert (work / "map.yml").read_bytes() == expected
    assert json.loads((work / "map.sensitivities.json").read_text())["measured"] == found
    calls.clear()
    assert command("--activation-bits", "5")[0] == 0
    assert not calls
    assert command(options={**OPTIONS, "quant": {**OPTIONS["quant"], "name": "w6a6"}})[0] == 0
    assert calls


@pytest.mark.parametrize(
    ("words", "options", "status", "message"),
    [
        (("--activation-bits", "2.9"), OPTIONS, 1, "activation_bits: found 2.9, the smallest"),
        (("--bytes", "1000"), OPTIONS, 1, "megabytes: found 0.001, the smallest feasible one is"),
        (("--activation-bits", "-1"), OPTIONS, 1, "budget activation_bits: found -1"),
        (("-i", "nowhere"), OPTIONS, 2, "nowhere: no such folder"),
        (("--pareto", "map.png"), OPTIONS, 2, "map.png: the bit map's own plot has this name"),
        (("--activations", "4", "9"), OPTIONS, 1, "option activations: found [4, 9]"),
        (
            ("--sensitivities", "none.json"),
            OPTIONS,
            1,
            "sensitivities: cannot be read:",
        ),
        ((), changed(activations=[3, 9]), 1, "option activations: found [3, 9]"),
        ((), changed(weights=[1]), 1, "option weight_bits: found [1]"),
        ((), changed(protect={"nothing.*": 8}), 1, "protect: pattern 'nothing.*' matches no"),
        ((), changed(protect={"conv_last": 9}), 1, "protect conv_last: found [9]"),
        ((), changed(count=["nothing"]), 1, "count: pattern 'nothing' matches no layer"),
        ((), changed(budgets={}), 1, "allocate options: unknown key budgets"),
        ((), changed(budget={"bits": 4}), 1, "budget: unknown key bits"),
        ((), changed(perceptual={"type": "None"}), 1, "option perceptual: found"),
        ((), {**changed(), "allocate": {"lambda": 2}}, 1, "lambda: found 2"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_measured(
    command, work, monkeypatch, words, options, status, message
):
    def measured(*_):
        raise AssertionError("measured in vain")

    monkeypatch.setattr(pipeline, "measure", measured)
    found, out, err = command(*words, options=options)
    assert (found, out) == (status, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not (work / "map.yml").exists()


@pytest.mark.slow
def test_another_suffix_and_a_quantized_network_are_refused(command, work):
    assert "bit maps end in" in command(out="map.txt")[2]
    model = build_arch(RRDB).eval()
    quantize(model, "w8a8", torch.rand(1, 3, 32, 32), progress=False)
    save_checkpoint(model, work / "float.safetensors", RRDB)
    assert "already quantized" in command()[2]


@pytest.mark.slow
def test_the_options_of_the_mini_work_on_a_tiny_one(command, work, repo):
    options = yaml.safe_load((repo / "options/allocate_mini.yml").read_text())
    save_checkpoint(build_arch(TINY), work / "tiny.safetensors", TINY)
    options["network_g"] = {"type": "QuantFaceArch", "weights": "tiny.safetensors"}
    (work / "large").mkdir()
    cv2.imwrite("large/face.png", np.random.randint(0, 256, (64, 64, 3), np.uint8))
    options["datasets"]["train"]["dataroot_gt"] = "large"
    options["quant"]["calibration"] |= {"num_images": 1, "size": 64}
    options["quant"] |= {"balance": {"kind": "scale"}, "branch": {"svd": 0}}
    options["allocate"] |= {"activations": [3, 8], "image_size": 64}
    options["allocate"]["perceptual"] = {"type": "QuantFaceEdgeLoss"}
    options["allocate"]["protect"] = {"unet.*": 8}
    options["allocate"]["budget"]["activation_bits"] = 6.5
    status, _, err = command(options=options)
    assert status == 0, err
    bits = bits_of(load_bit_map("map.yml"))
    assert all(bits[name] == (8, 8) for name in bits if name.startswith("vre."))
    assert bits["unet.conv_in"] == (8, 8)
    assert average_of(work / "map.yml") <= 6.5


def test_help_teaches(script):
    text = script.make_parser().format_help()
    assert "examples:" in text and "--activation-bits" in text and "continues where" in text
