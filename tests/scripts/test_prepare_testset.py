"""The standard test sets: laid out safely from what their authors pack."""

from __future__ import annotations

import dataclasses
import os
import signal
import stat
import subprocess
import sys
import time
import zipfile

import cv2
import pytest
from loops import write_images
from testset_files import SETS, make, prepare

import quantface_arch.register  # noqa: F401
from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.utils import image_sources


@pytest.fixture
def script(load_script, tmp_path, monkeypatch):
    """The command's module, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return load_script("prepare_testset")


def tree(folder):
    """Every file and folder below, with what is in it."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def pack(folder):
    """A .zip file of all that is in a folder."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", SETS)
def test_a_set_is_laid_out_as_it_was_packed(repo, script, tmp_path, capsys, name, packed):
    sources = {"-i": make(tmp_path / "low")}
    if name == "celeba":
        sources["-g"] = make(tmp_path / "clean")
    words = [
        word for key, path in sources.items() for word in (key, pack(path) if packed else path)
    ]
    assert prepare(script, name, *words) == 0
    for role, source in zip(("lq", "gt"), sources.values(), strict=False):
        written = tree(tmp_path / f"datasets/{name}_test/{role}")
        wanted = {path.name: path.read_bytes() for path in (source / "faces").glob("?.png")}
        assert {path.name: data for path, data in written.items()} == wanted
        assert len(wanted) == 2
    assert [path.name for path in (tmp_path / "datasets").iterdir()] == [f"{name}_test"]
    assert len(list((tmp_path / f"datasets/{name}_test").iterdir())) == len(sources)
    said = capsys.readouterr()
    assert "warning: images found: 2, published: " in said.err
    options = said.out.rpartition(" -opt ")[2].strip()
    assert options == f"options/testsets/{name}.yml" and (repo / options).is_file()
    assert prepare(script, name, *words, "--redo") == 0


def test_the_published_number_of_pictures_gets_no_warning(script, tmp_path, capsys, monkeypatch):
    assert [script.SETS[name].count for name in SETS] == [3000, 1711, 407, 970]
    make(tmp_path / "deep/low")
    for count in (2, 1):
        testset = dataclasses.replace(script.SETS["lfw"], count=count)
        monkeypatch.setitem(script.SETS, "lfw", testset)
        prepare(script, "lfw", "-i", tmp_path / "deep", "--redo")
        assert ("warning: images found: 2" in capsys.readouterr().err) == (count != 2)


def test_a_picture_without_its_pair_is_named(script, tmp_path):
    low, clean = make(tmp_path / "low", count=3), make(tmp_path / "clean")
    for sources in ((low, clean), (clean, low)):
        before = tree(tmp_path)
        with pytest.raises(QuantFaceError, match=r"low/faces/2\.png: no image of that name in"):
            prepare(script, "celeba", "-i", sources[0], "-g", sources[1])
        assert tree(tmp_path) == before
    with pytest.raises(UsageError, match="give -g"):
        prepare(script, "celeba", "-i", low)
    with pytest.raises(UsageError, match="no clean images"):
        prepare(script, "lfw", "-i", low, "-g", clean)


def entry(name, kind=stat.S_IFREG):
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o644) << 16
    return info


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (entry("../0.png"), "points outside"),
        (entry("faces/../../0.png"), "points outside"),
        (entry("/0.png"), "points outside"),
        (entry("..\\0.png"), "points outside"),
        (entry("other.txt/../../notes.txt"), "points outside"),
        (entry("faces/9.png", stat.S_IFLNK), "is a link"),
        (entry("notes", stat.S_IFIFO), "special file"),
    ],
)
def test_an_archive_that_reaches_out_is_refused_as_a_whole(
    script, tmp_path, monkeypatch, bad, word
):
    path = pack(make(tmp_path / "low"))
    (tmp_path / "deep/er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep/er")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(bad, (tmp_path / "low/faces/0.png").read_bytes())
    before = tree(tmp_path)
    with pytest.raises(QuantFaceError, match=word) as caught:
        prepare(script, "lfw", "-i", path)
    assert repr(bad.filename) in str(caught.value) and str(path) in str(caught.value)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(("limit", "word"), [("MAX_IMAGE_BYTES", "has"), ("MAX_BYTES", "unpacks")])
def test_an_archive_larger_than_allowed_is_refused(script, tmp_path, monkeypatch, limit, word):
    path = pack(make(tmp_path / "low"))
    monkeypatch.setattr(image_sources, limit, 10_000)
    with pytest.raises(QuantFaceError, match=f"{word}.* at most 10,000"):
        prepare(script, "lfw", "-i", path)
    assert not (tmp_path / "datasets").exists()


def test_damaged_and_encrypted_archives_are_refused(script, tmp_path):
    path = pack(make(tmp_path / "low"))
    data = path.read_bytes()
    start = data.index(b"PK\1\2")
    changes = {
        "cannot be read as a .zip file": data[:-40],
        "is encrypted": data[: start + 8] + b"\1" + data[start + 9 :],
        # A byte in the middle of the last picture.
        "cannot be unpacked": data[: start - 2000] + b"?" + data[start - 1999 :],
    }
    for word, changed in changes.items():
        path.write_bytes(changed)
        with pytest.raises(QuantFaceError, match=word):
            prepare(script, "lfw", "-i", path)
    assert not list((tmp_path / "datasets").iterdir())


def test_a_truncated_picture_is_named_by_its_own_place(script, tmp_path):
    folder = make(tmp_path / "low")
    picture = folder / "faces/1.png"
    picture.write_bytes(picture.read_bytes()[:-500])
    for source in (folder, pack(folder)):
        with pytest.raises(QuantFaceError, match=rf"^{source}/faces/1\.png: cannot be read"):
            prepare(script, "lfw", "-i", source)
    assert not list((tmp_path / "datasets").iterdir())


def test_other_sizes_are_named_or_resized(script, tmp_path):
    small = make(tmp_path / "low", side=80)
    before = tree(small)
    with pytest.raises(QuantFaceError, match=r"low/faces/0\.png: 80x80 .*512x512.*--resize"):
        prepare(script, "lfw", "-i", small)
    assert not list((tmp_path / "datasets").iterdir())
    prepare(script, "lfw", "-i", small, "--resize", "--link")
    assert cv2.imread("datasets/lfw_test/lq/1.png").shape == (512, 512, 3)
    assert tree(small) == before
    cv2.imwrite(str(small / "faces/0.png"), cv2.imread(str(small / "faces/0.png"))[:60])
    with pytest.raises(QuantFaceError, match=r"80x60.*square"):
        prepare(script, "lfw", "-i", small, "--resize", "--redo")


def test_other_formats_become_png_so_that_pairs_have_equal_names(script, tmp_path):
    low, clean = make(tmp_path / "low"), make(tmp_path / "clean")
    picture = cv2.imread(str(low / "faces/0.png"))
    (low / "faces/0.png").unlink()
    cv2.imwrite(str(low / "faces/0.jpg"), picture)
    (clean / "faces/1.png").rename(clean / "faces/1.PNG")
    prepare(script, "celeba", "-i", pack(low), "-g", clean)
    names = [sorted(os.listdir(f"datasets/celeba_test/{role}")) for role in ("lq", "gt")]
    assert names == [["0.png", "1.png"]] * 2
    decoded = cv2.imread(str(low / "faces/0.jpg"))
    assert (cv2.imread("datasets/celeba_test/lq/0.png") == decoded).all()
    cv2.imwrite(str(low / "faces/0.png"), picture)
    with pytest.raises(QuantFaceError, match=r"0\.jpg and faces/0\.png differ only in the suffix"):
        prepare(script, "lfw", "-i", low)


def test_links_share_the_file_and_archives_have_none(script, tmp_path):
    low = make(tmp_path / "low")
    prepare(script, "lfw", "-i", low, "--link")
    assert (tmp_path / "datasets/lfw_test/lq/0.png").samefile(low / "faces/0.png")
    with pytest.raises(UsageError, match="--link"):
        prepare(script, "lfw", "-i", pack(low), "--link", "--redo")
    prepare(script, "lfw", "-i", low, "--redo")
    assert not (tmp_path / "datasets/lfw_test/lq/0.png").samefile(low / "faces/0.png")
    # Of a link that is found, the file: a relative one would lead nowhere from here.
    (low / "faces/0.png").rename(tmp_path / "far.png")
    (low / "faces/0.png").symlink_to("../../far.png")
    prepare(script, "lfw", "-i", low, "--redo", "--link")
    linked = tmp_path / "datasets/lfw_test/lq/0.png"
    assert linked.samefile(tmp_path / "far.png") and not linked.is_symlink()


def test_a_set_is_replaced_on_request_and_by_a_whole_one_only(script, tmp_path):
    prepare(script, "lfw", "-i", make(tmp_path / "low"))
    old = tree(tmp_path / "datasets")
    other = make(tmp_path / "other", count=4)
    with pytest.raises(UsageError, match="--redo"):
        prepare(script, "lfw", "-i", other)
    broken = other / "faces/3.png"
    data = broken.read_bytes()
    broken.write_bytes(data[:900])
    with pytest.raises(QuantFaceError, match=r"3\.png"):
        prepare(script, "lfw", "-i", other, "--redo")
    assert tree(tmp_path / "datasets") == old
    broken.write_bytes(data)
    prepare(script, "lfw", "-i", other, "--redo")
    assert len(os.listdir("datasets/lfw_test/lq")) == 4 and os.listdir("datasets") == ["lfw_test"]
    (tmp_path / "datasets/lfw_test/notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        prepare(script, "lfw", "-i", other, "--redo")


def test_sources_without_one_folder_of_pictures_are_refused(script, tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        prepare(script, "lfw", "-i", tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(QuantFaceError, match="no image"):
        prepare(script, "lfw", "-i", tmp_path / "empty")
    write_images(make(tmp_path / "low") / "more", 1)
    with pytest.raises(QuantFaceError, match=r"faces \(2\), more \(1\)"):
        prepare(script, "lfw", "-i", tmp_path / "low")


def test_a_killed_run_leaves_no_set_and_the_next_one_is_whole(repo, tmp_path, script):
    faces = make(tmp_path / "low", count=1) / "faces"
    for index in range(1, 60):
        os.link(faces / "0.png", faces / f"{index}.png")
    command = [sys.executable, str(repo / "scripts/prepare_testset.py"), "lfw", "-i", "low"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    begun = tmp_path / "datasets/.lfw_test.part/new/lq"
    while process.poll() is None and not (begun.exists() and len(os.listdir(begun)) > 2):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(os.listdir(begun)) > 2 and os.listdir("datasets") == [".lfw_test.part"]
    for index in range(3, 60):
        (faces / f"{index}.png").unlink()
    prepare(script, "lfw", "-i", faces)
    assert os.listdir("datasets") == ["lfw_test"]
    assert sorted(os.listdir("datasets/lfw_test/lq")) == ["0.png", "1.png", "2.png"]


def test_two_runs_do_not_mix(script, tmp_path):
    with script._replacing(tmp_path / "lfw_test") as part:
        with pytest.raises(QuantFaceError, match="another run"):
            prepare(script, "lfw", "-i", make(tmp_path / "low"), "-o", tmp_path)
        assert part.is_dir()


def test_the_command_says_what_is_wrong_in_one_line(repo, tmp_path):
    command = [sys.executable, str(repo / "scripts/prepare_testset.py"), "lfw", "-i", "nothing"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: nothing: no such folder or .zip file\n"
