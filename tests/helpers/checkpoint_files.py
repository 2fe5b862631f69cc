"""Checkpoints taken apart and put together again."""

from __future__ import annotations

import json

from safetensors import safe_open
from safetensors.torch import save_file


def contents(path):
    """Return the tensors of a checkpoint, and its metadata."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["quantface"])


def rewrite(path, tensors, metadata):
    """Write tensors and metadata as a checkpoint, whatever they are."""
    save_file(tensors, path, metadata={"quantface": json.dumps(metadata)})
