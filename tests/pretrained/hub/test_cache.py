"""What was fetched is listed and removed, and nothing else is."""

from __future__ import annotations

from collections import namedtuple

import pytest
from hub_server import Repository

from quantface_arch.errors import QuantFaceError
from quantface_arch.pretrained.hub.cache import entries, remove, require
from quantface_arch.pretrained.hub.checkpoint import checkpoint_source
from quantface_arch.pretrained.hub.fetch import fetch
from quantface_arch.pretrained.hub.options import FetchOptions


def test_a_full_disk_is_seen_before(osdface, monkeypatch):
    usage = namedtuple("Usage", "total used free")(10**9, 10**9, 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(QuantFaceError, match=r"MB are needed, 0\.0 MB are free"):
        osdface()


def test_a_checkpoint_of_somebody(hub, tmp_path):
    data = bytes(range(256)) * 40
    hub.repositories["me/mine"] = Repository({"README.md": b"?", "net.safetensors": data})
    options = FetchOptions(yes=True, endpoint=hub.url)
    fetch(checkpoint_source("me/mine", options), options, print)
    assert require("me/mine").read_bytes() == data
    hub.repositories["me/two"] = Repository({"a.safetensors": data, "b.safetensors": data})
    with pytest.raises(QuantFaceError, match="no such file or folder, and it cannot be fetched"):
        checkpoint_source("me/mine", FetchOptions(offline=True))
    with pytest.raises(QuantFaceError, match=r"one \.safetensors file, found a\.saf.*, b\.saf"):
        checkpoint_source("me/two", options)


def test_the_cache_is_listed_and_freed(osdface):
    folder, _ = osdface()
    ((path, size),) = entries()
    assert path == folder and size > 30_000
    assert remove("osdface") == [folder] and not list(entries())
    with pytest.raises(QuantFaceError, match=r"'osdface' is not in .*, which has nothing"):
        remove("osdface")


def test_a_damaged_lock_file_says_so(osdface):
    folder, _ = osdface()
    folder.with_name("osdface.lock.json").write_text('{"associate_2.ckpt": {"sha256": 1}}')
    with pytest.raises(QuantFaceError, match=r"osdface\.lock\.json: damaged; remove it"):
        osdface()


def test_removing_takes_no_patterns_and_leaves_nothing_behind(tmp_path):
    models = tmp_path / "cache/models"
    models.mkdir(parents=True)
    names = ("osdface-mp.bits.yml", "osdface-mp.calib.safetensors", "osdface-mp.origin.json")
    for name in names:
        (models / name).touch()
    (models / "me--net.bits4").mkdir()
    for wrong in ("*", "osdface*", "me/other"):
        with pytest.raises(QuantFaceError, match=r"is not in .*which has"):
            remove(wrong)
    assert len(list(models.iterdir())) == 4
    assert {path.name for path in remove("osdface-mp.safetensors")} == set(names[:2])
    assert [path.name for path in models.iterdir()] == ["me--net.bits4"]
