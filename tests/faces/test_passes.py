"""Detection at several sizes, and the merging of what the passes found."""

from __future__ import annotations

import numpy as np
import pytest

from quantface_arch.faces.align import FACE_SIZE, TEMPLATE
from quantface_arch.faces.face import Face
from quantface_arch.faces.passes import detect_in_passes, merge


def _face(left, top, right, bottom, score=0.9):
    """Return a face with the landmarks of an upright one."""
    box = np.array([left, top, right, bottom], float)
    middle, size = (box[:2] + box[2:]) / 2, (right - left + bottom - top) / 2
    return Face(box, middle + (TEMPLATE - FACE_SIZE / 2) * 1.6 * size / FACE_SIZE, score)


def test_a_face_of_several_passes_is_averaged_and_keeps_the_best_score():
    (face,) = merge([_face(0, 0, 100, 100, 0.8), _face(4, 0, 104, 100, 0.9)])
    assert face.box.tolist() == [2, 0, 102, 100]
    assert np.allclose(face.landmarks, _face(2, 0, 102, 100).landmarks) and face.score == 0.9


def test_fragments_of_a_better_face_go():
    whole = _face(0, 0, 400, 400, 0.95)
    fragments = [_face(50, 50, 150, 150), _face(330, 100, 430, 200), _face(360, 0, 500, 100)]
    kept = merge([*fragments, whole])
    assert [face.box.tolist() for face in kept] == [[0, 0, 400, 400], [360, 0, 500, 100]]


def test_a_better_face_in_a_larger_box_stays_and_so_do_neighbours():
    assert len(merge([_face(0, 0, 400, 400, 0.8), _face(50, 50, 150, 150, 0.9)])) == 2
    assert len(merge([_face(0, 0, 100, 100), _face(60, 0, 160, 100)])) == 2
    assert merge([]) == []


@pytest.mark.parametrize(
    ("size", "widths"),
    [
        # Of passes at 100, 200 and 400 pixels; the picture is 800 pixels wide.
        (30, [400]),  # 4, 8 and 15 pixels: the finest pass keeps even small ones
        (15, []),  # 7 pixels in the finest: too small for any
        (100, [400]),  # 12, 25 and 50 pixels
        (200, [200, 400]),  # 25, 50 and 100 pixels: too large for none, too small for the first
        (500, [100, 200]),  # 62, 125 and 250 pixels: too large for the finest
        (790, [100]),  # 99, 197 and 395 pixels: of the coarsest pass alone
    ],
)
def test_each_pass_keeps_the_sizes_that_it_is_good_at(size, widths):
    image = np.zeros((600, 800, 3), np.uint8)
    for only in (100, 200, 400):

        def look(small, only=only):
            side = size * only / 800
            return [_face(0, 0, side, side)] if small.shape[1] == only else []

        found = detect_in_passes(image, look, (100, 200, 400), (40, 180), (0.5, 0.6))
        assert len(found) == (only in widths)
        assert all(np.allclose(face.box[2:], size) for face in found)


def test_only_an_image_without_a_face_is_enlarged_and_turned():
    seen = []
    image = np.zeros((150, 90, 3), np.uint16)

    def look(small):
        seen.append(small)
        return []

    detect_in_passes(image, look, (50, 200, 400), (1, 9), (0.5, 0.6))
    upright, on_the_sides = [(50, 30, 3), (150, 90, 3)], [(90, 150, 3), (150, 90, 3), (90, 150, 3)]
    assert [small.shape for small in seen] == [*upright, (300, 180, 3), *on_the_sides]
    assert all(small.dtype == np.uint8 for small in seen)
