"""Branches as peft adapters: peft computes with them what the quantized layers do."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import CalibrationData, State, prepare, quant_layers
from quantface_arch.quant.checkpoint.peft_adapter import load_adapter, save_adapter

RECIPE = {
    "name": "w4a8",
    "balance": {"kind": "none"},
    "branch": {
        "svd": 3,
        "distill": 2,
        "ranks": {"inner.head": [2, 1]},
        "cap": 0.5,
        "budget": 1.0,
    },
}


class Net(nn.Module):
    """Layers of all kinds, one of whose names ends another's."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.inner = nn.ModuleDict({"head": nn.Linear(16, 24), "line": nn.Conv1d(24, 16, 1)})
        self.tail = nn.Conv2d(16, 3, 3, padding=1, bias=False)

    def forward(self, x):
        h = self.head(x).relu()
        h = self.inner["head"](h.movedim(1, -1)).movedim(-1, 1)
        return self.tail(self.inner["line"](h.flatten(2)).unflatten(2, h.shape[2:]))


def quantized(recipe=RECIPE):
    torch.manual_seed(1)
    model = Net().eval()
    prepare(model, recipe, CalibrationData(torch.rand(4, 3, 16, 16), progress=False))
    return model


@torch.no_grad()
def trained():
    """A model whose second branches are no longer zero."""
    model = quantized()
    for layer in quant_layers(model):
        layer.branch_up.add_(torch.randn_like(layer.branch_up) * 0.1)
    return model


def test_peft_computes_what_the_branched_layers_do(tmp_path):
    model = trained()
    save_adapter(model, tmp_path)
    base = Net()
    base.load_state_dict({key: model.state_dict()[key] for key in base.state_dict()})
    images = torch.rand(2, 3, 16, 16)
    for layer in quant_layers(model):
        layer.state = State.FLOAT
    with torch.no_grad():
        wanted, without = model(images), base(images)
        found = PeftModel.from_pretrained(base, tmp_path).eval()(images)
    assert len({layer.rank for layer in quant_layers(model)}) > 1
    assert torch.allclose(found, wanted, atol=1e-6)
    assert (without - wanted).abs().max() > 0.01


def test_an_adapter_written_by_peft_comes_back(tmp_path):
    model, other = trained(), quantized()
    save_adapter(model, tmp_path / "ours")
    PeftModel.from_pretrained(Net(), tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    images = torch.rand(2, 3, 16, 16)
    assert not torch.equal(other(images), model(images))
    load_adapter(other, tmp_path / "theirs")
    assert torch.equal(other(images), model(images))


def test_alpha_over_rank_and_another_rank_are_obeyed(tmp_path):
    model = trained()
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["alpha_pattern"] = {"inner.head": 3 * model.inner["head"].rank}
    config["lora_alpha"] = 0
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    other = quantized({**RECIPE, "branch": {"svd": 0}})
    assert other.inner["head"].rank == 0
    load_adapter(other, tmp_path)
    assert torch.equal(other.inner["head"].branch_up, 3 * model.inner["head"].branch_up)
    assert torch.equal(other.inner["head"].branch_down, model.inner["head"].branch_down)
    assert not other.tail.branch_up.any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update({key_of("gone"): torch.zeros(2, 3)}), ["gone"]),
        (lambda t: t.pop(key_of("tail")), ["tail"]),
        (lambda t: (t.pop(key_of("tail")), t.pop(key_of("tail", "B"))), ["'tail'", "branch"]),
        (lambda t: t.update({key_of("tail"): torch.zeros(2, 15, 3, 3)}), ["'tail'", "15"]),
        (
            lambda t: t.update(
                {
                    key_of("tail"): torch.zeros(4, 16, 3, 3),
                    key_of("tail", "B"): torch.zeros(3, 4, 1, 1),
                }
            ),
            ["'tail'", "rank 4", "1 to 3"],
        ),
        (
            lambda t: t.update(
                {key_of("gone"): torch.zeros(2, 3), key_of("gone", "B"): torch.zeros(3, 2)}
            ),
            ["no quantized layer 'gone'"],
        ),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(change, words, tmp_path):
    model = trained()
    save_adapter(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(QuantFaceError) as caught:
        load_adapter(model, tmp_path)
    assert all(word in str(caught.value) for word in words), caught.value
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def key_of(name, factor="A"):
    return f"base_model.model.{name}.lora_{factor}.weight"


def test_variants_missing_files_and_branchless_models_are_refused(tmp_path):
    model = trained()
    with pytest.raises(QuantFaceError, match="adapter_config"):
        load_adapter(model, tmp_path / "nowhere")
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(QuantFaceError, match="use_dora"):
        load_adapter(model, tmp_path)
    with pytest.raises(QuantFaceError, match="no layer"):
        save_adapter(Net(), tmp_path)
    model.tail.padding_mode = "reflect"
    with pytest.raises(QuantFaceError, match=r"tail.*reflect"):
        save_adapter(model, tmp_path)
