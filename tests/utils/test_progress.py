"""Progress bars in a log: one line per state, no carriage returns, no repetitions."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tqdm import tqdm

from quantface_arch.restore.progress import shard_progress
from quantface_arch.utils.distributed import Shard
from quantface_arch.utils.progress import progress_bar


@pytest.fixture(autouse=True)
def immediate(monkeypatch):
    """Draw every state, so that a repetition of the last one would be seen."""
    monkeypatch.setattr("quantface_arch.utils.progress.LOG_INTERVAL", 0.0)


def test_a_log_gets_each_state_once_without_carriage_returns(capsys):
    with progress_bar(total=3, unit="image") as bar:
        for _ in range(3):
            bar.update()
        tqdm.write("error: x", file=sys.stderr)
        bar.refresh()
    text = capsys.readouterr().err
    assert "\r" not in text
    states = [line.split("|")[-1].split()[0] for line in text.splitlines() if "|" in line]
    assert states == ["0/3", "1/3", "2/3", "3/3"]


def test_items_are_iterated_and_an_unknown_total_is_counted(capsys):
    assert list(progress_bar("ab", unit="layer")) == ["a", "b"]
    with progress_bar(total=0, unit="frame") as bar:
        bar.update(2)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("|")[0].split(" ")[0] for line in lines] == [
        *("0%", "50%", "100%"),
        *("0frame", "2frame"),
    ]


def test_only_the_first_process_shows_its_progress(capsys):
    for rank in range(2):
        with shard_progress(1, Shard(rank, 2)) as bar:
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("process 1 of 2: ") for line in lines)


@pytest.mark.parametrize("module", ["restore", "web"])
def test_commands_that_run_as_modules_print_their_help(repo, module):
    command = [sys.executable, "-m", f"quantface_arch.{module}.cli", "--help"]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--detector" in done.stdout
