"""Batches that are shared among processes, interrupted and resumed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest
from disks import full_disk

from quantface_arch.restore import run as restore_run
from quantface_arch.restore.restorer import FaceRestorer
from quantface_arch.utils import files
from quantface_arch.utils.distributed import Shard
from quantface_arch.utils.files import atomic_path, file_digest
from quantface_arch.utils.images import RGBImage, write_image

IMAGES = 24
# Seconds; generous, because the machine may be busy.
PATIENCE = 600
ALIGNED = ("--aligned", "--runtime", "reference")


@pytest.fixture
def faces(tmp_path):
    """Return a folder of small aligned faces, all different."""
    folder = tmp_path / "faces"
    folder.mkdir()
    for index in range(IMAGES):
        noise = np.random.randint(0, 256, (24, 24, 3), np.uint8)
        write_image(folder / f"{index:02d}.png", RGBImage(noise))
    return folder


def done(out):
    """Return the manifest's lines about inputs that are done."""
    records = []
    for path in out.glob("manifest-*.jsonl"):
        for line in path.read_bytes().split(b"\n"):
            with suppress(ValueError):
                records.append(json.loads(line))
    return [record for record in records if record["error"] is None]


def digests(out):
    return {path.name: file_digest(path) for path in (out / "restored_faces").iterdir()}


def workers(process):
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    return [int(word) for word in open(children).read().split()]


def start(repo, model, faces, out, *options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(repo / "inference/restore.py"), "-i", str(faces)]
    command += ["-o", str(out), "--aligned", "--model", str(model), "--runtime", "reference"]
    log = out.with_suffix(".log").open("w+")
    environment = {**os.environ, "PYTHONPATH": str(repo)}
    return subprocess.Popen(
        [*command, *options], env=environment, stdout=log, stderr=subprocess.STDOUT
    )


@pytest.mark.slow
def test_a_run_resumes_after_one_of_two_processes_was_killed(repo, restore, model, faces, tmp_path):
    """Every image is restored exactly once, as in an undisturbed run."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert restore("-i", faces, *ALIGNED, "-o", whole)[0] == 0
    process = start(repo, model, faces, out)
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and len(done(out)) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    victim = workers(process)[1]
    os.kill(victim, signal.SIGKILL)
    assert process.wait(timeout=PATIENCE) == 1
    before = done(out)
    assert 4 <= len(before) < IMAGES
    # Every image that counts as done is complete.
    times = {}
    for record in before:
        (path,) = (out / name for name in record["outputs"])
        assert record["outputs"][str(path.relative_to(out))] == file_digest(path)
        times[path] = path.stat().st_mtime_ns
    # Imitate a line that the kill cut short, and a partly written image.
    with (out / "manifest-0.jsonl").open("ab") as file:
        file.write(b'{"input": "fa')
    (out / "restored_faces/.tmp-half.png").write_bytes(b"half")

    process = start(repo, model, faces, out, "--resume")
    status = process.wait(timeout=PATIENCE)
    output = out.with_suffix(".log").read_text()
    assert status == 0, output
    left = IMAGES - len(before)
    assert f"{left} images, {left} faces restored, 0 failed, {len(before)} skipped" in output
    assert output.count("images, ") == 1 and "process 1 of 2" in output
    assert "process 2 of 2" not in output
    assert sorted(record["name"] for record in done(out)) == [f"{i:02d}" for i in range(IMAGES)]
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())
    assert digests(out) == digests(whole)
    # Both processes had a share of the rest.
    assert (out / "manifest-1.jsonl").read_bytes().count(b"\n") >= left // 2


def test_shares_are_disjoint_complete_and_balanced():
    for count in range(1, 6):
        for length in range(13):
            items = list(range(100, 100 + length))
            shards = [Shard(rank, count) for rank in range(count)]
            shares = [shard.share(items) for shard in shards]
            assert sorted(item for share in shares for item in share) == items
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
            assert shards[0].whole(shares) == items


def test_each_process_knows_its_rank_and_gets_a_share_of_the_cores(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert Shard.here() == Shard() and Shard().is_first
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    for name, value in {"RANK": 5, "WORLD_SIZE": 6, "LOCAL_RANK": 2, "LOCAL_WORLD_SIZE": 3}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    assert Shard.here() == Shard(5, 6, 2, 3) and Shard.here().threads == 2
    assert Shard(0, 9, 0, 9).threads == 1


@pytest.mark.slow
def test_resume_repeats_inputs_whose_files_or_settings_changed(restore, faces, tmp_path):
    out = tmp_path / "out"

    def again(*options):
        command = ["-i", faces, *ALIGNED, "--resume", *options]
        status, stdout, stderr = restore(*command)
        assert status == 0, stderr
        return 0 if "done already" in stdout.split(",")[0] else int(stdout.split(" images")[0])

    for path in sorted(faces.iterdir())[3:]:
        path.unlink()
    assert again() == 3
    assert again() == 0
    # Change an output, delete one, and replace an input.
    (out / "restored_faces/00.png").write_bytes(b"x")
    assert again() == 1
    (out / "restored_faces/01.png").unlink()
    assert again() == 1
    write_image(faces / "02.png", RGBImage(np.zeros((30, 30, 3), np.uint8)))
    assert again() == 1
    assert again() == 0
    # Change the settings, and change them back.
    assert again("--strength", "0.5") == 3
    assert again() == 3
    assert again("--compare") == 3
    status, _, stderr = restore("-i", faces, *ALIGNED, "--resume", "--skip-existing")
    assert status == 2 and "--skip-existing" in stderr


def test_failed_images_are_recorded_and_retried(restore, tmp_path):
    blank = tmp_path / "blank.png"
    write_image(blank, RGBImage(np.full((60, 80, 3), 90, np.uint8)))
    command = ("-i", blank, "--runtime", "reference")
    assert restore(*command)[0] == 1
    record = json.loads((tmp_path / "out/manifest-0.jsonl").read_text())
    assert "no face found" in record["error"] and record["outputs"] == {}
    assert restore(*command, "--resume")[0] == 1
    assert restore(*command, "--resume", "--keep-unrestored")[0] == 0
    assert "done already" in restore(*command, "--resume", "--keep-unrestored")[1]
    # Without --keep-unrestored, an unrestored image is not done.
    assert restore(*command, "--resume")[0] == 1


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_resuming_completes_it(restore, faces, tmp_path):
    """Two images fit, the third does not: the error is one line and no file is incomplete."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    for path in sorted(faces.iterdir())[5:]:
        path.unlink()
    flat = np.full((512, 512, 3), 128, np.uint8)
    for name in ("00.png", "01.png"):
        write_image(faces / name, RGBImage(flat))
    arguments = ["-i", faces, *ALIGNED]
    assert restore(*arguments, "-o", whole)[0] == 0
    sizes = [(whole / f"restored_faces/{i:02d}.png").stat().st_size for i in range(5)]
    assert max(sizes[:2]) + 1000 < min(sizes[2:])
    with full_disk(min(sizes[2:]) - 1):
        status, stdout, stderr = restore(*arguments)
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert status == 1 and not stdout
    (error,) = errors
    assert "02.png: File too large; 2 of 5 images are done" in error and "--resume" in error
    assert sorted(path.name for path in out.rglob("*.png")) == ["00.png", "01.png"]
    status, stdout, _ = restore(*arguments, "--resume")
    assert status == 0 and "3 images" in stdout and "2 skipped" in stdout
    assert digests(out) == digests(whole)


