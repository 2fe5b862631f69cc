"""The restorer: the result of an image depends on that image alone."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from torch import nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.faces.align import FACE_SIZE
from quantface_arch.restore.restorer import FaceRestorer
from quantface_arch.utils.images import RGBImage, load_rgb


class SmallNet(nn.Module):
    """A small network with the interface of the real networks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, padding_mode="replicate")

    def latent_shape(self, batch, height, width):
        return batch, 3, height // 8, width // 8

    def forward(self, lq, noise=None):
        out = lq + 0.2 * self.conv(lq)
        if noise is not None:
            out = out + 0.1 * nn.functional.interpolate(noise, scale_factor=8)
        return out.clamp(-1, 1)


class Echo(nn.Module):
    """Returns its input."""

    def forward(self, lq, noise=None):
        return lq


def _aligned(count, dtype=np.uint8):
    small = np.random.randint(0, 256, (count, 8, 8, 3), np.uint8)
    faces = [cv2.resize(face, (FACE_SIZE, FACE_SIZE)) for face in small]
    return [face.astype(dtype) * (257 if dtype == np.uint16 else 1) for face in faces]


@pytest.fixture
def restorer():
    return FaceRestorer(SmallNet(), detector="yunet", batch_size=3)


@pytest.fixture
def astronaut(repo):
    return load_rgb(repo / "inputs/astronaut.jpg")


