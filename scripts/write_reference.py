"""Write the YAML reference, docs/yaml_reference.md, from the fields that declare the options."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reference_tables import Section, markdown, table, yaml_value

import quantface_arch.register  # noqa: F401
from basicsr.utils.registry import LOSS_REGISTRY, METRIC_REGISTRY
from quantface_arch.archs.osdface_arch import OSDFace
from quantface_arch.archs.presets import PRESETS
from quantface_arch.data.degradation import Degradation
from quantface_arch.data.options import FaceDatasetOptions
from quantface_arch.integration.allocate_options import AllocateOptions
from quantface_arch.integration.quantface_arch import QuantFaceArch
from quantface_arch.models import options
from quantface_arch.models.schedule import SCHEDULERS
from quantface_arch.quant import Recipe
from quantface_arch.quant.allocation.budget import Budget
from quantface_arch.quant.config import bitmap, branch_spec, specs
from quantface_arch.utils.cli import EXIT_FAILED, Parser, run
from quantface_arch.utils.files import atomic_path

DESCRIPTION = """\
Write docs/yaml_reference.md: every option of this project's blocks in options files, with its type,
default and meaning, taken from the code that checks them.

examples:
  python scripts/write_reference.py
  python scripts/write_reference.py --check     exit status 1 if the page is not up to date
"""
PAGE = Path(__file__).resolve().parents[1] / "docs/yaml_reference.md"
INTRODUCTION = """\
# YAML reference

*Written by `python scripts/write_reference.py` from the code that checks the options; change that,
not this page.*

Options files are BasicSR's; these tables list what this project adds. The rest (`path`, `logger`,
the rest of `val`, other data sets) is as BasicSR documents it. `options/quantface_w4.yml` has every
block in its place. An option that is in no table is refused with the names of those that are. Old
names of options still work.
"""
RECIPE = """\
`name: wXaY`, X and Y from 2 to 8, is a whole recipe; the other options replace parts of it. With
any other name, `weights` and `activations` have to give their `bits`."""
RECIPE_DEFAULTS = {
    "weights": "the name's",
    "activations": "the name's",
    "eight_bit": "the network's own",
}
# References in docstrings are replaced by what the reader of the page can find.
REFERENCES = {
    "see `bitmap`": "see bit maps below",
    "see `from_dict`": "see above",
}
WIDTHS = f"{specs.MIN_BITS} to {specs.MAX_BITS}"


def sections() -> list[Section]:
    """Return all tables except those of losses and metrics, in their order on the page."""
    return [*_networks(), *_quant(), *_train(), *_data()]


def _networks() -> list[Section]:
    return [
        Section("`network_g` with `type: QuantFaceArch`", QuantFaceArch),
        Section("`network_g` with `type: OSDFace`", OSDFace, allowed={"preset": tuple(PRESETS)}),
    ]


def _quant() -> list[Section]:
    quantizer = {
        "bits": WIDTHS,
        "granularity": specs.GRANULARITIES,
        "range": specs.RANGES,
        "rounding": specs.ROUNDINGS,
    }
    balance = {"kind": specs.KINDS, "block": (*specs.BLOCKS, None), "sources": ("whole", "split")}
    return [
        Section("`quant`", Recipe, defaults=RECIPE_DEFAULTS, intro=RECIPE),
        Section("`quant`, the rest", options.QuantBlockOptions),
        Section(
            "`quant: weights` and `quant: activations`",
            specs.QuantSpec,
            allowed=quantizer,
            defaults={"bits": "the name's"},
            intro=f"Weights begin with {_departures(Recipe.from_name('w8a8').weights)}.",
        ),
        Section("`quant: balance`", specs.BalanceSpec, allowed=balance),
        Section("`quant: branch`", branch_spec.BranchSpec),
        Section("`quant: calibration`", options.CalibrationOptions),
    ]


def _train() -> list[Section]:
    return [
        Section(
            "`train`, every model",
            options.TrainOptions,
            allowed={"scheduler": tuple(SCHEDULERS)},
        ),
        Section("`train` with `QuantFaceModel`", options.QuantFaceOptions, own=True),
        Section(
            "`train: losses`, each entry",
            options.LossTermOptions,
            intro="These options add to those of the loss itself, see losses below.",
        ),
        Section("`train: reconstruction`", options.ReconstructionOptions),
        Section("`train` with `OSDFaceModel`", options.OSDFaceOptions, own=True),
        Section("`train` with `TinyDecoderModel`", options.TinyDecoderOptions, own=True),
        Section("`train: discriminator`", options.DiscriminatorOptions),
        Section("`val`, every model", options.ValidationOptions),
        Section("`logger`", options.LoggerOptions, intro="These options add to BasicSR's own."),
    ]


def _data() -> list[Section]:
    return [
        Section(
            "`datasets: train` with `type: QuantFaceDataset`",
            FaceDatasetOptions,
            intro="These options add to BasicSR's own for a loader, such as `batch_size_per_gpu`.",
        ),
        Section("`datasets: train: degradation`", Degradation),
        Section(
            "`allocate`", AllocateOptions, intro="Only `scripts/allocate_bits.py` reads this block."
        ),
        Section("`allocate: budget`", Budget),
    ]


def _departures(spec: specs.QuantSpec) -> str:
    """Return the options of a quantizer that differ from the defaults."""
    plain = vars(specs.QuantSpec(spec.bits))
    changed = {name: value for name, value in vars(spec).items() if value != plain[name]}
    return ", ".join(f"`{name}: {yaml_value(value)}`" for name, value in changed.items())


def page() -> str:
    """Return the whole page."""
    parts = [INTRODUCTION]
    for section in sections():
        parts.append(f"## {section.title}\n\n{section.intro and section.intro + chr(10) * 2}")
        parts.append(table(section) + "\n")
    parts.append("\n## Bit maps\n\n" + markdown(inspect.getdoc(bitmap) or "") + "\n")
    parts.append(_losses())
    parts.append(_metrics())
    text = "\n".join(parts)
    for name, place in REFERENCES.items():
        text = text.replace(name, place)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def _ours(registry: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    return (item for item in sorted(registry) if item[0].startswith(prefix))


def _losses() -> str:
    lines = [
        "\n## Losses\n",
        "These losses add to BasicSR's own (`L1Loss`, `MSELoss`, `PerceptualLoss` and others).",
    ]
    for name, loss in _ours(LOSS_REGISTRY, "QuantFace"):
        summary = (inspect.getdoc(loss) or "").partition("\n\n")[0]
        lines += [f"\n### `{name}`\n", markdown(summary), "", table(Section(name, loss))]
    return "\n".join(lines)


def _metrics() -> str:
    lines = [
        "\n## Metrics\n",
        "For `val: metrics: NAME: {type: ...}`.\n",
        "| type | what |",
        "|---|---|",
    ]
    for name, metric in _ours(METRIC_REGISTRY, "calculate_quantface"):
        summary = (inspect.getdoc(metric) or "").partition("\n")[0]
        lines.append(f"| `{name}` | {markdown(summary)} |")
    return "\n".join(lines)


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(description=DESCRIPTION)
    parser.add_argument("--check", action="store_true", help="compare the page, and write nothing")
    return parser


def main(args: argparse.Namespace) -> int:
    """Write the page, or compare it with the code."""
    text = page()
    if args.check:
        same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        print(f"{PAGE}: {'up to date' if same else 'not up to date, run this without --check'}")
        return 0 if same else EXIT_FAILED
    with atomic_path(PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"{PAGE}: written")
    return 0


if __name__ == "__main__":
    run(main, make_parser())
