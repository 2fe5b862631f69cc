"""Count what the network of an options file, or of a checkpoint, costs once it is quantized."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from quantface_arch.archs.meta import count_on_meta, meta_network
from quantface_arch.errors import QuantFaceError
from quantface_arch.integration.options import read_options
from quantface_arch.integration.quantface_arch import checkpoint_arch
from quantface_arch.models.quantize_stage import read_quant_options
from quantface_arch.pretrained.names import resolve_model
from quantface_arch.quant import convert, read_metadata
from quantface_arch.quant.cost.cost import Entry, network_cost
from quantface_arch.quant.cost.macs import LayerWork
from quantface_arch.quant.cost.planned import checkpoint_cost, recipe_cost, undecided
from quantface_arch.quant.ptq import check_plan

__all__ = ["count"]


def count(
    options: Path | None, checkpoint: str | None, size: int
) -> tuple[list[Entry], dict[str, Any]]:
    """Count the cost of every layer for one image.

    Args:
        options: an options file; None if ``checkpoint`` is given.
        checkpoint: a quantized checkpoint or shipped model; None takes the one that the options
            load, if any.
        size: side of the network's input in pixels.

    Returns:
        the costs, and plain data about them: ``arch``, ``size`` and ``note``, on assumptions.

    Raises:
        QuantFaceError: see ``find_arch``; or an option is wrong.
    """
    opt = None if options is None else read_options(options, ("network_g",))
    path = find_checkpoint(opt, checkpoint)
    arch = find_arch(opt, path)
    net = meta_network(arch)
    work, products = count_on_meta(net, size)
    if path is not None:
        entries = checkpoint_cost(path, net, work, products)
        note = f"{path.name} has {path.stat().st_size:,} with its header"
    elif opt is not None and "quant" in opt:
        entries, note = counted(net, opt, work, products)
    else:
        entries, note = network_cost(net, work, products), "not quantized: counted at 16 bits"
    return entries, {"arch": arch, "size": size, "note": note}


def find_checkpoint(opt: Mapping[str, Any] | None, given: str | None) -> Path | None:
    """Return the quantized checkpoint to count: the one given, else one that the options load."""
    if given is not None:
        path = resolve_model(given)
        if path.is_dir():
            raise QuantFaceError(f"--checkpoint {given}: a folder, expected a .safetensors file")
        return path
    if opt is None:
        return None
    named = [opt["network_g"].get("weights"), (opt.get("path") or {}).get("pretrain_network_g")]
    for name in named:
        path = _existing(name)
        if path is not None and read_metadata(path)["state"] == "quantized":
            return path
    return None


def _existing(name: str | None) -> Path | None:
    """Return the checkpoint of this project that a name means; None for weights of other kinds."""
    if name is None:
        return None
    try:
        path = resolve_model(name)
    except QuantFaceError:
        return None
    return path if path.suffix == ".safetensors" else None


def find_arch(opt: Mapping[str, Any] | None, checkpoint: Path | None) -> dict[str, Any]:
    """Return the type and options of the float network.

    Raises:
        QuantFaceError: the options name no architecture, or another than the checkpoint's.
    """
    network = {} if opt is None else dict(opt["network_g"])
    wrapped = network.get("type") == "QuantFaceArch"
    arch = dict(network.get("arch") or {}) if wrapped else network
    source = checkpoint or _existing(network.get("weights"))
    if source is not None:
        return checkpoint_arch(source, arch)
    if not arch and Path(network.get("weights") or "-").is_dir():
        return {"type": "OSDFace"}
    if not arch:
        raise QuantFaceError("network_g option arch: missing, and no weights exist that define it")
    return arch


def counted(
    net: nn.Module,
    opt: Mapping[str, Any],
    work: Mapping[str, LayerWork],
    products: Mapping[str, int],
) -> tuple[list[Entry], str]:
    """Return the cost of a network that the options will quantize, and a note on assumptions."""
    recipe, bits, plan = read_quant_options(opt["quant"], net)
    convert(net, recipe, bits)
    note = f"recipe {recipe.name}"
    train = opt.get("train") or {}
    learned = train.get("train_weights", train.get("weights")) == "scale"
    if plan is not None:
        check_plan(net, plan)
    elif not learned and (open_layers := undecided(net, recipe.balance)):
        note += (
            f"; calibration chooses how {len(open_layers)} layers are balanced: the most expensive "
            "choice is counted, --checkpoint FILE counts what was chosen"
        )
    return recipe_cost(net, recipe, work, products, plan, learned), note
