"""ONNX files by the convention of face-enhancer programs restore what ``FaceRestorer`` does."""

from __future__ import annotations

import re
import zlib

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from small_networks import RRDB, TINY
from torch import nn

from quantface_arch import FaceRestorer
from quantface_arch.archs.build import build_arch
from quantface_arch.errors import QuantFaceError
from quantface_arch.faces.color import fix_color
from quantface_arch.pretrained.face_enhancer import FaceEnhancer, write_face_enhancer
from quantface_arch.pretrained.zoo import load_model
from quantface_arch.quant import save_checkpoint
from quantface_arch.runtime.lowering import Lowering
from quantface_arch.runtime.processor import has_vnni

SHAPE = [1, 3, 512, 512]


def saved(arch, folder):
    path = folder / "net.safetensors"
    save_checkpoint(build_arch(arch).eval(), path, arch)
    return path


def enhance(session, crop):
    """Do with an aligned face, (512, 512, 3) uint8 BGR, what FaceFusion does."""
    face = (crop[:, :, ::-1] / 255.0 - 0.5) / 0.5
    face = np.expand_dims(face.transpose(2, 0, 1), axis=0).astype(np.float32)
    restored = np.clip(session.run(None, {"input": face})[0][0], -1, 1)
    restored = (((restored + 1) / 2).transpose(1, 2, 0) * 255.0).round()
    return restored.astype(np.uint8)[:, :, ::-1]


def assert_restores_like(restorer, file, face, least):
    """Assert the PSNR in dB of what a file and a restorer make of an RGB face."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    [wanted] = restorer.restore_aligned([face])
    assert cv2.PSNR(enhance(session, face[:, :, ::-1])[:, :, ::-1], wanted) > least


def assert_convention(file):
    """Assert the names, types and shapes of a file, and its checksum."""
    graph = onnx.load(file).graph
    for [port], name in ((graph.input, "input"), (graph.output, "output")):
        kind = port.type.tensor_type
        assert (port.name, kind.elem_type) == (name, onnx.TensorProto.FLOAT)
        assert [length.dim_value for length in kind.shape.dim] == SHAPE
    checksum = file.with_suffix(".hash").read_text()
    assert re.fullmatch("[0-9a-f]{8}", checksum)
    assert int(checksum, 16) == zlib.crc32(file.read_bytes())
    assert {path.name for path in file.parent.iterdir()} == {file.name, f"{file.stem}.hash"}


@pytest.mark.slow
def test_a_shipped_model_restores_what_the_package_does(
    load_script, run_script, aligned_face, tmp_path
):
    file = tmp_path / "gfpgan_1.4.onnx"
    words = ("--model", "mini-w4a8", "--format", "onnx", "--face-enhancer", "-o", file)
    # Use no more bits than this processor can add without overflowing.
    bits = 8 if has_vnni() else 7
    status, out, errors = run_script(load_script("export"), *words, "--weight-bits", bits)
    assert status == 0 and str(file) in out, errors
    assert_convention(file)
    noise = np.random.default_rng(0).normal(0, 10, aligned_face.shape)
    degraded = (cv2.GaussianBlur(aligned_face, (0, 0), 3) + noise).clip(0, 255).astype(np.uint8)
    restorer = FaceRestorer.from_pretrained("mini-w4a8", runtime="reference")
    assert_restores_like(restorer, file, degraded, 42)


@pytest.mark.slow
def test_a_checkpoint_restores_what_the_package_does(aligned_face, tmp_path):
    path, file = saved(TINY, tmp_path), tmp_path / "out" / "tiny.onnx"
    write_face_enhancer(path, build_arch, Lowering(), file)
    assert_convention(file)
    assert_restores_like(FaceRestorer(load_model(path)), file, aligned_face, 50)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for shape in ((2, 3, 512, 512), (1, 3, 256, 256)):
        with pytest.raises(Exception, match="invalid dimensions"):
            session.run(None, {"input": np.zeros(shape, np.float32)})


class Tinted(nn.Module):
    """A network that shifts the colours of images, by other amounts in other places."""

    input_range = (-1.0, 1.0)

    def __init__(self, arch):
        super().__init__()
        self.arch_options = arch

    def forward(self, x):
        return 0.8 * x + 0.3 * torch.sin(torch.linspace(0, 9, 512))[None, None, :, None] + 0.1


@pytest.mark.parametrize(
    ("arch", "fix"),
    [({"type": "OSDFace", "preset": "mini2"}, "structure"), ({"type": "OSDFace"}, "none")],
)
def test_colours_are_fixed_as_in_the_restorer(arch, fix, aligned_face):
    network = Tinted(arch)
    face = torch.tensor(aligned_face).permute(2, 0, 1)[None] / 127.5 - 1
    restored = network(face).clamp(-1, 1)
    unit = [((x[0].permute(1, 2, 0) + 1) / 2).numpy() for x in (restored, face)]
    wanted = fix_color(*unit, fix)
    found = (FaceEnhancer(network)(face)[0].permute(1, 2, 0) + 1).numpy() / 2
    assert np.abs(found.clip(0, 1) - wanted).max() < 1e-5
    assert (np.abs(wanted - unit[0]).max() > 0.1) == (fix == "structure")


class Enlarging(Tinted):
    def forward(self, x):
        return x.repeat(1, 1, 2, 2)


def test_networks_that_restore_no_faces_are_refused(tmp_path):
    target = tmp_path / "out" / "net.onnx"
    path = saved(RRDB, tmp_path)
    with pytest.raises(
        QuantFaceError, match=r"RRDBNet, which takes images in \[0, 1\]; allowed is"
    ):
        write_face_enhancer(path, build_arch, Lowering(), target)
    save_checkpoint(Enlarging({}), path, {"type": "Enlarging"})
    with pytest.raises(QuantFaceError, match=r"returns \(1, 3, 1024, 1024\); allowed is a face"):
        write_face_enhancer(path, Enlarging, Lowering(), target)
    assert not target.parent.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("openvino", "-o", "a.xml"), "--face-enhancer: found --format openvino, allowed is"),
        (("onnx", "-o", "a.xml"), "expected a name that ends in .onnx"),
        (("onnx", "-o", "a.onnx", "--size", "256"), "unrecognized arguments: --size 256"),
    ],
)
def test_other_combinations_are_refused_by_name(
    load_script, run_script, tmp_path, monkeypatch, words, message
):
    monkeypatch.chdir(tmp_path)
    command = ("--model", "mini", "--face-enhancer", "--format", *words)
    status, _, errors = run_script(load_script("export"), *command)
    assert status == 2 and message in errors and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
