"""Restorers are fetched from a real server on this machine, complete and as the hub lists them."""

from __future__ import annotations

import json
import random
from collections import namedtuple
from pathlib import Path

import pytest
from hub_server import Fault, Hub, Repository

from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.pretrained.hub import requests
from quantface_arch.pretrained.hub.cache import cached, entries, remove, require
from quantface_arch.pretrained.hub.checkpoint import checkpoint_source
from quantface_arch.pretrained.hub.fetch import fetch
from quantface_arch.pretrained.hub.options import FetchOptions, ask
from quantface_arch.pretrained.hub.sources import sources
from quantface_arch.pretrained.names import resolve_base

OWN, BASE, MIRROR = (mirror.repo for part in sources()["osdface"].parts for mirror in part.mirrors)
FOLDER = "stable-diffusion-2-1-base"
LARGE = 3_200_000


def files(seed):
    """Contents of all files of a restorer, told apart by ``seed``."""
    chance = random.Random(seed)
    base = {"scheduler/scheduler_config.json": b"{}", "README.md": b"?"}
    for part in ("unet", "vae"):
        base[f"{part}/config.json"] = b"{%d}" % seed
        base[f"{part}/diffusion_pytorch_model.safetensors"] = chance.randbytes(20_000)
        base[f"{part}/diffusion_pytorch_model.fp16.safetensors"] = chance.randbytes(10_000)
    own = {"pre/associate_2.ckpt": chance.randbytes(10_000), "old/pre/associate_2.ckpt": b"old"}
    own["embedding_change_weights.pth"] = chance.randbytes(6000)
    own["pytorch_lora_weights.safetensors"] = chance.randbytes(40)
    return own, base


@pytest.fixture(autouse=True)
def quickly(monkeypatch, tmp_path):
    monkeypatch.setenv("QUANTFACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("QUANTFACE_YES", raising=False)
    monkeypatch.setattr(requests, "_PAUSES_SECONDS", (0.01, 0.01, 0.01))
    monkeypatch.delenv("QUANTFACE_SD_BASE", raising=False)


@pytest.fixture
def hub():
    own, base = files(7)
    repositories = {OWN: Repository(own), BASE: Repository(base), MIRROR: Repository(dict(base))}
    with Hub(repositories).serving() as running:
        yield running


@pytest.fixture
def osdface(hub):
    """Return a function that fetches OSDFace: its folder and what was said."""
    said = []

    def call(**options):
        options = {"yes": True, "endpoint": hub.url, **options}
        return fetch(sources()["osdface"], FetchOptions(**options), said.append), said

    return call


def check(folder, hub):
    """Check that a folder holds what the hub has, and nothing else."""
    own, base = hub.repositories[OWN].files, hub.repositories[BASE].files
    wanted = {name.rpartition("/")[2]: data for name, data in own.items() if "old" not in name}
    wanted |= {
        f"{FOLDER}/{name}": data
        for name, data in base.items()
        if name.endswith(("json", "fp16.safetensors"))
    }
    found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    assert found.keys() == wanted.keys()
    for name, data in wanted.items():
        assert found[name].read_bytes() == data, name


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
    assert len(said) == 1 and BASE in said[0] and f"trying {MIRROR}" in said[0]


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


def test_a_base_in_the_cache_is_never_removed_for_a_link_to_itself(osdface, hub):
    folder, _ = osdface()
    folder.with_name("osdface.lock.json").unlink()
    with pytest.raises(QuantFaceError, match=rf"base .*{FOLDER}: it lies in .*osdface, where"):
        osdface(base=str(folder / FOLDER))
    check(folder, hub)


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
