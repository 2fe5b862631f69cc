"""Memory of compiled networks: what is not needed goes back to the system."""

from __future__ import annotations

import mmap
import re
import sys
from pathlib import Path

import pytest
import torch
from tiny import TINY

from quantface_arch.archs import build_arch
from quantface_arch.quant import save_checkpoint
from quantface_arch.runtime.openvino import load, memory, network
from quantface_arch.runtime.parts import parts_of

linux = pytest.mark.skipif(sys.platform != "linux", reason="the pages are Linux's")


def resident(kind):
    """Bytes of this process that are in memory: RssAnon or RssFile."""
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
    # The last one keeps the heap from shrinking by itself.
    held, last = resident("RssAnon"), blocks.pop()
    blocks.clear()
    memory.return_freed()
    assert resident("RssAnon") < held - 60_000_000 and last


def test_a_frugal_network_computes_the_same_time_and_again(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTFACE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "net.safetensors"
    torch.manual_seed(0)
    save_checkpoint(build_arch(TINY), path, TINY)
    plain = load(path, build_arch)
    monkeypatch.setattr(network, "LARGE", 0)
    frugal = load(path, build_arch)
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        wanted = plain(x)
        assert all(torch.equal(frugal(x), wanted) for _ in range(3))
    held = [vars(net)[name].frugal for net in (plain, frugal) for name in parts_of(net)]
    assert held == [False] * (len(held) // 2) + [True] * (len(held) // 2)
