"""A restorer is taken by its name: fetched, checked, quantized and kept, from a real server."""

from __future__ import annotations

import osdface_files as files
import pytest
import torch
from hub_server import Hub, Repository
from small_networks import TINY

from quantface_arch.archs import presets
from quantface_arch.archs.build import build_arch
from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.integration import obtain as obtain_module
from quantface_arch.integration.obtain import obtain
from quantface_arch.integration.quantface_arch import QuantFaceArch
from quantface_arch.pretrained.hub.cache import remove
from quantface_arch.pretrained.hub.options import FetchOptions
from quantface_arch.pretrained.hub.sources import sources
from quantface_arch.pretrained.osdface_folder import load_osdface_folder
from quantface_arch.quant import Recipe, convert, quant_layers, read_metadata, save_checkpoint
from quantface_arch.quant.config.bitmap import save_bit_map
from quantface_arch.restore.restorer import FaceRestorer

MIRRORS = [part.mirrors[0].repo for part in sources()["osdface"].parts]


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The files of a small OSDFace, as the hub's repositories."""
    folder = tmp_path_factory.mktemp("osdface")
    torch.manual_seed(0)
    files.write_osdface(folder, files.SIZES)
    base = contents(folder / files.BASE)
    own = {name: data for name, data in contents(folder).items() if files.BASE not in name}
    return folder, dict(zip(MIRRORS, (Repository(own), Repository(base)), strict=True))


@pytest.fixture
def hub(published, monkeypatch, tmp_path):
    """A hub with a small OSDFace, its address and the user's consent in the environment."""
    sizes = {**presets.PRESETS["osdface"], **files.SIZES}
    monkeypatch.setitem(presets.PRESETS, "osdface", sizes)
    monkeypatch.setattr(obtain_module, "_FACES", 2)
    monkeypatch.setenv("QUANTFACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("QUANTFACE_YES", "1")
    monkeypatch.delenv("QUANTFACE_SD_BASE", raising=False)
    with Hub(dict(published[1])).serving() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@pytest.mark.slow
def test_a_quantized_osdface_is_made_once_and_restores(hub, published, repo):
    # Measuring takes minutes, and has a test of its own.
    folder = sources()["osdface"].folder.parent
    folder.mkdir(parents=True)
    net = load_osdface_folder(published[0], overrides=files.SIZES)
    widths_by_layer = convert(net, Recipe.from_name("w4a6")).bits
    save_bit_map(folder / "osdface-mp.bits.yml", widths_by_layer)
    said, mine = [], FetchOptions(base=str(published[0] / files.BASE))
    path = obtain("osdface-mp", mine, said.append)
    assert path.name == "osdface-mp.safetensors" and "quantized once" in said[-1]
    bits = read_metadata(path)["bits"]
    assert {name: (widths["w"], widths["a"]) for name, widths in bits.items()} == widths_by_layer
    hub.repositories.clear()
    remove("osdface")
    assert obtain("osdface-mp", mine) == path
    with pytest.raises(UsageError, match=f"in the cache, made of {mine.base}; .*remove osdface-mp"):
        obtain("osdface-mp", FetchOptions(base="me/base"))
    written, said[:] = path.stat().st_mtime_ns, []
    restorer = FaceRestorer.from_pretrained("osdface-mp", "reference", notify=said.append)
    assert path.stat().st_mtime_ns == written and not said
    assert len(restorer.restore(repo / "inputs/astronaut.jpg").faces) == 1
    assert any(layer.weight_spec.bits == 4 for layer in quant_layers(restorer.model.module))


@pytest.mark.slow
def test_an_options_file_takes_the_same_names(hub, published):
    found = QuantFaceArch(weights="osdface").state_dict()
    wanted = load_osdface_folder(published[0], overrides=files.SIZES).state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())


def test_a_checkpoint_of_somebody_is_checked(hub, tmp_path):
    save_checkpoint(build_arch(TINY), tmp_path / "net.safetensors", TINY)
    for name, data in {"good": (tmp_path / "net.safetensors").read_bytes(), "bad": b"x"}.items():
        hub.repositories[f"me/{name}"] = Repository({"net.safetensors": data})
    commit = hub.repositories["me/good"].commit
    for _ in range(2):
        assert read_metadata(obtain("me/good", FetchOptions(revision=commit)))["arch"] == TINY
    with pytest.raises(
        UsageError, match=f"--revision v2: me/good is in the cache, made of {commit}"
    ):
        obtain("me/good", FetchOptions(revision="v2"))
    for _ in range(2):
        with pytest.raises(QuantFaceError, match=r"net\.safetensors"):
            obtain("me/bad")


def test_what_is_here_is_not_fetched(hub, monkeypatch, tmp_path):
    monkeypatch.delenv("QUANTFACE_YES")
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("mini-w4a8", str(tmp_path), "weights/typo", "typo/net.pth", "nothing"):
        assert obtain(name) == name
    with pytest.raises(UsageError, match="no terminal"):
        obtain("osdface")
    with pytest.raises(UsageError, match="--revision v2: the option has no effect on mini-w4a8"):
        obtain("mini-w4a8", FetchOptions(revision="v2"))
