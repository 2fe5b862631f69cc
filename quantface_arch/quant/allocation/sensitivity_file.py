"""Measured sensitivities on disk, with all data needed to allocate bits for another budget."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.allocation.sensitivity import Measured, Probe
from quantface_arch.quant.config.bitmap import LayerChoice
from quantface_arch.quant.config.specs import FLOAT_BITS, MAX_BITS, ROTATED, SCALED, UNROTATED
from quantface_arch.quant.ops.packing import packed_size
from quantface_arch.utils.distributed import Shard
from quantface_arch.utils.files import atomic_path
from quantface_arch.utils.safe_yaml_json import read_json

__all__ = ["LayerFacts", "Sensitivities", "part_of", "parts"]

FORMAT_VERSION = 2
# Layer → choice → relative error, see ``Sensitivities.relative``.
Relative = dict[str, dict[LayerChoice, float]]
# A tensor's entry in the header of a file takes about this much, besides the name of its layer. In
# the metadata, the rank of a layer's branches takes NUMBER_BYTES, the ranks of both in the recipe
# PAIR_BYTES, and the balancing one of the last two.
TENSOR_BYTES, NUMBER_BYTES, PAIR_BYTES, ROTATION_BYTES, SCALING_BYTES = 80, 8, 12, 67, 51


def part_of(path: Path, shard: Shard) -> Path:
    """Return the file that a process saves to; a single process saves to ``path`` itself."""
    if shard.count == 1:
        return path
    return path.with_name(f"{path.stem}-part{shard.rank + 1}of{shard.count}{path.suffix}")


def parts(path: Path) -> list[Path]:
    """Return the files of processes that have not been collected."""
    return sorted(path.parent.glob(f"{path.stem}-part*of*{path.suffix}"))


@dataclass(frozen=True)
class LayerFacts:
    """What allocation has to know about a layer besides its sensitivities.

    The last six are those of a layer without branches and balancing if the file is of an earlier
    release.

    Attributes:
        parameters: number of elements of the weight.
        macs: multiply-accumulates per image.
        fixed: bit widths of weight and input that the network prescribes; None if they are free.
        channels: number of channels of the input.
        rank_parameters: number of parameters of a branch of rank 1.
        largest_rank: largest rank of the branches together; 0 if the layer has none.
        kinds: the kinds of balancing that fit the layer.
        branch_bits: bits of the branches' factors.
        zero_points: number of zero points of an input of fewer than 8 bits that are stored by
            themselves; 0 if it has a single one.
    """

    parameters: int
    macs: int
    fixed: tuple[int, int] | None = None
    channels: int = 0
    rank_parameters: int = 0
    largest_rank: int = 0
    kinds: tuple[str, ...] = ("none",)
    branch_bits: int = FLOAT_BITS
    zero_points: int = 0

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerFacts:
        """Return the facts that ``asdict`` turned into plain data.

        Raises:
            LookupError, TypeError, ValueError: the data are malformed.
        """
        numbers = [name for name, kind in cls.__annotations__.items() if kind == "int"]
        found = {name: int(data[name]) for name in numbers if name in data}
        fixed = tuple(data["fixed"]) if data["fixed"] else None
        return cls(**found, fixed=fixed, kinds=tuple(data.get("kinds", ("none",))))

    def choice(self, bits: tuple[int, int], rank: int, kind: str) -> LayerChoice:
        """Return the choice nearest to the given one that the layer can have.

        Inputs of 8 bits are not rotated, because runtimes would not. Layers whose weights and
        inputs both have 8 bits have no branch.
        """
        if bits[1] == MAX_BITS or kind not in self.kinds:
            kind = UNROTATED.get(kind, kind)
        limit = self.largest_rank if min(bits) < MAX_BITS else 0
        kind = kind if kind in self.kinds else "none"
        return LayerChoice(*bits, min(rank, limit) if self.largest_rank else None, kind)

    def bytes(self, name: str, choice: LayerChoice) -> int:
        """Return the bytes that depend on a choice in a checkpoint, with its header and metadata.

        Args:
            name: the layer's name.
        """
        rank, kind = choice.rank or 0, choice.balance or "none"
        size, entries = packed_size(self.parameters, choice.weight_bits), []
        if rank:
            size += packed_size(rank * self.rank_parameters, self.branch_bits)
            entries += [TENSOR_BYTES, TENSOR_BYTES, NUMBER_BYTES]
            if self.branch_bits < FLOAT_BITS:
                # Each factor has a float32 scale per component.
                size += 2 * 4 * rank
                entries += [TENSOR_BYTES, TENSOR_BYTES]
        if choice.rank is not None and min(choice.bits) < MAX_BITS:
            entries.append(PAIR_BYTES)
        if self.zero_points and choice.activation_bits < MAX_BITS:
            size += self.zero_points
            entries.append(TENSOR_BYTES)
        if kind in SCALED:
            size += 4 * self.channels
            entries.append(TENSOR_BYTES)
        if kind != "none":
            entries.append(ROTATION_BYTES if kind in ROTATED else SCALING_BYTES)
        return size + sum(entries) + len(entries) * len(name)


@dataclass
class Sensitivities:
    """Sensitivities of a network's layers.

    Attributes:
        key: identifies everything that they depend on (network, recipe, images, distance).
        batches: number of batches on which each probe is measured.
        layers: facts by layer name, in the order in which the layers run.
        fixed_bytes: bytes of the network's checkpoint that no choice of a layer changes.
        recipe_bytes: bytes of the recipe's own branches and balancing, at most.
        branch_parameters: the most parameters that all branches may have together.
        measured: results so far.
        relative: layer → choice → the error of the layer's output, relative to that with the
            balancing and without the branch with which ``measured`` was measured.
    """

    key: str
    batches: int
    layers: dict[str, LayerFacts]
    fixed_bytes: int
    recipe_bytes: int = 0
    branch_parameters: int = 0
    measured: Measured = field(default_factory=dict)
    relative: Relative = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file atomically."""
        nested: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for (name, kind, bits), values in self.measured.items():
            nested.setdefault(name, {})[f"{kind}{bits}"] = values
        document = {
            "format_version": FORMAT_VERSION,
            "key": self.key,
            "batches": self.batches,
            "fixed_bytes": self.fixed_bytes,
            "recipe_bytes": self.recipe_bytes,
            "branch_parameters": self.branch_parameters,
            "layers": {name: asdict(facts) for name, facts in self.layers.items()},
            "measured": nested,
            "relative": {
                name: [[*choice, error] for choice, error in errors.items()]
                for name, errors in self.relative.items()
            },
        }
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(document), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Sensitivities:
        """Read what ``save`` wrote.

        Raises:
            QuantFaceError: the file does not exist or does not have this format.
        """
        try:
            return cls._of(read_json(path))
        except QuantFaceError as error:
            reason = str(error).removeprefix(f"{path}: ")
            raise QuantFaceError(f"{path}: no file of sensitivities: {reason}") from error
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise QuantFaceError(f"{path}: no file of sensitivities ({error})") from error

    @classmethod
    def _of(cls, document: Any) -> Sensitivities:
        if document["format_version"] not in (1, FORMAT_VERSION):
            raise ValueError(f"format_version {document['format_version']!r}, known are 1 and 2")
        measured = {
            (name, probe[0], int(probe[1:])): [(float(e), float(d)) for e, d in values]
            for name, probes in document["measured"].items()
            for probe, values in probes.items()
        }
        relative = {
            name: {LayerChoice(*choice): float(error) for *choice, error in errors}
            for name, errors in document.get("relative", {}).items()
        }
        return cls(
            key=str(document["key"]),
            batches=int(document["batches"]),
            layers={k: LayerFacts.from_dict(facts) for k, facts in document["layers"].items()},
            fixed_bytes=int(document["fixed_bytes"]),
            recipe_bytes=int(document.get("recipe_bytes", 0)),
            branch_parameters=int(document.get("branch_parameters", 0)),
            measured=measured,
            relative=relative,
        )

    @classmethod
    def earlier(cls, path: Path, key: str) -> Sensitivities | None:
        """Return the results of earlier runs with this key, merged over processes, or None."""
        found: Sensitivities | None = None
        for place in (path, *parts(path)):
            try:
                part = cls.load(place)
            except QuantFaceError:
                continue
            if part.key != key:
                continue
            found = found or part
            for probe, values in part.measured.items():
                if len(values) > len(found.measured.get(probe, ())):
                    found.measured[probe] = values
        return found

    def collect(self, probes: Sequence[Probe], path: Path, shard: Shard) -> None:
        """Merge the results of all processes into each process; the first writes the file.

        Args:
            probes: all probes, in the order of the file.
        """
        measured: Measured = {}
        for part in shard.gather(self.measured):
            for probe, values in part.items():
                if len(values) > len(measured.get(probe, ())):
                    measured[probe] = values
        self.measured = {probe: measured[probe] for probe in dict.fromkeys([*probes, *measured])}
        if shard.is_first:
            self.save(path)
            for part_path in parts(path):
                part_path.unlink(missing_ok=True)

    def missing(self, probes: Iterable[Probe]) -> Iterator[Probe]:
        """Return the probes that are not measured, or not on all batches."""
        return (p for p in probes if len(self.measured.get(p, ())) < self.batches)
