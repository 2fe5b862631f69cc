"""Compute metrics of restored images: print the means, and write every score as CSV."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.metrics.catalogue import METRICS
from quantface_arch.metrics.networks import FILES, MetricUnavailable, network
from quantface_arch.metrics.pairs import Pair, find_pairs
from quantface_arch.metrics.scores import ScoreFile
from quantface_arch.utils.cli import EXIT_FAILED, Parser, describe, ending
from quantface_arch.utils.devices import check_device
from quantface_arch.utils.installation import need
from quantface_arch.utils.progress import progress_bar

DESCRIPTION = """\
Compute metrics of restored images and print their means as a markdown table. Images of the two
folders form a pair if their names are equal except for the suffix; their sizes must be equal.

examples:
  everything that can be computed here:
    python scripts/evaluate.py -r results/restored_faces -g datasets/faces_val/gt
  some metrics, with every image's scores in a file; the same command continues where it stopped:
    python scripts/evaluate.py -r results/restored_faces -g datasets/faces_val/gt \\
        --metrics psnr ssim haarpsi vre --csv scores.csv
  without clean images:
    python scripts/evaluate.py -r results/restored_faces --metrics niqe
  metrics whose weights lie in a folder:
    python scripts/evaluate.py -r results/restored_faces -g datasets/faces_val/gt \\
        --metrics lpips deg lmd --weights-dir weights
  fid against faces of other names, such as FFHQ or what BasicSR's test loop renamed:
    python scripts/evaluate.py -r results/restored_faces --metrics fid --fid-gt datasets/ffhq512
