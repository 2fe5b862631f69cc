"""Quantize a face restorer after training, without training it again."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.pretrained.hub.options import FetchOptions
from quantface_arch.pretrained.hub.sources import source_of
from quantface_arch.pretrained.names import resolve_model
from quantface_arch.pretrained.zoo import load_model
from quantface_arch.quant.config.bitmap import bits_of, load_bit_map
from quantface_arch.quant.config.recipe import Recipe
from quantface_arch.quant.config.specs import KINDS, MAX_BITS, RANGES, ROUNDINGS, ZERO_POINTS
from quantface_arch.restore.load import note_printer
from quantface_arch.utils.cli import HUB_VARIABLES, Parser, ending
from quantface_arch.utils.devices import check_device
from quantface_arch.utils.distributed import Shard
from quantface_arch.utils.files import atomic_path

if TYPE_CHECKING:
    from torch import nn

    from quantface_arch.quant import ConversionReport

AUTO = "auto"
DESCRIPTION = """\
Quantize a face restorer after training: run its layers on a few faces, balance their channels, give
each a low-rank branch, choose the ranges, round the rest of the weights, and write one small
.safetensors file that needs nothing else. Nothing is trained: for that, see
options/quantface_w4.yml.

examples:
  the shipped restorer, 4-bit weights and 8-bit activations:
    python scripts/quantize.py --model mini --recipe w4a8 -o mini-w4a8.safetensors
  calibrated on degraded faces of your own:
    python scripts/quantize.py --model mini --recipe w4a8 -i FACES -o mini-w4a8.safetensors
  OSDFace's own files, with Stable Diffusion 2.1-base from a local folder:
    python scripts/quantize.py --model weights/OSDFace --base weights/sd21-base --recipe w8a8 \\
        -o osdface-w8a8.safetensors
  the same with TAESD's decoder, downloaded from the hub:
    python scripts/quantize.py --model weights/OSDFace --base weights/sd21-base \\
        --fast-decoder madebyollin/taesd -o osdface-fast.safetensors
  plain rounding of the UNet alone:
    python scripts/quantize.py --model mini --recipe w4a4 --include 'unet.*' --balance none \\
        --rank 0 --rounding nearest --zero-points tensor -o mini-unet4.safetensors

Use aligned faces, degraded like those that you want to restore; 16 to 64 are enough. Without -i,
clean faces are degraded in memory, the same way in every run: those of datasets/faces, or those
that ship with the package if that folder is missing. After a kill, the same command continues where
it stopped (statistics are kept in OUTPUT.calib.safetensors until it ends). Under torchrun the faces
are divided among its processes:
    torchrun --nproc-per-node 2 scripts/quantize.py --model mini -o FILE
