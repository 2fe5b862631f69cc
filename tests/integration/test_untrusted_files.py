"""Untrusted files: options, pickles, images, links and special files."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
import resource
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_networks import TINY

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.utils import get_root_logger
from quantface_arch.archs.build import build_arch
from quantface_arch.data import face_dataset
from quantface_arch.errors import QuantFaceError
from quantface_arch.integration.options import read_options
from quantface_arch.launch import check_arguments, launch
from quantface_arch.metrics.deep import check_digest
from quantface_arch.models.quantize_stage import read_quant_options
from quantface_arch.quant import load_checkpoint, save_checkpoint
from quantface_arch.utils.images import read, read_image, read_size
from quantface_arch.utils.state_dict import read_state

# --- options files


@pytest.mark.parametrize(
    ("options", "words", "message"),
    [
        ("a: !!python/object/apply:os.system ['touch PWNED']", [], "options file .*: not YAML"),
        ("a: &a [*a]", [], "options file .*: alias 'a'"),
        (
            "datasets: {}",
            ["--force_yml", "a=[__import__('os').system('touch PWNED')]"],
            "not a list",
        ),
        ("a: 1", ["--force_yml", 'a"]=__import__("os").system("touch PWNED")#=1'], "NAME=VALUE"),
    ],
)
def test_basicsr_runs_nothing_that_options_say(
    tmp_path, monkeypatch, capsys, options, words, message
):
    (tmp_path / "o.yml").write_text(options)
    monkeypatch.chdir(tmp_path)
    # The launcher's settings are meant for its own process only.
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(sys, "argv", ["train.py", "-opt", "o.yml", *words])
    with pytest.raises(SystemExit) as stopped:
        launch("train", tmp_path)
    assert stopped.value.code == 1
    assert re.search(f"^error: .*{message}", capsys.readouterr().err, re.MULTILINE)
    assert not (tmp_path / "PWNED").exists()


def test_the_launcher_lets_nothing_unpickle_more_than_tensors(tmp_path, monkeypatch):
    class Opens:
        def __reduce__(self):
            return open, (str(tmp_path / "PWNED"), "w")

    torch.save({"params": Opens()}, tmp_path / "net.pth")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    monkeypatch.setattr(sys, "argv", ["train.py", "-opt", str(tmp_path / "missing.yml")])
    with pytest.raises(SystemExit):
        launch("train", tmp_path)
    # BasicSR's own models read the file that path: pretrain_network_g names in this way.
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "net.pth", map_location=lambda storage, loc: storage)
    assert not (tmp_path / "PWNED").exists()


def test_options_are_named_by_colons_and_a_pipe_is_no_options_file(tmp_path):
    check_arguments(["-opt", "x.yml", "--force_yml", "a:b_1=x", "train:lr=[1, 2]", "--debug"])
    os.mkfifo(tmp_path / "o.yml")
    with pytest.raises(QuantFaceError, match=r"o\.yml: it is a pipe, expected a file"):
        check_arguments(["-opt", str(tmp_path / "o.yml")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "found \\[\\], expected a mapping"),
        ("network_g: {}\nquant: {}\ndatasets: [3]", "datasets: found \\[3\\]"),
        ("network_g: {}\nquant: {}\ndatasets: {train: 3}", "datasets: found"),
    ],
)
def test_options_of_other_shapes_are_refused(tmp_path, text, message):
    (tmp_path / "o.yml").write_text(text)
    with pytest.raises(QuantFaceError, match=f"options file .*{message}"):
        read_options(tmp_path / "o.yml")


@pytest.mark.parametrize("options", [{"bit_map": [1]}, {"balance": {"file": 3}}, {"balance": "x"}])
def test_paths_and_blocks_of_other_kinds_are_refused(options):
    with pytest.raises(QuantFaceError, match=f"quant( option|:) {next(iter(options))}"):
        read_quant_options({"name": "w4a4", **options}, torch.nn.Linear(2, 2))


# --- weights


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(tmp_path):
    torch.save({"a": torch.zeros(2**20)}, tmp_path / "plain.pth")
    packed = zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, packed as bomb:
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    assert read_state(tmp_path / "plain.pth")["a"].numel() == 2**20
    with pytest.raises(QuantFaceError, match=r"bomb\.pth: unpacks to 4,\d+,\d+ bytes, at most its"):
        read_state(tmp_path / "bomb.pth")


def test_a_pickle_that_names_a_length_it_has_not_takes_no_memory(tmp_path):
    # A BINUNICODE of 4 GB, the most that torch accepts, in the format before archives.
    (tmp_path / "a.pth").write_bytes(b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"x" * 64)
    # Without a limit Linux would grant the memory.
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**30, limits[1]))
    try:
        with pytest.raises(QuantFaceError, match=r"a\.pth: .*(damaged|unpickled)") as caught:
            read_state(tmp_path / "a.pth")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert not isinstance(caught.value.__cause__, MemoryError)


def test_the_format_before_archives_is_read(tmp_path):
    state = {"a": torch.rand(3, 4)}
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_state(tmp_path / "a.pth")["a"], state["a"])


def test_what_is_no_file_is_no_weights(tmp_path):
    os.mkfifo(tmp_path / "a.pth")
    for name, kind in (("a.pth", "a pipe"), ("", "a folder"), ("b.pth", "missing")):
        with pytest.raises(QuantFaceError, match=f"it is {kind}, expected a file of tensors"):
            read_state(tmp_path / name)


@pytest.mark.parametrize(
    "change",
    [
        {"unet": {**TINY["unet"], "block_out_channels": [2**20, 2**20]}},
        {"vae": {**TINY["vae"], "layers_per_block": 10**9}},
        {"vre": {**TINY["vre"], "num_codes": 2**40}},
        {"vae": {**TINY["vae"], "norm_num_groups": 0}},
    ],
)
def test_a_checkpoint_cannot_ask_for_more_than_it_holds(tmp_path, change):
    path = tmp_path / "m.safetensors"
    save_checkpoint(torch.nn.Linear(2, 2), path, {**TINY, **change})
    with pytest.raises(QuantFaceError, match=f"^{re.escape(str(path))}: (network|arch)"):
        load_checkpoint(path, build_arch)


def test_a_program_that_is_not_the_published_one_is_refused(tmp_path):
    (tmp_path / "RN50.pt").write_bytes(b"x")
    published = hashlib.sha256(b"x").hexdigest()
    check_digest("clipiqa", tmp_path / "RN50.pt", f"https://a/{published}/RN50.pt")
    (tmp_path / "RN50.pt").write_bytes(b"y")
    with pytest.raises(QuantFaceError, match=r"clipiqa of .*RN50\.pt: .* not the published one"):
        check_digest("clipiqa", tmp_path / "RN50.pt", f"https://a/{published}/RN50.pt")


@pytest.mark.parametrize("name", ["VGGFeatureExtractor", "DFDNet"])
def test_networks_that_fetch_or_unpickle_by_themselves_are_refused(name):
    with pytest.raises(QuantFaceError, match=f"{name} is refused"):
        build_arch({"type": name})


# --- images


def png(width, height, depth=8, colour=2, twice=()):
    """Return a PNG of zeros; ``twice`` gives width and height of a second header."""
    channels = {0: 1, 2: 3, 6: 4}[colour]

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    def header(*size):
        return chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))

    rows, columns = twice[::-1] if twice else (height, width)
    pixels = zlib.compress(b"\0" * (rows * (1 + columns * channels * depth // 8)))
    second = header(*twice) if twice else b""
    start = b"\x89PNG\r\n\x1a\n" + header(width, height)
    return start + second + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def scans(count):
    """Return a progressive JPEG that repeats its last scan many times."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + data[-2:]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png(40000, 40000, twice=(16, 16), depth=16), "its two headers contradict"),
        (png(2**31 - 1, 2**31 - 1, twice=(16, 16)), ""),
        (scans(200), "210 scans of JPEG: at most 100"),
        (b"RIFF\xff\xff\xff\xffWEBPVP8X\n\0\0\0\0\0\0\0" + b"\xff" * 6, ""),
    ],
)
def test_pictures_that_claim_much_are_refused(tmp_path, data, message):
    (tmp_path / "a.png").write_bytes(data)
    if message:
        with pytest.raises(QuantFaceError, match=f"a\\.png: .*{message}"):
            read_image(tmp_path / "a.png")
        return
    try:
        assert max(read_image(tmp_path / "a.png").size) < 10_000
    except QuantFaceError as error:
        assert str(tmp_path / "a.png") in str(error)


