"""Mends what is broken in the libraries this plugin stands on. The only place that does.

basicsr 1.4.2 imports ``torchvision.transforms.functional_tensor``, which torchvision 0.17 removed.
Its functions live on in ``torchvision.transforms.functional``, so a module alias is enough,
provided that it is in place before basicsr is first imported: every module of this package that
imports basicsr imports this one first.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

__all__ = ["mend_resume", "mend_torchvision"]


def mend_torchvision() -> None:
    """Alias the module that basicsr looks for to the one that torchvision kept. Idempotent."""
    name = "torchvision.transforms.functional_tensor"
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    from torchvision.transforms import functional

    sys.modules[name] = functional


mend_torchvision()


def mend_resume() -> None:
    """Make BasicSR's training loop resume without a GPU and in the middle of an epoch. Idempotent.

    BasicSR 1.4.2 asks for the current CUDA device to resume at all, unpickles whatever the state
    file holds, and starts the saved epoch from its first batch again.
    """
    import torch

    import basicsr.train as train
    from quantface_arch.data.sampler import ResumableSampler

    if hasattr(train, "quantface_mended"):
        return
    original_loaders = train.create_train_val_dataloader

    def load_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
        path = _find_state(opt)
        if path is None:
            return None
        opt["path"]["resume_state"] = str(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        opt["resumed_at"] = (state["epoch"], state["iter"])
        return state

    def create_train_val_dataloader(opt: dict[str, Any], logger: Any) -> tuple[Any, ...]:
        loaders = original_loaders(opt, logger)
        sampler = loaders[1]
        options = opt["datasets"]["train"]
        devices = 1 if opt["dist"] else max(1, opt["num_gpu"])
        sampler.batch_size = options["batch_size_per_gpu"] * devices
        epoch, iteration = opt.get("resumed_at", (0, 0))
        sampler.resume_at = (epoch, iteration - epoch * sampler.batches_per_epoch())
        return loaders

    train.EnlargedSampler = ResumableSampler
    train.load_resume_state = load_resume_state
    train.create_train_val_dataloader = create_train_val_dataloader
    train.quantface_mended = True


def _find_state(opt: dict[str, Any]) -> Path | None:
    """The newest saved state with ``--auto_resume``, else the one that the options name, if any."""
    if not opt["auto_resume"]:
        path = opt["path"].get("resume_state")
        return Path(path) if path else None
    # BasicSR looks below the working folder, not below where it has saved.
    states = Path(opt["path"]["training_states"]).glob("*.state")
    return max(states, key=lambda path: float(path.stem), default=None)
