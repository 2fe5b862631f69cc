"""Losses that look through networks: the package's own, and those whose weights are published."""

from __future__ import annotations

import urllib.request

import facexlib
import pytest
import torch
import torch.nn.functional as F
from small_networks import RRDB, TINY
from torch import nn

import quantface_arch.register  # noqa: F401
from basicsr.losses import build_loss
from quantface_arch.archs.build import build_arch
from quantface_arch.errors import QuantFaceError
from quantface_arch.quant import save_checkpoint


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No download is tried, and the caches of torch and facexlib are empty."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("a download was tried")

    for name in ("load_state_dict_from_url", "download_url_to_file"):
        monkeypatch.setattr(torch.hub, name, refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(facexlib, "__file__", str(tmp_path / "facexlib" / "__init__.py"))


@pytest.fixture(scope="module")
def restorer(tmp_path_factory):
    """Path of a tiny restorer's checkpoint, of which only the VRE matters here."""
    path = tmp_path_factory.mktemp("restorer") / "tiny.safetensors"
    torch.manual_seed(2)
    save_checkpoint(build_arch(TINY), path, TINY)
    return str(path)


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    """A folder with weights of AlexNet's shapes under torchvision's file name."""
    pytest.importorskip("lpips")
    from torchvision.models import AlexNet_Weights, alexnet

    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("alexnet")
    name = AlexNet_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
    state = {k: v for k, v in alexnet().state_dict().items() if k.startswith("features.")}
    torch.save(state, folder / name)
    return folder / name


@pytest.fixture(scope="module")
def arcface(tmp_path_factory):
    """A file with weights of facexlib's ArcFace's shapes."""
    from facexlib.recognition.arcface_arch import Backbone

    torch.manual_seed(4)
    path = tmp_path_factory.mktemp("arcface") / "recognition_arcface_ir_se50.pth"
    torch.save(Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se").state_dict(), path)
    return path


@pytest.fixture
def make(request):
    """Build a loss by a short name, from the files above."""

    def build(name, **options):
        given = {
            "feature": ("QuantFaceFeatureLoss", "restorer"),
            "structure": ("QuantFaceStructureLoss", None),
            "vre structure": ("QuantFaceStructureLoss", "restorer"),
            "lpips": ("QuantFaceLPIPSLoss", "alexnet"),
            "identity": ("QuantFaceIdentityLoss", "arcface"),
        }
        kind, source = given[name]
        if source:
            options = {"weights": request.getfixturevalue(source), **options}
        return build_loss({"type": kind, **options})

    return build


def faces():
    """Smooth pictures in [-1, 1] with something of every size in them."""
    sizes = (2, 8, 32, 96)
    layers = [F.interpolate(torch.randn(2, 3, s, s), (96, 96), mode="bilinear") for s in sizes]
    return torch.stack(layers).sum(0).div(4).clamp(-1, 1)


ALL = ["feature", "structure", "vre structure", "lpips", "identity"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_zero_at_equality_grows_with_distortion_and_obeys_its_weight(name, make):
    loss, image = make(name, loss_weight=2.0), faces()[:1]
    noise = torch.randn_like(image)
    with torch.no_grad():
        values = [float(loss(image + amount * noise, image)) for amount in (0, 0.05, 0.15, 0.4)]
        one = float(make(name, loss_weight=1.0)(image + 0.15 * noise, image))
    assert values[0] == pytest.approx(0, abs=1e-5)
    assert values[0] + 1e-5 < values[1] < values[2] < values[3]
    assert values[2] == pytest.approx(2 * one, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_the_picture_and_not_the_network(name, make):
    loss, target = make(name).train(), faces()
    pred = (target + 0.1 * torch.randn_like(target)).requires_grad_()
    loss(pred, target).backward()
    assert torch.isfinite(pred.grad).all()
    # Identity looks at the middle of the face alone.
    middle = pred.grad[..., 20:76, 20:76]
    assert (middle != 0).float().mean() > 0.99
    parameters = list(loss.parameters())
    assert bool(parameters) == (name != "structure")
    assert all(p.grad is None and not p.requires_grad for p in parameters)
    assert not any(module.training for module in loss.modules())


@pytest.mark.parametrize("name", ["structure", "vre structure", "feature"])
def test_flat_pictures_give_finite_gradients(name, make):
    flat = torch.zeros(1, 3, 32, 32, requires_grad=True)
    make(name)(flat, torch.zeros(1, 3, 32, 32)).backward()
    assert torch.isfinite(flat.grad).all()


def test_structure_loss_is_the_stated_formula_on_one_window():
    loss = build_loss({"type": "QuantFaceStructureLoss", "scales": 1, "texture": 0.3})
    a, b = torch.rand(2, 1, 3, 16, 16) * 2 - 1
    texture, structure = [], []
    for x, y in zip(loss.features(a)[0][0], loss.features(b)[0][0], strict=True):
        covariance = ((x - x.mean()) * (y - y.mean())).mean()
        texture.append((2 * x.mean() * y.mean() + 1e-5) / (x.mean() ** 2 + y.mean() ** 2 + 1e-5))
        spread = x.var(correction=0) + y.var(correction=0)
        structure.append((2 * covariance + 1e-5) / (spread + 1e-5))
    wanted = 1 - 0.3 * torch.stack(texture).mean() - 0.7 * torch.stack(structure).mean()
    assert torch.isclose(loss(a, b), wanted, atol=1e-5)


def test_structure_loss_forgives_repainted_texture_where_its_structure_term_does_not():
    rough, again = torch.rand(2, 1, 3, 128, 128) * 2 - 1
    only_texture, only_structure = (
        build_loss({"type": "QuantFaceStructureLoss", "texture": share}) for share in (1.0, 0.0)
    )
    smooth = torch.zeros_like(rough)
    assert only_texture(again, rough) < 0.2 * only_texture(smooth, rough)
    assert only_structure(again, rough) > 0.8


def test_feature_loss_does_not_depend_on_the_batch_and_takes_other_sizes(make):
    loss, image = make("feature", distance="l2", size=64), faces()
    other = image + 0.1 * torch.randn_like(image)
    alone = [loss(a[None], b[None]) for a, b in zip(other, image, strict=True)]
    assert torch.isclose(loss(other, image), sum(alone) / 2, rtol=1e-4)
    assert [level.shape[-1] for level in loss.features(image)] == [64, 32, 32]


def test_the_shipped_restorers_features_are_the_default():
    loss = build_loss({"type": "QuantFaceFeatureLoss"})
    image = faces()
    assert loss(image, image) == 0 < loss(image.flip(3), image)


@pytest.mark.parametrize("kind", ["QuantFaceLPIPSLoss", "QuantFaceIdentityLoss"])
def test_missing_weights_are_an_error_that_names_the_file_and_the_alternative(kind, tmp_path):
    if kind == "QuantFaceLPIPSLoss":
        pytest.importorskip("lpips")
    for options in ({}, {"weights": str(tmp_path / "nowhere.pth")}, {"weights": str(tmp_path)}):
        with pytest.raises(QuantFaceError, match=r"\.pth.*QuantFaceFeatureLoss") as caught:
            build_loss({"type": kind, **options})
        assert "\n" not in str(caught.value)


def test_a_failed_download_is_that_error_too_and_leaves_nothing(monkeypatch, tmp_path):
    def fail(_url, path, *_args):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError("no route to host")

    pytest.importorskip("lpips")
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(QuantFaceError, match=r"no route to host.*QuantFaceFeatureLoss"):
        build_loss({"type": "QuantFaceLPIPSLoss", "download": True})
    assert not [path for path in (tmp_path / "hub").rglob("*") if path.is_file()]


def test_weights_in_torchs_cache_are_found(alexnet, tmp_path):
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    (cache / alexnet.name).symlink_to(alexnet)
    loss = build_loss({"type": "QuantFaceLPIPSLoss"})
    wanted = torch.load(alexnet, weights_only=True)["features.3.weight"]
    found = loss.lpips.net.state_dict()["slice2.3.weight"]
    assert torch.equal(found, wanted)


@pytest.mark.slow
def test_damaged_and_foreign_weights_are_named(alexnet, arcface, tmp_path):
    (tmp_path / "broken.pth").write_bytes(alexnet.read_bytes()[:1000])
    for kind, weights in (
        ("QuantFaceLPIPSLoss", tmp_path / "broken.pth"),
        ("QuantFaceLPIPSLoss", arcface),
        ("QuantFaceIdentityLoss", alexnet),
    ):
        with pytest.raises(QuantFaceError, match=weights.name):
            build_loss({"type": kind, "weights": str(weights)})


def test_wrong_options_are_named(tmp_path):
    save_checkpoint(build_arch(RRDB), tmp_path / "rrdb.safetensors", RRDB)
    for options, words in (
        ({"type": "QuantFaceLPIPSLoss", "net": "resnet"}, "resnet.*alex"),
        ({"type": "QuantFaceFeatureLoss", "distance": "l3"}, "l3.*l1"),
        ({"type": "QuantFaceFeatureLoss", "weights": "maxi"}, "maxi.*mini"),
        ({"type": "QuantFaceFeatureLoss", "weights": tmp_path / "rrdb.safetensors"}, "no VRE"),
        ({"type": "QuantFaceStructureLoss", "texture": 1.5}, "texture: found 1.5"),
    ):
        with pytest.raises(QuantFaceError, match=words):
            build_loss(options)


@pytest.mark.slow
def test_identity_sees_the_face_and_not_its_surroundings(make):
    loss, image = make("identity"), faces()
    frame = image.clone()
    frame[..., :8, :] = 1
    frame[..., -8:, :] = 1
    centre = image.clone()
    centre[..., 40:56, 40:56] = 1
    assert isinstance(loss.net, nn.Module)
    assert loss(frame, image) < 1e-6 < loss(centre, image)
