"""The JSON metadata that describes a checkpoint's tensors. It is read without being trusted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open

from quantface_arch import __version__
from quantface_arch.errors import QuantFaceError, check_keys, one_line
from quantface_arch.quant.config.recipe import Recipe
from quantface_arch.quant.config.specs import (
    FLOAT_BITS,
    MAX_BITS,
    MIN_BITS,
    is_width,
    names_of,
)
from quantface_arch.quant.nn.layers import State
from quantface_arch.utils.safe_yaml_json import parse_json
from quantface_arch.utils.safetensors_header import check_header

__all__ = ["FORMAT_VERSION", "Metadata", "opened", "parse_metadata"]

FORMAT_VERSION = 2
# A file has the lowest version that can describe it: 2 adds regular rotations, rounded branches and
# zero points of channels.
READABLE = (1, 2)
KEY = "quantface"
# Architectures of BasicSR and of this package read other files by these options. A checkpoint must
# not make its reader open or download any other file.
FILE_OPTIONS = re.compile(r"(.*_)?(path|weights|base|file|pretrained)", re.IGNORECASE)


@dataclass(frozen=True)
class Metadata:
    """Description of a checkpoint.

    Attributes:
        arch: type and options of the architecture.
        state: ``float`` or ``quantized``.
        bits: layer → (bits of the weight, bits of the input), in the order of the rows of the
            tensor ``activations``.
        recipe: the recipe of the network, None for a float checkpoint.
        balance: layer → ``LayerBalance.to_dict``, for balanced layers.
        ranks: layer → rank of its branches, for layers that have any.
        extra: any other plain data.
    """

    arch: dict[str, Any]
    state: State
    bits: dict[str, tuple[int, int]] = field(default_factory=dict)
    recipe: Recipe | None = None
    balance: dict[str, Any] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    package_version: str = __version__

    @property
    def format_version(self) -> int:
        """Return the lowest version of the format that can describe this checkpoint."""
        rounded = (
            bool(self.ranks) and self.recipe is not None and self.recipe.branch.bits < FLOAT_BITS
        )
        regular = any(
            isinstance(options, dict) and options.get("regular")
            for options in self.balance.values()
        )
        apart = self.recipe is not None and self.recipe.activations.zero_points == "channel"
        return FORMAT_VERSION if rounded or regular or apart else READABLE[0]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as ``read_metadata`` does."""
        return {
            **asdict(self),
            "format_version": self.format_version,
            "state": self.state.value,
            "bits": {name: {"w": w, "a": a} for name, (w, a) in self.bits.items()},
            "recipe": None if self.recipe is None else self.recipe.to_dict(),
        }

    def to_header(self) -> dict[str, str]:
        """Return the metadata of a ``.safetensors`` file.

        Raises:
            QuantFaceError: the architecture's options or the extra data are not plain data.
        """
        try:
            text = json.dumps(self.to_dict(), separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise QuantFaceError(f"checkpoint metadata: {error}; plain data is wanted") from error
        return {KEY: text}


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Metadata]]:
    """Open a checkpoint for reading, and yield safetensors' handle and the checked metadata.

    Raises:
        QuantFaceError: the file is missing, truncated, or of another format or version, or its
            metadata are malformed. Errors of safetensors inside the block are also converted.
    """
    check_header(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file, parse_metadata(path, file.metadata())
    except (SafetensorError, OSError) as error:
        detail = one_line(error)
        raise QuantFaceError(
            f"{path}: not a readable .safetensors file, truncated or of another kind ({detail})"
        ) from error


def parse_metadata(path: Path, header: Mapping[str, str] | None) -> Metadata:
    """Check and return the metadata of a file; ``path`` is for messages.

    Raises:
        QuantFaceError: the metadata are invalid; the message names the file and the key.
    """
    if KEY not in (header or {}):
        raise QuantFaceError(f"{path}: not a checkpoint of this package (no metadata key {KEY!r})")
    found = parse_json(f"{path}: metadata key {KEY!r}", (header or {})[KEY])
    if not isinstance(found, dict):
        raise QuantFaceError(f"{path}: metadata key {KEY!r}: found {found!r}, a mapping is wanted")
    version = found.get("format_version")
    if version not in READABLE or type(version) is not int:
        known = " and ".join(map(str, READABLE))
        raise QuantFaceError(
            f"{path}: format_version: found {version!r}, this package reads {known}"
        )
    check_keys(f"{path}: metadata", found, (*names_of(Metadata), "format_version"))
    for name, kind in (("arch", dict), ("bits", dict), ("extra", dict), ("package_version", str)):
        if not isinstance(found.get(name), kind):
            raise QuantFaceError(f"{path}: metadata {name}: found {found.get(name)!r}")
    state = _checked_state(path, found)
    _check_arch(path, found["arch"])
    bits = {name: _widths(path, name, widths) for name, widths in found["bits"].items()}
    # Both keys are absent if no layer is balanced or has a branch.
    balance, ranks = (found.get(name, {}) for name in ("balance", "ranks"))
    _check_methods(path, bits, balance, ranks)
    return Metadata(
        arch=found["arch"],
        state=state,
        bits=bits,
        recipe=_recipe(path, found.get("recipe")) if state is State.QUANTIZED else None,
        balance=balance,
        ranks=ranks,
        extra=found["extra"],
        package_version=found["package_version"],
    )


def _checked_state(path: Path, found: Mapping[str, Any]) -> State:
    """Return the state after checking that the bits and the recipe match it."""
    states = {state.value: state for state in (State.FLOAT, State.QUANTIZED)}
    if found.get("state") not in list(states):
        allowed = ", ".join(states)
        raise QuantFaceError(
            f"{path}: metadata state: found {found.get('state')!r}, allowed are {allowed}"
        )
    state = states[found["state"]]
    if (state is State.QUANTIZED) != bool(found["bits"]):
        raise QuantFaceError(
            f"{path}: metadata bits: found {len(found['bits'])} layers in state {state.value}"
        )
    if state is State.FLOAT and found.get("recipe") is not None:
        raise QuantFaceError(f"{path}: metadata recipe: found one in state float, null is wanted")
    return state


def _check_methods(path: Path, bits: Mapping[str, Any], balance: Any, ranks: Any) -> None:
    """Raise QuantFaceError if balancing or ranks are invalid or name a layer not quantized."""
    for name, value in (("balance", balance), ("ranks", ranks)):
        if not isinstance(value, dict) or not value.keys() <= bits.keys():
            raise QuantFaceError(f"{path}: metadata {name}: found layers that are not quantized")
    for name, rank in ranks.items():
        if type(rank) is not int or rank < 1:
            raise QuantFaceError(f"{path}: metadata ranks of layer {name!r}: found {rank!r}")


def _check_arch(path: Path, options: Any) -> None:
    if isinstance(options, dict):
        for key, value in options.items():
            if FILE_OPTIONS.fullmatch(key) and isinstance(value, str):
                raise QuantFaceError(
                    f"{path}: metadata arch: {key}: found {value!r}; "
                    "the architecture of a checkpoint may not name other files"
                )
            _check_arch(path, value)
    elif isinstance(options, list):
        for value in options:
            _check_arch(path, value)


def _recipe(path: Path, options: object) -> Recipe:
    try:
        # ``from_dict`` refuses anything but a mapping.
        return Recipe.from_dict(cast("Mapping[str, Any]", options))
    except QuantFaceError as error:
        raise QuantFaceError(f"{path}: metadata {error}") from error


def _widths(path: Path, name: str, widths: object) -> tuple[int, int]:
    if isinstance(widths, dict) and widths.keys() == {"w", "a"}:
        found = (widths["w"], widths["a"])
        if all(is_width(bits) for bits in found):
            return found
    raise QuantFaceError(
        f"{path}: metadata bits of layer {name!r}: found {widths!r}, "
        f"w and a from {MIN_BITS} to {MAX_BITS} are wanted"
    )
