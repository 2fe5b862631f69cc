"""The user agrees to fetching, and may name a base and a revision of their own."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path

import pytest
from hub_files import BASE, FOLDER, OWN, check
from hub_server import Repository

from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.pretrained.hub.cache import cached, remove, require
from quantface_arch.pretrained.hub.options import ask
from quantface_arch.pretrained.names import resolve_base


def test_places_of_ones_own(osdface, hub, tmp_path, monkeypatch):
    base = dict(hub.repositories[BASE].files)
    hub.repositories["me/base"] = Repository(base)
    folder, _ = osdface(base="me/base", revision=hub.repositories[OWN].commit)
    lock = json.loads(folder.with_name("osdface.lock.json").read_text())
    assert lock[f"{FOLDER}/vae/config.json"]["repo"] == "me/base"
    osdface(base="me/base@main", revision=hub.repositories[OWN].commit)
    with pytest.raises(UsageError, match="--base me/other@main: osdface is in the cache"):
        osdface(base="me/other")
    with pytest.raises(UsageError, match="--revision v2: osdface is in the cache"):
        osdface(revision="v2")
    remove("osdface")
    mine = tmp_path / "mine"
    mine.mkdir()
    with pytest.raises(QuantFaceError, match=r"base .*mine: no file scheduler/sched"):
        osdface(base=str(mine))
    for name, data in base.items():
        (mine / name).parent.mkdir(exist_ok=True)
        (mine / name).write_bytes(data)
    folder, _ = osdface(base=str(mine))
    assert (folder / FOLDER).resolve() == mine and require("osdface") == folder
    mine.rename(tmp_path / "elsewhere")
    assert cached("osdface") is None
    check(osdface()[0], hub)
    with pytest.raises(UsageError, match=r"--base .*elsewhere: osdface .*made of the default base"):
        osdface(base=str(tmp_path / "elsewhere"))
    check(folder, hub)
    remove("osdface")
    osdface(base=str(tmp_path / "elsewhere"))
    assert osdface(base=f"{tmp_path}/../{tmp_path.name}/elsewhere")[0] == folder
    monkeypatch.setenv("QUANTFACE_SD_BASE", str(tmp_path))
    assert Path(resolve_base(folder)).resolve() == tmp_path / "elsewhere"
    monkeypatch.delenv("QUANTFACE_SD_BASE")
    (tmp_path / "elsewhere").rename(mine)
    with pytest.raises(UsageError, match="no terminal"):
        osdface(base="me/base", yes=False)
    mine.rename(tmp_path / "elsewhere")
    assert cached("osdface") == folder
    remove("osdface")
    assert (tmp_path / "elsewhere/vae/config.json").is_file()
    with pytest.raises(QuantFaceError, match="base /no/where: neither a folder nor an id"):
        osdface(base="/no/where")
    with pytest.raises(QuantFaceError, match=r"OSDFace@nothing.*\(404\)"):
        osdface(revision="nothing")


def test_nothing_is_fetched_without_consent(osdface, hub, monkeypatch, tmp_path):
    with pytest.raises(UsageError, match="no terminal to ask at; QUANTFACE_YES=1 agrees"):
        osdface(yes=False)
    with pytest.raises(QuantFaceError, match="nothing may be fetched offline"):
        osdface(offline=True)
    assert not list(tmp_path.rglob("*.ckpt"))
    with pytest.raises(QuantFaceError, match=r"not fetched yet: quantface fetch osdface"):
        require("osdface-w4a8")
    monkeypatch.setenv("QUANTFACE_YES", "no")
    with pytest.raises(UsageError, match="QUANTFACE_YES: found 'no', allowed are 0 and 1"):
        osdface(yes=False)
    monkeypatch.setenv("QUANTFACE_YES", "1")
    check(osdface(yes=False)[0], hub)


@pytest.mark.parametrize(("answer", "agrees"), [("y\n", True), ("yes\n", True), ("\n", False)])
def test_it_is_asked_once_at_a_terminal(monkeypatch, capsys, answer, agrees):
    terminal = namedtuple("Terminal", "isatty readline")(lambda: True, lambda: answer)
    monkeypatch.setattr("sys.stdin", terminal)
    if agrees:
        ask("5 GB", yes=False)
    else:
        with pytest.raises(UsageError, match="nothing was fetched"):
            ask("5 GB", yes=False)
    assert "5 GB\nFetch this? [y/N]" in capsys.readouterr().err


def test_a_base_in_the_cache_is_never_removed_for_a_link_to_itself(osdface, hub):
    folder, _ = osdface()
    folder.with_name("osdface.lock.json").unlink()
    with pytest.raises(QuantFaceError, match=rf"base .*{FOLDER}: it lies in .*osdface, where"):
        osdface(base=str(folder / FOLDER))
    check(folder, hub)
