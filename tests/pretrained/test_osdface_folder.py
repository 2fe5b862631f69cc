"""OSDFace's files are loaded key by key."""

from __future__ import annotations

import json
import shutil

import numpy as np
import osdface_files as files
import pytest
import torch
from diffusers import AutoencoderKL
from osdface_files import CKPT, LORA, SIZES, load
from programs import run_program
from safetensors.torch import load_file, save_file
from torch import nn

from quantface_arch.archs.build import build_arch
from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.checkpoint.save_load import load_checkpoint, save_checkpoint
from quantface_arch.utils.state_dict import read_state


def merged(weight, a, b, scale):
    """Return W + scale·B·A in float64, tap by tap for a convolution."""
    w, a, b = (value.double().numpy() for value in (weight, a, b))
    return w + scale * np.tensordot(b.reshape(b.shape[0], -1), a, axes=1)


def check_unet(model, found, scale):
    state = model.unet.state_dict()
    assert state.keys() == found["unet"].keys()
    for layer, (a, b) in found["factors"].items():
        key = f"{layer}.weight"
        expected = merged(found["unet"][key], a, b, scale)
        assert np.abs(expected - found["unet"][key].numpy()).max() > 0.1
        np.testing.assert_allclose(state.pop(key).numpy(), expected, rtol=1e-5, atol=1e-5)
    for key, value in state.items():
        assert torch.equal(value, found["unet"][key]), key


@pytest.mark.slow
def test_every_tensor_arrives(written):
    folder, found = written
    model = load(folder)
    assert not model.training
    vqgan = found["association"]["state_dict"]
    for key, value in model.vre.state_dict().items():
        assert torch.equal(value, vqgan[f"vqvae_LQ.{key}"]), key
    for key, value in model.embedding_change.state_dict().items():
        assert torch.equal(value, found["embedding_change"][key]), key
    vae = load_file(folder / files.BASE / "vae/diffusion_pytorch_model.safetensors")
    assert vae.keys() == model.vae.state_dict().keys()
    assert all(torch.equal(value, vae[key]) for key, value in model.vae.state_dict().items())
    check_unet(model, found, 16 / files.RANK)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.requires_grad and p.device.type == "cpu" for p in model.parameters())
    assert not any("lora" in type(m).__module__ for m in model.modules())
    with torch.inference_mode():
        image = model(torch.rand(1, 3, 64, 64) * 2 - 1)
    assert image.shape == (1, 3, 64, 64) and image.isfinite().all()


@pytest.mark.parametrize("style", ["older", "oldest"])
def test_older_lora_keys(tmp_path, style):
    found = files.write_osdface(tmp_path, SIZES, style)
    check_unet(load(tmp_path), found, 16 / files.RANK)


@pytest.mark.parametrize("alpha, scale", [(None, 8 / files.RANK), (2.0, 2 / files.RANK)])
def test_alpha_of_the_header_gives_way_to_the_argument(written, folder, alpha, scale):
    header = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 8, "unet.r": files.RANK})}
    save_file(load_file(folder / LORA), folder / LORA, metadata=header)
    check_unet(load(folder, alpha=alpha), written[1], scale)


@pytest.mark.slow
def test_saved_model_needs_none_of_the_files(written, tmp_path):
    model = load(written[0])
    save_checkpoint(model, tmp_path / "m.safetensors", model.arch_options, dtype=torch.float32)
    again = load_checkpoint(tmp_path / "m.safetensors", build_arch)
    for key, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    assert again.sqrt_alpha == model.sqrt_alpha


def test_safetensors_in_place_of_pickles(written, folder):
    for name in (CKPT, "embedding_change_weights.pth"):
        state = torch.load(folder / name, weights_only=True)
        save_file(dict(state.get("state_dict", state)), (folder / name).with_suffix(".safetensors"))
        (folder / name).unlink()
    expected = load(written[0]).state_dict()
    for key, value in load(folder).state_dict().items():
        assert torch.equal(value, expected[key]), key


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_of_a_trainer_do_not_run(written, folder, monkeypatch, zipped):
    monkeypatch.chdir(folder)
    # The launchers of BasicSR's loops set this.
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    class_of_test = np.random.RandomState(0)
    callbacks = {type(class_of_test): class_of_test, "bomb": Bomb(), "torch.device": Bomb}
    state = {**written[1]["association"], "callbacks": callbacks}
    torch.save(state, folder / CKPT, _use_new_zipfile_serialization=zipped)
    expected = written[1]["association"]["state_dict"]
    for key, value in load(folder).vre.state_dict().items():
        assert torch.equal(value, expected[f"vqvae_LQ.{key}"]), key
    assert not (folder / "exploded").exists()


