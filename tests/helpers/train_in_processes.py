"""Run trainings one after the other in this process, one of torchrun's, and say what came out.

    torchrun --nproc_per_node 2 train_in_processes.py FOLDER OPTIONS.yml ... -- --force_yml ...

Each process writes ``FOLDER/RANK.json``: name of a training → figures that processes must share, or
must not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import quantface_arch.register  # noqa: F401
from basicsr import train
from basicsr.utils import options


def total(net):
    """Return the sum of the magnitudes of a network's parameters."""
    return sum(float(value.detach().double().abs().sum()) for value in net.parameters())


def figures(model):
    """Return what is compared between processes."""
    found = {"network": total(model.get_bare_model(model.net_g)), "log": dict(model.log_dict)}
    if getattr(model, "discriminator", None) is not None:
        found["discriminator"] = total(model.discriminator.net)
    if hasattr(model, "noise"):
        found["noise"] = [float(sample.sum()) for sample in model.noise(2, 1)]
    return found


def main():
    """Train with every options file."""
    place = sys.argv.index("--")
    folder, paths, extra = Path(sys.argv[1]), sys.argv[2:place], sys.argv[place + 1 :]
    models, build, start = [], train.build_model, options.init_dist

    def keep(opt):
        models.append(build(opt))
        return models[-1]

    def start_once(*args, **kwargs):
        if not models:
            start(*args, **kwargs)

    train.build_model, options.init_dist = keep, start_once
    found = {}
    for path in paths:
        sys.argv = ["train.py", "-opt", path, "--launcher", "pytorch", *extra]
        train.train_pipeline(str(folder))
        found[Path(path).stem] = figures(models[-1])
    (folder / f"{models[-1].opt['rank']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
