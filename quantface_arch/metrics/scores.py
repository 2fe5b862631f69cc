"""Scores of images, written to a CSV file as soon as they are computed."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.utils.files import atomic_path

__all__ = ["ScoreFile"]

IMAGE, DIGEST = "image", "digest"


class ScoreFile:
    """A CSV file with a row per image: its name, the digest of its files, a column per metric.

    A row is appended as soon as its scores are known, so that a killed run loses nothing. Opening
    and closing rewrite the file atomically, with one row per image. Scores of an earlier run,
    including those of other metrics, are kept until the image's files change.

    Args:
        path: the file; None keeps the scores in memory only.
        metrics: the metrics of this run, which have columns in the file.
        images: names of the images, in the order of the rows.

    Raises:
        UsageError: the file cannot be written, is not such a table, or has rows of other images.
    """

    def __init__(self, path: Path | None, metrics: Iterable[str], images: Iterable[str]) -> None:
        self.path = path
        self.images = list(images)
        self._rows: dict[str, tuple[str, dict[str, float]]] = {}
        self._confirmed: set[str] = set()
        columns = self._load(path) if path is not None and path.exists() else []
        self.metrics = list(dict.fromkeys([*columns, *metrics]))
        try:
            self._write()
        except QuantFaceError as error:
            raise UsageError(f"--csv: {error}") from error

    def _load(self, path: Path) -> list[str]:
        """Load the rows of a file, and return its metrics."""
        try:
            text = path.read_bytes().decode()
            # The last row of a run that was killed may be cut short.
            whole = text[: text.rfind("\n") + 1]
            rows = csv.DictReader(io.StringIO(whole, newline=""), strict=True)
            columns = list(rows.fieldnames or (IMAGE, DIGEST))
            if columns[:2] != [IMAGE, DIGEST]:
                raise ValueError("not a table of this command")
            for row in rows:
                values = {name: float(row[name]) for name in columns[2:] if row[name]}
                self._rows[row[IMAGE]] = (row[DIGEST], values)
        except (OSError, ValueError, TypeError, csv.Error) as error:
            raise UsageError(f"--csv {path}: {error}; name another file") from error
        foreign = self._rows.keys() - set(self.images)
        if foreign:
            raise UsageError(
                f"--csv {path}: has rows of images that are not in this run "
                f"({min(foreign)}); name another file"
            )
        return columns[2:]

    def known(self, image: str, digest: str) -> dict[str, float]:
        """Return the known scores of an image by metric; empty if the image's files changed."""
        found, values = self._rows.get(image, ("", {}))
        if found != digest:
            return {}
        self._confirmed.add(image)
        return dict(values)

    def add(self, image: str, digest: str, values: Mapping[str, float]) -> None:
        """Set an image's scores and append them to the file."""
        self._rows[image] = (digest, dict(values))
        self._confirmed.add(image)
        if self.path is not None:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow(self._row(image))

    def close(self) -> None:
        """Write the file with one row per image."""
        self._write()

    def column(self, metric: str) -> list[float]:
        """Return all scores of a metric, for the images that this run has seen."""
        rows = (self._rows[image][1] for image in self.images if image in self._confirmed)
        return [values[metric] for values in rows if metric in values]

    def _row(self, image: str) -> list[str]:
        digest, values = self._rows[image]
        cells = [repr(values[metric]) if metric in values else "" for metric in self.metrics]
        return [image, digest, *cells]

    def _write(self) -> None:
        if self.path is None:
            return
        with (
            atomic_path(self.path) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow([IMAGE, DIGEST, *self.metrics])
            writer.writerows(self._row(image) for image in self.images if image in self._rows)
