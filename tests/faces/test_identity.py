"""The face embedding on OpenCV computes what the identity loss does, and finds its weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantface_arch.errors import QuantFaceError
from quantface_arch.faces import weights as face_weights
from quantface_arch.faces.identity import FaceEmbedder
from quantface_arch.faces.weights import EMBEDDER, find_embedder
from quantface_arch.losses.network_losses import QuantFaceIdentityLoss
from quantface_arch.utils.download import Unavailable
from quantface_arch.utils.images import load_rgb, resize


def test_embeddings_are_those_of_the_loss(mobileface, shipped_faces):
    embed, loss = (
        FaceEmbedder(mobileface),
        QuantFaceIdentityLoss(weights=mobileface, net="mobileface"),
    )
    for path in shipped_faces[:3]:
        face = resize(load_rgb(path), 512, 512)
        signed = torch.from_numpy(face.transpose(2, 0, 1)[None] / 127.5 - 1).float()
        found = embed(face)
        assert found == pytest.approx(loss.embed(signed)[0].numpy(), abs=1e-5)
        assert embed(face.astype(np.uint16) * 257) == pytest.approx(found, abs=1e-6)
        assert found.shape == (128,) and np.linalg.norm(found) == pytest.approx(1)


def test_the_file_is_the_published_one(mobileface):
    EMBEDDER.check(mobileface)


@pytest.mark.parametrize("content", ["absent", "empty", "text", "other"])
def test_other_files_are_refused_in_one_line(repo, tmp_path, content):
    path = tmp_path / EMBEDDER.name
    if content == "other":
        path = repo / "quantface_arch/weights/face_detection_yunet_2023mar.onnx"
    elif content != "absent":
        path.write_text("not a graph" if content == "text" else "")
    with pytest.raises(QuantFaceError, match=path.name) as caught:
        FaceEmbedder(path)
    assert "\n" not in str(caught.value)


def test_weights_are_a_file_or_the_folder_that_holds_it(tmp_path):
    path = tmp_path / EMBEDDER.name
    for given in (path, tmp_path):
        with pytest.raises(QuantFaceError, match=rf"--identity-weights: no file {path}: get http"):
            find_embedder(given, True, print)
    path.write_bytes(b"x")
    assert find_embedder(path, True, print) == find_embedder(tmp_path, True, print) == path


def test_without_weights_the_error_names_them_and_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(face_weights, "_facexlib_cache", lambda: tmp_path)
    with pytest.raises(Unavailable, match=r"MobileFaceNet\.onnx.*--offline.*--identity-weights"):
        find_embedder(None, True, print)
    (tmp_path / EMBEDDER.name).write_bytes(b"x")
    assert find_embedder(None, True, print) == tmp_path / EMBEDDER.name


def test_without_facexlib_the_cache_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(face_weights.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("QUANTFACE_CACHE", str(tmp_path))
    with pytest.raises(Unavailable, match=str(tmp_path / "weights")):
        find_embedder(None, True, print)
