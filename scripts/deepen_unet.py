#!/usr/bin/env python3
"""Deepen a restorer's UNet without changing what it computes, as a start for further training.

    python scripts/deepen_unet.py --model mini --preset mini2 -o deepened.safetensors

Every level gets one more residual block (and attention block, where the level has them) whose last
layer is zero, so that it outputs its input (Chen et al., "Net2Net", ICLR 2016). The presets must
agree in everything but the number of blocks.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from quantface_arch.archs.build import build_arch  # noqa: E402
from quantface_arch.errors import QuantFaceError  # noqa: E402
from quantface_arch.pretrained.zoo import load_model  # noqa: E402
from quantface_arch.quant.checkpoint.save_load import save_checkpoint  # noqa: E402

BLOCK = re.compile(r"unet\.(?P<way>down|up)_blocks\.(?P<level>\d+)\.\w+\.(?P<place>\d+)\.")


def source_name(name: str, blocks: int) -> str | None:
    """Return the shallow network's parameter for one of the deep network; None in new blocks.

    Args:
        name: a parameter of the network with one more block per level.
        blocks: blocks per down level of the shallow network; up levels have one more.
    """
    match = BLOCK.match(name)
    if match is None or ".downsamplers." in name or ".upsamplers." in name:
        return name
    place = int(match["place"])
    # In up levels the new block comes before the last one, whose skip connection still comes from
    # the level below or from the first convolution.
    if place < blocks:
        return name
    if place == blocks:
        return None
    start, end = match.span("place")
    return f"{name[:start]}{place - 1}{name[end:]}"


def pass_on(net: nn.Module, fresh: set[str]) -> None:
    """Zero the last layer of every new block and make its shortcut the identity."""
    for name, parameter in net.named_parameters():
        if name not in fresh:
            continue
        if re.search(r"\.(conv2|proj_out)\.(weight|bias)$|\.conv_shortcut\.bias$", name):
            parameter.zero_()
        elif name.endswith(".conv_shortcut.weight"):
            parameter.zero_()
            width = parameter.shape[0]
            parameter[:, :width, 0, 0] = torch.eye(width)


@torch.no_grad()
def deepen(shallow: nn.Module, preset: str) -> nn.Module:
    """Return a network of another preset that computes what ``shallow`` does.

    Raises:
        QuantFaceError: the presets differ in more than the number of blocks.
    """
    deep = build_arch({"type": "OSDFace", "preset": preset})
    old, new = shallow.state_dict(), deep.state_dict()
    blocks = len(shallow.unet.down_blocks[0].resnets)
    fresh: set[str] = set()
    for name, value in new.items():
        source = source_name(name, blocks)
        if source is None:
            fresh.add(name)
            continue
        if source not in old or old[source].shape != value.shape:
            raise QuantFaceError(f"preset {preset}: {name} does not fit the given model")
        value.copy_(old[source])
    pass_on(deep, fresh)
    return deep


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini", help="name or path of the shallow model")
    parser.add_argument(
        "--preset", default="mini2", help="preset of the deep network (default: mini2)"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="file to write")
    args = parser.parse_args()
    try:
        net = deepen(load_model(args.model, runtime="reference"), args.preset)
        save_checkpoint(net, args.out, {"type": "OSDFace", "preset": args.preset})
    except QuantFaceError as error:
        sys.exit(f"error: {error}")
    print(f"{args.out}: {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters")


if __name__ == "__main__":
    main()
