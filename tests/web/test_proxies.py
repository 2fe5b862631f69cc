"""The page opens behind a reverse proxy under any path, and with a forward proxy in the way."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from dataclasses import replace

import pytest
from small_networks import TINY

from quantface_arch.archs.build import build_arch
from quantface_arch.quant.checkpoint.save_load import save_checkpoint

pytest.importorskip("gradio", reason="Gradio is not installed (pip install gradio)")

from web_client import serving

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
OPTIONS = ("--runtime", "reference", "--detector", "yunet")
# A port on which nothing listens.
DEAD_PROXY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_checkpoint(build_arch(TINY), path, TINY)
    return path


@contextmanager
def nginx(folder, upstream, path):
    """Run nginx, which serves ``upstream`` under ``path``; yields the page's address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    places = " ".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # Started by root, its workers would lose the right to write their temporary files.
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"""{user} daemon off; pid {folder}/pid; error_log {folder}/errors; events {{}}
        http {{ access_log off; {places} server {{ listen 127.0.0.1:{port};
        location {path}/ {{ proxy_pass {upstream}/; proxy_buffering off;
        proxy_set_header Host $host; proxy_set_header X-Forwarded-Host $http_host;
        proxy_set_header X-Forwarded-Proto $scheme; }} }} }}"""
    )
    process = subprocess.Popen([NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")])
    url = f"http://127.0.0.1:{port}{path}"
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"{url}/", timeout=20).close()
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_a_page_under_a_path_finds_its_files_and_restores(repo, model, tmp_path):
    path = "/a/b"
    options = ("--model", str(model), *OPTIONS, "--root-path", path)
    with serving(*options) as direct, nginx(tmp_path, direct.url, path) as url:
        client = replace(direct, url=url)
        page = client.get("/").decode()
        root = re.search(r'"root":"([^"]*)"', page)[1]
        assert root.rstrip("/") == url
        files = re.findall(r'(?:src|href)="([^"]+\.(?:js|css))"', page)
        assert files
        for file in files:
            urllib.request.urlopen(urllib.parse.urljoin(f"{url}/", file), timeout=60).close()
        photo = (repo / "inputs/astronaut.jpg").read_bytes()
        answer = client.restore(client.upload(photo, "mine.jpg"), model=model.name)
        assert "1 face restored" in answer[0]
        assert answer[2]["value"]["url"].startswith(f"{url}/")
        urllib.request.urlopen(answer[2]["value"]["url"], timeout=60).close()


@pytest.mark.slow
def test_a_forward_proxy_does_not_keep_the_page_from_starting(model):
    names = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    environment = {**os.environ, **dict.fromkeys(names, DEAD_PROXY)}
    environment = {name: environment[name] for name in environment if name.lower() != "no_proxy"}
    with serving("--model", str(model), *OPTIONS, environment=environment) as client:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        assert b"QuantFace" in opener.open(client.url, timeout=60).read()


@pytest.mark.parametrize("path", ["faces", "/a/../b", "/a b", "ftp://host/a", "/<script>"])
def test_other_root_paths_are_refused(path, capsys):
    from quantface_arch.web.cli import make_parser

    with pytest.raises(SystemExit):
        make_parser().parse_args(["--root-path", path])
    assert "expected a path such as /faces" in capsys.readouterr().err
