"""The compiled parts of a network, as functions of arrays; none of this needs torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import openvino

from quantface_arch import __version__
from quantface_arch.errors import QuantFaceError, one_line
from quantface_arch.runtime.openvino.blobs import core
from quantface_arch.runtime.openvino.compiled import CompiledPart
from quantface_arch.runtime.openvino.memory import return_freed
from quantface_arch.runtime.openvino.one_size import OneSizePart
from quantface_arch.runtime.openvino.shipped import graphs_file, unpack
from quantface_arch.runtime.processor import FULL, SPARE, has_vnni
from quantface_arch.utils.disk_cache import cached
from quantface_arch.utils.files import file_digest
from quantface_arch.utils.safe_yaml_json import parse_json
from quantface_arch.utils.threads import thread_count

__all__ = ["EXPORTED", "CompiledParts", "Tracer", "identity", "load_exported", "load_parts"]

# Raise this number when the traced graph changes, so that older files are not used.
VERSION = 7
# A network with more bytes of weights than this holds nothing but them between two runs of a part.
LARGE = 2**28
# An exported network keeps under this name what its graph does not say.
EXPORTED = "quantface"
FACTS = {"exact", "arch_options", "input_range"}


@dataclass(frozen=True)
class Tracer:
    """Writes the graphs of a checkpoint, which needs torch.

    Attributes:
        trace: writes the graphs of all parts into a folder, for the largest integer of a weight;
            see ``trace_checkpoint``.
        trace_part: writes the graph of one part for given inputs into a folder; see ``trace_part``.
    """

    trace: Callable[[int, Path], dict[str, Any]]
    trace_part: Callable[[int, str, tuple[np.ndarray, ...], Path], None]


Part: TypeAlias = CompiledPart | OneSizePart


@dataclass(frozen=True)
class CompiledParts:
    """The parts of a network.

    Attributes:
        parts: the functions by the names of the methods that they replace.
        arch_options, input_range: see ``NetworkTraits``.
    """

    parts: Mapping[str, Part]
    arch_options: Mapping[str, Any]
    input_range: tuple[float, float]


def identity(path: Path, mode: str, largest: int) -> dict[str, Any]:
    """Return all that graphs depend on, besides the versions of this package and OpenVINO."""
    return {
        "checkpoint": file_digest(path),
        "mode": mode,
        "largest": largest,
        "version": VERSION,
    }


def load_parts(path: Path, mode: str, tracer: Callable[[], Tracer]) -> CompiledParts:
    """Load the parts of a checkpoint.

    Their graphs ship with the package, or are traced once per machine and kept on disk.

    Args:
        mode: the mode of the layers, see ``runtime_names.MODES``.
        tracer: returns what writes the graphs that are not on disk yet.

    Raises:
        QuantFaceError: the checkpoint cannot be read, or ``tracer`` fails.
    """
    largest = FULL if has_vnni() else SPARE
    if largest == SPARE:
        warnings.warn(
            "this processor has no VNNI: weights are rounded to 7 bits, and the gain is smaller",
            stacklevel=2,
        )
    own = identity(path, mode, largest)

    def make(scratch: Path) -> dict[str, Any]:
        shipped = unpack(graphs_file(path, largest), own, scratch)
        return tracer().trace(largest, scratch) if shipped is None else shipped

    versions = [__version__, openvino.__version__]
    folder, kept = cached("openvino", {**own, "versions": versions}, make)
    return_freed()
    graphs = {name: folder / f"{name}.xml" for name in kept["parts"]}
    sizes = [it.with_suffix(".bin").stat().st_size for it in graphs.values() if it.exists()]
    frugal = sum(sizes) > LARGE

    def part(name: str, graph: Path) -> Part:
        if name not in kept["one_size"]:
            return CompiledPart(graph, kept["exact"], frugal)

        def trace(inputs: tuple[np.ndarray, ...], scratch: Path) -> None:
            tracer().trace_part(largest, name, inputs, scratch)

        return OneSizePart(name, f"{folder.name}-{name}", trace, kept["exact"])

    parts = {name: part(name, graph) for name, graph in graphs.items()}
    return _loaded(parts, kept)


def load_exported(path: Path) -> CompiledParts:
    """Load a whole network that was exported as an .xml file, with a .bin file beside it.

    Raises:
        QuantFaceError: a file is missing or damaged, or another program has written it.
    """
    try:
        model = core().read_model(path)
    except RuntimeError as error:
        reason = one_line(str(error).strip().splitlines()[-1])
        raise QuantFaceError(f"{path}: OpenVINO cannot read it ({reason})") from error
    if not model.has_rt_info([EXPORTED]):
        raise QuantFaceError(
            f"{path}: found an OpenVINO model, expected one by this version of quantface export"
        )
    facts = parse_json(f"{path}: {EXPORTED}", model.get_rt_info([EXPORTED]).astype(str).encode())
    if not isinstance(facts, dict) or not facts.keys() >= FACTS:
        raise QuantFaceError(f"{path}: {EXPORTED}: found {facts!r}, expected {sorted(FACTS)}")
    frugal = path.with_suffix(".bin").stat().st_size > LARGE
    return _loaded({"forward": CompiledPart(path, facts["exact"], frugal)}, facts)


def _loaded(parts: Mapping[str, Part], facts: Mapping[str, Any]) -> CompiledParts:
    """Return parts that begin to load what was used last, with the facts of their network."""
    # The threads must not make a core each.
    core()
    pool = ThreadPoolExecutor(thread_count())
    for part in parts.values():
        if isinstance(part, CompiledPart):
            part.load_early(pool)
    pool.shutdown(wait=False)
    low, high = facts["input_range"]
    return CompiledParts(parts, facts["arch_options"], (low, high))
