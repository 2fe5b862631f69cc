"""Videos of twelve kinds, five of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np
from video_clips import Clip

__all__ = ["KINDS"]


def _even(rate: Fraction | int, seconds: float = 1.2) -> tuple[Fraction, ...]:
    return (1 / Fraction(rate),) * round(seconds * rate)


def _uneven(seed: int) -> tuple[Fraction, ...]:
    """Return gaps of a 60th to a 10th of a second, in whole milliseconds, and a long one."""
    gaps = np.random.default_rng(seed).integers(17, 100, 24)
    gaps[12] = 450
    return tuple(Fraction(int(gap), 1000) for gap in gaps)


EVEN, THIRTY = _even(25), _even(30)
WEBM = Clip(".webm", EVEN, sound="libopus", codec="libvpx")
SILENT = Clip(".mp4", THIRTY, sound=None)
MOV = Clip(".mov", EVEN)
ODD = Clip(".mkv", EVEN, sound="flac", size=(97, 65))


def _by_time() -> Iterator[tuple[str, list[Clip]]]:
    """Yield the kinds that differ in the times of their frames and sound."""
    rates = (Fraction(24000, 1001), 25, 30, Fraction(30000, 1001), 60)
    yield "constant rate", [Clip(".mp4", _even(rate)) for rate in rates]
    sounds = ("flac", "libopus", "ac3", "pcm_s16le", "mp2")
    yield (
        "variable rate, mkv",
        [Clip(".mkv", _uneven(n), sound=name) for n, name in enumerate(sounds)],
    )
    yield (
        "variable rate, webm",
        [
            replace(WEBM, gaps=_uneven(5 + n), codec=("libvpx", "libvpx-vp9")[n % 2])
            for n in range(5)
        ],
    )
    cuts = (Fraction(3, 25), Fraction(1, 2), Fraction(7, 10), Fraction(13, 50), Fraction(24, 25))
    yield "edit list", [Clip(".mp4", _even(25, 2), cut=cut) for cut in cuts]
    late = [Clip(".mp4", EVEN, late=Fraction(n, 10)) for n in (2, 8)]
    late += [Clip(".mkv", THIRTY, sound="flac", late=Fraction(n, 10)) for n in (8, 5)]
    yield "late images", [*late, replace(WEBM, late=Fraction(8, 10))]
    live = replace(WEBM, container={"live": "1"})
    gaps = (EVEN, THIRTY, _uneven(11), _uneven(12), _even(60))
    yield "live webm", [replace(live, gaps=own) for own in gaps]


def _by_pixels() -> Iterator[tuple[str, list[Clip]]]:
    """Yield the kinds that differ in their frames."""
    turned = [Clip(".mp4", EVEN, degrees=degrees) for degrees in (90, 180, 270)]
    large = Clip(".mov", EVEN, degrees=90, size=(160, 120))
    yield "rotation", [*turned, large, replace(large, degrees=270, size=(66, 130))]
    yield (
        "odd sizes",
        [
            replace(ODD, codec="ffv1", pix_fmt="yuv444p"),
            replace(ODD, pix_fmt="yuv444p"),
            replace(ODD, suffix=".mp4", codec="mpeg4", sound="aac", size=(83, 64)),
            replace(WEBM, size=(64, 51)),
            replace(ODD, suffix=".mov", codec="png", pix_fmt="rgb24", sound="aac"),
        ],
    )
    yield (
        "alpha",
        [
            replace(WEBM, codec="libvpx-vp9", pix_fmt="yuva420p"),
            replace(MOV, codec="png", pix_fmt="rgba"),
            replace(MOV, codec="qtrle", pix_fmt="argb"),
            replace(MOV, codec="prores_ks", pix_fmt="yuva444p10le"),
            replace(ODD, codec="ffv1", pix_fmt="yuva444p", size=(64, 48)),
        ],
    )
    yield (
        "10 bit",
        [
            replace(SILENT, pix_fmt="yuv420p10le", sound="aac"),
            replace(SILENT, codec="libx265", pix_fmt="yuv420p10le", sound="aac"),
            replace(MOV, codec="prores_ks", pix_fmt="yuv422p10le"),
            replace(ODD, codec="prores_ks", pix_fmt="yuv444p10le", size=(98, 66)),
            replace(ODD, codec="ffv1", pix_fmt="yuv422p10le", size=(64, 48)),
        ],
    )


def _by_tracks() -> Iterator[tuple[str, list[Clip]]]:
    """Yield the kinds that differ in what accompanies the frames."""
    avi = replace(SILENT, suffix=".avi", codec="mpeg4")
    others = [replace(SILENT, suffix=suffix) for suffix in (".mkv", ".mov")]
    yield "no sound", [SILENT, *others, avi, replace(WEBM, sound=None)]
    mkv = Clip(".mkv", EVEN, sound="libopus", texts="subrip")
    yield (
        "subtitles and chapters",
        [
            mkv,
            replace(mkv, texts="ass", gaps=_uneven(10)),
            Clip(".mp4", EVEN, texts="mov_text"),
            Clip(".mp4", THIRTY, codec="mpeg4", texts="mov_text"),
            replace(WEBM, texts="webvtt"),
        ],
    )


KINDS: dict[str, list[Clip]] = dict([*_by_time(), *_by_pixels(), *_by_tracks()])
