"""Files of others are refused by name before they take memory: documents, headers, networks."""

from __future__ import annotations

import json
import os
import re
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from quant_helpers import TinyNet
from torch import nn

from quantface_arch.errors import QuantFaceError, one_line
from quantface_arch.quant import load_checkpoint, save_checkpoint
from quantface_arch.quant.config.bitmap import load_bit_map
from quantface_arch.quant.config.recipe import Recipe
from quantface_arch.utils import safe_yaml_json, safetensors_header
from quantface_arch.utils.files import file_digest, read_bytes
from quantface_arch.utils.safe_yaml_json import parse_json, parse_yaml, read_json, read_yaml
from quantface_arch.utils.safetensors_header import check_header

LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "more than the allowed 100,000 values"),
        ("a: &a [*a]", "alias 'a' refers to nothing complete"),
        ("a: *b", "alias 'b' refers to nothing complete"),
        ("b: &a 1\na: &a [*a]", "alias 'a' refers to nothing complete"),
        ("[" * 33 + "]" * 33, "deeper than the allowed 32 levels"),
        ("[" * 100_000, "not YAML: .*exceeded maximum nesting depth"),
        ("- x\n" * 100_001, "more than the allowed 100,000 values"),
        ("x" * (safe_yaml_json.MAX_YAML_BYTES + 1), "1,048,577 bytes of YAML, at most 1,048,576"),
        ("!!python/object/apply:os.system [exit]", "not YAML: could not determine"),
        ("!!python/name:os.system", "not YAML"),
        ("day: 2001-99-99", "not YAML: month"),
        ("? [a]\n: b", "not YAML"),
        ("\xff", "not YAML"),
    ],
)
def test_yaml_that_is_no_plain_data_of_bounded_size_is_refused(text, message):
    start = time.perf_counter()
    with pytest.raises(QuantFaceError, match=f"^file: .*{message}") as caught:
        parse_yaml("file", text.encode("latin-1"))
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - start < 5


def test_aliases_and_tags_of_plain_data_are_read():
    text = b"a: &x {n: !!float 1}\nb: *x\nc: {<<: *x, m: 2}\n"
    assert parse_yaml("file", text) == {"a": {"n": 1.0}, "b": {"n": 1.0}, "c": {"n": 1.0, "m": 2}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 33 + "]" * 33, "deeper than the allowed 32 levels"),
        ("[" * 100_000, "deeper than the allowed 32 levels"),
        ('{"a": {"b": 1, "b": 2}}', "key 'b' occurs twice"),
        (" " * (safe_yaml_json.MAX_JSON_BYTES + 1), "at most 16,777,216 are allowed"),
        ("9" * 5000, "not JSON"),
        ("{", "not JSON"),
    ],
)
def test_json_that_is_too_large_or_deep_is_refused(text, message):
    with pytest.raises(QuantFaceError, match=f"^file: .*{message}"):
        parse_json("file", text)
    assert parse_json("file", "[" * 32 + "]" * 32)


@pytest.mark.parametrize("read", [read_yaml, read_json, load_bit_map, file_digest])
def test_pipes_and_devices_are_refused_at_once(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.yml")
    (tmp_path / "zero.yml").symlink_to("/dev/zero")
    for name, kind in (("pipe.yml", "a pipe"), ("zero.yml", "a device")):
        with pytest.raises(QuantFaceError, match=f"{name}.*: it is {kind}, expected a file"):
            read(tmp_path / name)


def test_a_file_larger_than_allowed_is_not_read(tmp_path):
    with (tmp_path / "big").open("wb") as file:
        file.truncate(1 << 40)
    tracemalloc.start()
    for limit in (10, 1 << 30):
        message = f"found 1,099,511,627,776 bytes, at most {limit:,} are"
        with pytest.raises(QuantFaceError, match=message):
            read_bytes(tmp_path / "big", limit)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no such file on this system")
def test_a_file_that_does_not_say_how_large_it_is_is_read_as_far_as_allowed():
    with pytest.raises(QuantFaceError, match="found 11 bytes, at most 10 are"):
        read_bytes("/proc/self/maps", 10)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(path, header, data=b"0" * 8):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


TWICE = b'{"a":%s,"a":%s}' % ((json.dumps(ENTRY).encode(),) * 2)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (TWICE, "key 'a' occurs twice"),
        ({"a": {**ENTRY, "shape": [1] * 9}}, "tensor 'a': shape: found 9 dimensions, at most 8"),
        ({"a": {**ENTRY, "shape": [0, 2**62]}}, "tensor 'a': shape: found .* below 2.48"),
        ({"a": {**ENTRY, "shape": [-1]}}, "tensor 'a': shape: found"),
        ({"a": {**ENTRY, "hook": "x"}}, "tensor 'a': found .*hook.*, expected data_offsets"),
        ({"a\0/../b": ENTRY}, "printable"),
        ([ENTRY], "header: found list, expected a mapping"),
        ({str(n): ENTRY for n in range(5)}, "found 5 tensors, at most 4 are allowed"),
        (b"[" * 9999, "header: nested deeper"),
    ],
)
def test_headers_that_safetensors_takes_are_refused(tmp_path, monkeypatch, header, message):
    monkeypatch.setattr(safetensors_header, "MAX_TENSORS", 4)
    path = write(tmp_path / "a.safetensors", header)
    for read in (check_header, lambda path: load_checkpoint(path, lambda _: TinyNet())):
        with pytest.raises(QuantFaceError, match=f"^{re.escape(str(path))}: .*{message}"):
            read(path)


