"""torch's transformer encoders call their quantized layers instead of reading the weights."""

from __future__ import annotations

import pytest
import torch
from quant_helpers import Tokens, pictures
from torch import nn

from quantface_arch.quant import load_checkpoint, quantize, save_checkpoint


class Padded(nn.Module):
    """An encoder of two layers that leaves out the last positions of the first image."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(encoder(), 2)

    def forward(self, x):
        padding = torch.zeros(x.shape[:2], dtype=torch.bool)
        padding[0, -5:] = True
        h = self.encoder(x, src_key_padding_mask=padding)
        # What stands in positions that are left out differs with and without the fast path.
        return h.masked_fill(padding[..., None], 0)


class Called(Exception):
    """A layer was called."""


def refuse(*_):
    raise Called


def encoder(**options):
    return nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0, **options)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "auto", "scale"])
@pytest.mark.parametrize(
    "make",
    [
        encoder,
        lambda: encoder(activation="gelu"),
        lambda: encoder(norm_first=True),
        lambda: nn.TransformerEncoder(encoder(), 2),
        Padded,
    ],
)
def test_encoders_call_their_quantized_layers_instead_of_reading_them(make, kind, tmp_path):
    torch.manual_seed(0)
    model, x = Tokens(make()).eval(), pictures()
    with torch.no_grad():
        expected = model(x)
    linear = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    report = quantize(model, {"name": "w8a8", "balance": {"kind": kind}}, x, progress=False)
    assert list(report.bits) == ["head", *linear, "tail"]
    save_checkpoint(model, tmp_path / "m.safetensors", {})
    loaded = load_checkpoint(tmp_path / "m.safetensors", lambda _: Tokens(make()))
    with torch.no_grad():
        found = model(x)
        assert torch.equal(loaded(x), found)
        assert (found - expected).square().mean() < 1e-3 * expected.square().mean()
        for name in linear:
            model.get_submodule(name).forward = refuse
            with pytest.raises(Called):
                model(x)
            del model.get_submodule(name).forward


def test_encoders_without_quantized_layers_keep_their_fast_path():
    model = Tokens(encoder())
    recipe = {"name": "w8a8", "exclude": ["body.*"], "balance": {"kind": "none"}}
    quantize(model.eval(), {**recipe, "branch": {"svd": 0}}, pictures(), progress=False)
    assert model.body.activation_relu_or_gelu == 1
