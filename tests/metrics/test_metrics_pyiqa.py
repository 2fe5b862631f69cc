"""Metrics of pyiqa: what this package computes is what pyiqa computes, from files in one folder.

The weights are random, in files of the published ones' names and shapes.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from quantface_arch.errors import QuantFaceError
from quantface_arch.metrics.catalogue import METRICS
from quantface_arch.metrics.networks import FILES, find_files, network
from quantface_arch.utils.files import file_digest

pyiqa = pytest.importorskip("pyiqa", reason="pyiqa is not installed (the extra 'metrics')")
from pyiqa.utils import download_util  # noqa: E402


def musiq():
    from pyiqa.archs.musiq_arch import MUSIQ

    return [MUSIQ(pretrained=False).state_dict()]


def dists():
    from torchvision.models import vgg16

    shares = {name: torch.rand(1, 1475, 1, 1) for name in ("alpha", "beta")}
    return [vgg16().state_dict(), shares]


def maniqa():
    import timm
    from pyiqa.archs.maniqa_arch import MANIQA

    create = timm.create_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", lambda name, **_: create(name, pretrained=False))
        return [MANIQA(pretrained=False).state_dict()]


def clipiqa():
    pytest.importorskip("pkg_resources", reason="pyiqa's CLIP-IQA needs setuptools before 81")
    from pyiqa.archs.clip_model import CLIP

    net = CLIP(1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12).eval()
    for parameter in net.parameters():
        parameter.data.nan_to_num_().clamp_(-1, 1)
    example = (torch.rand(1, 3, 224, 224), torch.zeros(1, 77, dtype=torch.long))
    return [torch.jit.trace(net, example, check_trace=False)]


def fid():
    from pyiqa.archs import inception

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load_pretrained_network", lambda *_: None)
        return [inception.fid_inception_v3().state_dict()]


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """torch's hub folder, empty, which nothing can be downloaded into."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr(download_util, "DEFAULT_CACHE_DIR", str(tmp_path / "hub/pyiqa"))
    monkeypatch.setattr(download_util, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path / "hub"


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Write a metric's files straight into a folder, which is returned."""

    def write(states, metric):
        for state, (_, url) in zip(states, FILES[metric], strict=True):
            save = torch.jit.save if isinstance(state, torch.jit.ScriptModule) else torch.save
            save(state, str(tmp_path / url.rsplit("/", 1)[-1]))
        if metric == "clipiqa":
            # Published under its own digest, as CLIP's file is.
            url = f"https://example.org/{file_digest(tmp_path / 'RN50.pt')}/RN50.pt"
            monkeypatch.setitem(FILES, metric, (("clip", url),))
        return tmp_path

    return write


@pytest.mark.parametrize("states", [musiq, dists, clipiqa])
def test_values_are_those_of_pyiqa_reading_the_pictures_itself(states, weights, hub, tmp_path):
    metric = states.__name__
    folder = weights(states(), metric)
    paths = [tmp_path / "a.png", tmp_path / "b.png"][: 1 + METRICS[metric].reference]
    for path in paths:
        cv2.imwrite(str(path), np.random.randint(0, 256, (64, 48, 3), np.uint8))
    images = [cv2.imread(str(path)) for path in paths]
    found = METRICS[metric](images[0], images[-1], weights=folder)
    assert torch.hub.get_dir() == str(hub) and not hub.exists()
    for (place, _), file in zip(FILES[metric], find_files(metric, folder), strict=True):
        (hub / place).mkdir(parents=True, exist_ok=True)
        (hub / place / file.name).symlink_to(file)
    options = {"backbone": str(find_files(metric, folder)[0])} if metric == "clipiqa" else {}
    own = pyiqa.create_metric(metric, device="cpu", **options)
    assert found == pytest.approx(float(own(*map(str, paths))), rel=1e-5)


@pytest.mark.parametrize("states", [maniqa, fid])
def test_networks_hold_the_weights_of_the_files_alone(states, weights, hub):
    metric = states.__name__
    (state,) = states()
    net = network(metric, weights([state], metric)).net
    name = "vit.blocks.3.attn.qkv.weight" if metric == "maniqa" else "model.fc.weight"
    assert torch.equal(net.state_dict()[name], state[name.removeprefix("model.")])
    assert not hub.exists()


@pytest.mark.parametrize("metric", ["musiq", "clipiqa"])
def test_foreign_and_damaged_files_are_named(metric, tmp_path):
    file = tmp_path / FILES[metric][0][1].rsplit("/", 1)[-1]
    torch.save({"a": torch.zeros(1)}, file)
    with pytest.raises(QuantFaceError, match=f"{metric} of {file}") as caught:
        network(metric, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_pickle_that_holds_more_than_tensors_is_refused(tmp_path):
    torch.save({"a": np.random.default_rng(0)}, tmp_path / FILES["musiq"][0][1].rsplit("/", 1)[-1])
    with pytest.raises(QuantFaceError, match=r"musiq_koniq.*unpickled safely"):
        network("musiq", tmp_path)
