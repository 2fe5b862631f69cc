"""Make the small set of faces that ships with the package, from a folder of whole portraits."""

from __future__ import annotations

import argparse
import csv
import shutil
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import numpy as np

from quantface_arch.data.face_dataset import held_out
from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.faces.align import similarity, warp_face
from quantface_arch.faces.detect import build_detector
from quantface_arch.faces.face import Detector
from quantface_arch.utils.cli import Parser, run
from quantface_arch.utils.images import load_rgb, resize

DESCRIPTION = """\
Cut aligned faces out of whole portraits and keep a set that is balanced by age, sex and region. The
portraits are those of github.com/faker-js/assets-person-portrait (Stable Diffusion 3, CC0), with a
people.csv of file, age, sex and country. Portraits that the project evaluates on are left out.

example:
  python scripts/make_default_faces.py ../shared/portraits --weights-dir ../shared/weights/facexlib
"""
OUTPUT = Path(__file__).resolve().parents[1] / "quantface_arch/data/faces"
SIDE = 256
JPEG_QUALITY = 90
VALIDATION, TRAINING = 16, 80
LICENCE = "LICENSE-CC0.txt"
# One portrait in five is held out, chosen by the name that its face has in the evaluation set.
EVALUATION_PREFIX, HELD_OUT = "sd3_", 5
AGES = (30, 45, 60)
COUNTRIES = {
    "Africa": """Algeria; Angola; Benin; Botswana; British Indian Ocean Territory (Chagos
        Archipelago); Central African Republic; Comoros; Cote d'Ivoire; Democratic Republic of the
        Congo; Djibouti; Egypt; Equatorial Guinea; Eritrea; Eswatini; Gambia; Ghana; Libyan Arab
        Jamahiriya; Malawi; Mauritania; Mayotte; Morocco; Mozambique; Namibia; Rwanda; Saint
        Helena; Sao Tome and Principe; Senegal; Seychelles; Somalia; Tanzania; Togo; Zimbabwe""",
    "Americas": """Argentina; Bahamas; Bermuda; Bolivia; Canada; Colombia; Dominica; Dominican
        Republic; Ecuador; French Guiana; Guadeloupe; Guyana; Haiti; Honduras; Jamaica; Martinique;
        Nicaragua; Panama; Paraguay; Peru; Puerto Rico; Saint Martin; Saint Pierre and Miquelon;
        Turks and Caicos Islands; United States of America; Virgin Islands, British""",
    "Asia": """Bangladesh; Brunei Darussalam; China; Cyprus; Hong Kong; Israel; Japan; Kuwait;
        Kyrgyz Republic; Lao People's Democratic Republic; Mongolia; Oman; Pakistan; Palestine;
        Republic of Korea; Singapore; Sri Lanka; Syrian Arab Republic; Taiwan; Timor-Leste;
        Uzbekistan; Yemen""",
    "Europe": """Aland Islands; Bouvet Island; Bulgaria; Finland; Germany; Hungary; Iceland;
        Ireland; Isle of Man; Luxembourg; Malta; Moldova; Monaco; Montenegro; Netherlands; Norway;
        Poland; San Marino; Serbia; Slovakia; Sweden; United Kingdom""",
    "Oceania": """Australia; Cocos (Keeling) Islands; Cook Islands; Fiji; French Polynesia; Guam;
        Heard Island and McDonald Islands; Kiribati; Nauru; Niue; Palau; Pitcairn Islands; Samoa;
        Solomon Islands; Tonga; Vanuatu; Wallis and Futuna""",
}
REGIONS = {
    " ".join(country.split()): region
    for region, countries in COUNTRIES.items()
    for country in countries.split(";")
}


