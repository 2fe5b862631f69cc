"""Memory of compiled networks: memory that is not needed returns to the system."""

from __future__ import annotations

import mmap
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_networks import TINY

from quantface_arch.archs.build import build_arch
from quantface_arch.quant import save_checkpoint
from quantface_arch.quant.nn.traits import traits_of
from quantface_arch.runtime.openvino import compiled_parts, load, memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="the pages are Linux's")


def resident(kind):
    """Return the bytes of this process that are in memory: RssAnon or RssFile."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{kind}:\s+(\d+) kB", status)[1]) * 1024


@linux
def test_pages_of_a_mapped_file_are_forgotten_and_read_again(tmp_path):
    path, size = tmp_path / "weights.bin", 64 << 20
    path.write_bytes(bytes(range(256)) * (size // 256))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        wanted = hash(mapped[:])
        held = resident("RssFile")
        with memory.forgetting_pages(path):
            pass
        assert resident("RssFile") < held - size // 2
        with memory.forgetting_pages(path):
            assert hash(mapped[:]) == wanted


@linux
def test_a_mapping_that_can_be_written_is_left_alone(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"0" * mmap.PAGESIZE)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[:1] = b"1"
        with memory.forgetting_pages(path):
            pass
        assert mapped[:1] == b"1"


@linux
def test_freed_memory_is_returned():
    blocks = [bytearray(60_000) for _ in range(2000)]
    # The last block keeps the heap from shrinking by itself.
    held, last = resident("RssAnon"), blocks.pop()
    blocks.clear()
    memory.return_freed()
    assert resident("RssAnon") < held - 60_000_000 and last


@pytest.mark.slow
def test_a_frugal_network_computes_the_same_time_and_again(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTFACE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "net.safetensors"
    torch.manual_seed(0)
    save_checkpoint(build_arch(TINY), path, TINY)
    plain = load(path, build_arch)
    monkeypatch.setattr(compiled_parts, "LARGE", 0)
    frugal = load(path, build_arch)
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        wanted = plain(x)
        assert all(torch.equal(frugal(x), wanted) for _ in range(3))
    held = [vars(net)[name].part.frugal for net in (plain, frugal) for name in traits_of(net).parts]
    assert held == [False] * (len(held) // 2) + [True] * (len(held) // 2)


@pytest.mark.slow
@linux
def test_want_of_memory_is_said_with_what_was_needed(tmp_path):
    """The process may take little more memory than it has."""
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(build_arch(TINY), path, TINY)
    code = f"""
import re, resource, torch
from pathlib import Path
from quantface_arch.archs.build import build_arch
from quantface_arch.errors import QuantFaceError
from quantface_arch.runtime import openvino
from quantface_arch.utils.threads import set_thread_count
set_thread_count(1)
network = openvino.load(Path({str(path)!r}), build_arch)
network(torch.zeros(1, 3, 64, 64))
large = torch.zeros(1, 3, 2048, 2048)
status = Path("/proc/self/status").read_text()
held = int(re.search(r"VmSize:\\s+(\\d+)", status)[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (held + (64 << 20),) * 2)
try:
    network(large)
except QuantFaceError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = r"\w+ for inputs .*could not compute it \(.+\); its weights .* GB of memory\n"
    assert re.fullmatch(said, done.stdout)
