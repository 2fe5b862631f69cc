"""The alias that lets basicsr be imported beside a current torchvision.

basicsr 1.4.2 imports ``torchvision.transforms.functional_tensor``, which torchvision 0.17 removed.
Its functions live on in ``torchvision.transforms.functional``, so a module alias is enough. The
alias must exist before basicsr is first imported. Every module of this package that imports basicsr
therefore imports this one first.
"""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["patch_torchvision"]


def patch_torchvision() -> None:
    """Alias the module that basicsr imports to the one that torchvision kept. Idempotent."""
    name = "torchvision.transforms.functional_tensor"
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    from torchvision.transforms import functional

    sys.modules[name] = functional


patch_torchvision()