"""


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        description=DESCRIPTION,
        epilog=ending(*HUB_VARIABLES, "OMP_NUM_THREADS"),
    )
    _add_model_arguments(parser)
    _add_face_arguments(parser)
    _add_quantization_arguments(parser)
    add = parser.add_argument_group("output").add_argument
    checkpoint = "checkpoint to write, .safetensors"
    add("-o", "--output", required=True, type=Path, metavar="FILE", help=checkpoint)
    report = "write the table of layers to this file"
    add("--report", type=Path, metavar="FILE", help=report)
    return parser


def _add_model_arguments(parser: Parser) -> None:
    """Add the arguments about the network that is quantized."""
    add = parser.add_argument_group("model").add_argument
    model = "shipped name, checkpoint, or folder of OSDFace's files"
    add("--model", required=True, metavar="NAME_OR_PATH", help=model)
    base = "Stable Diffusion 2.1-base: folder or hub id (for a folder of OSDFace's)"
    add("--base", metavar="DIR_OR_ID", help=base)
    tiny = "replace the VAE's by a tiny one: folder or hub id of an AutoencoderTiny"
    add("--fast-encoder", metavar="DIR_OR_ID", help=tiny)
    add("--fast-decoder", metavar="DIR_OR_ID", help=tiny)
    add("--device", default="cpu", help="torch device to calibrate on (default: %(default)s)")


def _add_face_arguments(parser: Parser) -> None:
    """Add the arguments about the faces on which the network is calibrated."""
    add = parser.add_argument_group("faces").add_argument
    faces = "a degraded face, or a folder searched for such faces (default: see above)"
    add("-i", "--input", type=Path, metavar="PATH", help=faces)
    for name, default, what in (
        ("--num-images", 32, "faces to use"),
        ("--size", 512, "resize faces to this side"),
        ("--batch-size", 4, "faces per batch"),
    ):
        add(name, type=_positive, default=default, metavar="N", help=f"{what} (default: {default})")


def _add_quantization_arguments(parser: Parser) -> None:
    """Add the arguments about the method."""
    add = parser.add_argument_group("quantization").add_argument
    add("--recipe", default="w4a8", help="wXaY with X and Y from 2 to 8 (default: %(default)s)")
    add("--range", choices=RANGES, default="mse", help="how ranges are found (%(default)s)")
    add(
        "--rounding",
        choices=(AUTO, *ROUNDINGS),
        default=AUTO,
        help="of weights; auto (default) is gptq where it fits, else nearest: for wide layers, "
        "little memory, or several processes",
    )
    add(
        "--zero-points",
        choices=ZERO_POINTS,
        default="channel",
        help="of inputs with fewer than 8 bits: one for each channel, or one (%(default)s)",
    )
    add("--balance", choices=KINDS, default="auto", help="how channels are balanced (%(default)s)")
    add("--rank", type=_rank, default="auto", help="rank of SVD branches, or auto (%(default)s)")
    add("--bit-map", type=Path, metavar="FILE", help="choices by layer, from allocate_bits.py")
    add("--include", nargs="+", metavar="GLOB", default=["*"], help="layers to quantize (all)")
    add("--exclude", nargs="+", metavar="GLOB", default=[], help="layers to leave unquantized")


def main(args: argparse.Namespace) -> int:
    """Quantize the model, save it, and print the sizes."""
    _check_output(args.output)
    shard = Shard.here()
    with shard.joined():
        _quantize(args, shard)
    return 0


def _quantize(args: argparse.Namespace, shard: Shard) -> None:
    named = Recipe.from_name(args.recipe)
    check_device(args.device)
    # Import these late: basicsr takes seconds, and a wrong option should not wait for it.
    from quantface_arch.data.calibration_faces import open_faces
    from quantface_arch.integration.post_training import PostTraining

    faces = open_faces(args.input, args.size, args.num_images)
    path = _obtained(args.model, args.base, shard)
    check_is_float(path)
    base = args.base if path == args.model else None
    model = load_model(path, runtime="reference", device=args.device, base=base)
    replace_halves(model, args)
    recipe = _changed(named, args, _rounding(args.rounding, model, shard))
    bits, choices = None, load_bit_map(args.bit_map) if args.bit_map else {}
    widths = (named.activations.bits, *(choice.activation_bits for choice in choices.values()))
    if min(widths) < MAX_BITS:
        inputs = replace(recipe.activations, zero_points=args.zero_points)
        recipe = replace(recipe, activations=inputs)
    if choices:
        bits, recipe = bits_of(choices), recipe.with_choices(choices)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    how = PostTraining(recipe, bits, args.size, args.batch_size, args.device)
    report = how.run(model, faces, args.output, shard)
    if not shard.is_first:
        return
    if args.report:
        with atomic_path(args.report) as temporary:
            temporary.write_text(f"{report}\n")
    _print_sizes(report, args.output, parameters)


def _obtained(name: str, base: str | None, shard: Shard) -> str:
    """Return the path of a model, which is fetched from the hub if it is a name of it.

    Raises:
        UsageError: the name is that of a quantized model.
    """
    from quantface_arch.integration.obtain import obtain

    found = source_of(name)
    if found is not None and found[1] is not None:
        raise UsageError(f"--model {name}: it is quantized already, expected {found[0].name}")
    options, notify = FetchOptions(base=base), note_printer(shard)
    return shard.agree(str(obtain(name, options, notify)) if shard.is_first else "")


def _rounding(asked: str, model: nn.Module, shard: Shard) -> str:
    """Return how weights are rounded; a note says why ``auto`` is not GPTQ."""
    from quantface_arch.quant.calibration.calibrate import gptq_fits

    if asked != AUTO:
        return asked
    if shard.count == 1 and gptq_fits(model):
        return "gptq"
    reason = "some layers are too wide for gptq, or this machine has too little memory"
    if shard.count > 1:
        reason = "gptq needs all images in one process"
    note_printer(shard)(f"weights are rounded to nearest: {reason}")
    return "nearest"


def _changed(recipe: Recipe, args: argparse.Namespace, rounding: str) -> Recipe:
    """Return a recipe with the options of the command line."""
    return replace(
        recipe,
        weights=replace(recipe.weights, range=args.range, rounding=rounding),
        activations=replace(recipe.activations, range=args.range),
        include=tuple(args.include),
        exclude=tuple(args.exclude),
        balance=replace(recipe.balance, kind=args.balance),
        branch=replace(recipe.branch, svd=args.rank),
    )


def _print_sizes(report: ConversionReport, path: Path, parameters: int) -> None:
    size = path.stat().st_size
    print(report.summary())
    for warning in report.warnings:
        print(f"note: {warning}")
    print(
        f"{path}: {size:,} bytes for {parameters:,} parameters, "
        f"{size / parameters:.3f} bytes per parameter, {4 * parameters / size:.1f} times smaller "
        "than fp32"
    )


def check_is_float(model: str) -> None:
    """Refuse a model that is quantized already, before anything is loaded.

    Raises:
        QuantFaceError: the model is quantized already, or does not exist.
    """
    from quantface_arch.pretrained.foreign import as_checkpoint
    from quantface_arch.quant import read_metadata

    path = as_checkpoint(resolve_model(model))
    state = "float" if path.is_dir() else read_metadata(path)["state"]
    if state != "float":
        raise QuantFaceError(f"{path}: found state {state}, expected a float model")


def replace_halves(model: nn.Module, args: argparse.Namespace) -> None:
    """Replace the VAE's halves by the tiny networks that the command line names.

    Raises:
        UsageError: the model has no VAE.
        QuantFaceError: see ``load_half``.
    """
    given = {"encoder": args.fast_encoder, "decoder": args.fast_decoder}
    sources = {half: source for half, source in given.items() if source is not None}
    if not sources:
        return
    # Import this late: diffusers takes seconds, and only these options need it.
    from quantface_arch.archs.osdface_arch import OSDFace
    from quantface_arch.pretrained.tiny_vae import load_half

    for half, source in sources.items():
        if not isinstance(model, OSDFace):
            raise UsageError(f"--fast-{half}: {args.model} is not an OSDFace, so it has no VAE")
        load_half(model, half, source)


def _check_output(path: Path) -> None:
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: checkpoints are written as .safetensors")
    # Check this now rather than after minutes of calibration.
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"{path}: cannot write into {parent}")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed are whole numbers from 1")
    return int(text)


def _rank(text: str) -> int | str:
    if text != "auto" and not text.isdigit():
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed are auto and numbers from 0")
    return text if text == "auto" else int(text)
