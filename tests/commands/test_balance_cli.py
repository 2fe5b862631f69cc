"""scripts/balance.py: a file that options can name, a table, one-line errors."""

from __future__ import annotations

import copy

import pytest
import torch
import yaml
from loops import write_noise
from small_networks import RRDB

from quantface_arch.archs.build import build_arch
from quantface_arch.integration.options import read_options
from quantface_arch.models.quantize_stage import calibration_images, read_quant_options
from quantface_arch.quant import CalibrationData, load_balance, prepare, save_checkpoint


@pytest.fixture
def script(load_script):
    return load_script("balance")


@pytest.fixture
def work(tmp_path):
    write_noise(tmp_path / "faces", 3, 40)
    save_checkpoint(build_arch(RRDB), tmp_path / "float.safetensors", RRDB)
    return tmp_path


@pytest.fixture
def command(script, work, run_script):
    """Run the command in this process on options with some entries of ``quant`` replaced."""

    def run(*words, out="balance.safetensors", **quant):
        opt = {
            "scale": 2,
            "network_g": {"type": "QuantFaceArch", "weights": str(work / "float.safetensors")},
            "datasets": {
                "train": {
                    "type": "QuantFaceDataset",
                    "dataroot_gt": str(work / "faces"),
                    "gt_size": 32,
                }
            },
            "quant": {
                "name": "w4a4",
                "balance": {"kind": "auto"},
                "calibration": {"num_images": 2, "batch_size": 2},
                **quant,
            },
        }
        (work / "options.yml").write_text(yaml.safe_dump(opt))
        return run_script(script, "-opt", work / "options.yml", "--out", work / out, *words)

    return run


def outputs(work, **options):
    """What the network gives, quantized as the options say, balanced by itself or from a file."""
    opt = read_options(work / "options.yml")
    net = build_arch(opt["network_g"]).eval()
    recipe, _, _ = read_quant_options(opt["quant"], net)
    pictures = calibration_images(opt, net)
    prepare(net, recipe, CalibrationData(pictures, batch_size=2, progress=False), **options)
    with torch.no_grad():
        return net(torch.stack(pictures))


@pytest.mark.slow
def test_the_file_stands_for_the_choice_made_in_training(command, work):
    status, out, err = command()
    assert status == 0, err
    plan = load_balance(work / "balance.safetensors")
    rows = {line.split()[0]: line.split() for line in out.splitlines()[1:-1]}
    assert rows.keys() == plan.keys()
    assert all(rows[name][1] == balance.kind for name, balance in plan.items())
    found = outputs(work, balance=plan)
    assert torch.equal(found, outputs(work))
    plain = copy.deepcopy(plan)
    for name in plain:
        plain[name] = type(plan[name])()
    assert not torch.equal(found, outputs(work, balance=plain))


@pytest.mark.slow
def test_the_table_compares_with_no_balancing(command, work):
    _, out, _ = command(
        balance={"kind": "none", "layers": {"conv_first": "none", "body.*": "both"}}
    )
    rows = [line.split() for line in out.splitlines()[1:-1]]
    for name, kind, *_, before, after in rows:
        assert (kind == "both") == (before != after), name
        assert 0 < float(before) < 60


@pytest.mark.slow
def test_a_folder_of_faces_and_a_report_file(command, work):
    status, out, _ = command("-i", work / "faces", "--report", work / "table.txt")
    assert status == 0
    assert len(out.splitlines()) == 1 and "balance.safetensors: " in out
    assert (work / "table.txt").read_text().startswith("layer")


@pytest.mark.parametrize(
    ("words", "options", "status", "message"),
    [
        ((), {"balance": {"kind": "none"}}, 1, "nothing to choose"),
        ((), {"balance": {"kind": "turn"}}, 1, "turn"),
        ((), {"name": "w4"}, 1, "recipe"),
        (("-i", "nowhere"), {}, 2, "nowhere: no such folder"),
        ((), {"out": "balance.pth"}, 2, "written as .safetensors"),
        (("-opt", "no.yml"), {}, 1, "options file no.yml: cannot be read: No such file"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(command, work, words, options, status, message):
    found, out, err = command(*words, **options)
    assert (found, out) == (status, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert "Traceback" not in err
    assert not list(work.glob("balance.*"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not YAML"), ("- 1", "expected a mapping"), ("network_g: {}", "quant is missing")],
)
def test_damaged_options_are_named(tmp_path, text, message):
    path = tmp_path / "options.yml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_options(path)


def test_help_teaches(script):
    text = script.make_parser().format_help()
    assert "examples:" in text and "balance: {file: balance.safetensors}" in text
