"""Links out of the output folder and special files are refused."""

from __future__ import annotations

import os
import re

import cv2
import numpy as np
import pytest

from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.restore.files import OutputFolders, find_sources
from quantface_arch.utils.images import read_image


@pytest.fixture
def run(tmp_path):
    """Return the output folders and the sources of a valid command."""
    source = tmp_path / "in/a.png"
    source.parent.mkdir()
    cv2.imwrite(str(source), np.zeros((32, 32, 3), np.uint8))
    folders = OutputFolders(tmp_path / "out", aligned=False, compare=True)
    return folders, find_sources([str(source)], False, folders)[0]


PLACES = ("restored", "cropped_faces", "restored_faces", "compare")


@pytest.mark.parametrize(
    "name", [*PLACES, *(f"{place}/a.png" for place in PLACES), "manifest-0.jsonl"]
)
def test_links_out_of_the_output_folder_are_refused(run, tmp_path, name):
    folders, sources = run
    folders.check(sources)
    link = folders.root / name
    link.parent.mkdir(parents=True)
    # The target is beside the output folder, and its name starts with the folder's.
    link.symlink_to(tmp_path / "out_precious")
    with pytest.raises(UsageError, match=f"{re.escape(str(link))}: it is a link to .*precious"):
        folders.check(sources)


def test_links_inside_the_output_folder_and_a_linked_folder_are_allowed(run, tmp_path):
    folders, sources = run
    (tmp_path / "disk/other").mkdir(parents=True)
    folders.root.symlink_to(tmp_path / "disk")
    (folders.root / "restored").symlink_to("other")
    (folders.root / "manifest-0.jsonl").symlink_to("other/lines")
    folders.check(sources)


def test_special_files_among_the_inputs_are_refused(run, tmp_path):
    folders, _ = run
    os.mkfifo(tmp_path / "in/pipe.png")
    with pytest.raises(UsageError, match=r"pipe\.png is a pipe, expected a file or a folder"):
        find_sources([str(tmp_path / "in/pipe.png")], False, folders)
    sources, _ = find_sources([str(tmp_path / "in")], False, folders)
    with pytest.raises(QuantFaceError, match=r"pipe\.png: cannot be read: it is a pipe"):
        read_image(next(source.path for source in sources if source.path.stem == "pipe"))


def test_a_test_set_is_not_prepared_in_a_linked_folder(load_script, tmp_path):
    script = load_script("prepare_testset")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/kept").mkdir()
    (tmp_path / ".lfw_test.part").symlink_to(tmp_path / "precious")
    with (
        pytest.raises(QuantFaceError, match=r"\.lfw_test\.part is a link"),
        script._replacing(tmp_path / "lfw_test"),
    ):
        pass
    assert (tmp_path / "precious/kept").is_dir()
