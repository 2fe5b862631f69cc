"""Find the weights of the networks that losses and metrics use, before any work begins."""

from __future__ import annotations

import os
import re
from pathlib import Path

from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.files import atomic_path

__all__ = ["ALTERNATIVE", "ARCFACE", "find_weights"]

# The network whose embeddings tell faces apart, as facexlib publishes it.
ARCFACE = (
    "https://github.com/xinntao/facexlib/releases/download/v0.1.0/recognition_arcface_ir_se50.pth"
)
ALTERNATIVE = "QuantFaceFeatureLoss needs no downloaded weights"
HINT = f"name it with weights: FILE; {ALTERNATIVE}"


def find_weights(
    loss: str,
    url: str,
    cache: Path,
    weights: str | os.PathLike[str] | None = None,
    download: bool = False,
    hint: str = HINT,
) -> Path:
    """Return the published file of weights that a loss or a metric needs.

    Args:
        loss: the name of the loss or metric in messages.
        url: where the file is published. Its last part is the file's name. If the name ends in the
            first digits of a SHA-256, a download is checked against them.
        cache: the folder in which the library that needs the file looks for it.
        weights: the file, or a folder that holds it under its published name. None means ``cache``.
        download: whether to download the file if it is missing.
        hint: what to do with the file once it is there. Error messages end with it.

    Raises:
        QuantFaceError: there is no such file, or the download failed. The message says how to get
            the file, and ends with the hint.
    """
    name = url.rsplit("/", 1)[-1]
    path = cache / name if weights is None else Path(weights)
    path = path / name if path.is_dir() else path
    if path.is_file():
        return path
    way_out = f"get {url} and {hint}"
    if weights is not None:
        raise QuantFaceError(f"{loss}: no file {path}: {way_out}")
    if not download:
        raise QuantFaceError(f"{loss}: no file {path}: set download: true, or {way_out}")
    import torch

    digest = re.search(r"-([0-9a-f]{8,})\.", name)
    try:
        with atomic_path(path) as temporary:
            torch.hub.download_url_to_file(url, str(temporary), digest and digest[1])
    except (OSError, RuntimeError, QuantFaceError) as error:
        raise QuantFaceError(f"{loss}: the download failed ({error}): {way_out}") from error
    return path
