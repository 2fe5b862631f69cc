"""What the README shows works as it stands."""

from __future__ import annotations

import re
import shutil

import pytest
from programs import run_program


@pytest.mark.slow
def test_python_examples_run(repo, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (repo / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    shutil.copytree(repo / "inputs", tmp_path / "inputs")
    faces = "import torch\nfaces = torch.rand(1, 3, 128, 128) * 2 - 1\n"
    (tmp_path / "examples.py").write_text("\n".join([faces, *blocks]))
    done = run_program(tmp_path / "examples.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 faces" in done.stdout
    assert (tmp_path / "restored.png").is_file() and (tmp_path / "my-w4a8.safetensors").is_file()


def test_every_file_that_it_names_exists(repo):
    text = (repo / "README.md").read_text()
    named = re.findall(r"(?:python |\]\()((?:inference|scripts|basicsr|docs)/[\w./]+)", text)
    named += re.findall(r"options/[\w/]+\.yml", text)
    assert len(named) > 8
    for name in named:
        assert (repo / name).is_file(), name
