"""Make command lines for benchmarks/robustness_fuzz.py, with right and wrong arguments.

Every command runs in the process of the fuzzer, in a folder of small files, good and bad ones. Its
arguments are those of a valid command line with options and values exchanged, removed and added.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from fault_commands import small_options
from fuzz_inputs import Strategy
from hypothesis import strategies as st
from PIL import Image
from small_networks import TINY

from quantface_arch.archs.build import build_arch
from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import quantize, save_checkpoint
from quantface_arch.restore import cli as restore_cli
from quantface_arch.utils.cli import run
from quantface_arch.web import cli as web_cli

__all__ = ["VALUES", "command_lines", "make_inputs", "run_command", "run_inside"]

REPO = Path(__file__).resolve().parents[1]
sys.path.append(str(REPO / "scripts"))
# Each command has a valid line. None uses OpenVINO, whose compiler would take most of the time.
SEEDS = {
    "restore": "-i faces -o out --model net.safetensors --aligned --runtime reference --offline",
    "restore whole": "-i photo.png -o out --model net.safetensors --runtime reference --offline",
    "app": "--port 0 --model net.safetensors --runtime reference --offline",
    "quantize": "--model net.safetensors -i faces -o new.safetensors --size 64 --num-images 1",
    "balance": "-opt small.yml --out new.safetensors --num-images 1",
    "allocate_bits": "-opt small.yml --out map.yml --num-images 1",
    "count_cost": "--checkpoint w4a8.safetensors --size 64",
    "evaluate": "-r faces -g faces --metrics psnr",
    "export": "--model w4a8.safetensors --format onnx -o new.onnx",
    "mix_checkpoints": "net.safetensors net.safetensors --share 0.5 -o new.safetensors",
    "draw_layers": "--model net.safetensors --quantized w4a8.safetensors -i faces -o new --size 64",
    "convert_pickle": "weights.pth new.safetensors",
    "fetch": "osdface --endpoint http://127.0.0.1:9 --revision main",
    "prepare_testset": "lfw -i faces -o set",
}
SIZES = ("net.safetensors", "w4a8.safetensors")
# Commands may name these files. Files that a command writes are removed before the next one.
INPUTS = (
    *SIZES,
    "faces",
    "photo.png",
    "moving.gif",
    "text.txt",
    "empty.png",
    "cut.png",
    "weights.pth",
    "small.yml",
    "wrong.yml",
    "list.json",
    "nothing",
)
VALUES = (
    "0", "1", "-1", "2", "0.5", "1e9", "-inf", "nan", "8", "64", "99999999999", "w4a8", "w4a4",
    "w3a3", "auto", "none", "svd", "gptq", "onnx", "openvino", "psnr", "ssim", "lpips", "niqe",
    "mini", "mini-w4a4", "missing", "missing.png", "*.png", "[", "fac*", "", " ", "ä", "a=b", "--",
    "-", "out", "new.safetensors", "new.onnx", "map.yml", "new", *INPUTS,
)  # fmt: skip
# Without these characters, names of files cannot leave the folder.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="/~\0"), max_size=8)
Parsed = tuple[Callable[[argparse.Namespace], int], Callable[[], argparse.ArgumentParser]]


def command_lines(folder: Path) -> tuple[Strategy, str, Callable[[Path], None]]:
    """Return a target of ``fuzz_targets``; its inputs are command lines as JSON lists."""
    make_inputs(folder)
    seeds = [[name, *line.split()] for name, line in SEEDS.items()]
    options = sorted({word for name in SEEDS for word in _options(name)})
    change = st.tuples(
        st.sampled_from(("set", "set", "drop", "insert", "option")),
        st.integers(1, 40),
        st.sampled_from(options),
        st.sampled_from(VALUES) | TEXT,
    )
    changes = st.lists(change, min_size=1, max_size=3)
    lines = st.builds(_changed, st.sampled_from(seeds), changes)
    return lines.map(lambda line: json.dumps(line).encode()), ".json", run_command


def run_command(path: Path) -> None:
    """Run the command that a file holds, in the folder of that file.

    Raises:
        QuantFaceError: the command refused its arguments or the files that they name.
        RuntimeError: the command ended in an error that it did not expect.
    """
    name, *words = json.loads(path.read_text())
    main, make_parser = _command(name)
    run_inside(path.parent, [name, *words], lambda: run(main, make_parser()), (0, 1, 2))


def run_inside(
    folder: Path, line: Sequence[str], call: Callable[[], Any], statuses: Collection[int]
) -> None:
    """Run a command line in this process, in a folder; delete afterwards what it wrote there.

    Args:
        folder: the working folder.
        line: the name of the command and its arguments.
        call: runs it.
        statuses: exit statuses that it may end with.

    Raises:
        QuantFaceError: the command ended with a status other than 0.
        RuntimeError: the command's status is not allowed, or it reported an unexpected error.
    """
    before = {entry.name for entry in folder.iterdir()}
    arguments, here = sys.argv, Path.cwd()
    said = io.StringIO()
    os.chdir(folder)
    sys.argv = list(line)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            call()
    except SystemExit as end:
        if end.code not in statuses or "unexpected" in said.getvalue():
            raise RuntimeError(f"{line}: status {end.code}: {said.getvalue()}") from None
        if end.code:
            raise QuantFaceError(said.getvalue()) from None
    finally:
        sys.argv = arguments
        os.chdir(here)
        for entry in folder.iterdir():
            if entry.name not in before:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _changed(seed: list[str], edits: list[tuple[str, int, str, str]]) -> list[str]:
    line = list(seed)
    for kind, place, option, value in edits:
        at = min(place, len(line))
        if kind == "drop" or (kind == "set" and at < len(line)):
            line[at : at + 1] = [] if kind == "drop" else [value]
        else:
            line[at:at] = [option, value] if kind == "option" else [value]
    return line


def _command(name: str) -> Parsed:
    if name.startswith("restore"):
        return restore_cli.main, restore_cli.make_parser
    if name == "app":
        # Only parse the options; the page itself would run for ever.
        return lambda args: bool(web_cli.parse_options(args)) - 1, web_cli.make_parser
    module = importlib.import_module(name)
    return module.main, module.make_parser


def _options(name: str) -> list[str]:
    parser = _command(name)[1]()
    flags = [flag for action in parser._actions for flag in action.option_strings]
    # Downloads would leave the machine, and help runs no command.
    return [flag for flag in flags if flag not in ("--download", "-h", "--help")]


def make_inputs(folder: Path) -> None:
    """Write small files that command lines name, good and bad ones."""
    torch.manual_seed(0)
    net = build_arch(TINY).eval()
    save_checkpoint(net, folder / SIZES[0], TINY)
    quantize(net, "w4a8", torch.rand(2, 3, 64, 64) * 2 - 1, progress=False)
    save_checkpoint(net, folder / SIZES[1], TINY)
    (folder / "faces").mkdir()
    photo = cv2.imread(str(REPO / "inputs/astronaut.jpg"))
    small = cv2.resize(photo, (128, 128), interpolation=cv2.INTER_AREA)
    for number in range(2):
        cv2.imwrite(str(folder / f"faces/{number}.png"), np.roll(small, number))
    cv2.imwrite(str(folder / "photo.png"), small)
    frames = [Image.fromarray(np.roll(small, shift, axis=1)) for shift in (0, 4)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    (folder / "cut.png").write_bytes((folder / "photo.png").read_bytes()[:999])
    (folder / "empty.png").touch()
    (folder / "text.txt").write_text("not what you want\n")
    (folder / "list.json").write_text("[1, 2]")
    (folder / "wrong.yml").write_text("a: [1, 2\n")
    (folder / "nothing").mkdir()
    torch.save({"params": {"a.weight": torch.rand(4, 4)}}, folder / "weights.pth")
    (folder / "small.yml").write_text(yaml.safe_dump(small_options(Path("faces"))))
