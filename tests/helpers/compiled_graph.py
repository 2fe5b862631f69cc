"""A small network, quantized and compiled by OpenVINO, and the contents of its graph."""

from __future__ import annotations

import pytest
import torch
from quant_helpers import sqnr

from quantface_arch.quant import Recipe, load_checkpoint, quantize, save_checkpoint
from quantface_arch.runtime.openvino import load


def compiled_graph(build, x, mode, folder):
    """Return the SQNR to the reference, and the graph that ran; ``folder`` keeps compiled files."""
    model, path = build().eval(), folder / "net.safetensors"
    recipe = {"name": "w4a8", "balance": {"kind": "none"}, "branch": {"svd": 0}}
    quantize(model, Recipe.from_dict(recipe), x, progress=False)
    save_checkpoint(model, path, {"type": "any"})
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("QUANTFACE_CACHE", str(folder))
        found = load(path, lambda _: build(), mode)
    with torch.inference_mode():
        distance = sqnr(load_checkpoint(path, lambda _: build())(x), found(x))
    return distance, next(iter(vars(found)["forward"].part.compiled.values()))


def facts(graph, key):
    """Return a fact of every node of a graph, by the names of the layers that it came from."""
    infos = [node.get_rt_info() for node in graph.get_runtime_model().get_ops()]
    return [(info["originalLayersNames"].astype(str), info[key].astype(str)) for info in infos]


def kinds(graph):
    """Return the kinds of layers that run, one for each of them."""
    return [kind for _, kind in facts(graph, "layerType")]