@pytest.mark.parametrize("sample", [False, True])
def test_a_face_does_not_depend_on_the_other_faces(restorer, sample):
    faces = _aligned(5)
    together = restorer.restore_aligned(faces, sample=sample, seed=3)
    backwards = restorer.restore_aligned(faces[::-1], sample=sample, seed=3)[::-1]
    alone = [restorer.restore_aligned([face], sample=sample, seed=3)[0] for face in faces]
    for one, other, third in zip(together, backwards, alone, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1
        assert np.abs(one.astype(int) - third).max() <= 1


def test_sampling_depends_on_seed_and_content(restorer):
    face = _aligned(1)[0]
    mean, zero, one = (
        restorer.restore_aligned([face], sample=sample, seed=seed)[0].astype(int)
        for sample, seed in ((False, 0), (True, 0), (True, 1))
    )
    assert np.abs(mean - zero).max() > 5
    assert np.abs(zero - one).max() > 5
    almost = face.copy()
    almost[0, 0, 0] ^= 1
    noise = restorer._noise([face, almost], seed=0)
    assert not np.allclose(noise[0], noise[1])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_identity_network_returns_the_same_values(dtype):
    faces = _aligned(2, dtype)
    for before, after in zip(faces, FaceRestorer(Echo()).restore_aligned(faces), strict=True):
        assert after.dtype == dtype
        assert np.array_equal(before, after)


def test_a_grey_face_stays_grey(restorer):
    grey = np.repeat(_aligned(1)[0][..., :1], 3, axis=2)
    restored = restorer.restore_aligned([grey])[0]
    assert (restored == restored[..., :1]).all()
    assert not np.array_equal(restored, grey)


@pytest.mark.parametrize("shape", [(512, 512), (512, 512, 4), (256, 256, 3)])
def test_faces_of_another_shape_are_refused(restorer, shape):
    with pytest.raises(QuantFaceError, match=str(shape[0])):
        restorer.restore_aligned([np.zeros(shape, np.uint8)])
    with pytest.raises(QuantFaceError, match="float64"):
        restorer.restore_aligned([np.zeros((512, 512, 3))])


def test_values_that_are_not_finite_are_an_error():
    net = SmallNet()
    net.conv.weight.data.fill_(float("nan"))
    with pytest.raises(QuantFaceError, match="not finite"):
        FaceRestorer(net).restore_aligned(_aligned(1))


def test_only_the_faces_of_an_image_change(restorer, astronaut):
    result = restorer.restore(astronaut)
    assert len(result.faces) == 1
    changed = (result.image != astronaut).any(axis=2)
    y, x = np.nonzero(changed)
    left, top, right, bottom = result.faces[0].box
    assert left - 80 < x.min() < x.max() < right + 80
    assert top - 80 < y.min() < y.max() < bottom + 80
    assert changed[int(top) : int(bottom), int(left) : int(right)].mean() > 0.5
    face = result.faces[0]
    assert face.crop.shape == face.restored.shape == (FACE_SIZE, FACE_SIZE, 3)
    assert np.array_equal(restorer.restore(astronaut, strength=0).image, astronaut)


def test_depth_alpha_and_profile_are_kept(restorer, astronaut):
    alpha = np.random.randint(0, 65536, astronaut.shape[:2]).astype(np.uint16)
    image = RGBImage(astronaut.astype(np.uint16) * 257, alpha, b"profile")
    result = restorer.restore(image)
    assert result.image.dtype == np.uint16
    assert np.array_equal(result.rgb_image.alpha, alpha)
    assert result.rgb_image.icc_profile == b"profile"
    assert result.picture is result.rgb_image
    assert result.faces[0].restored.dtype == np.uint16
    coarse = restorer.restore(astronaut).image
    assert np.abs(result.image / 257 - coarse).max() <= 2


def test_the_old_name_of_the_image_still_works_and_warns(restorer, astronaut):
    wanted = restorer.restore(astronaut).image
    with pytest.warns(
        DeprecationWarning, match=r"restore\(picture=\.\.\.\) is deprecated: use image"
    ):
        assert np.array_equal(restorer.restore(picture=astronaut).image, wanted)
    with pytest.warns(DeprecationWarning, match="use image"):
        assert len(restorer.find(picture=astronaut).faces) == 1
    with pytest.raises(TypeError, match="both image and its old name picture"):
        restorer.find(image=astronaut, picture=astronaut)


def test_upscaling_enlarges_everything(restorer, astronaut):
    small = cv2.resize(astronaut, (300, 256), interpolation=cv2.INTER_AREA)
    image = RGBImage(small, small[..., 0])
    result = restorer.restore(image, upscale=1.5)
    assert result.rgb_image.size == (450, 384)
    assert result.rgb_image.alpha.shape == (384, 450)
    plain = restorer.restore(image, upscale=1.5, strength=0).image
    assert np.array_equal(plain, image.resized(450, 384).rgb)
    assert not np.array_equal(plain, result.image)


@pytest.mark.slow
def test_too_many_output_pixels_are_an_error(restorer):
    with pytest.raises(QuantFaceError, match="4000x3000 pixels 8 times"):
        restorer.restore(np.zeros((3000, 4000, 3), np.uint8), upscale=8)


def test_real_photographs(data_root):
    restorer = FaceRestorer(
        SmallNet(), weights_dir=data_root / "weights/facexlib", offline=True, batch_size=2
    )
    photograph = load_rgb(data_root / "inputs/whole/codeformer_00.jpg")
    result = restorer.restore(photograph)
    assert len(result.faces) == 4
    assert all(face.landmarks.shape == (5, 2) for face in result.faces)
    assert (result.image == photograph).all(axis=2).mean() > 0.3


def test_a_sample_of_a_network_without_a_latent_is_refused():
    restorer = FaceRestorer(Echo())
    with pytest.raises(QuantFaceError, match="no latent"):
        restorer.restore_aligned(_aligned(1), sample=True)


def test_hidden_colours_change_nothing_that_is_seen(restorer, astronaut):
    alpha = np.full(astronaut.shape[:2], 255, np.uint8)
    alpha[: len(alpha) // 5] = 0
    results = []
    for level in (0, 255):
        rgb = np.where(alpha[..., None] > 0, astronaut, np.uint8(level))
        results.append(restorer.restore(RGBImage(rgb, alpha), upscale=1.5).rgb_image)
    seen = results[0].alpha > 0
    assert np.array_equal(results[0].rgb[seen], results[1].rgb[seen])


def test_a_network_that_enlarges_is_refused_as_a_restorer():
    with pytest.raises(QuantFaceError, match=r"expected the same shape.*--bg-upsampler"):
        FaceRestorer(nn.Upsample(scale_factor=2)).restore_aligned(_aligned(1))