def test_a_header_larger_than_allowed_is_not_read(tmp_path):
    length = safetensors_header.MAX_HEADER_BYTES + 1
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", length))
        file.truncate(length + 8)
    with pytest.raises(QuantFaceError, match="header: found 16,777,217 bytes, at most 16,777,216"):
        check_header(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [3]}, "invalid shape"),
        ({"dtype": "F99"}, "unknown variant"),
        ({"data_offsets": [4, 12]}, "invalid offset"),
        ({"shape": [2**40, 2**40]}, "overflow"),
    ],
)
def test_what_is_left_to_safetensors_is_refused_by_it(tmp_path, change, message):
    path = write(tmp_path / "a.safetensors", {"a": {**ENTRY, **change}}, b"0" * 12)
    with pytest.raises(QuantFaceError, match=f"{re.escape(str(path))}.*{message}"):
        load_checkpoint(path, lambda _: TinyNet())


def stored(tmp_path, arch, **extra):
    """A checkpoint of TinyNet whose metadata says something else."""
    path = tmp_path / "a.safetensors"
    save_checkpoint(TinyNet(), path, arch)
    if extra:
        (length,) = struct.unpack_from("<Q", path.read_bytes())
        header = json.loads(path.read_bytes()[8 : 8 + length])
        found = {**json.loads(header["__metadata__"]["quantface"]), **extra}
        header["__metadata__"]["quantface"] = json.dumps(found)
        write(path, header, path.read_bytes()[8 + length :])
    return path


@pytest.mark.parametrize(
    ("arch", "extra", "message"),
    [
        ({"load_path": "/etc/passwd"}, {}, "arch: load_path: found '/etc/passwd'"),
        ({"Load_Path": "/etc/passwd"}, {}, "arch: Load_Path: found '/etc/passwd'"),
        ({"parts": [{"weights": "other.pth"}]}, {}, "arch: weights: found 'other.pth'"),
        ({}, {"hook": 1}, "metadata: unknown key hook"),
        ({}, {"recipe": {"name": "w4a4"}}, "metadata recipe: found one in state float"),
        ({}, {"state": ["float"]}, "metadata state: found .*allowed are float, quantized"),
        ({}, {"ranks": {"body": 10**30}}, "metadata ranks"),
        ({}, {"bits": {"body": {"w": 10**30, "a": 8}}}, "metadata bits"),
    ],
)
def test_metadata_that_says_too_much_is_refused(tmp_path, arch, extra, message):
    path = stored(tmp_path, arch, **extra)
    with pytest.raises(QuantFaceError, match=f"^{re.escape(str(path))}: .*{message}"):
        load_checkpoint(path, lambda _: TinyNet())


@pytest.mark.parametrize(
    "build",
    [
        lambda _: nn.Linear(2**20, 2**20),
        lambda _: nn.Parameter(torch.zeros(2**40)),
        # Few tensors and small ones at a time, as far as they go.
        lambda _: nn.Parameter(torch.zeros(2**25)),
        lambda _: [torch.zeros(2**20) for _ in range(2**5)],
        lambda _: [torch.zeros(1) for _ in range(2**12)],
        lambda _: nn.Sequential(*(nn.Linear(1, 1) for _ in range(10**9))),
    ],
)
def test_a_network_that_the_file_cannot_fill_is_stopped_before_it_takes_memory(tmp_path, build):
    path = stored(tmp_path, {"type": "TinyNet"})
    with pytest.raises(QuantFaceError, match="arch: asks for more than the tensors in the file"):
        load_checkpoint(path, build)


@pytest.mark.parametrize("error", [ZeroDivisionError, AssertionError, RuntimeError, IndexError])
def test_whatever_building_a_network_raises_is_one_line(tmp_path, error):
    def build(_):
        raise error("a\nb")

    path = stored(tmp_path, {"type": "TinyNet"})
    with pytest.raises(QuantFaceError, match=rf"a\.safetensors: arch: {error.__name__}: a b"):
        load_checkpoint(path, build)


def test_a_recipe_of_lists_in_lists_is_refused():
    with pytest.raises(QuantFaceError, match="balance kind"):
        Recipe.from_dict({"name": "w4a4", "balance": {"kind": [["none"]]}})


def test_messages_cannot_steer_a_terminal():
    assert one_line("a\x1b[2J\nb") == "a\\x1b[2J b"
