"""Files of a restorer as a hub has them, and a check that all of them arrived."""

from __future__ import annotations

import random

from quantface_arch.pretrained.hub.sources import sources

OWN, BASE, MIRROR = (mirror.repo for part in sources()["osdface"].parts for mirror in part.mirrors)
FOLDER = "stable-diffusion-2-1-base"
LARGE = 3_200_000


def files(seed):
    """Contents of all files of a restorer, told apart by ``seed``."""
    chance = random.Random(seed)
    base = {"scheduler/scheduler_config.json": b"{}", "README.md": b"?"}
    for part in ("unet", "vae"):
        base[f"{part}/config.json"] = b"{%d}" % seed
        base[f"{part}/diffusion_pytorch_model.safetensors"] = chance.randbytes(20_000)
        base[f"{part}/diffusion_pytorch_model.fp16.safetensors"] = chance.randbytes(10_000)
    own = {"pre/associate_2.ckpt": chance.randbytes(10_000), "old/pre/associate_2.ckpt": b"old"}
    own["embedding_change_weights.pth"] = chance.randbytes(6000)
    own["pytorch_lora_weights.safetensors"] = chance.randbytes(40)
    return own, base


def check(folder, hub):
    """Check that a folder holds what the hub has, and nothing else."""
    own, base = hub.repositories[OWN].files, hub.repositories[BASE].files
    wanted = {name.rpartition("/")[2]: data for name, data in own.items() if "old" not in name}
    wanted |= {
        f"{FOLDER}/{name}": data
        for name, data in base.items()
        if name.endswith(("json", "fp16.safetensors"))
    }
    found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    assert found.keys() == wanted.keys()
    for name, data in wanted.items():
        assert found[name].read_bytes() == data, name
