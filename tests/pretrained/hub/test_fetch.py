"""Restorers are fetched from a real server on this machine, complete and as the hub lists them."""

from __future__ import annotations

import json
import random
import re

import pytest
from hub_files import BASE, LARGE, MIRROR, OWN, check
from hub_server import Fault, Repository

from quantface_arch.errors import QuantFaceError
from quantface_arch.pretrained.hub.cache import cached, remove, require
from quantface_arch.pretrained.hub.sources import sources


def test_all_files_arrive_once(osdface, hub, capsys):
    folder, _ = osdface()
    check(folder, hub)
    said = capsys.readouterr().err
    assert all(word in said for word in (OWN, BASE, "MB in all", "no licence", "RAIL"))
    hub.repositories.clear()
    assert osdface()[0] == folder == require("osdface") and not capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cut", "altered", "stale", "html", "500", "503", "429", "slow"])
@pytest.mark.parametrize("where", ["associate_2", "config.json", "/api/models/"])
def test_faults_that_pass_are_outlasted(osdface, hub, kind, where):
    if where == "/api/models/" and kind in ("cut", "altered", "stale", "slow"):
        pytest.skip("a fault of files alone")
    hub.faults = [Fault(kind, where, times=2, place=0.3)]
    check(osdface()[0], hub)
    assert hub.faults[0].times < 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["401", "403", "absent", "500", "html", "altered"])
def test_another_mirror_takes_over(osdface, hub, kind):
    hub.faults = [Fault(kind, f"{BASE}/resolve/", times=10**6)]
    folder, said = osdface()
    check(folder, hub)
    assert len(said) == 2 and BASE in said[0] and f"trying {MIRROR}" in said[0]
    # The user has agreed to the size of the first mirror's files.
    assert re.fullmatch(rf"\d files, [\d.]+ MB, from {MIRROR}", said[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("401", "a login is needed (set HF_TOKEN) (401)"),
        ("403", "access is refused (agree to its terms"),
        ("absent", "no such repository, revision or file (404)"),
        ("429", "too many requests; try again later (429)"),
        ("503", "the hub does not work at the moment (503)"),
        ("html", OWN),
    ],
)
@pytest.mark.parametrize("where", [f"/api/models/{OWN}", "associate_2"])
def test_a_repository_that_does_not_answer_is_named(osdface, hub, kind, words, where):
    hub.faults = [Fault(kind, where, times=10**6)]
    with pytest.raises(QuantFaceError) as caught:
        osdface()
    assert OWN in str(caught.value) and words in str(caught.value)
    assert "\n" not in str(caught.value) and cached("osdface") is None
    hub.faults.clear()
    check(osdface()[0], hub)


def test_an_altered_file_is_never_kept(osdface, hub):
    hub.faults = [Fault("altered", "associate_2", times=10**6)]
    with pytest.raises(QuantFaceError, match=r"associate_2\.ckpt: found SHA-256 \w+, expected \w+"):
        osdface()
    assert not list(sources()["osdface"].folder.rglob("*.ckpt"))


def test_a_cut_download_goes_on_where_it_ended(osdface, hub):
    hub.repositories[OWN].files["pre/associate_2.ckpt"] = random.Random(1).randbytes(LARGE)
    hub.faults = [Fault("cut", "associate_2", times=99, place=0.5)]
    with pytest.raises(QuantFaceError, match=rf"connection ended after \d+ of {LARGE} bytes"):
        osdface()
    # Each of four tries got half of what was missing; another process would go on there.
    assert hub.ranges == [f"bytes={LARGE * share // 16}-" for share in (8, 12, 14)]
    hub.faults.clear()
    check(osdface()[0], hub)
    assert hub.ranges[3:] == [f"bytes={LARGE * 15 // 16}-"]


def test_moved_repositories_are_followed(osdface, hub):
    hub.faults = [Fault("moved", f"/api/models/{OWN}")]
    check(osdface()[0], hub)


def test_a_branch_that_moved_on_gives_the_files_of_the_first_fetch(osdface, hub):
    folder, _ = osdface()
    first = (folder / "associate_2.ckpt").read_bytes()
    remove("osdface")
    old = hub.repositories[OWN]
    hub.repositories[OWN] = Repository({**old.files, "pre/associate_2.ckpt": b"new" * 9000})
    with pytest.raises(QuantFaceError) as caught:
        osdface()
    lock = json.loads(folder.with_name("osdface.lock.json").read_text())
    digests = (
        lock["associate_2.ckpt"]["sha256"],
        hub.repositories[OWN].digest("pre/associate_2.ckpt"),
    )
    assert all(digest in str(caught.value) for digest in digests)
    hub.repositories[OWN] = old
    assert (osdface()[0] / "associate_2.ckpt").read_bytes() == first


def test_a_hub_that_fails_is_not_taken_for_a_branch_that_moved(osdface, hub):
    osdface()
    remove("osdface")
    old = hub.repositories[OWN]
    hub.repositories[OWN] = Repository({**old.files, "pre/associate_2.ckpt": b"new" * 9000})
    hub.faults = [Fault("503", f"/api/models/{OWN}", times=10**6)]
    with pytest.raises(QuantFaceError, match=r"does not work at the moment \(503\)"):
        osdface()


def test_the_alternative_that_was_fetched_first_stays(osdface, hub):
    osdface()
    remove("osdface")
    for name in (BASE, MIRROR):
        hub.repositories[name].files.pop("vae/diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(QuantFaceError, match=r"no file vae/diffusion_pytorch_model\.fp16"):
        osdface()
