"""Measured sensitivities on disk, with all data needed to allocate bits for another budget."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from quantface_arch.errors import QuantFaceError, check_patterns
from quantface_arch.quant.allocation.sensitivity import Measured, Probe
from quantface_arch.quant.allocation.solve import LayerCosts, combine_costs
from quantface_arch.utils.distributed import Shard
from quantface_arch.utils.files import atomic_path
from quantface_arch.utils.safe_yaml_json import read_json

__all__ = ["LayerFacts", "Sensitivities", "part_of", "parts"]

FORMAT_VERSION = 1
Widths = Mapping[str, Sequence[int]]


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

    Attributes:
        parameters: number of elements of the weight.
        macs: multiply-accumulates per image.
        fixed: bit widths of weight and input that the network prescribes; None if they are free.
    """

    parameters: int
    macs: int
    fixed: tuple[int, int] | None = None


@dataclass
class Sensitivities:
    """Sensitivities of a network's layers.

    Attributes:
        key: identifies everything that they depend on (network, recipe, images, distance).
        batches: number of batches on which each probe is measured.
        layers: facts by layer name, in the order in which the layers run.
        fixed_bytes: bytes of the network's checkpoint other than the packed weights.
        measured: results so far.
    """

    key: str
    batches: int
    layers: dict[str, LayerFacts]
    fixed_bytes: int
    measured: Measured = field(default_factory=dict)

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
            "layers": {name: asdict(facts) for name, facts in self.layers.items()},
            "measured": nested,
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
            document = read_json(path)
            if document["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format_version {document['format_version']!r}, known is 1")
            layers = {
                name: LayerFacts(
                    int(facts["parameters"]),
                    int(facts["macs"]),
                    tuple(facts["fixed"]) if facts["fixed"] else None,
                )
                for name, facts in document["layers"].items()
            }
            measured = {
                (name, probe[0], int(probe[1:])): [(float(e), float(d)) for e, d in values]
                for name, probes in document["measured"].items()
                for probe, values in probes.items()
            }
            key, batches = str(document["key"]), int(document["batches"])
            return cls(key, batches, layers, int(document["fixed_bytes"]), measured)
        except QuantFaceError as error:
            reason = str(error).removeprefix(f"{path}: ")
            raise QuantFaceError(f"{path}: no file of sensitivities: {reason}") from error
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise QuantFaceError(f"{path}: no file of sensitivities ({error})") from error

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

    def probes(self, widths: Widths, protect: Mapping[str, int]) -> list[Probe]:
        """Return what to measure: free layers, and kinds with more than one bit width.

        Args:
            widths: candidate bit widths by kind, ``{"w": …, "a": …}``.
            protect: name pattern → fixed bit width of the layers that match.

        Raises:
            QuantFaceError: a pattern of ``protect`` matches no layer.
        """
        fixed = self.fixed_widths(protect)
        return [
            (name, kind, bits)
            for name in self.layers
            if name not in fixed
            for kind, candidates in widths.items()
            if len(candidates) > 1
            for bits in candidates
        ]

    def missing(self, probes: Iterable[Probe]) -> Iterator[Probe]:
        """Return the probes that are not measured, or not on all batches."""
        return (p for p in probes if len(self.measured.get(p, ())) < self.batches)

    def fixed_widths(self, protect: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """Return the bit widths that ``protect`` fixes, and those that the network prescribes."""
        check_patterns("protect", protect, self.layers)
        fixed = {name: facts.fixed for name, facts in self.layers.items() if facts.fixed}
        for pattern, bits in protect.items():
            fixed.update({name: (bits, bits) for name in self.layers if fnmatchcase(name, pattern)})
        return fixed

    def costs(
        self,
        widths: Widths,
        weight: float | None,
        protect: Mapping[str, int],
        count: Sequence[str] = ("*",),
    ) -> dict[str, LayerCosts]:
        """Return the costs of every layer, as ``allocate`` takes them.

        Args:
            widths: candidate bit widths by kind, ``{"w": …, "a": …}``.
            weight: λ, the share of the quantization error in the cost; the rest is the perceptual
                distance. None makes all costs 0, which needs no measurements.
            protect: name pattern → fixed bit width of the layers that match.
            count: name patterns of the layers that count in averages.

        Raises:
            QuantFaceError: a pattern matches no layer, a bit width was not measured, or λ is
                outside [0, 1].
        """
        check_patterns("count", count, self.layers)
        cost = {} if weight is None else self._mixed(self.probes(widths, protect), weight)
        fixed = self.fixed_widths(protect)
        layers = {}
        for name, facts in self.layers.items():
            given = {
                kind: {bits: 0.0} for kind, bits in zip("wa", fixed.get(name, ()), strict=False)
            }
            free = {
                kind: {bits: cost.get((name, kind, bits), 0.0) for bits in widths[kind]}
                for kind in "wa"
            }
            candidates = {**free, **given}
            counted = any(fnmatchcase(name, pattern) for pattern in count)
            layers[name] = LayerCosts(
                candidates["w"], candidates["a"], facts.parameters, facts.macs, counted
            )
        return layers

    def _mixed(self, probes: Sequence[Probe], weight: float) -> dict[Probe, float]:
        for name, kind, bits in self.missing(probes):
            what = "weight" if kind == "w" else "activation"
            raise QuantFaceError(f"layer {name}: {what} bit width {bits} was not measured")
        means = {probe: np.mean(self.measured[probe], axis=0) for probe in probes}
        return combine_costs(
            {probe: float(mean[0]) for probe, mean in means.items()},
            {probe: float(mean[1]) for probe, mean in means.items()},
            weight,
        )
