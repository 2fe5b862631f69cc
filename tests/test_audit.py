"""The audit of dependencies never takes what was not looked up for clean."""

from __future__ import annotations

import json
import re

import pytest

CLEAN = {"name": "a", "version": "1", "vulns": []}
FOUND = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
UNFIXED = {"name": "d", "version": "4", "vulns": [{"id": "CVE-2", "fix_versions": []}]}
SKIPPED = {"name": "c", "skip_reason": "not found on\nthe index"}


@pytest.fixture
def audit(load_script, run_script, tmp_path, monkeypatch):
    """Run the command with a pip-audit that answers as it is told to."""
    script = load_script("audit_dependencies")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)

    def call(code, *words):
        if code is not None:
            (tmp_path / "pip_audit.py").write_text(code)
        (tmp_path / "r.txt").write_text("a==1\n")
        return run_script(script, "-r", tmp_path / "r.txt", *words)

    return call


# What it has to be asked: about this file, its very versions, of this service, in this format.
ASKED = """
import sys
words = dict(zip(sys.argv, sys.argv[1:]))
assert open(words["--requirement"]).read() == "a==1\\n", words
assert words["--format"] == "json" and words["--vulnerability-service"] == "pypi", words
assert {"--no-deps", "--disable-pip"} <= set(sys.argv), words
"""


def answer(*packages):
    return f"{ASKED}\nprint({json.dumps({'dependencies': packages})!r})"


@pytest.mark.parametrize(
    ("packages", "status", "message"),
    [
        ((CLEAN,), 0, "packages: 1, vulnerable: 0, not looked up: 0"),
        ((CLEAN, FOUND), 1, "b 2: CVE-1, fixed in: 3"),
        ((UNFIXED,), 1, "d 4: CVE-2, fixed in: none yet"),
        ((CLEAN, SKIPPED), 3, "not looked up: 1"),
        ((FOUND, SKIPPED), 1, "not looked up: 1"),
        ((), 3, "packages: 0"),
    ],
)
def test_only_what_was_looked_up_is_clean(audit, packages, status, message):
    found, out, err = audit(answer(*packages), "--service", "pypi")
    assert found == status and message in out
    assert ("not checked" in err) == (SKIPPED in packages or not packages)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "words", "message"),
    [
        ("raise OSError('api: Name or service not known')", (), "Name or service not known"),
        ("print('{}')", (), "no answer of the service osv"),
        ("print('[]')", (), "no answer of the service osv"),
        ("import time; time.sleep(60)", ("--seconds", "1"), "no answer in 1 seconds"),
        ("raise ImportError('No module named pip_audit')", (), "pip install pip-audit"),
    ],
)
def test_no_answer_has_a_status_of_its_own(audit, code, words, message):
    status, out, err = audit(code, *words)
    assert status == 3 and not out
    assert err.startswith("not checked: ") and message in err and err.count("\n") == 1


def test_without_a_file_it_is_the_usage_that_is_wrong(audit, tmp_path):
    status, _, err = audit(None, "-r", tmp_path / "none.txt")
    assert status == 2 and "none.txt: no such file" in err


def test_the_tested_versions_of_all_that_is_needed_are_pinned(load_script, repo):
    tested = load_script("audit_dependencies").make_parser().parse_args([]).requirements
    assert tested == repo / "requirements-tested.txt"
    lines = tested.read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins and all(line.count("==") == 1 for line in pins)
    project = (repo / "pyproject.toml").read_text()
    needed = re.findall(r"^(?:dependencies|test) = \[(.*?)\]$", project, re.DOTALL | re.MULTILINE)
    names = re.findall(r'"([\w-]+)[=<>]', "".join(needed))
    assert len(names) > 20 and set(names) <= {line.partition("==")[0].lower() for line in pins}
