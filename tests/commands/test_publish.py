"""A checkpoint becomes a repository of the hub, from which it is loaded by its id."""

from __future__ import annotations

import json

import pytest
import torch
from hub_server import Hub, Repository
from huggingface_hub import ModelCard

from quantface_arch import load_model
from quantface_arch.commands import publish
from quantface_arch.integration.obtain import obtain
from quantface_arch.pretrained.hub.options import FetchOptions
from quantface_arch.quant import read_metadata


@pytest.fixture
def figures(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text(json.dumps({"rows": [{"model": "a", "psnr": 28.123456}, {"model": "b"}]}))
    return path


def test_what_is_published_is_loaded_by_its_id(run_script, figures, tmp_path, monkeypatch):
    folder = tmp_path / "repository"
    words = ("mini-w4a8", "-o", folder, "--id", "me/net", "--license", "cc0-1.0")
    status, out, _ = run_script(publish, *words, "--base-model", "me/base", "--figures", figures)
    assert status == 0 and "config.json and mini-w4a8.safetensors" in out
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.base_model) == ("cc0-1.0", "me/base")
    assert "# net" in card.text and "--model me/net" in card.text
    assert "| model | psnr |\n| --- | --- |\n| a | 28.12 |\n| b |  |" in card.text
    assert "4-bit weights and 8-bit inputs" in card.text
    config = json.loads((folder / "config.json").read_text())
    assert config["arch"] == read_metadata(folder / config["file"])["arch"]
    monkeypatch.setenv("QUANTFACE_CACHE", str(tmp_path / "cache"))
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    with Hub({"me/net": Repository(contents)}).serving() as hub:
        found = obtain("me/net", FetchOptions(yes=True, endpoint=hub.url))
    wanted, loaded = load_model("mini-w4a8").state_dict(), load_model(found).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in wanted.items())


def test_what_cannot_be_published_is_refused(run_script, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    status, _, err = run_script(publish, "mini-w4a8", "-o", tmp_path / "full")
    assert status == 2 and "exists already" in err
    (tmp_path / "wrong.json").write_text("[]")
    words = ("mini-w4a8", "-o", tmp_path / "new", "--figures", tmp_path / "wrong.json")
    status, _, err = run_script(publish, *words)
    assert status == 1 and "wrong.json: expected the JSON file of a benchmark" in err
    (tmp_path / "net.pth").touch()
    status, _, err = run_script(publish, tmp_path / "net.pth", "-o", tmp_path / "new")
    assert status == 1 and "net.pth: expected a .safetensors checkpoint" in err
    assert not (tmp_path / "new").exists()
