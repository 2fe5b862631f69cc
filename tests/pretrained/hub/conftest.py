"""A hub with a small OSDFace on this machine."""

from __future__ import annotations

import pytest
from hub_files import BASE, MIRROR, OWN, files
from hub_server import Hub, Repository

from quantface_arch.pretrained.hub import requests
from quantface_arch.pretrained.hub.fetch import fetch
from quantface_arch.pretrained.hub.options import FetchOptions
from quantface_arch.pretrained.hub.sources import sources


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
