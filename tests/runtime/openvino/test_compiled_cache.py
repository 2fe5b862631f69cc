"""The cache of compiled networks: used again, repaired, shared, done without."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from quant_helpers import TinyNet, pictures
from saved_networks import saved

from quantface_arch.runtime.openvino import load, network, trace
from quantface_arch.utils.disk_cache import cached

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.slow
def test_compiled_files_are_used_again_until_they_are_damaged(net, cache, monkeypatch):
    x = pictures(1)
    with torch.no_grad():
        first = load(*net)(x)
        folder = next(cache.iterdir())
        contents = (folder / "forward.bin").read_bytes()
        made = []
        monkeypatch.setattr(
            network, "trace_checkpoint", lambda *a: made.append(a) or trace.trace_checkpoint(*a)
        )
        assert torch.equal(load(*net)(x), first) and not made
        (folder / "forward.bin").write_bytes(contents[:-1] + bytes([contents[-1] ^ 1]))
        assert torch.equal(load(*net)(x), first) and len(made) == 1
        assert (folder / "forward.bin").read_bytes() == contents
        (folder / "manifest.json").write_text("[]")
        assert torch.equal(load(*net)(x), first) and len(made) == 2
    assert [path.name for path in cache.iterdir()] == [folder.name]


@pytest.mark.slow
def test_what_is_compiled_depends_on_contents_and_options(net, cache):
    path, build = net
    load(path, build)
    load(path, build, "faithful")
    assert len(list(cache.iterdir())) == 2
    path.rename(path.with_name("other.safetensors"))
    load(path.with_name("other.safetensors"), build)
    assert len(list(cache.iterdir())) == 2
    saved(path, TinyNet, pictures(), {"type": "any"}, "w5a8")
    load(path, build)
    assert len(list(cache.iterdir())) == 3


def test_a_cache_that_cannot_be_written_is_told_and_done_without(net, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QUANTFACE_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match=r"cache .*file.*QUANTFACE_CACHE"), torch.no_grad():
        assert load(*net)(pictures(1)).shape == (1, 3, 16, 16)


def test_what_several_want_at_once_is_made_once_and_never_taken_away(cache):
    """The first process makes it while the others wait; none sees it missing or half-made."""
    made = []

    def make(folder):
        made.append(folder)
        (folder / "part.bin").write_bytes(b"half")
        time.sleep(0.2)
        (folder / "part.bin").write_bytes(b"whole")
        return {"fact": 1}

    def want(_):
        folder, kept = cached("openvino", {"key": 1}, make)
        time.sleep(0.3)
        return (folder / "part.bin").read_bytes(), kept

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(want, range(4))) == [(b"whole", {"fact": 1})] * 4
    assert len(made) == 1


def test_an_interrupted_compilation_leaves_nothing(net, cache, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(trace, "converted", stop)
    with pytest.raises(KeyboardInterrupt):
        load(*net)
    assert list(cache.iterdir()) == []


def test_the_manifest_is_of_plain_data(net, cache):
    load(*net)
    manifest = json.loads(next(cache.glob("*/manifest.json")).read_text())
    assert manifest["kept"] == {
        "parts": ["forward"],
        "one_size": [],
        "exact": False,
        "arch_options": {"type": "any"},
        "input_range": [0, 1],
    }
    assert manifest["files"].keys() == {"forward.xml", "forward.bin"}
