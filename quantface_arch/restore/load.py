"""Load the restorer that the options describe."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from quantface_arch.faces.weights import check_weights_dir, find_embedder
from quantface_arch.integration.obtain import obtain
from quantface_arch.pretrained.names import resolve_model
from quantface_arch.restore.options import FaceOptions, RuntimeOptions
from quantface_arch.utils.devices import check_device, has_cuda
from quantface_arch.utils.distributed import Shard
from quantface_arch.utils.installation import need

if TYPE_CHECKING:
    from quantface_arch.restore.restorer import FaceRestorer

__all__ = ["device_of", "limit_threads", "load_restorer", "note_printer"]

_TERMS = {"CodeFormer": "CodeFormer is under the S-Lab License 1.0: no commercial use"}


def load_restorer(
    runtime: RuntimeOptions, faces: FaceOptions, shard: Shard | None = None
) -> FaceRestorer:
    """Load the model; its detector is built later, on first use.

    Args:
        runtime: the model and how it is executed.
        faces: how faces are found and restored.
        shard: this process among those that each load a restorer; only the first prints notes.

    Raises:
        QuantFaceError: the model, the runtime or the device does not exist, ``weights_dir`` is not
            a folder, or the weights that ``identity`` needs are missing. The folder and the weights
            are checked before anything is loaded.
    """
    check_weights_dir(faces.weights_dir)
    shard = shard or Shard()
    embedder = faces.identity_weights
    if faces.identity is not None:
        embedder = find_embedder(embedder, runtime.offline, note_printer(shard))
    path = shard.agree(
        str(obtain(runtime.model, runtime.fetching, note_printer(shard))) if shard.is_first else ""
    )
    path = _with_fidelity(path, runtime.fidelity)

    from quantface_arch.restore.restorer import FaceRestorer

    restorer = FaceRestorer.from_pretrained(
        path,
        runtime.runtime,
        device_of(runtime.device, runtime.runtime, shard),
        runtime.fetching.base if path == runtime.model else None,
        detector=faces.detector,
        weights_dir=faces.weights_dir,
        offline=runtime.offline,
        batch_size=runtime.batch_size,
        color_fix=faces.color_fix,
        identity_weights=embedder,
        notify=note_printer(shard),
    )
    _say_terms(restorer, note_printer(shard))
    limit_threads(shard)
    return restorer


def _with_fidelity(name_or_path: str, fidelity: float | None) -> str:
    """Return a model that exists, with the fidelity that is asked for.

    Raises:
        QuantFaceError: there is no such model, or it has no fidelity.
    """
    found = resolve_model(name_or_path)
    if fidelity is None:
        return name_or_path
    need("--fidelity")
    # Import this late: it imports torch, and only CodeFormer needs it.
    from quantface_arch.pretrained.fidelity import with_fidelity

    return str(with_fidelity(found, fidelity))


def limit_threads(shard: Shard) -> None:
    """Give OpenCV this process's share of the threads."""
    if shard.count > 1:
        import cv2

        cv2.setNumThreads(shard.threads)


def _say_terms(restorer: FaceRestorer, notify: Callable[[str], None]) -> None:
    """Say under which terms a network of others may be used, if they are unusual."""
    terms = _TERMS.get(restorer.model.arch_options.get("id", ""))
    if terms is not None:
        notify(terms)


def note_printer(shard: Shard) -> Callable[[str], None]:
    """Return a function that prints a note on stderr, in the first process only."""

    def print_note(message: str) -> None:
        if shard.is_first:
            print(f"note: {message}", file=sys.stderr)

    return print_note


def device_of(name: str, runtime: str, shard: Shard) -> str:
    """Return the torch device of this process."""
    if name == "auto":
        name = "cuda" if runtime != "openvino" and has_cuda() else "cpu"
    if name == "cuda" and shard.count > 1 and has_cuda():
        import torch

        return f"cuda:{shard.local_rank % torch.cuda.device_count()}"
    return check_device(name)
