"""Models and steps that the tests of distillation share."""

from __future__ import annotations

import copy

import torch
from small_networks import RRDB

import quantface_arch.register  # noqa: F401
from basicsr.models import build_model


def ready(opt, folder):
    """Return options as BasicSR's pipeline hands them to a model."""
    opt = copy.deepcopy(opt)
    opt.update(is_train=True, dist=False, rank=0, world_size=1, auto_resume=False)
    opt["datasets"]["train"].update(phase="train", scale=1)
    opt["path"].update(models=str(folder / "models"), training_states=str(folder / "states"))
    return opt


def build(opt, folder):
    """Return a model ready to train, its random numbers the same in every call."""
    torch.manual_seed(0)
    return build_model(ready(opt, folder))


def batch(count=2, side=32):
    """Return a random batch of degraded and clean images."""
    return {name: torch.rand(count, 3, side, side) for name in ("lq", "gt")}


def step(model, data, iteration=1):
    """Train one step on one batch; return its log."""
    model.feed_data(data)
    model.optimize_parameters(iteration)
    return model.log_dict


def make_comparable(options):
    """Few bits make a random network chaotic: summed in another order, it gives another image."""
    options["network_g"]["arch"] = RRDB
    options["quant"]["name"] = "w6a8"
    options["train"].update(autocast=None, clip_grad=1e9, losses=[{"type": "MSELoss"}])
    options["train"]["optim_g"] = {"type": "SGD", "lr": 0.1}


def relative_error(before, wanted, found):
    """Return the squared error of a step of the parameters, relative to the step."""
    pairs = [(wanted[name] - before[name], found[name] - wanted[name]) for name in before]
    step, error = (sum(float(pair[i].square().sum()) for pair in pairs) for i in (0, 1))
    return error / step


def values(model):
    """Return copies of the trained parameters."""
    return {name: value.detach().clone() for name, value in model.trained_parameters().items()}
