"""Measure how well the detectors find faces: found, missed, false, landmarks, seconds.

    python benchmarks/detectors.py                               # every set, both detectors
    python benchmarks/detectors.py --sets degraded groups --limit 40

The sets are made from ../shared/portraits (one face each) and ../shared/inputs/whole (10 faces):

- ``portraits N``: the portraits at N x N pixels, enlarged above 512.
- ``close-ups N``: the portraits cropped to the face, N pixels high.
- ``faces N``: sheets of 20 portraits in which every face is N pixels wide.
- ``degraded``: the portraits at 512 x 512 with the training set's blur, noise and JPEG.
- ``groups``, ``groups degraded``: the photographs in inputs/whole, unchanged and with five
  degradations each.

"false" counts detections other than the listed faces, such as a face on a wall or in the
background. "right %" is the share of images in which every face is found and nothing else.
"landmark error %" is the median over the found faces of the mean distance of the five landmarks
from those that the same detector finds in the clean image, in percent of the distance between the
eyes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from report import data_root, faces_folder, parser, report

from quantface_arch.data.degradation import Degradation, seeded
from quantface_arch.errors import QuantFaceError
from quantface_arch.faces.align import FACE_SIZE, similarity
from quantface_arch.faces.detect import build_detector
from quantface_arch.faces.face import Detector, Face
from quantface_arch.utils.images import load_rgb
from quantface_arch.utils.threads import set_thread_count

DETECTORS = ("yunet", "retinaface_mobile0.25")
SIDE = 512
SIDES = (256, 512, 1024, 2048, 4096)
SMALL = (20, 32, 64)
# The left, top, right and bottom of every face in inputs/whole were marked by hand.
WHOLE = {
    "codeformer_00.jpg": (
        *((57, 81, 100, 130), (177, 77, 212, 126)),
        *((284, 85, 316, 122), (393, 68, 430, 120)),
    ),
    "codeformer_02.png": (
        *((152, 33, 281, 223), (405, 88, 540, 256)),
        *((633, 81, 757, 256), (870, 99, 1002, 265)),
    ),
    "codeformer_06.png": ((101, 139, 332, 440), (380, 104, 591, 380)),
}
_SAME = 0.35


@dataclass(frozen=True)
class Sample:
    """An image and the faces in it; ``landmarks`` is empty if they are unknown."""

    rgb: np.ndarray
    boxes: Sequence[np.ndarray]
    landmarks: Sequence[np.ndarray] = ()


@dataclass(frozen=True)
class Portrait:
    """An image of one person and the best face that a detector found in it."""

    rgb: np.ndarray
    face: Face


Maker = Callable[[Detector, list[Portrait]], Iterator[Sample]]


def resized(portrait: Portrait, width: int, height: int) -> Sample:
    """Return the portrait at another size, with its face scaled accordingly."""
    before = portrait.rgb.shape[1::-1]
    scale = np.array([width, height]) / before
    mode = cv2.INTER_AREA if width < before[0] else cv2.INTER_CUBIC
    rgb = cv2.resize(portrait.rgb, (width, height), interpolation=mode)
    return Sample(rgb, [portrait.face.box * np.tile(scale, 2)], [portrait.face.landmarks * scale])


def portraits(side: int) -> Maker:
    """Return a maker of portraits of one size."""

    def make(_: Detector, people: list[Portrait]) -> Iterator[Sample]:
        return (resized(person, side, side) for person in people)

    return make


def close_ups(side: int) -> Maker:
    """Return a maker of close-ups: the face with a margin of a tenth of its box."""

    def make(_: Detector, people: list[Portrait]) -> Iterator[Sample]:
        for person in people:
            face, (high, wide) = person.face, person.rgb.shape[:2]
            margin = (face.box[2:] - face.box[:2]) / 10
            left, top = np.maximum(face.box[:2] - margin, 0).astype(int)
            right, bottom = np.minimum(face.box[2:] + margin, (wide, high)).astype(int)
            moved = Face(face.box - [left, top] * 2, face.landmarks - (left, top), face.score)
            part = Portrait(person.rgb[top:bottom, left:right], moved)
            yield resized(part, round(side * (right - left) / (bottom - top)), side)

    return make


def sheets(width: int, columns: int = 5, rows: int = 4) -> Maker:
    """Return a maker of sheets of portraits in which every face is ``width`` pixels wide."""

    def make(_: Detector, people: list[Portrait]) -> Iterator[Sample]:
        cells = []
        for person in people:
            scale = width / (person.face.box[2] - person.face.box[0])
            cells.append(resized(person, *(round(n * scale) for n in person.rgb.shape[1::-1])))
        side = max(max(cell.rgb.shape) for cell in cells)
        for start in range(0, len(cells), columns * rows):
            sheet = np.full((rows * side, columns * side, 3), 128, np.uint8)
            boxes, landmarks = [], []
            for place, cell in enumerate(cells[start : start + columns * rows]):
                corner = np.array([place % columns, place // columns]) * side
                high, wide = cell.rgb.shape[:2]
                sheet[corner[1] : corner[1] + high, corner[0] : corner[0] + wide] = cell.rgb
                boxes.append(cell.boxes[0] + np.tile(corner, 2))
                landmarks.append(cell.landmarks[0] + corner)
            yield Sample(sheet, boxes, landmarks)

    return make


def degraded(rgb: np.ndarray, landmarks: np.ndarray, *key: int) -> np.ndarray:
    """Apply the training set's degradation, at the size of this face."""
    scale = np.sqrt(np.linalg.det(similarity(landmarks)[:, :2]))
    with seeded(*key):
        low = Degradation()(rgb.astype(np.float32) / 255, round(FACE_SIZE / scale))
    return np.rint(low * 255).astype(np.uint8)