"""
EPILOG = """\
psnr and ssim are BasicSR's (RGB; ssim has a Gaussian window). sharpness is the mean gradient
divided by the clean image's: 1 is ideal. vre compares features of the shipped mini's encoder. deg
is the angle between ArcFace embeddings, lmd the distance of landmarks in pixels (lmd_detector: of a
detector's five); vre, deg and lmd need aligned faces. fid compares the two folders as wholes and
has no column in the CSV file.

A metric that cannot be computed here is skipped, and its name and the reason are printed. Weights
are searched in --weights-dir, then where their own libraries keep them. Metrics need these files:
{files}
dists, musiq, maniqa, clipiqa and fid also need pyiqa: pip install -e ".[metrics]"

{ending}
"""


def make_parser() -> Parser:
    """Return the parser of the command line."""
    names = {name: [url.rsplit("/", 1)[-1] for _, url in files] for name, files in FILES.items()}
    files = "\n".join(f"  {name:13}{' and '.join(wanted)}" for name, wanted in names.items())
    parser = Parser(
        description=DESCRIPTION,
        epilog=EPILOG.format(
            files=files, ending=ending(failed="some image failed; the others are in the table")
        ),
    )
    add = parser.add_argument_group("images").add_argument
    restored = "folder of restored images"
    add("-r", "--restored", required=True, type=Path, metavar="DIR", help=restored)
    clean = "folder of clean images, which some metrics do not need"
    add("-g", "--gt", type=Path, metavar="DIR", help=clean)
    add("--fid-gt", type=Path, metavar="DIR", help="folder that fid compares with instead of -g")
    add = parser.add_argument_group("metrics").add_argument
    add(
        "--metrics",
        nargs="+",
        choices=METRICS,
        metavar="NAME",
        help=f"{', '.join(METRICS)} (default: all that can be computed here, except lmd_detector)",
    )
    add("--csv", type=Path, metavar="FILE", help="add a row for each image when it is done")
    add("--weights-dir", type=Path, metavar="DIR", help="folder of the metrics' published weights")
    add("--download", action="store_true", help="download missing weights, which are listed below")
    add("--device", default="cpu", help="torch device of the networks (default: %(default)s)")
    return parser


def main(args: argparse.Namespace) -> int:
    """Compute the metrics and print the table."""
    _check(args)
    pairs, missing = find_pairs(args.restored, args.gt)
    metrics = _prepare(args)
    columns = [name for name in metrics if name != "fid"]
    scores = ScoreFile(args.csv, columns, [pair.name for pair in pairs])
    evaluation = Evaluation(args, scores)
    for message in missing:
        evaluation.fail(message)
    with contextlib.closing(scores), progress_bar(pairs, desc="evaluate", unit="image") as bar:
        done = [pair for pair in bar if evaluation.measure(pair, columns)]
    figures = {name: scores.column(name) for name in columns}
    if "fid" in metrics:
        figures["fid"] = evaluation.compare_folders(done)
    _print_table({name: figures[name] for name in metrics})
    if evaluation.reused:
        print(f"\n{evaluation.reused} of {len(pairs)} images were in {args.csv} already")
    return EXIT_FAILED if evaluation.failed else 0


def _check(args: argparse.Namespace) -> None:
    """Refuse wrong options before anything is loaded."""
    if args.weights_dir is not None and not args.weights_dir.is_dir():
        raise UsageError(f"--weights-dir {args.weights_dir}: no such folder")
    if args.fid_gt is not None and not args.fid_gt.is_dir():
        raise UsageError(f"--fid-gt {args.fid_gt}: no such folder")
    need("quantface evaluate", "basicsr")
    check_device(args.device)
    for name in args.metrics or ():
        if METRICS[name].reference and _clean(args, name) is None:
            raise UsageError(f"--metrics {name}: it needs clean images: give -g FOLDER")


def _clean(args: argparse.Namespace, name: str) -> Path | None:
    """Return the folder that a metric compares with."""
    return (name == "fid" and args.fid_gt) or args.gt


def _options(args: argparse.Namespace, name: str) -> dict[str, Any]:
    weights = {"weights": args.weights_dir, "download": args.download}
    return {"device": args.device, **(weights if name in FILES else {})}


def _prepare(args: argparse.Namespace) -> list[str]:
    """Load the metrics to compute and return their names; print which are skipped, and why."""
    defaults = [name for name, metric in METRICS.items() if metric.by_default]
    ready = []
    for name in dict.fromkeys(args.metrics or defaults):
        metric = METRICS[name]
        try:
            if metric.reference and _clean(args, name) is None:
                raise MetricUnavailable(f"{name}: it needs clean images (-g)")
            if name in FILES:
                network(name, **_options(args, name))
            ready.append(name)
        except MetricUnavailable as error:
            print(f"skipped {error}", flush=True)
        except QuantFaceError as error:
            raise UsageError(f"{name}: {error}") from error
    if not ready:
        raise UsageError("none of these metrics can be computed here")
    return ready


@dataclass
class Evaluation:
    """Measures images one by one; one that fails is reported, and the others still count."""

    args: argparse.Namespace
    scores: ScoreFile
    failed: bool = False
    reused: int = 0

    def measure(self, pair: Pair, metrics: Sequence[str]) -> bool:
        """Compute and store the missing scores; return False if an image cannot be read."""
        try:
            digest = pair.digest()
            values = self.scores.known(pair.name, digest)
            wanted = [name for name in metrics if name not in values]
            if metrics and not wanted:
                self.reused += 1
                return True
            img, img2 = pair.read()
        except Exception as error:
            self.fail(_named(pair, error), error)
            return False
        for name in wanted:
            try:
                values[name] = METRICS[name](img, img2, **_options(self.args, name))
            except Exception as error:
                self.fail(f"{pair.restored}: {name}: {describe(error)}", error)
        self.scores.add(pair.name, digest, values)
        return True

    def compare_folders(self, pairs: Sequence[Pair]) -> list[float]:
        """Return the FID of the images that could be read, or an empty list if it failed."""
        try:
            with _linked(pairs) as (restored, clean):
                clean = self.args.fid_gt or clean
                return [METRICS["fid"](restored, clean, **_options(self.args, "fid"))]
        except Exception as error:
            self.fail(f"fid: {describe(error)}", error)
            return []

    def fail(self, message: str, error: Exception | None = None) -> None:
        """Report a failure in one line; with ``--debug`` print the traceback as well."""
        if self.args.debug and error is not None:
            tqdm.write("".join(traceback.format_exception(error)), file=sys.stderr)
        tqdm.write(f"error: {message}", file=sys.stderr)
        self.failed = True


def _named(pair: Pair, error: Exception) -> str:
    text = describe(error)
    return text if isinstance(error, QuantFaceError | OSError) else f"{pair.restored}: {text}"


@contextlib.contextmanager
def _linked(pairs: Sequence[Pair]) -> Iterator[tuple[Path, Path]]:
    """Yield two folders with links to these images and nothing else."""
    with tempfile.TemporaryDirectory() as root:
        folders = Path(root, "restored"), Path(root, "clean")
        for folder in folders:
            folder.mkdir()
        for pair in pairs:
            for folder, path in zip(folders, (pair.restored, pair.clean), strict=True):
                if path is not None:
                    (folder / path.name).symlink_to(path.resolve())
        yield folders


def _print_table(figures: Mapping[str, Sequence[float]]) -> None:
    """Print the means of finite scores, and how many scores are infinite."""
    print("| metric | mean | better | images |")
    print("|---|---|---|---|")
    infinite = {}
    for name, values in figures.items():
        finite = [value for value in values if np.isfinite(value)]
        if len(finite) < len(values):
            infinite[name] = len(values) - len(finite)
        mean = f"{np.mean(finite):.4f}" if finite else "none"
        count = "" if name == "fid" else len(finite)
        print(f"| {name} | {mean} | {METRICS[name].better} | {count} |")
    for name, count in infinite.items():
        print(f"\n{name}: infinite for {count} of {len(figures[name])}, left out of the mean")
