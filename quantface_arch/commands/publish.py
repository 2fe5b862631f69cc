"""Write a checkpoint as a repository for the Hugging Face hub: model card, config and weights."""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.pretrained.names import resolve_model
from quantface_arch.utils.cli import Parser, ending
from quantface_arch.utils.files import atomic_path
from quantface_arch.utils.safe_yaml_json import read_json

DESCRIPTION = """\
Write a folder that can be uploaded to the Hugging Face hub as it is: README.md (the model card),
config.json and the checkpoint. Nothing is uploaded.

examples:
  a checkpoint of your own, with figures that a benchmark has written:
    python benchmarks/mini_quality.py --models mini my.safetensors --json figures.json
    python scripts/publish.py my.safetensors -o repository --license apache-2.0 \\
        --base-model USER/BASE --figures figures.json
  upload it, and use it by its id:
    hf upload USER/REPOSITORY repository
    python inference/restore.py -i photos --model USER/REPOSITORY
"""
USE = """\
## Use

With QuantFace installed:

```bash
quantface restore -i photos --model {id}
```

```python
from quantface_arch import FaceRestorer

restorer = FaceRestorer.from_pretrained("{id}")
restored = restorer.restore("photo.jpg").image
```
"""


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        description=DESCRIPTION,
        epilog=ending("QUANTFACE_CACHE"),
    )
    add = parser.add_argument
    add("model", metavar="NAME_OR_PATH", help="checkpoint, or the name of a shipped model")
    folder = "folder to write, new or empty"
    add("-o", "--output", required=True, type=Path, metavar="DIR", help=folder)
    add("--id", default="USER/REPOSITORY", help="id of the repository, for its examples")
    add("--license", default="other", help="of the weights, as the hub names it (%(default)s)")
    add("--base-model", metavar="ID", help="id of the model that was quantized")
    add("--figures", type=Path, metavar="FILE", help="figures, as benchmarks write them (--json)")
    return parser


def main(args: argparse.Namespace) -> int:
    """Write the folder.

    Raises:
        UsageError: the folder holds something already.
        QuantFaceError: the model is no checkpoint, or the figures are not those of a benchmark.
    """
    from quantface_arch.quant import read_metadata

    path = resolve_model(args.model)
    if path.suffix != ".safetensors":
        raise QuantFaceError(f"{path}: expected a .safetensors checkpoint")
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        raise UsageError(f"{args.output}: exists already, expected a new or empty folder")
    metadata = read_metadata(path)
    figures = read_figures(args.figures) if args.figures else []
    readme = card(args, path, metadata, figures)
    config = {"model_type": "quantface", "file": path.name}
    config |= {key: metadata[key] for key in ("arch", "state", "recipe", "package_version")}
    args.output.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, args.output / path.name)
    with atomic_path(args.output / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n")
    readme.save(args.output / "README.md")
    print(f"{args.output}: README.md, config.json and {path.name}")
    return 0


def read_figures(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a benchmark's JSON file.

    Raises:
        QuantFaceError: the file is unreadable, or has no rows.
    """
    found = read_json(path)
    rows = found.get("rows") if isinstance(found, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise QuantFaceError(f"{path}: expected the JSON file of a benchmark, with rows")
    return rows


def card(
    args: argparse.Namespace,
    path: Path,
    metadata: Mapping[str, Any],
    figures: Sequence[Mapping[str, Any]],
) -> Any:
    """Return the model card, huggingface_hub's ``ModelCard``."""
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        license=args.license,
        base_model=args.base_model,
        library_name="quantface",
        pipeline_tag="image-to-image",
        tags=["quantface", "face-restoration", "quantized"],
    )
    title = args.id.rpartition("/")[2] if args.id != "USER/REPOSITORY" else path.stem
    parts = [f"# {title}", _summary(path, metadata), USE.format(id=args.id)]
    if figures:
        parts += ["## Figures", _table(figures)]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _summary(path: Path, metadata: Mapping[str, Any]) -> str:
    arch = metadata["arch"].get("id", metadata["arch"].get("type"))
    size = f"{path.stat().st_size / 1e6:.2f} MB"
    if metadata["state"] != "quantized":
        return f"{arch} in full precision, {size}."
    widths = Counter((bits["w"], bits["a"]) for bits in metadata["bits"].values())
    counted = [
        f"{n} layers with {w}-bit weights and {a}-bit inputs" for (w, a), n in widths.items()
    ]
    name = metadata["recipe"]["name"]
    return f"{arch}, quantized by the recipe `{name}`: {', '.join(sorted(counted))}. {size}."


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table with the columns of the first one."""
    names = list(rows[0])
    lines = [
        names,
        ["---"] * len(names),
        *([_cell(row.get(name)) for name in names] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else " ".join(str(value).replace("|", "\\|").split())
