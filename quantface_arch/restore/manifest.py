"""What a batch restoration has done: a line of JSON for every picture, as soon as it is done."""

from __future__ import annotations

import argparse
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
from quantface_arch.utils.files import file_digest, open_file

if TYPE_CHECKING:
    from quantface_arch.restore.restorer import FaceRestorer

__all__ = ["Manifest", "settings_of"]


def settings_of(args: argparse.Namespace, restorer: FaceRestorer) -> dict[str, Any]:
    """What the pixels of a result depend on beside the picture itself, as plain data."""
    from quantface_arch.pretrained.names import resolve_base, resolve_model
    from quantface_arch.runtime import resolve

    model = resolve_model(args.model)
    files, base = [model], None
    if model.is_dir():
        files, base = sorted(model.iterdir()), resolve_base(model)
    return {
        "model": {path.name: file_digest(path) for path in files if path.is_file()},
        "base": base,
        "runtime": "torch" if model.is_dir() else resolve(args.runtime, restorer.device.type),
        "detector": None if args.aligned else restorer.detector.name,
        "aligned": args.aligned,
        "upscale": args.upscale,
        "strength": args.strength,
        "color_fix": restorer.color_fix,
        "seed": args.seed if args.sample else None,
        "compare": args.compare,
        "background": _background(args.bg_upsampler),
        "version": __version__,
    }


def _background(name_or_path: str | None) -> str | None:
    """Digest of a network's file; a name stands for one file alone."""
    path = Path(name_or_path or "")
    return file_digest(path) if path.is_file() else name_or_path


@dataclass
class Manifest:
    """The files ``manifest-RANK.jsonl`` of an output folder: one a process, appended to.

    A picture is done if a line says so whose settings are these, whose digest of the input is that
    of the file, and all of whose outputs hold what was written. So neither what another run wrote
    over them, nor a line cut short by a kill, can make a picture count as done.

    Args:
        root: the output folder.
        settings: of this run.
        rank: names the file that this process appends to.
    """

    root: Path
    settings: Mapping[str, Any]
    rank: int = 0
    _known: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)

    def load(self) -> None:
        """Read the lines of earlier runs, of however many processes.

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
        """Whether a picture is done, by lines that ``load`` has read.

        Args:
            unrestored: a picture in which no face was found counts, too.
        """
        try:
            records = self._known.get((source.name, file_digest(source.path)), ())
        except QuantFaceError:
            return False
        return any((record["faces"] or unrestored) and self._holds(record) for record in records)

    def _holds(self, record: Mapping[str, Any]) -> bool:
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
        error: str | None = None,
    ) -> None:
        """Append what became of a picture.

        Args:
            digest: SHA-256 of the input; None if it could not be read.
            outputs: the files that were written.
            seconds: from reading to writing; pictures of one batch share their time.
            error: in one line; None if the picture is done.

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
            "error": error,
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "settings": self.settings,
        }
        path = self.root / MANIFESTS.replace("*", str(self.rank))
        line = json.dumps(record).encode() + b"\n"
        try:
            with path.open("a+b") as file:
                # A line that a kill has cut short must not swallow this one.
                if file.tell() and (file.seek(-1, 2), file.read(1))[1] != b"\n":
                    line = b"\n" + line
                file.write(line)
        except OSError as failure:
            raise WriteError(f"cannot write {path}: {failure.strerror or failure}") from failure


def _parsed(line: bytes) -> dict[str, Any]:
    """A line's record; empty for one that was cut short, or that no run has written."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    kinds = {"name": str, "sha256": (str, type(None)), "outputs": dict, "faces": int}
    whole = isinstance(record, dict) and record.keys() >= {*kinds, "error", "settings"}
    return record if whole and all(isinstance(record[k], kinds[k]) for k in kinds) else {}