def test_many_scans_that_are_allowed_are_read(tmp_path):
    (tmp_path / "a.jpg").write_bytes(scans(50))
    assert read_image(tmp_path / "a.jpg").size == (64, 64)


@pytest.mark.parametrize("read", [read_image, read_size])
def test_a_pipe_is_no_picture(tmp_path, read):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(QuantFaceError, match=r"a\.png: cannot be read: it is a pipe"):
        read(tmp_path / "a.png")


def test_a_file_of_too_many_bytes_is_no_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "MAX_FILE_BYTES", 100)
    (tmp_path / "a.png").write_bytes(png(64, 64) + b"\0" * 100)
    with pytest.raises(QuantFaceError, match=r"a\.png: found \d+ bytes, at most 100 are allowed"):
        read_image(tmp_path / "a.png")


def test_training_faces_are_measured_before_they_are_read(tmp_path, caplog, monkeypatch):
    (tmp_path / "a.png").write_bytes(png(64, 64))
    options = {"dataroot_gt": str(tmp_path), "gt_size": 32}
    assert len(face_dataset.QuantFaceDataset(options)) == 1
    data = png(16, 16)
    size = struct.pack(">II", 20000, 20000)
    ihdr = b"IHDR" + size + data[24:29]
    (tmp_path / "b.png").write_bytes(
        data[:12] + ihdr + struct.pack(">I", zlib.crc32(ihdr)) + data[33:]
    )
    monkeypatch.setattr(get_root_logger(), "propagate", True)
    with caplog.at_level("WARNING", "basicsr"):
        assert len(face_dataset.QuantFaceDataset(options)) == 1
    assert "b.png: 20000x20000 pixels" in caplog.text
