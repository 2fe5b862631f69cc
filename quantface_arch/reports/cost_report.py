"""The cost of a network as tables and files: by part, by layer, in total."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from quantface_arch.quant.cost.cost import Cost, Entry, total_cost
from quantface_arch.utils.files import atomic_path

__all__ = ["layer_table", "part_costs", "part_of", "part_table", "write_csv", "write_json"]

# These are the parts of OSDFace in the order in which they run. The first match counts. In other
# networks, the first component of a module's name is its part.
PARTS = (
    ("vre.*", "VRE"),
    ("embedding_change.*", "VRE"),
    ("vae.encoder.*", "VAE encoder"),
    ("vae.quant_conv.*", "VAE encoder"),
    ("fast_encoder.*", "VAE encoder"),
    ("unet.down_blocks.*", "UNet down"),
    ("unet.mid_block.*", "UNet mid"),
    ("unet.up_blocks.*", "UNet up"),
    ("unet.*", "UNet rest"),
    ("vae.*", "VAE decoder"),
    ("fast_decoder.*", "VAE decoder"),
)


def part_of(name: str) -> str:
    """Return the part of the network to which a module or tensor belongs."""
    parts = (part for pattern, part in PARTS if fnmatchcase(f"{name}.", pattern))
    return next(parts, name.partition(".")[0])


def part_costs(entries: Iterable[Entry]) -> dict[str, Cost]:
    """Return the cost of each part: OSDFace's in execution order, then others as they appear."""
    found: dict[str, Cost] = {part: Cost() for _, part in PARTS}
    for entry in entries:
        part = part_of(entry.name)
        found[part] = found.get(part, Cost()) + entry.cost
    return {part: cost for part, cost in found.items() if cost != Cost()}


def _part_row(name: str, cost: Cost) -> tuple[str, ...]:
    width = 8 * cost.bytes / cost.parameters if cost.parameters else 0.0
    return (
        name,
        f"{cost.parameters / 1e6:.2f}",
        f"{cost.bytes / 1e6:.2f}",
        f"{width:.2f}",
        f"{cost.macs / 1e9:.2f}",
        f"{cost.branch_macs / 1e9:.2f}",
        f"{(cost.scalings + cost.additions) / 1e9:.2f}",
        f"{cost.operations / 1e9:.2f}",
        f"{cost.bit_operations / 1e12:.3f}",
        f"{cost.product_macs / 1e9:.2f}",
    )


def part_table(entries: Sequence[Entry]) -> str:
    """Return a Markdown table with a row per part of the network, and the total."""
    head = (
        "part",
        "parameters, M",
        "MB",
        "bits per parameter",
        "GMACs",
        "branch GMACs",
        "balancing, G",
        "operations, G",
        "bit-operations, T",
        "products, GMACs",
    )
    rows = [_part_row(part, cost) for part, cost in part_costs(entries).items()]
    return _markdown([head, *rows, _part_row("total", total_cost(entries))])


def layer_table(entries: Iterable[Entry], count: int) -> str:
    """Return a Markdown table of the ``count`` layers with the most operations."""
    layers = (entry for entry in entries if entry.is_layer)
    largest = sorted(layers, key=lambda entry: -entry.cost.operations)[:count]
    head = ("layer", "width", "rank", "balance", "parameters, k", "kB", "GMACs", "operations, G")
    rows = [
        (
            entry.name,
            f"w{entry.weight_bits}a{entry.activation_bits}",
            str(entry.rank),
            entry.balance,
            f"{entry.cost.parameters / 1e3:.1f}",
            f"{entry.cost.bytes / 1e3:.1f}",
            f"{entry.cost.macs / 1e9:.2f}",
            f"{entry.cost.operations / 1e9:.2f}",
        )
        for entry in largest
    ]
    return _markdown([head, *rows])


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _figures(cost: Cost) -> dict[str, Any]:
    """Return all counts and the values derived from them."""
    return {
        **asdict(cost),
        "bytes": cost.bytes,
        "operations": cost.operations,
        "bit_operations": cost.bit_operations,
    }


def _entry_row(entry: Entry) -> dict[str, Any]:
    head = {key: value for key, value in vars(entry).items() if key != "cost"}
    return {"part": part_of(entry.name), **head, **_figures(entry.cost)}


def write_csv(path: Path, entries: Iterable[Entry]) -> None:
    """Write a row per layer, float tensor and multiplying module; columns sum to the totals."""
    rows = [_entry_row(entry) for entry in entries]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, entries: Sequence[Entry], about: Mapping[str, Any]) -> None:
    """Write ``about``, the total, the reductions, the parts and the rows of ``write_csv``."""
    cost = total_cost(entries)
    parts = {part: _figures(found) for part, found in part_costs(entries).items()}
    document = {
        **about,
        "total": _figures(cost),
        "reductions": cost.reductions,
        "parts": parts,
        "entries": [_entry_row(entry) for entry in entries],
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