@pytest.mark.slow
def test_pending_images_are_bounded(restore, faces, monkeypatch):
    batches = []
    work = FaceRestorer.restore_aligned
    monkeypatch.setattr(restore_run, "_MAX_PENDING_PIXELS", 2 * 512 * 512)
    monkeypatch.setattr(
        FaceRestorer,
        "restore_aligned",
        lambda restorer, crops, **how: batches.append(len(crops)) or work(restorer, crops, **how),
    )
    for path in sorted(faces.iterdir())[5:]:
        path.unlink()
    assert restore("-i", faces, *ALIGNED, "--batch-size", "100")[0] == 0
    assert batches == [2, 2, 1]


@pytest.mark.slow
def test_the_file_that_marks_an_image_as_done_is_written_last(restore, photographs, tmp_path):
    """The result appears after all other outputs, so that --skip-existing can rely on it."""
    arguments = ["-i", photographs / "0.png", "--compare", "--runtime", "reference"]
    assert restore(*arguments, "-o", tmp_path / "whole")[0] == 0
    sizes = {path.parent.name: path.stat().st_size for path in tmp_path.glob("whole/*/0*.png")}
    assert sizes["restored"] < max(sizes.values())
    with full_disk(max(sizes.values()) - 1):
        assert restore(*arguments)[0] == 1
    assert not (tmp_path / "out/restored/0.png").exists()
    assert restore(*arguments, "--skip-existing")[0] == 0
    assert len(list(tmp_path.glob("out/*/0*.png"))) == len(sizes)


def test_a_failed_write_is_an_error_and_keeps_the_old_file(tmp_path, model):
    """This holds for images, safetensors and torch files."""
    import torch

    from quantface_arch.archs.build import build_arch
    from quantface_arch.errors import WriteError
    from quantface_arch.models.checkpoints import write_torch_file
    from quantface_arch.quant import read_metadata, save_checkpoint

    arch = read_metadata(model)["arch"]
    noise = RGBImage(np.random.randint(0, 256, (64, 64, 3), np.uint8))
    writers = {
        "a.png": lambda path: write_image(path, noise),
        "b.safetensors": lambda path: save_checkpoint(build_arch(arch), path, arch),
        "c.state": lambda path: write_torch_file(path, {"x": torch.zeros(10_000)}),
    }
    for name, write in writers.items():
        path = tmp_path / name
        path.write_bytes(b"old")
        with full_disk(3000), pytest.raises(WriteError, match=f"cannot write .*{name}: File too"):
            write(path)
        assert path.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(writers)


def test_other_errors_pass_through_atomic_path(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "x.txt"):
        _ = 1 / 0
    assert not list(tmp_path.iterdir())


def test_atomic_path_keeps_the_usual_permissions(tmp_path):
    (tmp_path / "plain.txt").write_text("x")
    with atomic_path(tmp_path / "x.txt") as temporary:
        temporary.write_text("x")
    plain, found = ((tmp_path / name).stat().st_mode for name in ("plain.txt", "x.txt"))
    assert oct(found) == oct(plain)


@pytest.mark.parametrize("size", [0, 3, 4, 11])
def test_a_digest_covers_the_whole_file(tmp_path, monkeypatch, size):
    monkeypatch.setattr(files, "_PIECE", 4)
    (tmp_path / "x").write_bytes(bytes(range(size)))
    assert file_digest(tmp_path / "x") == hashlib.sha256(bytes(range(size))).hexdigest()
