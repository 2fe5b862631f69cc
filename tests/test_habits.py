"""The version stands in one place, and the hooks before a commit are what make test runs."""

from __future__ import annotations

import re
import subprocess
import sys

import yaml

import quantface_arch


def test_the_version_stands_in_one_place(repo):
    project = (repo / "pyproject.toml").read_text().partition("[project]")[2]
    assert 'dynamic = ["version"]' in project and not re.search(r"^version = \"", project, re.M)
    assert 'version = {attr = "quantface_arch.__version__"}' in project
    newest = re.search(r"^## \[(.+?)\]", (repo / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert re.fullmatch(r"\d+\.\d+\.\d+", quantface_arch.__version__)
    assert newest and newest[1] == quantface_arch.__version__


def test_commands_say_their_version(repo):
    command = [sys.executable, str(repo / "inference/restore.py"), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, f"quantface {quantface_arch.__version__}\n")


def test_hooks_are_local_and_those_of_make_test(repo):
    makefile = (repo / "Makefile").read_text()
    recipe = makefile.partition("\nlint: ")[2].partition("\n\n")[0]
    wanted = re.findall(r"\$\(BIN\)/([^\n]*)", recipe)
    config = yaml.safe_load((repo / ".pre-commit-config.yaml").read_text())
    assert [source["repo"] for source in config["repos"]] == ["local"]
    hooks = [hook["entry"].removeprefix(".venv/bin/") for hook in config["repos"][0]["hooks"]]
    assert hooks == [line.removesuffix(" .") for line in wanted] and len(hooks) == 4
    assert "\ntest: lint\n\t$(PYTEST)\n" in makefile
    assert '\ncheck: lint\n\t$(PYTEST) -m "not slow"\n' in makefile
    assert all(hook["language"] == "system" for hook in config["repos"][0]["hooks"])
    # Pyright looks at the whole package, not at the files of a commit.
    project = (repo / "pyproject.toml").read_text()
    assert '[tool.pyright]\ninclude = ["quantface_arch"]\n' in project
    assert config["repos"][0]["hooks"][2]["pass_filenames"] is False


def test_all_files_of_the_package_are_installed(repo):
    project = (repo / "pyproject.toml").read_text()
    listed = re.search(r"^quantface_arch = \[(.+?)\]$", project, re.MULTILINE | re.DOTALL)
    package = repo / "quantface_arch"
    patterns = re.findall(r'"(.+?)"', listed[1])
    wanted = {path for pattern in patterns for path in package.glob(pattern)}
    found = {path for path in package.rglob("*") if path.is_file() and path.suffix != ".py"}
    assert wanted and wanted == {path for path in found if path.parent.name != "__pycache__"}


def test_every_progress_bar_stays_readable_in_a_log(repo):
    # tqdm's own bars write carriage returns into log files.
    for folder in ("quantface_arch", "scripts", "inference", "benchmarks"):
        for path in (repo / folder).rglob("*.py"):
            if path != repo / "quantface_arch/utils/progress.py":
                assert not re.search(r"\bt(qdm|range)\(", path.read_text()), path


def test_functions_without_types_are_refused_by_ruff(repo):
    command = [sys.executable, "-m", "ruff", "check", "-q", "--stdin-filename"]
    command += ["quantface_arch/any.py", "-"]
    text = "def doubled(x):\n    return 2 * x\n"
    done = subprocess.run(command, cwd=repo, input=text, capture_output=True, text=True)
    assert done.returncode == 1 and {"ANN001", "ANN201"} <= set(done.stdout.split())


def test_the_citation_names_the_version_of_the_package(repo):
    citation = yaml.safe_load((repo / "CITATION.cff").read_text())
    assert citation["version"] == quantface_arch.__version__


def test_forge_files_are_valid_and_call_targets_that_exist(repo):
    known = set(re.findall(r"^(\w+):", (repo / "Makefile").read_text(), re.MULTILINE))
    files = sorted((repo / ".github").rglob("*.yml"))
    called = [re.findall(r"run: make (\w+)", file.read_text()) for file in files]
    assert all(yaml.safe_load(file.read_text()) for file in files)
    assert {"check", "test"} == {target for targets in called for target in targets} <= known
