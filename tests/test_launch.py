"""The launchers explain in one line what BasicSR refuses."""

from __future__ import annotations

import numpy as np
from loops import write_images
from programs import run_program

from quantface_arch.utils.images import RGBImage, write_image


def test_pairs_of_unequal_number_are_named(repo, tmp_path):
    clean, degraded = tmp_path / "gt", tmp_path / "lq"
    write_images(clean)
    degraded.mkdir()
    write_image(degraded / "0.png", RGBImage(np.zeros((64, 64, 3), np.uint8)))
    command = [repo / "basicsr/test.py", "-opt", repo / "options/test_mini.yml"]
    folders = {"gt": clean, "lq": degraded}
    command.append("--force_yml")
    command += [f"datasets:test_1:dataroot_{role}={path}" for role, path in folders.items()]
    done = run_program(*command, cwd=tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("error: options file: ") and "different number of images" in last