@pytest.mark.slow
def test_other_pickles_that_need_code_are_refused_and_can_be_converted(repo, tmp_path):
    foreign = np.random.RandomState(0)
    torch.save({"params": {"a": torch.ones(2)}, "trainer": foreign}, tmp_path / "a.pth")
    with pytest.raises(QuantFaceError, match=r"a\.pth.*randomstate.*convert_pickle"):
        read_state(tmp_path / "a.pth", ("params",))
    command = [repo / "scripts/convert_pickle.py", tmp_path / "a.pth", tmp_path / "a.safetensors"]
    refused = run_program(*command)
    assert refused.returncode == 2 and "--i-trust-this-file" in refused.stderr
    assert not command[-1].exists()
    assert run_program(*command, "--i-trust-this-file").returncode == 0
    assert torch.equal(load_file(command[-1])["params.a"], torch.ones(2))


@pytest.mark.slow
def test_converter_runs_no_foreign_code(repo, tmp_path):
    torch.save({"state_dict": {"a": torch.ones(2)}, "bomb": Bomb()}, tmp_path / "x.ckpt")
    command = [repo / "scripts/convert_pickle.py", "--i-trust-this-file"]
    command += [tmp_path / "x.ckpt", tmp_path / "x.safetensors"]
    assert run_program(*command, cwd=tmp_path).returncode == 0
    assert torch.equal(load_file(tmp_path / "x.safetensors")["a"], torch.ones(2))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.slow
@pytest.mark.parametrize("save", [{"variant": "fp16"}, {"max_shard_size": "20KB"}])
def test_layouts_of_base_models(written, folder, tmp_path, save):
    base = tmp_path / "mirror"
    torch.manual_seed(1)
    unet = files.write_base(base, SIZES, **save)
    assert not list((base / "unet").glob("diffusion_pytorch_model.safetensors"))
    model = load(folder, base=base)
    assert torch.equal(model.unet.conv_norm_out.weight, unet.conv_norm_out.weight)
    key = "down_blocks.0.resnets.0.conv2.weight"
    assert torch.equal(model.unet.state_dict()[key], unet.state_dict()[key])


def test_half_precision_base_becomes_float32(folder):
    vae = AutoencoderKL(**SIZES["vae"]).half()
    vae.save_pretrained(folder / files.BASE / "vae", variant="fp16")
    (folder / files.BASE / "vae/diffusion_pytorch_model.safetensors").unlink()
    weight = load(folder).vae.quant_conv.weight
    assert weight.dtype == torch.float32 and torch.equal(weight, vae.quant_conv.weight.float())


def test_old_names_of_the_autoencoders_attention(written, folder):
    path = folder / files.BASE / "vae/diffusion_pytorch_model.safetensors"
    names = {
        ".to_q.": ".query.",
        ".to_k.": ".key.",
        ".to_v.": ".value.",
        ".to_out.0.": ".proj_attn.",
    }
    tensors = {}
    for key, value in load_file(path).items():
        for new, old in names.items():
            key = key.replace(new, old)
        tensors[key] = value
    assert any(".proj_attn." in key for key in tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    expected = load(written[0]).vae.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in load(folder).vae.state_dict().items())


def test_base_from_the_environment(folder, tmp_path, monkeypatch):
    shutil.move(folder / files.BASE, tmp_path / "elsewhere")
    with pytest.raises(QuantFaceError, match=r"stable-diffusion-2-1-base: no such.*QUANTFACE_SD"):
        load(folder)
    monkeypatch.setenv("QUANTFACE_SD_BASE", str(tmp_path / "elsewhere"))
    assert isinstance(load(folder).unet.conv_in, nn.Conv2d)
    with pytest.raises(QuantFaceError, match="typo: no such folder"):
        load(folder, base=tmp_path / "typo")


def test_hub_id_is_not_fetched_when_that_is_forbidden(folder):
    with pytest.raises(QuantFaceError, match="nobody/nothing/scheduler"):
        load(folder, base="nobody/nothing", local_files_only=True)


def test_schedule_is_that_of_the_base_model(folder):
    path = folder / files.BASE / "scheduler/scheduler_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "beta_end": 0.02}))
    model = load(folder)
    betas = np.linspace(0.00085**0.5, 0.02**0.5, 1000) ** 2
    assert model.sqrt_alpha == pytest.approx(np.cumprod(1 - betas)[399] ** 0.5, rel=1e-5)
    assert build_arch(model.arch_options).sqrt_alpha == model.sqrt_alpha
    for key, value in (("prediction_type", "v_prediction"), ("beta_schedule", "linear")):
        path.write_text(json.dumps({**config, key: value}))
        with pytest.raises(QuantFaceError, match=f"scheduler_config.json: {key}: found '{value}'"):
            load(folder)
