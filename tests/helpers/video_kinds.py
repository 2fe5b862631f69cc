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


def _clips() -> Iterator[tuple[str, list[Clip]]]:
    even, thirty = _even(25), _even(30)
    rates = (Fraction(24000, 1001), 25, 30, Fraction(30000, 1001), 60)
    yield "constant rate", [Clip(".mp4", _even(rate)) for rate in rates]
    sounds = ("flac", "libopus", "ac3", "pcm_s16le", "mp2")
    yield (
        "variable rate, mkv",
        [Clip(".mkv", _uneven(n), sound=name) for n, name in enumerate(sounds)],
    )
    webm = Clip(".webm", even, sound="libopus", codec="libvpx")
    yield (
        "variable rate, webm",
        [
            replace(webm, gaps=_uneven(5 + n), codec=("libvpx", "libvpx-vp9")[n % 2])
            for n in range(5)
        ],
    )
    cuts = (Fraction(3, 25), Fraction(1, 2), Fraction(7, 10), Fraction(13, 50), Fraction(24, 25))
    yield "edit list", [Clip(".mp4", _even(25, 2), cut=cut) for cut in cuts]
    late = [Clip(".mp4", even, late=Fraction(n, 10)) for n in (2, 8)]
    late += [Clip(".mkv", thirty, sound="flac", late=Fraction(n, 10)) for n in (8, 5)]
    yield "late images", [*late, replace(webm, late=Fraction(8, 10))]
    turned = [Clip(".mp4", even, degrees=degrees) for degrees in (90, 180, 270)]
    large = Clip(".mov", even, degrees=90, size=(160, 120))
    yield "rotation", [*turned, large, replace(large, degrees=270, size=(66, 130))]
    silent = Clip(".mp4", thirty, sound=None)
    avi = replace(silent, suffix=".avi", codec="mpeg4")
    others = [replace(silent, suffix=suffix) for suffix in (".mkv", ".mov")]
    yield "no sound", [silent, *others, avi, replace(webm, sound=None)]
    odd = Clip(".mkv", even, sound="flac", size=(97, 65))
    yield (
        "odd sizes",
        [
            replace(odd, codec="ffv1", pix_fmt="yuv444p"),
            replace(odd, pix_fmt="yuv444p"),
            replace(odd, suffix=".mp4", codec="mpeg4", sound="aac", size=(83, 64)),
            replace(webm, size=(64, 51)),
            replace(odd, suffix=".mov", codec="png", pix_fmt="rgb24", sound="aac"),
        ],
    )
    mov = Clip(".mov", even)
    yield (
        "alpha",
        [
            replace(webm, codec="libvpx-vp9", pix_fmt="yuva420p"),
            replace(mov, codec="png", pix_fmt="rgba"),
            replace(mov, codec="qtrle", pix_fmt="argb"),
            replace(mov, codec="prores_ks", pix_fmt="yuva444p10le"),
            replace(odd, codec="ffv1", pix_fmt="yuva444p", size=(64, 48)),
        ],
    )
    yield (
        "10 bit",
        [
            replace(silent, pix_fmt="yuv420p10le", sound="aac"),
            replace(silent, codec="libx265", pix_fmt="yuv420p10le", sound="aac"),
            replace(mov, codec="prores_ks", pix_fmt="yuv422p10le"),
            replace(odd, codec="prores_ks", pix_fmt="yuv444p10le", size=(98, 66)),
            replace(odd, codec="ffv1", pix_fmt="yuv422p10le", size=(64, 48)),
        ],
    )
    mkv = Clip(".mkv", even, sound="libopus", texts="subrip")
    yield (
        "subtitles and chapters",
        [
            mkv,
            replace(mkv, texts="ass", gaps=_uneven(10)),
            Clip(".mp4", even, texts="mov_text"),
            Clip(".mp4", thirty, codec="mpeg4", texts="mov_text"),
            replace(webm, texts="webvtt"),
        ],
    )
    live = replace(webm, container={"live": "1"})
    gaps = (even, thirty, _uneven(11), _uneven(12), _even(60))
    yield "live webm", [replace(live, gaps=own) for own in gaps]


KINDS: dict[str, list[Clip]] = dict(_clips())
