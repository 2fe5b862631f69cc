"""Group norms from sums of channels: equal results, float32 statistics, no reordered image."""

from __future__ import annotations

import openvino
import pytest
import torch
from compiled_graph import compiled_graph, facts, kinds
from torch import nn

from quantface_arch.runtime.openvino.group_norm import FLOAT32, PRECISE, spread_group_norms
from quantface_arch.runtime.openvino.trace import save


@pytest.fixture
def spread(tmp_path):
    """Return a function that compiles a module with spread norms, and returns results and graph."""

    def run(module, x, **options):
        model = openvino.convert_model(module.eval(), example_input=torch.rand_like(x))
        spread_group_norms(model)
        save(model, tmp_path / "net.xml")
        model = openvino.Core().read_model(tmp_path / "net.xml")
        model.reshape(list(x.shape))
        compiled = openvino.Core().compile_model(model, "CPU", options)
        return torch.from_numpy(compiled([x.numpy()])[0]), compiled

    return run


def norm(groups, channels, **options):
    made = nn.GroupNorm(groups, channels, **options)
    if made.affine:
        nn.init.normal_(made.weight)
        nn.init.normal_(made.bias)
    return made


@pytest.mark.parametrize("mean", [0.0, 3.0, 30.0])
@pytest.mark.parametrize(
    ("groups", "channels", "options"),
    [(1, 8, {}), (4, 8, {}), (8, 8, {}), (2, 6, {}), (4, 8, {"eps": 0.3})],
)
def test_it_is_the_norm(spread, groups, channels, options, mean):
    torch.manual_seed(0)
    # Channels have different means and deviations, and images differ.
    x = torch.randn(2, channels, 9, 14) * (torch.rand(1, channels, 1, 1) + 0.5) + mean
    x = x + torch.randn(2, channels, 1, 1)
    module = norm(groups, channels, **options)
    found, compiled = spread(module, x, INFERENCE_PRECISION_HINT="f32")
    with torch.no_grad():
        wanted = module.double()(x.double())
    assert (found - wanted).abs().max() < 1e-5 * max(mean, 1) ** 2
    assert "Reduce" in kinds(compiled)


def test_a_picture_of_one_value_gives_the_bias(spread):
    module = norm(2, 6)
    # Rounding makes some of the variances negative.
    values = torch.cat([torch.tensor([7.0]), torch.linspace(200, 900, 15) / 7])
    x = values.view(-1, 1, 1, 1).expand(-1, 6, 8, 8).contiguous()
    found, _ = spread(module, x, INFERENCE_PRECISION_HINT="f32")
    assert (found - module.bias.view(1, -1, 1, 1)).abs().max() < 0.1


@pytest.mark.parametrize(("affine", "shape"), [(True, (3, 6, 20)), (False, (3, 6, 5, 4))])
def test_rows_without_places_and_norms_without_weights_are_left_alone(spread, affine, shape):
    module, x = norm(2, 6, affine=affine), torch.randn(shape)
    found, compiled = spread(module, x, INFERENCE_PRECISION_HINT="f32")
    assert torch.allclose(found, module(x), atol=1e-5)
    assert "Reduce" not in kinds(compiled)


def test_statistics_are_computed_in_float32_whatever_the_rest_is(spread):
    """Without float32 a large mean would hide the variance."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(8, 8, 1), norm(2, 8), nn.SiLU(), nn.Conv2d(8, 8, 1))
    _, compiled = spread(module, torch.randn(1, 8, 16, 16))
    precisions = [found for names, found in facts(compiled, "runtimePrecision") if FLOAT32 in names]
    assert len(precisions) > 5 and set(precisions) == {"f32"}
    # Nodes that read whole images are not part of the statistics.
    rest = [kind for names, kind in facts(compiled, "layerType") if FLOAT32 not in names]
    assert rest.count("Convolution") == rest.count("Reduce") == 2


class Normed(nn.Module):
    """A block as in decoders."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.second = nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, x):
        return self.second(nn.functional.silu(self.norm(self.first(x))))


@pytest.mark.parametrize(("mode", "turned"), [("folded", False), ("faithful", True)])
def test_a_folded_network_reorders_no_image(tmp_path, mode, turned):
    torch.manual_seed(1)
    distance, graph = compiled_graph(Normed, torch.rand(2, 3, 20, 24), mode, tmp_path)
    assert distance > 30
    assert ("Reduce" in kinds(graph)) != turned and ("MVN" in kinds(graph)) == turned
    # This is read from the file, since some processors have no precision other than float32.
    (written,) = tmp_path.rglob("*.xml")
    assert (PRECISE in written.read_text()) != turned
