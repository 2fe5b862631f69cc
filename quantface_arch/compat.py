"""The alias without which basicsr cannot be imported beside a current torchvision.

basicsr 1.4.2 imports ``torchvision.transforms.functional_tensor``, which torchvision 0.17 removed.
Its functions live on in ``torchvision.transforms.functional``, so a module alias is enough,
provided that it is in place before basicsr is first imported: every module of this package that
imports basicsr imports this one first.
"""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["patch_torchvision"]


def patch_torchvision() -> None:
    """Alias the module that basicsr looks for to the one that torchvision kept. Idempotent."""
    name = "torchvision.transforms.functional_tensor"
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    from torchvision.transforms import functional

    sys.modules[name] = functional


patch_torchvision()
