"""Record a restore command in a manifest: one line of JSON per finished input."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantface_arch import __version__
from quantface_arch.errors import QuantFaceError, WriteError
from quantface_arch.restore.files import MANIFESTS, Source
from quantface_arch.restore.options import RestoreOptions
from quantface_arch.utils.files import file_digest, open_file

if TYPE_CHECKING:
    from quantface_arch.restore.restorer import FaceRestorer

__all__ = ["Manifest", "settings_of"]


def settings_of(options: RestoreOptions, restorer: FaceRestorer) -> dict[str, Any]:
    """Return, as plain data, all settings that the result's pixels depend on."""
    from quantface_arch.pretrained.names import resolve_base, resolve_model
    from quantface_arch.runtime import resolve

    if options.inputs.whole:
        return _whole_settings(options, restorer)
    aligned = options.inputs.aligned
    model = resolve_model(options.runtime.model)
    files, base = [model], None
    if model.suffix == ".xml":
        files.append(model.with_suffix(".bin"))
    if model.is_dir():
        files, base = sorted(model.iterdir()), resolve_base(model)
    fidelity = options.runtime.fidelity
    runtime = "torch"
    if not model.is_dir():
        runtime = resolve(options.runtime.runtime, restorer.model.device_type)
    return {
        "model": {path.name: file_digest(path) for path in files if path.is_file()},
        "base": base,
        "runtime": runtime,
        "detector": None if aligned else restorer.detector.name,
        "aligned": aligned,
        "upscale": options.outputs.factor,
        "strength": options.faces.strength,
        "color_fix": restorer.color_fix,
        "seed": options.faces.seed if options.faces.sample else None,
        "compare": options.outputs.compare,
        "metadata": options.outputs.keep_metadata,
        "background": _background(options.outputs.bg_upsampler),
        "version": __version__,
        **({} if fidelity is None else {"fidelity": fidelity}),
        **_identity(options.faces.identity, restorer),
    }


def _identity(least: float | None, restorer: FaceRestorer) -> dict[str, Any]:
    """Return the limit on a face's change and the network that measures it, if there is one."""
    if least is None:
        return {}
    return {"identity": {"least": least, "network": file_digest(restorer.embedder.path)}}


def _whole_settings(options: RestoreOptions, restorer: FaceRestorer) -> dict[str, Any]:
    """Return the settings of a run on whole images."""
    from quantface_arch.runtime import resolve

    return {
        "whole": _background(options.runtime.model),
        "runtime": resolve(options.runtime.plain_runtime, restorer.model.device_type),
        "upscale": options.outputs.factor,
        "compare": options.outputs.compare,
        "metadata": options.outputs.keep_metadata,
        "version": __version__,
    }


def _background(name_or_path: str | None) -> str | None:
    """Return the digest of a network's file, or the published name, which identifies one file."""
    path = Path(name_or_path or "")
    return file_digest(path) if path.is_file() else name_or_path


@dataclass
class Manifest:
    """The files ``manifest-RANK.jsonl`` of an output folder; each process appends to its own.

    An input is done if some line reports it without an error, with the same settings and the same
    digest of the input, and if all its outputs still have the digests in that line. An input whose
    outputs were overwritten by another run, or whose line was cut short by a kill, is not done.

    Args:
        root: the output folder.
        settings: settings of this run.
        rank: rank of this process, which names its file.
    """

    root: Path
    settings: Mapping[str, Any]
    rank: int = 0
    _known: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)

    def load(self) -> None:
        """Read the lines of all processes of earlier runs.

        Raises:
            QuantFaceError: a manifest cannot be read.
        """
        known = defaultdict(list)
        for path in sorted(self.root.glob(MANIFESTS)):
            with open_file(path) as file:
                for record in map(_parsed, file):
                    if record.get("error", "") is None and record["settings"] == self.settings:
                        known[record["name"], record["sha256"]].append(record)
        self._known = dict(known)

    def has(self, source: Source, unrestored: bool) -> bool:
        """Return whether an input is done, according to the lines that ``load`` read.

        Args:
            source: the input.
            unrestored: whether an input without a face counts as done.
        """
        try:
            records = self._known.get((source.name, file_digest(source.path)), ())
        except QuantFaceError:
            return False
        return any((record["faces"] or unrestored) and self._holds(record) for record in records)

    def _holds(self, record: Mapping[str, Any]) -> bool:
        """Return whether all outputs of a line are unchanged."""
        try:
            outputs = record["outputs"].items()
            return all(file_digest(self.root / name) == digest for name, digest in outputs)
        except QuantFaceError:
            return False

    def add(
        self,
        source: Source,
        digest: str | None,
        outputs: Sequence[Path] = (),
        faces: int = 0,
        seconds: float = 0.0,
        strength: Sequence[float] | Mapping[str, float] = (),
        error: str | None = None,
    ) -> None:
        """Append a line for one input.

        Args:
            source: the input.
            digest: SHA-256 of the input; None if it could not be read.
            outputs: files that were written.
            faces: number of faces that were restored.
            seconds: time from reading to writing, including the other images of its batch.
            strength: the strength of each face from left to right, or ``Strengths.summary`` of
                many frames.
            error: one-line reason of the failure; None if the input is done.

        Raises:
            WriteError: the line cannot be written.
        """
        record = {
            "input": str(source.path),
            "name": source.name,
            "sha256": digest,
            "outputs": {str(path.relative_to(self.root)): file_digest(path) for path in outputs},
            "faces": faces,
            "seconds": round(seconds, 3),
            "strength": strength,
            "error": error,
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "settings": self.settings,
        }
        self._append(json.dumps(record).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        path = self.root / MANIFESTS.replace("*", str(self.rank))
        try:
            with path.open("a+b") as file:
                # Start a new line if a kill has cut the last one short.
                if file.tell() and (file.seek(-1, 2), file.read(1))[1] != b"\n":
                    line = b"\n" + line
                file.write(line)
        except OSError as failure:
            raise WriteError(f"cannot write {path}: {failure.strerror or failure}") from failure


def _parsed(line: bytes) -> dict[str, Any]:
    """Return the record in a line, or an empty one if the line was cut short or is malformed."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    kinds = {"name": str, "sha256": (str, type(None)), "outputs": dict, "faces": int}
    complete = isinstance(record, dict) and record.keys() >= {*kinds, "error", "settings"}
    return record if complete and all(isinstance(record[k], kinds[k]) for k in kinds) else {}
