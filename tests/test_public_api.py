"""The names that a user of the package sees when importing it."""

from __future__ import annotations

import subprocess
import sys

import quantface_arch

NAMES = {"FaceRestorer", "QuantFaceError", "QuantSpec", "Recipe", "__version__", "calibrating"}
NAMES |= {"load_model", "quantize", "save_checkpoint"}


def test_public_names_are_few_and_exist():
    assert set(quantface_arch.__all__) == NAMES
    for name in NAMES:
        assert getattr(quantface_arch, name) is not None
    assert set(dir(quantface_arch)) == NAMES and not hasattr(quantface_arch, "no_such_name")


def test_import_is_light():
    code = (
        "import sys, quantface_arch; "
        "heavy = {'torch', 'basicsr', 'diffusers', 'facexlib'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
