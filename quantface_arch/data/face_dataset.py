"""Degraded and clean faces from a folder or LMDB of clean faces, made on the fly."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.utils import FileClient, get_root_logger, img2tensor
from basicsr.utils.registry import DATASET_REGISTRY
from quantface_arch.data.colors import recolored
from quantface_arch.data.default_faces import SHIPPED_FACES, find_faces
from quantface_arch.data.degradation import seeded
from quantface_arch.data.lmdb_keys import read_sides
from quantface_arch.data.options import FaceDatasetOptions
from quantface_arch.data.sampler import SampleIndex
from quantface_arch.errors import QuantFaceError
from quantface_arch.faces.skin_tone import SKIN_TONES, skin_tone
from quantface_arch.utils.images import FORMAT_NAMES, decode_rgb, find_images, read_size, resize
from quantface_arch.utils.option_fields import parse_options

__all__ = ["QuantFaceDataset", "held_out"]

# A message names at most this many unusable files.
MAX_NAMED = 10

# BasicSR's loop reads these options of a dataset, or writes them.
LOOP_OPTIONS = {
    "name",
    "type",
    "phase",
    "scale",
    "batch_size_per_gpu",
    "num_worker_per_gpu",
    "dataset_enlarge_ratio",
    "persistent_workers",
    "pin_memory",
    "prefetch_mode",
    "num_prefetch_queue",
    "use_shuffle",
}


def held_out(stem: str, parts: int) -> bool:
    """Return whether an image, given its name without suffix, is held out for evaluation.

    Of ``parts`` parts, one is held out: the names whose SHA-256, as a number, is a multiple of
    ``parts``.
    """
    return int(hashlib.sha256(stem.encode()).hexdigest(), 16) % parts == 0


@DATASET_REGISTRY.register()
class QuantFaceDataset(Dataset):
    """Pairs ``lq`` (degraded) and ``gt`` (clean), float32 RGB (3, S, S) in [0, 1].

    A sample depends only on ``seed`` and on its position in the run, not on workers or order.

    ``FaceDatasetOptions`` lists its options.

    Raises:
        QuantFaceError: the folder does not exist or has no images, none is as large as ``gt_size``,
            or more than half of the files cannot be read. Fewer unreadable files are named in a
            warning and skipped.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        own = {key: value for key, value in opt.items() if key not in LOOP_OPTIONS}
        options = parse_options(FaceDatasetOptions, "dataset", own)
        self.opt = opt
        self.root = find_faces(options.dataroot_gt)
        self.enlarges = self.root.is_relative_to(SHIPPED_FACES)
        self.backend = dict(options.io_backend)
        self.client: FileClient | None = None
        self.unreadable: list[str] = []
        sides = self._without_holdout(self._list_sides(), options.holdout)
        self.keys = self._repeated(list(sides), options.repeat)
        self.whole_every = options.whole_every
        self.degradation = options.degradation
        self.schedule = _schedule(options.gt_size)
        self.rescale_prob = options.rescale_prob
        self.recolor_prob = options.recolor_prob
        self.use_hflip = options.use_hflip
        self.seed = options.seed
        self.large_enough = {
            size: {key for key, side in sides.items() if side >= size or self.enlarges}
            for _, size in self.schedule
        }
        for size, keys in self.large_enough.items():
            if not keys:
                raise QuantFaceError(
                    f"dataset option gt_size {size}: no image in {self.root} is that large; "
                    f"the largest has {max(sides.values())} pixels"
                )
        self.tones = self._by_skin_tone() if options.equalize_skin_tones else []

    def _list_sides(self) -> dict[str, int]:
        """Return the shorter side in pixels of every clean face by key, from the files' headers."""
        if not self.root.is_dir():
            raise QuantFaceError(
                f"training faces: no folder {self.root}; put clean, aligned, square images of "
                "faces there, or point elsewhere with "
                "--force_yml datasets:train:dataroot_gt=FOLDER"
            )
        if self.backend["type"] == "lmdb":
            self.backend["db_paths"] = str(self.root)
            sides = read_sides(self.root)
            self.num_files = len(sides)
            return sides
        paths = find_images(self.root)
        self.num_files = len(paths)
        if not paths:
            raise QuantFaceError(f"training faces: no image ({FORMAT_NAMES}) in {self.root}")
        sides = {}
        for path in paths:
            try:
                sides[str(path)] = min(read_size(path))
            except QuantFaceError as error:
                self.unreadable.append(str(error))
        if self.unreadable:
            self._report_unreadable()
        return sides

    def _report_unreadable(self) -> None:
        """Warn of the files that cannot be used, or raise an error if they are more than half."""
        count = len(self.unreadable)
        listed = "; ".join(self.unreadable[-MAX_NAMED:])
        more = f"; and {count - MAX_NAMED} more" if count > MAX_NAMED else ""
        message = (
            f"training faces: {count} of {self.num_files} files in {self.root} cannot be used and "
            f"are skipped: {listed}{more}"
        )
        if 2 * count > self.num_files:
            raise QuantFaceError(f"{message}; at most half may be unusable")
        get_root_logger().warning(message)

    def _without_holdout(self, sides: dict[str, int], holdout: Mapping[str, int]) -> dict[str, int]:
        def kept(key: str) -> bool:
            path = Path(key)
            folder = path.parent.name
            # Keys of an LMDB have no suffix, but may have dots.
            stem = path.name if self.backend["type"] == "lmdb" else path.stem
            return folder not in holdout or not held_out(stem, holdout[folder])

        return {key: side for key, side in sides.items() if kept(key)}

    def _by_skin_tone(self) -> list[list[str]]:
        """Return the keys of every class of skin tone that occurs, repeated as ``keys`` are."""
        tones = {}
        for key in dict.fromkeys(self.keys):
            try:
                tones[key] = skin_tone(self._read(key))
            except QuantFaceError as error:
                self._drop(key, error)
        keys = [key for key in self.keys if key in tones]
        classes = {tone: [key for key in keys if tones[key] == tone] for tone in SKIN_TONES}
        found = {tone: len(keys) for tone, keys in classes.items()}
        get_root_logger().info(f"Samples by skin tone, drawn equally often: {found}")
        return [keys for keys in classes.values() if keys]

    def _repeated(self, keys: list[str], repeat: Mapping[str, int]) -> list[str]:
        missing = set(repeat) - {Path(key).parent.name for key in keys}
        if missing:
            get_root_logger().warning(f"repeat: no subfolder {sorted(missing)} in {self.root}")
        return [key for key in keys for _ in range(repeat.get(Path(key).parent.name, 1))]

    def _read(self, key: str) -> np.ndarray:
        if self.client is None:
            options = dict(self.backend)
            self.client = FileClient(options.pop("type"), **options)
        rgb = decode_rgb(self.client.get(key) or b"", key)
        return rgb[..., ::-1].astype(np.float32) / 255

    def _random_key(self) -> str:
        return random.choice(random.choice(self.tones) if self.tones else self.keys)

    def _draw(self, index: int, size: int) -> tuple[str, np.ndarray]:
        """Return a face by its index, or another at random if it is too small or damaged."""
        key = self._random_key() if self.tones else self.keys[index]
        while True:
            if key in self.large_enough[size]:
                try:
                    return key, self._read(key)
                except QuantFaceError as error:
                    self._drop(key, error)
            key = self._random_key()

    def _drop(self, key: str, error: QuantFaceError) -> None:
        """Leave out a file whose damage shows only when its pixels are decoded."""
        self.unreadable.append(str(error))
        self._report_unreadable()
        for size, keys in self.large_enough.items():
            keys.discard(key)
            if not keys:
                raise QuantFaceError(
                    f"dataset option gt_size {size}: no image in {self.root} that is that large "
                    f"can be read; the last one: {error}"
                ) from error

    def _size_at(self, iteration: int) -> int:
        return [size for start, size in self.schedule if start <= max(iteration, 0)][-1]

    def _cut(self, image: np.ndarray, size: int, whole: bool) -> tuple[np.ndarray, int]:
        """Return a random crop, shrunk at random, and the side of the face that it came from."""
        side = min(image.shape[:2])
        if side < size:
            # We clip, because Lanczos interpolation overshoots.
            return np.clip(resize(image, size, size), 0, 1), size
        if whole:
            return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA), size
        if side > size and random.random() < self.rescale_prob:
            side = random.randint(size, side)
            image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
        top, left = (random.randint(0, length - size) for length in image.shape[:2])
        return image[top : top + size, left : left + size], side

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        place = index if isinstance(index, SampleIndex) else SampleIndex(index, 0, index)
        size = self._size_at(place.iteration)
        with seeded(self.seed, place.position):
            key, image = self._draw(index, size)
            whole = self.whole_every > 0 and place.iteration % self.whole_every == 0
            gt, face_size = self._cut(image, size, whole)
            if self.use_hflip and random.random() < 0.5:
                gt = gt[:, ::-1]
            # Without the option, nothing is drawn, so the other draws stay the same.
            if self.recolor_prob and random.random() < self.recolor_prob:
                gt = recolored(gt)
            gt = np.ascontiguousarray(gt)
            lq = self.degradation(gt, face_size)
        gt, lq = img2tensor([gt, lq], bgr2rgb=True, float32=True)
        return {"lq": lq, "gt": gt, "lq_path": key, "gt_path": key}

    def __len__(self) -> int:
        return len(self.keys)


def _schedule(gt_size: Any) -> Sequence[Sequence[int]]:
    """Return the sizes of samples as [[iteration, size], ...].

    Raises:
        QuantFaceError: the option is neither a size nor such a schedule.
    """
    found = [[0, gt_size]] if isinstance(gt_size, int) else gt_size
    pairs = [tuple(pair) for pair in found if isinstance(pair, (list, tuple)) and len(pair) == 2]
    whole = all(isinstance(number, int) for pair in pairs for number in pair)
    if not pairs or len(pairs) < len(found) or not whole or min(size for _, size in pairs) < 1:
        raise QuantFaceError(
            f"dataset option gt_size: found {gt_size!r}, allowed is a whole number from 1, or a "
            "schedule [[iteration, size], ...] of them"
        )
    return found
