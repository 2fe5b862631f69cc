"""The restore command on images, with a tiny restorer that has random weights."""

from __future__ import annotations

import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from PIL import Image
from programs import run_program
from small_networks import TINY

from quantface_arch.archs.build import build_arch
from quantface_arch.quant.checkpoint.save_load import save_checkpoint
from quantface_arch.restore.cli import make_parser
from quantface_arch.utils.cli import run
from quantface_arch.utils.images import RGBImage, load_rgb, read_image, write_image


def _written(folder):
    """Return the files of a folder, except the manifest that every run writes."""
    found = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".jsonl")
    return sorted(str(p.relative_to(folder)) for p in found)


def _errors(stderr):
    return [line for line in stderr.splitlines() if line.startswith("error: ")]


@pytest.mark.slow
def test_outputs_are_laid_out_as_documented(restore, photographs, tmp_path):
    (photographs / "notes.txt").write_text("x")
    status, stdout, stderr = restore("-i", photographs, "--compare")
    assert status == 0, stderr
    assert _written(tmp_path / "out") == [
        *(f"compare/{i}.png" for i in range(3)),
        *(f"cropped_faces/{i}_00.png" for i in range(3)),
        *(f"restored/{i}.png" for i in range(3)),
        *(f"restored_faces/{i}_00.png" for i in range(3)),
    ]
    assert load_rgb(tmp_path / "out/restored_faces/0_00.png").shape == (512, 512, 3)
    source, result = load_rgb(photographs / "0.png"), load_rgb(tmp_path / "out/restored/0.png")
    assert 0.02 < (source != result).any(axis=2).mean() < 0.5
    for text in ("3 images", "3 faces", "0 failed", "1 other files", "seconds per face"):
        assert text in stdout
    assert "3/3" in stderr


@pytest.mark.slow
def test_aligned_faces(restore, photographs, tmp_path):
    Image.open(photographs / "0.png").resize((100, 100)).convert("LA").save(photographs / "0.png")
    status, _, stderr = restore("-i", photographs, "--aligned", "--compare", "--batch-size", "2")
    assert status == 0, stderr
    names = [f"{folder}/{i}.png" for folder in ("compare", "restored_faces") for i in range(3)]
    assert _written(tmp_path / "out") == names
    image = read_image(tmp_path / "out/restored_faces/0.png")
    assert image.size == (512, 512) and image.alpha.shape == (512, 512)


@pytest.mark.slow
def test_order_and_batches_do_not_change_sampled_images(restore, photographs, tmp_path):
    """Every division into runs and batches gives the same images."""
    runs = {
        "together": [[photographs, "--batch-size", "3"]],
        "alone": [[photographs / f"{i}.png", "--batch-size", "1"] for i in (2, 0, 1)],
    }
    for name, calls in runs.items():
        for call in calls:
            arguments = ["-i", *call, "--sample", "--seed", "5", "--aligned"]
            assert restore(*arguments, "-o", tmp_path / name)[0] == 0
    for i in range(3):
        one, other = (load_rgb(tmp_path / n / f"restored_faces/{i}.png") for n in runs)
        assert np.abs(one.astype(int) - other).max() <= 1


@pytest.mark.slow
def test_skip_existing(restore, photographs, tmp_path):
    final = tmp_path / "out/restored/1.png"
    write_image(final, RGBImage(np.zeros((20, 20, 3), np.uint8)))
    status, stdout, _ = restore("-i", photographs, "--skip-existing")
    assert status == 0 and "2 images" in stdout and "1 skipped" in stdout
    assert load_rgb(final).shape == (20, 20, 3)
    status, stdout, _ = restore("-i", photographs, "--skip-existing")
    assert status == 0 and "all 3 images are done already" in stdout


@pytest.mark.slow
def test_an_image_without_faces(restore, tmp_path):
    path = tmp_path / "empty.png"
    write_image(path, RGBImage(np.full((60, 80, 3), 90, np.uint8)))
    status, stdout, stderr = restore("-i", path)
    assert status == 1
    assert _errors(stderr)[0].startswith(f"error: {path}: no face found")
    assert not _written(tmp_path / "out")
    status, stdout, _ = restore("-i", path, "--keep-unrestored", "--upscale", "2")
    assert status == 0 and "1 written unrestored" in stdout
    assert load_rgb(tmp_path / "out/restored/empty.png").shape == (120, 160, 3)


@pytest.mark.slow
def test_results_inside_the_input_folder_are_not_restored_again(restore, photographs):
    arguments = ("-i", photographs, "--recursive", "-o", photographs / "results")
    assert "3 images" in restore(*arguments)[1]
    assert "3 images" in restore(*arguments)[1]


@pytest.mark.slow
def test_a_broken_network_fails_its_images_and_writes_nothing(
    restore, photographs, tmp_path, monkeypatch
):
    broken = build_arch(TINY)
    broken.vae.decoder.conv_out.bias.data.fill_(float("nan"))
    path = tmp_path / "broken.safetensors"
    save_checkpoint(broken, path, TINY)
    status, _, stderr = restore("-i", photographs, "--model", path)
    assert status == 1
    assert len(_errors(stderr)) == 3 and "not finite" in _errors(stderr)[0]
    assert not _written(tmp_path / "out")


