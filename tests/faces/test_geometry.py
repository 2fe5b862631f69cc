"""Faces that lie on their side or upside down, and landmarks that cannot be a face's."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from quantface_arch.faces.align import TEMPLATE, transform
from quantface_arch.faces.detect import build_detector
from quantface_arch.faces.face import Face
from quantface_arch.faces.geometry import fit, look_closer, turn
from quantface_arch.restore.restorer import FaceRestorer

FRAME = np.array([0.0, 0.0, 512.0, 512.0])


def _eyes(landmarks):
    return float(np.hypot(*(landmarks[1] - landmarks[0])))


@pytest.mark.parametrize("angle", [-170, -90, 0, 30, 135])
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_the_fit_finds_angle_and_scale(angle, scale):
    face = Face(FRAME / 1.6, TEMPLATE, 1.0)
    matrix = cv2.getRotationMatrix2D((0, 0), -angle, scale)
    moved = turn(face, matrix)
    assert fit(moved).angle == pytest.approx(angle)
    assert fit(moved).scale == pytest.approx(1.6)
    assert fit(moved).residual == pytest.approx(0, abs=1e-6)


def test_landmarks_of_no_face_are_impossible():
    rng = np.random.default_rng(0)
    for _ in range(20):
        face = Face(FRAME / 1.6, rng.uniform(0, 320, (5, 2)), 1.0)
        assert not fit(face).is_possible
    flat = Face(FRAME / 1.6, np.zeros((5, 2)), 1.0)
    assert not fit(flat).is_possible and np.isfinite(fit(flat).residual)


@pytest.mark.slow
@pytest.mark.parametrize("angle", [45, 90, 120, 180, 270])
def test_a_turned_face_has_its_landmarks_where_they_are(astronaut, detector, angle):
    (upright,) = detector.detect(astronaut)
    height, width = astronaut.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 0.8)
    turned = cv2.warpAffine(astronaut, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
    wanted = transform(upright.landmarks, matrix)
    near = [
        face
        for face in detector.detect(turned)
        if np.hypot(*(face.landmarks - wanted).mean(0)) < _eyes(wanted)
    ]
    assert len(near) == 1 and near[0].plausible
    assert np.abs(near[0].landmarks - wanted).max() < 0.25 * _eyes(wanted)


def test_a_view_without_a_face_has_score_zero(astronaut):
    (face,) = build_detector("yunet").detect(astronaut)
    assert look_closer(astronaut, face, lambda view: []).score == 0


def test_a_face_with_impossible_landmarks_is_left_alone(astronaut):
    (face,) = build_detector("yunet").detect(astronaut)

    class Odd:
        name = "odd"

        def detect(self, rgb):
            return [replace(face, plausible=False)]

    restorer = FaceRestorer(torch.nn.Identity(), detector=Odd())
    found = restorer.find(astronaut)
    assert found.faces == [] and len(found.implausible) == 1
    assert np.array_equal(restorer.restore(astronaut).image, astronaut)
