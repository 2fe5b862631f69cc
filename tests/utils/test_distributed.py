"""Processes started like torchrun's: they meet, share work, and leave together."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from quantface_arch.utils.images import RGBImage, write_image

HEAD = """
import os, sys, time
from pathlib import Path
from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.distributed import Shard
shard, mark = Shard.here(), Path("mark")
"""


@pytest.fixture
def ranks(repo, tmp_path):
    """Start a program as two processes of one shell, whose output is theirs, line by line."""
    started = []

    def start(program):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        (tmp_path / "program.py").write_text(HEAD + program)
        environment = {"PYTHONPATH": str(repo), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        # With buffering, a process writes its line in one piece.
        environment["PYTHONUNBUFFERED"] = ""
        # This is the number of threads of a process without a limit.
        environment["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)) // 2 + 2)
        one = f"{sys.executable} program.py"
        shell = subprocess.Popen(
            ["sh", "-c", f"RANK=1 LOCAL_RANK=1 {one} & RANK=0 LOCAL_RANK=0 {one}; wait"],
            cwd=tmp_path,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(shell)
        return shell

    yield start
    for shell in started:
        # The process group has the number of its first process.
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.communicate()


@pytest.mark.slow
def test_nobody_leaves_before_all_are_done(ranks):
    """Each has its share of the cores; the first one's word holds; the quick wait for the slow."""
    shell = ranks("""
import torch
with shard.joined():
    threads = torch.get_num_threads()
    word, all_ranks = shard.agree(shard.rank + 5), shard.gather(shard.rank)
    if shard.is_first:
        time.sleep(1)
        mark.touch()
print(threads == shard.threads, word, all_ranks, mark.exists())
""")
    found, _ = shell.communicate(timeout=120)
    assert found.splitlines() == ["True 5 [0, 1] True"] * 2


@pytest.mark.slow
def test_a_process_that_is_left_alone_says_so(ranks):
    shell = ranks("""
try:
    with shard.joined():
        if not shard.is_first:
            os._exit(0)
        shard.gather(0)
except QuantFaceError as error:
    print(error)
""")
    found, _ = shell.communicate(timeout=120)
    assert re.fullmatch(r"process 0 of 2: lost another process \(.+\)\n", found)


@pytest.mark.slow
def test_what_the_first_one_finds_is_shared_out(ranks, model, tmp_path):
    """An image that appears later, and that only one process sees, does not shift the shares."""
    names = {"first": ("0", "1", "2", "3"), "second": ("0", "00", "1", "2", "3")}
    for folder, stems in names.items():
        for stem in stems:
            grey = np.full((24, 24, 3), 99, np.uint8)
            write_image(tmp_path / folder / f"faces/{stem}.png", RGBImage(grey))
    shell = ranks(f"""
from quantface_arch.utils.cli import run
from quantface_arch.restore.cli import main, make_parser
os.chdir("first" if shard.is_first else "second")
sys.argv = "restore.py -i faces -o ../out --aligned --runtime reference".split()
sys.argv += ["--model", {str(model)!r}]
run(main, make_parser())
""")
    found, _ = shell.communicate(timeout=120)
    assert found.startswith("4 images, 4 faces restored, 0 failed")
    written = sorted(path.stem for path in (tmp_path / "out/restored_faces").iterdir())
    assert tuple(written) == names["first"]


def is_running(process):
    """Return whether such a process runs; a zombie does not count."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells of a parent's death")
def test_none_goes_on_without_the_one_that_started_it(ranks):
    shell = ranks("""
with shard.joined():
    print(os.getpid(), flush=True)
    time.sleep(100)
""")
    processes = [int(shell.stdout.readline()) for _ in range(2)]
    assert all(map(is_running, processes))
    shell.kill()
    deadline = time.monotonic() + 20
    while any(map(is_running, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, processes))