WRONG = {
    "missing input": (["-i", "missing.jpg"], "missing.jpg does not exist"),
    "no match": (["-i", "missing/*.png"], "nothing matches missing/*.png"),
    "model": (["-i", "IN", "--model", "nonsense"], "nonsense"),
    "strength": (["-i", "IN", "--strength", "1.5"], "--strength: 1.5 is not a number from 0 to 1"),
    "strength word": (["-i", "IN", "--strength", "some"], "--strength: some is not a number"),
    "identity": (["-i", "IN", "--identity", "2"], "--identity: 2 is not a number from 0 to 1"),
    "identity weights": (
        ["-i", "IN", "--identity", "0.5", "--identity-weights", "IN/x.onnx"],
        "--identity-weights: no file",
    ),
    "color": (["-i", "IN", "--color-fix", "sepia"], "--color-fix"),
    "upscale": (["-i", "IN", "--upscale", "nan"], "--upscale"),
    "batch": (["-i", "IN", "--batch-size", "0"], "--batch-size"),
    "seed": (["-i", "IN", "--seed", "x"], "--seed"),
    "device": (["-i", "IN", "--device", "toaster"], "--device 'toaster'"),
    "runtime": (["-i", "IN", "--runtime", "abacus"], "abacus"),
    "detector": (["-i", "IN", "--detector", "eyes"], "eyes"),
    "output": (["-i", "IN", "-o", "IN/0.png"], "0.png is not a folder"),
    "aligned": (["-i", "IN", "--aligned", "--upscale", "2"], "--aligned"),
    "option": (["-i", "IN", "--nonsense"], "--nonsense"),
    "nothing": ([], "-i"),
    "weights": (["-i", "IN", "--weights-dir", "IN/0.png"], "is not a folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage_is_one_line_and_nothing_is_done(restore, photographs, tmp_path, case):
    arguments, message = WRONG[case]
    arguments = [text.replace("IN", str(photographs)) for text in arguments]
    status, stdout, stderr = restore(*arguments)
    assert status == 2
    assert len(stderr.splitlines()) == 1
    assert stderr.startswith("error: ") and message in stderr
    assert not stdout and not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["truncated", "text"])
def test_the_error_names_a_damaged_checkpoint(restore, photographs, model, tmp_path, damage):
    data = model.read_bytes()[:-1000] if damage == "truncated" else b"hello"
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(data)
    status, _, stderr = restore("-i", photographs, "--model", path)
    assert status == 2
    assert len(_errors(stderr)) == 1 and str(path) in stderr and "Traceback" not in stderr


@pytest.mark.slow
def test_debug_shows_tracebacks(restore, tmp_path):
    (tmp_path / "zero.png").write_bytes(b"")
    status, _, stderr = restore("-i", tmp_path / "zero.png", "--debug")
    assert status == 1 and "Traceback" in stderr
    status, _, stderr = restore("-i", "missing.jpg", "--debug")
    assert status == 2 and "Traceback" in stderr and "missing.jpg does not exist" in stderr


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "x.png"), 1, "x.png: No space left on device"),
        (RuntimeError("two\nlines"), 1, "unexpected RuntimeError: two lines"),
    ],
)
def test_every_failure_is_one_line(monkeypatch, capsys, error, status, line):
    def fail(args):
        raise error

    monkeypatch.setattr(sys, "argv", ["restore.py", "-i", "x"])
    with pytest.raises(SystemExit) as stopped:
        run(fail, make_parser())
    assert stopped.value.code == status
    stderr = capsys.readouterr().err
    assert line in stderr and len(stderr.splitlines()) == 1


@pytest.mark.slow
def test_bad_files_do_not_stop_the_others(repo, model, photographs, tmp_path):
    """Run the command in its own process on every kind of bad file."""
    whole = (repo / "inputs/astronaut.jpg").read_bytes()
    (photographs / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (photographs / "zero.png").write_bytes(b"")
    (photographs / "text.png").write_text("hello")
    Image.new("1", (20000, 20000)).save(photographs / "huge.png")
    write_image(photographs / "1x1.png", RGBImage(np.zeros((1, 1, 3), np.uint8)))
    write_image(photographs / "blank.png", RGBImage(np.full((99, 99, 3), 128, np.uint8)))
    command = [repo / "inference/restore.py", "-i", photographs, "--model", model]
    command += ["-o", tmp_path / "out", "--detector", "yunet", "--offline"]
    done = run_program(*command, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    errors = _errors(done.stderr)
    named = [line.split(": ")[1].rpartition("/")[2] for line in errors]
    bad = ["1x1.png", "blank.png", "huge.png", "text.png", "truncated.jpg", "zero.png"]
    assert named == bad
    assert [p.stem for p in sorted((tmp_path / "out/restored").iterdir())] == ["0", "1", "2"]
    assert "6 failed" in done.stdout


def test_wrong_usage_is_reported_before_heavy_imports(repo, tmp_path):
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", repo / "inference/restore.py", "-i", "missing"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2 and "error: missing does not exist" in done.stderr
    for heavy in ("torch", "diffusers", "basicsr", "facexlib"):
        assert f" {heavy}\n" not in done.stderr
    assert time.perf_counter() - start < 20


@pytest.mark.slow
def test_real_photographs(restore, data_root, tmp_path):
    photographs = data_root / "inputs/whole"
    status, _, stderr = restore(
        "-i", photographs, "--weights-dir", data_root / "weights/facexlib", detector="auto"
    )
    assert status == 0, stderr
    for name, least in {"codeformer_00": 3, "codeformer_02": 4, "codeformer_06": 2}.items():
        assert len(list((tmp_path / "out/restored_faces").glob(f"{name}_*.png"))) >= least
    before = read_image(photographs / "codeformer_02.png")
    after = read_image(tmp_path / "out/restored/codeformer_02.png")
    assert np.array_equal(before.alpha, after.alpha)
    assert cv2.absdiff(before.rgb, after.rgb).any()
