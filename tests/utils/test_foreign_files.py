"""Files that are not weights are called what they are."""

from __future__ import annotations

import json

import pytest
import torch

from quantface_arch.errors import QuantFaceError
from quantface_arch.pretrained.zoo import load_model
from quantface_arch.utils.safetensors_header import check_header
from quantface_arch.utils.state_dict import read_state

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"
PAGES = (b"<!DOCTYPE html><html>", b"\n\n  <HTML><body>", b"\xef\xbb\xbf<html>")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    ("data", "words"), [(POINTER, "git lfs pull"), *((page, "web page") for page in PAGES)]
)
def test_pointers_and_web_pages(tmp_path, suffix, data, words):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(data)
    read = load_model if suffix == ".safetensors" else read_state
    with pytest.raises(QuantFaceError, match=words) as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("old", [True, False])
def test_a_pytorch_file_under_another_name(tmp_path, old):
    path = tmp_path / "weights.safetensors"
    torch.save({"a": torch.ones(1)}, path, _use_new_zipfile_serialization=not old)
    with pytest.raises(QuantFaceError, match=r"PyTorch file .*convert_pickle"):
        load_model(path)


@pytest.mark.parametrize("key", [None, "state_dict", "params"])
def test_states_of_compiled_networks_and_of_other_trainers(tmp_path, key):
    tensor = torch.arange(3.0)
    state = {"_orig_mod.body.weight": tensor, "tail._orig_mod.bias": tensor}
    path = tmp_path / "net.pth"
    torch.save(state if key is None else {key: state, "epoch": 3}, path)
    found = read_state(path, ("params",))
    assert sorted(found) == ["body.weight", "tail.bias"]
    assert all(torch.equal(value, tensor) for value in found.values())


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480])
def test_a_safetensors_header_whose_length_looks_like_a_pickle(tmp_path, length):
    # Formats are told apart by their first bytes, which here are those of a pickle.
    path = tmp_path / "weights.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
    path.write_bytes(length.to_bytes(8, "little") + header.ljust(length).encode() + bytes(4))
    check_header(path)
