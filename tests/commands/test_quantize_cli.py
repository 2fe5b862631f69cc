"""scripts/quantize.py: a checkpoint out, statuses, one-line errors, going on after a crash."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from small_networks import RRDB

from quantface_arch.archs.build import build_arch
from quantface_arch.data import calibration_faces
from quantface_arch.pretrained.zoo import load_model
from quantface_arch.quant import quant_layers, read_metadata, save_checkpoint


@pytest.fixture
def script(load_script):
    return load_script("quantize")


@pytest.fixture
def work(tmp_path):
    (tmp_path / "faces" / "deep").mkdir(parents=True)
    for number in range(6):
        folder = tmp_path / "faces" / ("deep" if number % 2 else "")
        picture = np.random.randint(0, 256, (32, 32, 3), np.uint8)
        assert cv2.imwrite(str(folder / f"{number}.png"), picture)
    (tmp_path / "faces" / "notes.txt").write_text("no picture")
    save_checkpoint(build_arch(RRDB), tmp_path / "float.safetensors", RRDB)
    return tmp_path


@pytest.fixture
def command(script, work, run_script):
    """Run the command in this process: (exit status, stdout, stderr)."""

    def run(**options):
        options = {
            "model": work / "float.safetensors",
            "recipe": "w4a8",
            "input": work / "faces",
            "output": work / "out.safetensors",
            "size": 32,
            "batch-size": 1,
            **options,
        }
        words = []
        for name, value in options.items():
            values = value if isinstance(value, list) else [value]
            words += [f"--{name}", *values]
        return run_script(script, *words)

    return run


@pytest.mark.slow
def test_a_checkpoint_comes_out(command, work):
    status, out, _ = command(report=work / "layers.txt", exclude=["conv_last"])
    assert status == 0
    path = work / "out.safetensors"
    parameters = sum(p.numel() for p in build_arch(RRDB).parameters())
    assert f"{path.stat().st_size:,} bytes for {parameters:,} parameters" in out
    assert "float: excluded by the recipe" in (work / "layers.txt").read_text()
    metadata = read_metadata(path)
    assert metadata["arch"] == RRDB
    assert metadata["recipe"]["weights"]["range"] == "mse"
    assert metadata["extra"]["calibration"] == {"pictures": 6, "size": 32}
    x = torch.rand(1, 3, 32, 32)
    assert load_model(path)(x).shape == load_model(work / "float.safetensors")(x).shape
    left = {item.name for item in work.iterdir()}
    assert left == {"faces", "float.safetensors", "out.safetensors", "layers.txt"}


@pytest.mark.slow
def test_weights_are_rounded_as_chosen(command, work):
    for rounding in ("nearest", "gptq"):
        path = work / f"{rounding}.safetensors"
        assert command(rounding=rounding, output=path, recipe="w3a8")[0] == 0
        assert read_metadata(path)["recipe"]["weights"]["rounding"] == rounding
    assert (work / "nearest.safetensors").read_bytes() != (work / "gptq.safetensors").read_bytes()


@pytest.mark.slow
def test_inputs_of_fewer_than_eight_bits_have_zero_points_of_channels(command, work):
    for recipe, options, zeros in (
        ("w4a6", {}, "channel"),
        ("w4a6", {"zero-points": "tensor"}, "tensor"),
        ("w4a8", {}, "tensor"),
    ):
        path = work / "out.safetensors"
        assert command(recipe=recipe, **options)[0] == 0
        assert read_metadata(path)["recipe"]["activations"]["zero_points"] == zeros
        layers = quant_layers(load_model(path))
        found = {bool(x.act_zero_point.ndim) for x in layers if x.activation_spec.bits < 8}
        assert found == ({zeros == "channel"} if recipe == "w4a6" else set())


@pytest.mark.slow
def test_a_killed_run_goes_on_and_writes_the_same_file(command, work, monkeypatch):
    command()
    expected = (work / "out.safetensors").read_bytes()
    (work / "out.safetensors").unlink()
    read = calibration_faces.load_rgb
    count = iter(range(100))

    def interrupted(path):
        if next(count) == 5:
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr(calibration_faces, "load_rgb", interrupted)
    assert command()[0] == 130
    assert (work / "out.calib-balance.safetensors").exists()
    assert not (work / "out.safetensors").exists()
    monkeypatch.setattr(calibration_faces, "load_rgb", read)
    ran = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: ran.append(1) if type(module).__name__ == "RRDBNet" else None
    )
    assert command()[0] == 0
    hook.remove()
    # Two images of the first pass were left and the whole second one; then the file is compared.
    assert len(ran) == 2 + 6 + 2
    assert (work / "out.safetensors").read_bytes() == expected
    assert not list(work.glob("*calib*"))


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ({"recipe": "w4"}, 1, "recipe: found 'w4', allowed are w8a8"),
        ({"model": "nothing"}, 1, "model 'nothing'"),
        ({"input": "nowhere"}, 2, "nowhere: no such file or folder"),
        ({"input": "EMPTY"}, 2, "no image in this folder"),
        ({"input": "BAD"}, 1, "(0 bytes)"),
        ({"output": "out.pth"}, 2, "written as .safetensors"),
        ({"include": ["unet.*"]}, 1, "include: pattern 'unet.*' matches no layer"),
        ({"range": "max"}, 2, "argument --range"),
        ({"size": 0}, 2, "argument --size: found '0'"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(command, work, options, status, message):
    (work / "empty").mkdir()
    (work / "bad").mkdir()
    (work / "bad" / "a.png").touch()
    places = {"EMPTY": work / "empty", "BAD": work / "bad"}
    found, out, err = command(**{k: places.get(str(v), v) for k, v in options.items()})
    assert (found, out) == (status, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert "Traceback" not in err
    assert not (work / "out.safetensors").exists()


@pytest.mark.slow
def test_a_quantized_model_is_refused(command, work):
    command()
    status, _, err = command(model=work / "out.safetensors", output=work / "twice.safetensors")
    assert status == 1
    assert "expected a float model" in err


def test_help_teaches(script):
    text = script.make_parser().format_help()
    assert "examples:" in text and "--recipe w4a8" in text and "sd21-base" in text
