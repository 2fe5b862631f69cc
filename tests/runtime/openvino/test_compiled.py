"""What was compiled is kept on disk, and a later process loads it instead of compiling again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from quant_helpers import pictures
from saved_networks import saved

from quantface_arch.archs.build import build_arch
from quantface_arch.errors import QuantFaceError
from quantface_arch.runtime.openvino import blobs as kept
from quantface_arch.runtime.openvino import load
from quantface_arch.runtime.openvino.compiled import CompiledPart, integer_products

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def path(tmp_path):
    """The graph of a small quantized network."""
    arch = {"type": "SRVGGNetCompact", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8}
    arch |= {"num_conv": 1, "upscale": 2}
    torch.manual_seed(1)
    file = saved(tmp_path / "n.safetensors", lambda: build_arch(arch), pictures(), arch, "w8a8")
    return vars(load(file, build_arch))["forward"].part.path


def images(side):
    return np.random.default_rng(side).random((1, 3, side, side), np.float32)


def blobs(cache):
    return sorted((cache.parent / "compiled").glob(f"*/*/{kept.BLOB}"))


def never(*args, **kwargs):
    raise AssertionError("compiled again")


def test_a_later_process_loads_what_was_compiled(path, cache, monkeypatch):
    x = images(24)
    first = CompiledPart(path, exact=False)
    wanted = first(x)
    assert len(blobs(cache)) == 1
    monkeypatch.setattr(CompiledPart, "_compile", never)
    later = CompiledPart(path, exact=False)
    assert np.array_equal(later(x), wanted)
    [one], [two] = first.compiled.values(), later.compiled.values()
    assert integer_products(one) == integer_products(two) != {}


def test_what_was_used_last_is_loaded_early(path, cache, monkeypatch):
    first = CompiledPart(path, exact=False)
    wanted = {side: first(images(side)) for side in (24, 32)}
    loaded = []
    imported = kept.Blobs._imported
    monkeypatch.setattr(
        kept.Blobs, "_imported", lambda *a: loaded.append(a[1].name) or imported(*a)
    )
    monkeypatch.setattr(CompiledPart, "_compile", never)
    for side, loads in ((32, 1), (24, 2)):
        later = CompiledPart(path, exact=False)
        with ThreadPoolExecutor() as pool:
            later.load_early(pool)
        assert len(loaded) == 1
        assert np.array_equal(later(images(side)), wanted[side]) and len(loaded) == loads
        loaded.clear()
        CompiledPart(path, exact=False)(images(32))
        loaded.clear()


def test_nothing_of_another_version_is_loaded_early(path, cache, monkeypatch):
    CompiledPart(path, exact=False)(images(24))
    assert kept.Blobs(path, CompiledPart(path, exact=False).options).latest() is not None
    monkeypatch.setattr("openvino.get_version", lambda: "another")
    assert kept.Blobs(path, CompiledPart(path, exact=False).options).latest() is None


def test_other_options_and_shapes_are_compiled(path, cache, monkeypatch):
    CompiledPart(path, exact=False)(images(24))
    monkeypatch.setattr(CompiledPart, "_compile", never)
    for exact, side in ((True, 24), (False, 32)):
        with pytest.raises(AssertionError, match="compiled again"):
            CompiledPart(path, exact)(images(side))


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: data[:500] + bytes(9) + data[509:]]
)
def test_a_damaged_file_is_compiled_again(path, cache, damage):
    x = images(24)
    wanted = CompiledPart(path, exact=False)(x)
    [blob] = blobs(cache)
    good = blob.read_bytes()
    blob.write_bytes(damage(good))
    assert np.array_equal(CompiledPart(path, exact=False)(x), wanted)
    assert blob.read_bytes() != damage(good) and len(blob.read_bytes()) == len(good)


def test_a_file_that_openvino_cannot_read_is_compiled_again(path, cache, monkeypatch):
    x = images(24)
    wanted = CompiledPart(path, exact=False)(x)
    [blob] = blobs(cache)
    monkeypatch.setattr(kept, "cached", lambda kind, key, make: (blob.parent, {}))
    blob.write_bytes(b"of another version")
    assert np.array_equal(CompiledPart(path, exact=False)(x), wanted)
    blob.unlink()
    assert np.array_equal(CompiledPart(path, exact=False)(x), wanted)


def test_few_shapes_and_no_large_parts_are_kept(path, cache, monkeypatch):
    monkeypatch.setattr(kept, "KEPT_SHAPES", 2)
    part = CompiledPart(path, exact=False)
    for side in (16, 20, 24, 28):
        part(images(side))
    assert len(blobs(cache)) == 2
    monkeypatch.setattr(kept, "KEPT_BYTES", 0)
    part(images(32))
    assert len(blobs(cache)) == 2
    monkeypatch.setattr(CompiledPart, "_compile", never)
    monkeypatch.setattr(kept, "KEPT_BYTES", 10**9)
    CompiledPart(path, exact=False)(images(28))


def test_a_full_disk_does_not_keep_a_network_from_running(path, monkeypatch, tmp_path):
    x = images(24)
    wanted = CompiledPart(path, exact=False)(x)

    def full(kind, key, make):
        make(tmp_path)
        raise QuantFaceError("cannot write: No space left on device")

    monkeypatch.setattr(kept, "cached", full)
    assert np.array_equal(CompiledPart(path, exact=False)(x), wanted)


def test_nothing_is_removed_outside_of_the_cache(path, cache, monkeypatch, tmp_path):
    monkeypatch.setattr(kept, "KEPT_SHAPES", 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary/of others").mkdir(parents=True)
    monkeypatch.setenv("QUANTFACE_CACHE", str(path))  # a file, where no folder can be made
    part = CompiledPart(path, exact=False)
    with pytest.warns(UserWarning, match="compiled files are not kept"):
        for side in (16, 24):
            part(images(side))
    assert [path.name for path in (tmp_path / "temporary").iterdir()] == ["of others"]