@dataclass(frozen=True)
class Person:
    """A portrait and the person in it."""

    file: str
    age: int
    sex: str
    country: str

    @property
    def region(self) -> str:
        """Return the part of the world that the country lies in."""
        if self.country not in REGIONS:
            raise QuantFaceError(
                f"{self.file}: found country {self.country!r}, which has no region"
            )
        return REGIONS[self.country]

    @property
    def groups(self) -> tuple[str, str, str]:
        """Return the groups that the set is balanced by."""
        return f"age {np.searchsorted(AGES, self.age, side='right')}", self.sex, self.region

    @property
    def is_held_out(self) -> bool:
        """Tell whether the project evaluates on this portrait."""
        return held_out(EVALUATION_PREFIX + Path(self.file).stem, HELD_OUT)


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(description=DESCRIPTION)
    add = parser.add_argument
    add("portraits", type=Path, help=f"folder of portraits with people.csv and {LICENCE}")
    add(
        "-o", "--output", type=Path, default=OUTPUT, help="folder to write (default: the package's)"
    )
    add("--weights-dir", type=Path, help="folder of RetinaFace's weights (default: facexlib's)")
    return parser


def main(args: argparse.Namespace) -> int:
    """Align the faces, choose and write some, and print how many each group has."""
    people = read_people(args.portraits / "people.csv")
    detector = build_detector("retinaface_mobile0.25", weights_dir=args.weights_dir)
    faces, scales = {}, {}
    for person in people:
        if not person.is_held_out:
            faces[person], scales[person] = align(args.portraits / person.file, detector)
    chosen = choose_balanced(scales, VALIDATION + TRAINING)
    parts = {"val": chosen[:VALIDATION], "train": chosen[VALIDATION:]}
    write_faces(args.output, parts, faces)
    shutil.copyfile(args.portraits / LICENCE, args.output / LICENCE)
    for part, members in parts.items():
        counts = Counter(group for person in members for group in person.groups)
        print(f"{args.output / part}: {len(members)} faces; {dict(sorted(counts.items()))}")
    return 0


def read_people(path: Path) -> list[Person]:
    """Return the person in each portrait."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file; it lists file, age, sex and country")
    with path.open(newline="") as file:
        return [Person(**{**row, "age": int(row["age"])}) for row in csv.DictReader(file)]


def align(path: Path, detector: Detector) -> tuple[np.ndarray, float]:
    """Return the face of a portrait, and how much it was enlarged for the 512×512 frame."""
    rgb = load_rgb(path)
    found = detector.detect(rgb)
    if not found:
        raise QuantFaceError(f"{path}: no face found")
    largest = max(found, key=lambda face: face.box[2] - face.box[0])
    matrix = similarity(largest.landmarks)
    scale = float(np.sqrt(np.linalg.det(matrix[:, :2])))
    return resize(warp_face(rgb, matrix), SIDE, SIDE), scale


def choose_balanced(scales: dict[Person, float], count: int) -> list[Person]:
    """Choose people one by one, each from the groups that have the fewest so far.

    Args:
        scales: enlargement of each person's face; ties go to the least enlarged face.
        count: people to choose.
    """
    chosen: list[Person] = []
    counts: Counter[str] = Counter()
    for _ in range(count):
        left = [person for person in scales if person not in chosen]
        if not left:
            raise QuantFaceError(f"found {len(chosen)} faces, expected {count}")
        best = min(left, key=lambda p: (_crowding(p, counts), scales[p], p.file))
        chosen.append(best)
        counts.update(best.groups)
    return chosen


def _crowding(person: Person, counts: Counter[str]) -> int:
    """Return how full a person's groups are, relative to 4 ages, 2 sexes and 5 regions."""
    kinds = (len(AGES) + 1, 2, len(COUNTRIES))
    return sum(counts[group] * kind for group, kind in zip(person.groups, kinds, strict=True))


def write_faces(
    root: Path, parts: dict[str, list[Person]], faces: dict[Person, np.ndarray]
) -> None:
    """Write ROOT/PART/NAME.jpg and ROOT/people.csv."""
    rows = []
    for part, members in parts.items():
        folder = root / part
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for person in members:
            quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
            cv2.imwrite(str(folder / person.file), faces[person][..., ::-1], quality)
            values = [getattr(person, field.name) for field in fields(Person)]
            rows.append([f"{part}/{values[0]}", *values[1:], person.region])
    with (root / "people.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*(field.name for field in fields(Person)), "region"])
        writer.writerows(sorted(rows))


if __name__ == "__main__":
    run(main, make_parser())
