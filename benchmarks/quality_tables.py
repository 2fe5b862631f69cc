"""The tables of quality.py: means, paired differences, shares of a gap, the best at equal size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from face_metrics import FaceMetrics
from quality_rows import BASE, OURS, Row

from quantface_arch.metrics.catalogue import METRICS

__all__ = [
    "Scorer",
    "best_rows",
    "column",
    "gap_rows",
    "interval",
    "mean_rows",
    "paired_rows",
    "seed_rows",
    "share",
    "verdict",
]

FIGURES = ("psnr", "ssim", "ms_ssim", "haarpsi", "vre")
# These figures are measured where their networks' weights are present, see ``FaceMetrics``.
NETWORKS = {"lpips": "lpips_squeeze", "identity": "identity"}
LOWER = ("lpips_squeeze", *(name for name in FIGURES if METRICS[name].better == "lower"))
SAMPLES = 10_000
# Files whose sizes differ by less than this share count as equally large.
MARGIN = 0.01

Found = Mapping[str, Any]
Results = Mapping[Row, Found]


class Scorer:
    """Scores an image against the clean face and (``_fp``) full precision's image.

    Attributes:
        names: the figures that are measured.
    """

    def __init__(self) -> None:
        self.measure = FaceMetrics()
        self.names = (*FIGURES, *(NETWORKS[name] for name in self.measure.names))

    def __call__(self, image: np.ndarray, clean: np.ndarray, first: np.ndarray) -> dict[str, float]:
        """Return all figures of an image, BGR uint8."""
        found = {}
        for suffix, other in (("", clean), ("_fp", first)):
            for name in FIGURES:
                found[f"{name}{suffix}"] = METRICS[name](image, other)
            for name, value in self.measure(image, other).items():
                found[f"{NETWORKS[name]}{suffix}"] = value
        return found


def column(found: Found, name: str) -> np.ndarray:
    """Return the scores of all faces in one metric, in order."""
    return np.array([values[name] for _, values in sorted(found["faces"].items())])


def _draws(count: int) -> np.ndarray:
    """Return the faces of each bootstrap sample, the same in every call."""
    return np.random.default_rng(0).integers(0, count, (SAMPLES, count))


def interval(differences: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of paired differences and its 95 % bootstrap interval."""
    means = differences[_draws(len(differences))].mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(differences.mean()), float(low), float(high)


def share(
    ours: np.ndarray, peer: np.ndarray, full: np.ndarray, lower: bool = False
) -> tuple[float, float, float] | None:
    """Return the share of a peer's gap to full precision that a method closes.

    Each bootstrap sample takes all three scores of the faces that it draws.

    Args:
        ours, peer, full: scores by face, of the same faces in the same order.
        lower: whether lower scores are better.

    Returns:
        the share and its 95 % bootstrap interval; None if full precision is not significantly
        better than the peer, since there is then no gap to close.
    """
    draws, sign = _draws(len(ours)), -1 if lower else 1
    gained, gap = (sign * (x - peer)[draws].mean(1) for x in (ours, full))
    if np.percentile(gap, 2.5) <= 0:
        return None
    # A sample without a gap says nothing about the share of it.
    shares = gained[gap > 0] / gap[gap > 0]
    low, high = np.percentile(shares, (2.5, 97.5))
    return float((ours - peer).mean() / (full - peer).mean()), float(low), float(high)


def mean_rows(results: Results, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the first table: mean scores, size and operations.

    ``bytes`` are those of the file, ``MB`` those of its tensors.
    """
    columns = [*names, *(f"{name}_fp" for name in names)]
    return [
        {
            "setting": row.setting,
            "method": row.label,
            "steps": found["steps"],
            **{name: float(column(found, name).mean()) for name in columns},
            "bytes": found["bytes"],
            "MB": found["tensor_bytes"] / 1e6,
            "Gop": found["operations"] / 1e9,
        }
        for row, found in results.items()
    ]


def seed_rows(results: Results, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the fifth table: mean and standard deviation over the seeds of the same training."""
    groups: dict[Row, list[Found]] = {}
    for row, found in results.items():
        groups.setdefault(replace(row, seed=0), []).append(found)
    return [
        {
            "setting": row.setting,
            "method": row.label,
            "seeds": len(group),
            **{name: _spread([column(x, name).mean() for x in group]) for name in names},
        }
        for row, group in groups.items()
        if len(group) > 1
    ]


def _spread(means: Sequence[float]) -> str:
    return f"{np.mean(means):.4f} ± {np.std(means, ddof=1):.4f}"


def paired_rows(results: Results, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the second table: differences to QuantFace at the same setting (MP: at W4A4)."""
    table = []
    for row, found in results.items():
        other = Row(BASE[row.setting], OURS)
        if row == other or other not in results:
            continue
        ours = results[other]
        line: dict[str, Any] = {"setting": row.setting, "method": row.label, "less": OURS}
        line["bytes"] = f"{found['bytes'] / ours['bytes'] - 1:+.1%}"
        for name in names:
            line[name] = _difference(column(found, name) - column(ours, name))
        table.append(line)
    return table


def _difference(differences: np.ndarray) -> str:
    mean, low, high = interval(differences)
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"


def gap_rows(results: Results, full: Found, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the third table: the share of each peer's gap to full precision that ours closes."""
    table = []
    for row, found in results.items():
        for peer in (other for other in results if other.method != OURS):
            if row.method != OURS or peer.setting not in (BASE[row.setting], row.setting):
                continue
            line: dict[str, Any] = {"setting": row.setting, "gap of": peer.label}
            line["gap at"] = peer.setting
            for name in names:
                columns = (column(x, name) for x in (found, results[peer], full))
                line[name] = _share_text(share(*columns, lower=name in LOWER))
            table.append(line)
    return table


def _share_text(found: tuple[float, float, float] | None) -> str:
    if found is None:
        return "no gap"
    value, low, high = (100 * part for part in found)
    return f"{value:.0f} % [{low:.0f}, {high:.0f}]"


def best_rows(results: Results, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the fourth table: in every figure, the best peer whose file is no larger than ours.

    ``ahead`` is the method whose lead the interval confirms, else it is empty.
    """
    table = []
    for row, ours in results.items():
        if row.method != OURS:
            continue
        peers = [
            other
            for other, found in results.items()
            if other.method != OURS
            and other.setting in (BASE[row.setting], row.setting)
            and found["bytes"] <= ours["bytes"] * (1 + MARGIN)
        ]
        table += [_best_row(row, results, peers, name) for name in names if peers]
    return table


def _best_row(row: Row, results: Results, peers: Sequence[Row], name: str) -> dict[str, Any]:
    sign = -1 if name in LOWER else 1
    best = max(peers, key=lambda peer: sign * column(results[peer], name).mean())
    differences = column(results[best], name) - column(results[row], name)
    _, low, high = interval(sign * differences)
    return {
        "setting": row.setting,
        "figure": name,
        "best peer no larger": best.label,
        "bytes": f"{results[best]['bytes'] / results[row]['bytes'] - 1:+.1%}",
        f"less {OURS}": _difference(differences),
        "ahead": best.label if low > 0 else OURS if high < 0 else "",
    }


def verdict(table: Sequence[Mapping[str, Any]]) -> str:
    """Return the fourth table in a sentence."""
    behind = [f"{row['figure']} at {row['setting']}" for row in table if row["ahead"] != OURS]
    size = f"whose file is at most {100 * MARGIN:.0f} % larger than QuantFace's"
    if behind:
        return f"QuantFace does not lead the peers {size} in: {', '.join(behind)}."
    return f"QuantFace leads all peers {size} in every figure, and no interval contains 0."
