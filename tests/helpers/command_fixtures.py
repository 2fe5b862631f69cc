"""Fixtures that several of these tests share."""

from __future__ import annotations

import sys

import numpy as np
import programs
import pytest
from loops import load_options, shrink, write_images
from small_networks import TINY

from quantface_arch.archs.build import build_arch
from quantface_arch.quant.checkpoint.save_load import save_checkpoint
from quantface_arch.restore.cli import main, make_parser
from quantface_arch.utils.cli import run
from quantface_arch.utils.images import RGBImage, load_rgb, write_image


@pytest.fixture
def w4_options(repo, tmp_path):
    """Return the shipped W4A4 options, shrunk, with an EMA and accumulated gradients."""
    write_images(tmp_path / "faces")
    opt = shrink(load_options(repo / "options/quantface_w4.yml"), tmp_path / "faces", steps=6)
    opt["train"].update(ema_decay=0.5, accumulate=2)
    return opt


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_checkpoint(build_arch(TINY), path, TINY)
    return path


@pytest.fixture
def run_program(repo, bench_env):
    """Return a function that runs a program of the repository, which must succeed, in its root."""

    def call(path, *words, timeout=600):
        done = programs.run_program(path, *words, cwd=repo, env=bench_env, timeout=timeout)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


@pytest.fixture
def photographs(repo, tmp_path):
    """Return a folder with three small photographs of one face each."""
    folder = tmp_path / "in"
    folder.mkdir()
    face = load_rgb(repo / "inputs/astronaut.jpg")
    for index, factor in enumerate((0.9, 1.0, 1.1)):
        darker = np.clip(face * factor, 0, 255).astype(np.uint8)
        write_image(folder / f"{index}.png", RGBImage(darker))
    return folder


@pytest.fixture
def restore(model, tmp_path, monkeypatch, capsys):
    """Return a function that types the command; it returns (exit status, stdout, stderr)."""

    def call(*arguments, detector="yunet"):
        command = ["restore.py", "--model", model, "-o", tmp_path / "out", "--offline"]
        command += ["--detector", detector, *arguments]
        monkeypatch.setattr(sys, "argv", [str(text) for text in command])
        with pytest.raises(SystemExit) as stopped:
            run(main, make_parser())
        return stopped.value.code, *capsys.readouterr()

    return call