def degraded_portraits(_: Detector, people: list[Portrait]) -> Iterator[Sample]:
    """Yield degraded portraits at their original size."""
    for number, person in enumerate(people):
        marks = person.face.landmarks
        yield Sample(degraded(person.rgb, marks, number), [person.face.box], [marks])


def groups(_detector: Detector, _people: list[Portrait]) -> Iterator[Sample]:
    """Yield the photographs in inputs/whole."""
    for name, boxes in WHOLE.items():
        yield Sample(load_rgb(data_root() / "inputs/whole" / name), np.array(boxes, float))


def degraded_groups(detector: Detector, people: list[Portrait]) -> Iterator[Sample]:
    """Yield the photographs in inputs/whole with five degradations each."""
    for number, clean in enumerate(groups(detector, people)):
        faces = detector.detect(clean.rgb)
        marks = [faces[place].landmarks if place >= 0 else None for place in match(faces, clean)]
        known = [points for points in marks if points is not None]
        if len(known) < len(marks):
            raise QuantFaceError(f"{detector.name} misses a face of an undegraded group")
        for seed in range(5):
            yield Sample(degraded(clean.rgb, known[0], number, seed), clean.boxes, known)


def makers(smoke: bool) -> dict[str, Maker]:
    """Return the maker of every set by name."""
    found: dict[str, Maker] = {f"portraits {n}": portraits(n) for n in SIDES[: 2 if smoke else 5]}
    found |= {f"close-ups {n}": close_ups(n) for n in SIDES[: 1 if smoke else 5]}
    found |= {f"faces {n}": sheets(n) for n in SMALL}
    found["degraded"] = degraded_portraits
    if (data_root() / "inputs/whole").is_dir():
        found |= {"groups": groups, "groups degraded": degraded_groups}
    return found


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the intersection over union of two boxes."""
    common = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
    return float(common / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common))


def match(faces: Sequence[Face], sample: Sample) -> list[int]:
    """Return the index of the found face for every face of the sample; -1 if missed."""
    pairs = [
        (overlap(face.box, box), place, number)
        for place, face in enumerate(faces)
        for number, box in enumerate(sample.boxes)
    ]
    places, taken = [-1] * len(sample.boxes), set()
    for value, place, number in sorted(pairs, reverse=True):
        if value >= _SAME and places[number] < 0 and place not in taken:
            places[number] = place
            taken.add(place)
    return places


def measure(name: str, detector: Detector, samples: Iterator[Sample]) -> dict[str, Any]:
    """Return one row of the table."""
    total = found = false = right = images = 0
    errors, seconds = [], []
    for sample in samples:
        start = time.perf_counter()
        # Faces with implausible landmarks do not count, because they are not restored.
        faces = [face for face in detector.detect(sample.rgb) if face.plausible]
        seconds.append(time.perf_counter() - start)
        places = match(faces, sample)
        hits = [place for place in places if place >= 0]
        images, total, found = images + 1, total + len(places), found + len(hits)
        false += len(faces) - len(hits)
        right += len(hits) == len(places) == len(faces)
        for wanted, place in zip(sample.landmarks, places, strict=False):
            if place >= 0:
                away = np.linalg.norm(faces[place].landmarks - wanted, axis=1).mean()
                errors.append(100 * away / np.linalg.norm(wanted[1] - wanted[0]))
    return {
        "set": name,
        "detector": detector.name,
        "images": images,
        "faces": total,
        "found": found,
        "missed": total - found,
        "false": false,
        "right %": round(100 * right / images, 1),
        "landmark error %": round(float(np.median(errors)), 1) if errors else "",
        "s/image": float(np.median(seconds)),
    }


def portraits_folder() -> Path:
    """Return the data's portraits, or the shipped faces if there are no data."""
    folder = data_root() / "portraits"
    return folder if folder.is_dir() else faces_folder("val512")


def people_of(detector: Detector, paths: Sequence[Path]) -> list[Portrait]:
    """Return the portraits at 512 x 512 with the best face of each.

    Raises:
        QuantFaceError: the detector finds no face in a portrait.
    """
    people = []
    for path in paths:
        rgb = cv2.resize(load_rgb(path), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        faces = detector.detect(rgb)
        if not faces:
            raise QuantFaceError(f"{path}: {detector.name} finds no face")
        people.append(Portrait(rgb, max(faces, key=lambda face: face.score)))
    return people


def main() -> None:
    args_parser = parser(__doc__)
    names = list(makers(False))
    args_parser.add_argument("--sets", nargs="+", choices=names, metavar="SET", help="(all)")
    args_parser.add_argument("--detectors", nargs="+", default=DETECTORS, help="(%(default)s)")
    args_parser.add_argument("--limit", type=int, help="use the first LIMIT portraits (all)")
    args_parser.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    args = args_parser.parse_args()
    sets = {name: make for name, make in makers(args.smoke).items() if name in (args.sets or names)}
    paths = sorted(portraits_folder().glob("*.jpg"))[: 2 if args.smoke else args.limit]
    cv2.setNumThreads(args.threads)
    set_thread_count(args.threads)
    rows, weights = [], data_root() / "weights/facexlib"
    for name in args.detectors:
        try:
            detector = build_detector(name, weights_dir=weights, offline=True)
        except QuantFaceError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        people = people_of(detector, paths)
        rows += [measure(title, detector, make(detector, people)) for title, make in sets.items()]
    report(sorted(rows, key=lambda row: list(sets).index(row["set"])), args.json)


if __name__ == "__main__":
    main()
