"""Faces in videos are tracked smoothly, without delay, through gaps, and not across cuts."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from quantface_arch.faces.align import TEMPLATE, invert, similarity
from quantface_arch.faces.detect import build_detector
from quantface_arch.faces.face import Face
from quantface_arch.utils.images import load_rgb
from quantface_arch.video.tracking import HALF_WINDOW, _Tracks, track_faces

GREY = np.full((90, 160, 3), 90, np.uint8)
WINDOWS = 0, HALF_WINDOW


@pytest.fixture
def moving_face(repo, monkeypatch):
    monkeypatch.syspath_prepend(str(repo / "benchmarks"))
    return importlib.import_module("moving_face")


def face(x, y, scale=0.1, noise=0.0):
    """Return a face whose template has its upper left corner at (x, y)."""
    marks = TEMPLATE * scale + [x, y] + noise * np.random.standard_normal((5, 2))
    return Face(np.array([x, y, x + 512 * scale, y + 512 * scale]), marks, 0.9)


def places(frames, half=HALF_WINDOW):
    """Return the positions of the left eyes, for each frame."""
    return [[found.landmarks[0] for found in frame.faces] for frame in track_faces(frames, half)]


def test_frames_keep_their_order_and_resting_faces_their_place():
    frames = [(np.full_like(GREY, number), [face(9, 5)]) for number in range(11)]
    out = list(track_faces(frames))
    assert [frame.rgb[0, 0, 0] for frame in out] == list(range(11))
    for frame in out:
        np.testing.assert_allclose(frame.matrices[0], similarity(face(9, 5).landmarks), atol=1e-6)
        np.testing.assert_allclose(frame.faces[0].landmarks, face(9, 5).landmarks, atol=1e-6)


def test_steady_motion_is_reproduced_without_delay_in_every_frame():
    found = places([(GREY, [face(10 + 2 * n, 30 - n, 0.1 + 0.002 * n)]) for n in range(20)])
    wanted = [face(10 + 2 * n, 30 - n, 0.1 + 0.002 * n).landmarks[0] for n in range(20)]
    np.testing.assert_allclose(np.ravel(found), np.ravel(wanted), atol=1e-6)


def test_smoothing_reduces_the_jitter_of_noisy_landmarks():
    frames = [(GREY, [face(20, 20, noise=0.5)]) for _ in range(60)]
    raw, smooth = (np.std(np.diff(np.squeeze(places(frames, half)), axis=0)) for half in WINDOWS)
    assert raw > 0.2
    assert smooth < 0.35 * raw


def test_short_gaps_are_interpolated_and_long_gaps_are_not():
    def seen(gap):
        missed = range(6, 6 + gap)
        frames = [(GREY, [] if n in missed else [face(10 + n, 20)]) for n in range(20)]
        return places(frames)

    filled = seen(HALF_WINDOW)
    assert [len(found) for found in filled] == [1] * 20
    np.testing.assert_allclose(filled[7][0], face(17, 20).landmarks[0], atol=1e-6)
    assert [len(found) for found in seen(HALF_WINDOW + 1)] == [1] * 6 + [0] * (HALF_WINDOW + 1) + [
        1
    ] * (13 - HALF_WINDOW)


def test_faces_are_matched_by_overlap_and_ordered_from_left_to_right():
    frames = [(GREY, [face(10, 9, 0.08), face(70, 9, 0.08)][:: (-1) ** n]) for n in range(9)]
    for found in places(frames):
        wanted = [face(10, 9, 0.08).landmarks[0], face(70, 9, 0.08).landmarks[0]]
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_tracks_end_at_a_cut():
    scenes = [(np.full_like(GREY, 40), [face(10, 20)])] * 8
    scenes += [(np.full_like(GREY, 200), [face(18, 20)])] * 8
    found = np.squeeze(places(scenes))[:, 0]
    eye = face(0, 20).landmarks[0, 0]
    np.testing.assert_allclose(found, [eye + 10] * 8 + [eye + 18] * 8, atol=1e-6)
    # Without the cut, the same faces are one moving face.
    one_scene = np.squeeze(places([(GREY, faces) for _, faces in scenes]))[:, 0]
    assert 10 < one_scene[7] - eye < 18


def test_a_measure_is_smoothed_like_the_places():
    """A missed face is interpolated, and the ends of a track have shorter windows."""
    values = [0.0, 1.0, 0.0, 1.0, 1.0, 0.5, 0.0, 0.5, 1.0, 1.0]
    frames = [(np.full_like(GREY, n), [] if n == 5 else [face(9, 5)]) for n in range(len(values))]
    found = [
        frame.measured[0]
        for frame in track_faces(frames, measure=lambda rgb, _: values[rgb[0, 0, 0]])
    ]
    wanted = [
        np.mean(values[n - reach : n + reach + 1])
        for n in range(len(values))
        for reach in [min(HALF_WINDOW, n, len(values) - 1 - n)]
    ]
    assert found == pytest.approx(wanted)
    assert [frame.measured for frame in track_faces(frames)] == [None] * len(values)


def test_memory_does_not_grow_with_the_video():
    tracks = _Tracks(HALF_WINDOW)
    for number in range(200):
        tracks.add(number, [face(20, 20), face(20 + 100 * (number % 2), 300)])
        if number >= HALF_WINDOW:
            tracks.take(number - HALF_WINDOW)
    assert len(tracks.tracks) < 10
    assert max(len(track.rows) for track in tracks.tracks) <= 2 * HALF_WINDOW + 2


@pytest.mark.slow
def test_tracking_of_real_detections_in_a_moving_photograph(moving_face, repo, data_root):
    """Repeat the measurement of docs/video.md with fewer frames."""
    folder = data_root / "weights/facexlib"
    detector = build_detector("retinaface_mobile0.25", weights_dir=folder, offline=True)
    photo = load_rgb(repo / "inputs/astronaut.jpg")
    frames, true = zip(*moving_face.moving(photo, 24, (320, 320)), strict=True)
    found = [(frame, detector.detect(frame)) for frame in frames]
    matrices = [[frame.matrices[0] for frame in track_faces(found, half)] for half in WINDOWS]
    # The windows at the ends of a track are shorter.
    inner = slice(HALF_WINDOW, -HALF_WINDOW)
    (raw, away), (smooth, drift) = (
        moving_face.deviations(each[inner], true[inner]) for each in matrices
    )
    assert smooth < 0.5 * raw
    assert drift < away
    # The track moves with the face; a fixed position in the frame would drift.
    still = moving_face.deviations([matrices[1][0]] * len(true), true)[1]
    assert drift < 0.25 * still


def test_deviations_are_zero_for_true_placements_and_grow_with_errors(moving_face):
    photo = np.zeros((64, 64, 3), np.uint8)
    true = [matrix for _, matrix in moving_face.moving(photo, 9, (64, 64))]
    marks = [TEMPLATE / 16 @ matrix[:, :2].T + matrix[:, 2] for matrix in true]
    jitter, drift = moving_face.deviations([similarity(points) for points in marks], true)
    assert jitter < 1e-3 and drift < 1e-3
    shaken = [similarity(points + (-1) ** n) for n, points in enumerate(marks)]
    assert moving_face.deviations(shaken, true)[0] > 10
    assert invert(shaken[0]).shape == (2, 3)
