"""ComfyUI's nodes work on its tensors; ComfyUI itself is not needed."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch

from quantface_arch.errors import QuantFaceError
from quantface_arch.pretrained.names import shipped_models
from quantface_arch.utils.images import load_rgb, resize


@pytest.fixture(scope="module")
def nodes(repo):
    """The package as ComfyUI loads it: by its folder, under a name of its own."""
    folder = repo / "integrations/comfyui"
    spec = importlib.util.spec_from_file_location(
        "quantface_nodes", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module.NODE_CLASS_MAPPINGS
    for name in [name for name in sys.modules if name.partition(".")[0] == spec.name]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def restorer(nodes, model):
    (found,) = nodes["QuantFaceLoadRestorer"]().load("mini", "reference", "none", str(model))
    return found


@pytest.fixture
def photo(repo):
    """A photograph of one face, float (H, W, 3) in [0, 1]."""
    return torch.from_numpy(resize(load_rgb(repo / "inputs/astronaut.jpg"), 256, 256)) / 255


def test_every_node_says_what_comfyui_asks(nodes):
    for node in nodes.values():
        required = node.INPUT_TYPES()["required"]
        assert required and len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        assert callable(getattr(node, node.FUNCTION)) and node.CATEGORY
    assert nodes["QuantFaceLoadRestorer"].INPUT_TYPES()["required"]["model"][0] == shipped_models()


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 8])
def test_a_batch_is_restored_image_by_image(nodes, restorer, photo, count):
    batch = torch.stack([photo, photo.flip(1)] * 4)[:count]
    images, faces = nodes["QuantFaceRestoreFaces"]().restore(restorer, batch)
    assert images.shape == batch.shape and images.dtype == torch.float32
    assert faces == count and images.min() >= 0 and images.max() <= 1
    alone, _ = nodes["QuantFaceRestoreFaces"]().restore(restorer, batch[-1:])
    assert torch.equal(images[-1:], alone)
    changed = (images[0] - photo).abs() > 1e-3
    assert changed.any() and not changed[:8].any()


def test_images_without_a_face_keep_their_values(nodes, restorer):
    torch.manual_seed(0)
    smooth = torch.rand(1, 3, 4, 4)
    plain = torch.nn.functional.interpolate(smooth, size=(64, 80), mode="bilinear")
    images, faces = nodes["QuantFaceRestoreFaces"]().restore(restorer, plain.permute(0, 2, 3, 1))
    assert faces == 0 and (images - plain.permute(0, 2, 3, 1)).abs().max() < 1e-5
    larger, _ = nodes["QuantFaceRestoreFaces"]().restore(
        restorer, plain.permute(0, 2, 3, 1), upscale=2.0
    )
    assert larger.shape == (1, 128, 160, 3)


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ({"samples": torch.zeros(1, 4, 8, 8)}, r"latents \(samples\)"),
        (torch.zeros(1, 3, 64, 64), r"float32 \(1, 3, 64, 64\)"),
        (torch.zeros(64, 64, 3), r"float32 \(64, 64, 3\)"),
        (torch.zeros(1, 64, 64, 3, dtype=torch.uint8), r"uint8 \(1, 64, 64, 3\)"),
        (torch.zeros(1, 64, 64, 4), r"float32 \(1, 64, 64, 4\)"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_image_is_refused(nodes, restorer, wrong, found):
    with pytest.raises(QuantFaceError, match=rf"images: found {found}; expected images"):
        nodes["QuantFaceRestoreFaces"]().restore(restorer, wrong)


def test_a_missing_file_is_refused(nodes):
    with pytest.raises(QuantFaceError, match="nothing"):
        nodes["QuantFaceLoadRestorer"]().load("mini", "reference", file="nothing.pth")
