"""Devices are checked by name before any work begins."""

from __future__ import annotations

import pytest
import torch

from quantface_arch.errors import UsageError
from quantface_arch.utils.devices import check_device


def test_a_device_of_this_machine_is_taken():
    assert check_device("cpu") == "cpu"


@pytest.mark.parametrize(
    "name", ["", "toaster", "meta", "cpu:x", f"cuda:{torch.cuda.device_count()}"]
)
def test_other_devices_are_refused_by_name(name):
    with pytest.raises(UsageError, match=f"--device '?{name}'?:"):
        check_device(name)
