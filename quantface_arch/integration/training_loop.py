"""Patch BasicSR's training loop to run without GPUs and to remove the folders of failed starts."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)

__all__ = ["patch_experiments", "patch_launcher"]


def patch_launcher() -> None:
    """Make ``--launcher pytorch`` start a training without GPUs, over gloo. Idempotent.

    BasicSR 1.4.2 divides the processes among the GPUs, even where there are none.
    """
    import torch
    import torch.distributed as dist

    from basicsr.utils import options

    original = options.init_dist
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def init_dist(launcher: str, *args: Any, **kwargs: Any) -> None:
        if launcher == "pytorch" and not torch.cuda.is_available():
            dist.init_process_group("gloo")
        else:
            original(launcher, *args, **kwargs)

    options.init_dist = init_dist


@dataclass
class _Start:
    """The start of a training: its folders, until its first step is done.

    Attributes:
        root: the experiment's folder, once it is made.
        archived: the folder that BasicSR has renamed to make room for it.
        model: the model, once it is built.
    """

    root: Path | None = None
    archived: Path | None = None
    model: Any = None

    def make_folders(self, original: Callable[[Any], None], opt: Any) -> None:
        """Make the experiment's folders as BasicSR does, and remember which they are."""
        root = Path(opt["path"]["experiments_root"])
        pattern = f"{root.name}_archived_*"
        before = set(root.parent.glob(pattern))
        original(opt)
        # Only the first process makes folders.
        if opt["rank"] == 0:
            self.root = root
            self.archived = next(iter(set(root.parent.glob(pattern)) - before), None)

    def undo(self) -> None:
        """Remove the folders of a training that took no step, unless they hold results.

        If BasicSR had renamed the folder of an earlier training, that folder gets its name back.
        """
        # BasicSR's models have no ``log_dict`` before their first step.
        if self.root is None or hasattr(self.model, "log_dict"):
            return
        folders = [self.root / name for name in ("models", "training_states")]
        if any(True for folder in folders for _ in folder.glob("*")):
            return
        shutil.rmtree(self.root, ignore_errors=True)
        if self.archived is not None and not self.root.exists():
            self.archived.rename(self.root)
        elif not any(self.root.parent.iterdir()):
            self.root.parent.rmdir()


def patch_experiments() -> None:
    """Make a training that fails before its first step leave no folder behind. Idempotent."""
    import basicsr.train as train

    pipeline = train.train_pipeline
    if hasattr(pipeline, "__wrapped__"):
        return
    make_folders, build_model = train.make_exp_dirs, train.build_model
    start = _Start()

    def make_exp_dirs(opt: Any) -> None:
        start.make_folders(make_folders, opt)

    def build(opt: Any) -> Any:
        start.model = build_model(opt)
        return start.model

    @functools.wraps(pipeline)
    def train_pipeline(root_path: str) -> None:
        nonlocal start
        start = _Start()
        try:
            pipeline(root_path)
        except BaseException:
            start.undo()
            raise

    train.make_exp_dirs, train.build_model = make_exp_dirs, build
    train.train_pipeline = train_pipeline
