"""The face embedding network in torch computes what its ONNX file does."""

from __future__ import annotations

import openvino
import pytest
import torch

import quantface_arch.register  # noqa: F401
from basicsr.losses import build_loss
from quantface_arch.errors import QuantFaceError
from quantface_arch.losses.mobilefacenet import load_mobilefacenet


@pytest.fixture(scope="module")
def weights(data_root):
    path = data_root / "weights/identity/MobileFaceNet.onnx"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return path


def test_embeddings_are_those_of_the_file(weights):
    net = load_mobilefacenet(weights)
    graph = openvino.Core().compile_model(weights, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    faces = torch.rand(1, 3, 112, 112) * 2 - 1
    wanted = torch.from_numpy(graph([((faces + 1) / 2 - net.mean) / net.std])[0])
    assert torch.allclose(net(faces), wanted / wanted.norm(), atol=1e-5)


def test_identity_loss_prefers_the_same_face(weights, shipped_faces):
    from quantface_arch.utils.images import load_rgb

    loss = build_loss({"type": "QuantFaceIdentityLoss", "net": "mobileface", "weights": weights})
    images = [load_rgb(path).astype("float32") / 127.5 - 1 for path in shipped_faces[:2]]
    first, second = (torch.from_numpy(image).permute(2, 0, 1)[None] for image in images)
    assert float(loss(first, first)) == pytest.approx(0, abs=1e-5)
    assert float(loss(first.lerp(second, 0.1), first)) < float(loss(second, first))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(QuantFaceError, match="no such file"):
        load_mobilefacenet(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(QuantFaceError, match="no readable ONNX file"):
        load_mobilefacenet(tmp_path / "text.onnx")


def test_another_network_is_refused(repo):
    with pytest.raises(QuantFaceError, match="do not fit MobileFaceNet"):
        load_mobilefacenet(repo / "quantface_arch/weights/face_detection_yunet_2023mar.onnx")
