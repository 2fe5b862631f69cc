"""Make videos whose frames, times and sound are known exactly, and check copies of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from videos import SOUND_RATE, turn, write_tone

__all__ = ["Clip", "Verdict", "judge", "make"]

# A frame shows its number in black and white cells: one white, ten bits, one black. Turned or
# mirrored frames read as other numbers.
_ROWS, _COLUMNS = 3, 4
_BITS = 10
# The tone begins this long after the sound does.
_SILENCE = Fraction(3, 10)
_CHAPTERS = (("One", 0, 400), ("Two", 400, 1000))
_TEXTS = (("Hello", 200, 300), ("Grüße", 600, 250))
_ASS_HEADER = b"""[Script Info]
ScriptType: v4.00+
[V4+ Styles]
Format: Name, Fontname, Fontsize
Style: Default,Arial,16
[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""


@dataclass(frozen=True)
class Clip:
    """A video to make.

    Attributes:
        suffix: suffix of the file.
        gaps: duration of each frame, in seconds.
        codec, pix_fmt: encoder and pixel format of the frames.
        size: width and height in pixels.
        sound: encoder of the sound; None for no sound.
        late: time of the first frame, in seconds; the sound starts at 0.
        cut: time in seconds before which an edit list hides the video.
        degrees: clockwise rotation in the metadata.
        texts: encoder of subtitles; the clip then also has chapters and a title.
        container: options of the file format.
    """

    suffix: str
    gaps: tuple[Fraction, ...]
    codec: str = "libx264"
    pix_fmt: str = "yuv420p"
    size: tuple[int, int] = (64, 48)
    sound: str | None = "aac"
    late: Fraction = Fraction(0)
    cut: Fraction = Fraction(0)
    degrees: int = 0
    texts: str | None = None
    container: dict[str, str] = field(default_factory=dict)

    def times(self) -> list[Fraction]:
        """Return the time of each frame, and last the end of the video, before any cut."""
        return [self.late + sum(self.gaps[:n], Fraction(0)) for n in range(len(self.gaps) + 1)]


def make(clip: Clip, path: Path) -> None:
    """Write a clip to a file with the clip's suffix."""
    times = clip.times()
    unit = Fraction(1, int(np.lcm.reduce([time.denominator for time in [*times, clip.cut]])))
    with av.open(str(path), "w", container_options=clip.container) as output:
        mean = (len(clip.gaps) / sum(clip.gaps, Fraction(0))).limit_denominator(1001)
        video: Any = output.add_stream(clip.codec, rate=mean)
        video.width, video.height = clip.size
        video.pix_fmt, video.codec_context.time_base = clip.pix_fmt, unit
        video.options = {"crf": "10"} if clip.codec.startswith("lib") else {"qmin": "1"}
        video.options |= {"x265-params": "log-level=none"} if clip.codec == "libx265" else {}
        tone: Any = clip.sound and output.add_stream(clip.sound, rate=SOUND_RATE, layout="stereo")
        texts = _add_texts(output, clip.texts) if clip.texts else None
        for number, (start, gap) in enumerate(zip(times, clip.gaps, strict=False)):
            frame = av.VideoFrame.from_ndarray(_stored(clip, number), format="rgba")
            frame.pts, frame.duration, frame.time_base = int(start / unit), int(gap / unit), unit
            _mux(output, video.encode(frame), clip.cut)
        _mux(output, video.encode(None), clip.cut)
        if tone:
            shifted = _Shifted(output, clip.cut)
            write_tone(shifted, tone, 0, float(times[-1]), float(clip.cut + _SILENCE))
        if texts:
            _write_texts(output, texts)
    if clip.degrees:
        turn(path, clip.degrees)


def _mux(output: Any, packets: list[Any], cut: Fraction) -> None:
    """Write packets earlier by ``cut`` seconds; an edit list of .mp4 hides those before 0."""
    for packet in packets:
        shift = round(cut / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        output.mux(packet)


@dataclass
class _Shifted:
    """An output whose packets are written earlier."""

    output: Any
    cut: Fraction

    def mux(self, packets: list[Any]) -> None:
        _mux(self.output, packets, self.cut)


def _add_texts(output: Any, codec: str) -> Any:
    output.metadata["title"] = "A title"
    unit = Fraction(1, 1000)
    output.set_chapters(
        [
            {"id": n, "start": start, "end": end, "time_base": unit, "metadata": {"title": title}}
            for n, (title, start, end) in enumerate(_CHAPTERS)
        ]
    )
    stream = output.add_stream(codec)
    stream.codec_context.subtitle_header = _ASS_HEADER
    stream.metadata["language"] = "deu"
    return stream


def _write_texts(output: Any, stream: Any) -> None:
    for number, (text, start, length) in enumerate(_TEXTS):
        data = text.encode()
        if stream.codec_context.name == "ass":
            data = f"{number},0,Default,,0,0,0,,".encode() + data
        if stream.codec_context.name == "mov_text":
            data = len(data).to_bytes(2, "big") + data
        packet: Any = av.Packet(data)
        packet.stream, packet.time_base = stream, Fraction(1, 1000)
        packet.pts = packet.dts = start
        packet.duration = length
        output.mux(packet)


def _stored(clip: Clip, number: int) -> np.ndarray:
    """Return a frame as it is stored: turned back by the rotation in the metadata."""
    quarters = clip.degrees // 90
    upright = clip.size[::-1] if quarters % 2 else clip.size
    return np.ascontiguousarray(np.rot90(_numbered(number, upright), quarters))


def _numbered(number: int, size: tuple[int, int]) -> np.ndarray:
    """Return an (H, W, 4) frame that shows a number; its right half is transparent."""
    bits = [1, *(number >> bit & 1 for bit in range(_BITS)), 0]
    cells = np.array(bits, np.uint8).reshape(_ROWS, _COLUMNS) * 200 + 25
    rows = np.arange(size[1]) * _ROWS // size[1]
    columns = np.arange(size[0]) * _COLUMNS // size[0]
    frame = np.repeat(cells[rows][:, columns, None], 4, axis=2)
    frame[..., 3] = np.where(columns < _COLUMNS // 2, 255, 90)
    return frame


def _number(rgb: np.ndarray) -> int:
    """Return the number that a frame shows, -1 if its first and last cell are not as they must."""
    height, width = rgb.shape[:2]
    rows = ((np.arange(_ROWS) + 0.5) * height / _ROWS).astype(int)
    columns = ((np.arange(_COLUMNS) + 0.5) * width / _COLUMNS).astype(int)
    first, *bits, last = (rgb[rows][:, columns].mean(axis=2) > 128).ravel()
    number = sum(int(bit) << place for place, bit in enumerate(bits))
    return number if first and not last else -1


@dataclass(frozen=True)
class Verdict:
    """How a copy of a clip differs from it.

    Attributes:
        equal: whether the copy shows the same frames in the same order.
        time_error: largest error of a frame's time and of the length, in frames.
        sound_error: error of the time between the first frame and the tone, in frames.
        complete: whether subtitles, chapters and title are those of the clip.
    """

    equal: bool
    time_error: float
    sound_error: float
    complete: bool

    @property
    def good(self) -> bool:
        """Whether the copy is true to within one frame."""
        return self.equal and self.complete and max(self.time_error, self.sound_error) < 1


def judge(clip: Clip, copy: Path) -> Verdict:
    """Compare an upright copy in .mp4 with the clip, by a reader other than the product's."""
    *times, end = clip.times()
    shown = [number for number, time in enumerate(times) if time >= clip.cut]
    wanted = [times[number] - times[shown[0]] for number in shown]
    frame = float((end - times[shown[0]]) / len(shown))
    with av.open(str(copy)) as source:
        found = [(_number(f.to_ndarray(format="rgb24")), f) for f in source.decode(video=0)]
        length = source.streams.video[0].duration * source.streams.video[0].time_base
    first = found[0][1].time
    errors = [abs(own.time - first - time) for (_, own), time in zip(found, wanted, strict=False)]
    errors.append(abs(float(length - (end - times[shown[0]]))))
    sound = 0.0
    if clip.sound:
        wanted_sound = float(clip.cut + _SILENCE - times[shown[0]])
        sound = abs(_onset(copy) - first - wanted_sound)
    return Verdict(
        [number for number, _ in found] == shown,
        float(max(errors)) / frame,
        sound / frame,
        clip.texts is None or _is_complete(copy),
    )


def _onset(path: Path) -> float:
    """Return the time in seconds at which the tone begins."""
    resampler = av.AudioResampler(format="fltp")
    with av.open(str(path)) as source:
        for decoded in source.decode(audio=0):
            for frame in resampler.resample(decoded):
                loud = np.flatnonzero(np.abs(frame.to_ndarray()[0]) > 0.1)
                if loud.size:
                    return frame.time + int(loud[0]) / frame.sample_rate
    return float("inf")


def _milliseconds(chapter: Any, *names: str) -> list[int]:
    return [round(1000 * chapter[name] * chapter["time_base"]) for name in names]


def _is_complete(path: Path) -> bool:
    """Return whether a file has the subtitles, chapters and title of the clips that have them."""
    with av.open(str(path)) as source:
        if not source.streams.subtitles:
            return False
        chapters = [
            (
                c["metadata"].get("title"),
                *(round(1000 * c[k] * c["time_base"]) for k in ("start", "end")),
            )
            for c in source.chapters()
        ]
        title, stream = source.metadata.get("title"), source.streams.subtitles[0]
        texts = []
        for packet in source.demux(stream):
            text = bytes(packet)[2:].decode()
            if text:
                places = packet.pts, packet.duration
                texts.append((text, *(round(1000 * at * packet.time_base) for at in places)))
        language = stream.language
    return (
        chapters == list(_CHAPTERS)
        and texts == list(_TEXTS)
        and (title, language) == ("A title", "deu")
    )
