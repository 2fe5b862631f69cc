"""Carry a video's sound, text subtitles, chapters and tags over to a new .mp4 file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction

from av.audio.frame import AudioFrame
from av.audio.layout import AudioLayout
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Discard, Disposition, Stream
from av.subtitles.stream import SubtitleStream
from av.video.stream import VideoStream

from quantface_arch.video.container import demuxed, open_input, step
from quantface_arch.video.reader import VideoReader

__all__ = ["OtherTracks", "unkept"]

# Sound in these formats, which are registered for .mp4, is copied; other sound becomes AAC.
_SOUNDS = frozenset({"aac", "ac3", "alac", "dts", "eac3", "flac", "mp2", "mp3", "opus"})
_AAC_RATES = frozenset(
    {7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000}
)
_OTHER_RATE = 48000
# Each channel layout of the input becomes this layout of the AAC track; others become stereo.
_LAYOUTS = {
    **{name: name for name in ("mono", "stereo", "3.0", "4.0", "5.0", "5.1", "7.1")},
    **{"1 channels": "mono", "5.0(side)": "5.0", "5.1(side)": "5.1"},
}
_BITS_PER_CHANNEL = 96_000
_TEXTS = frozenset({"ass", "mov_text", "ssa", "subrip", "text", "webvtt"})
_STREAM_TAGS = ("language", "title", "handler_name")
# The muxer writes its own values of these tags.
_OWN_TAGS = frozenset({"compatible_brands", "encoder", "major_brand", "minor_version"})


def unkept(source: VideoReader) -> str:
    """Return in words which tracks of a video a new one cannot keep; "" if it keeps all."""
    # FFmpeg discards the track that .mp4 files use for chapters. It is not lost: chapters are kept.
    others = (stream for stream in source.other_streams if stream.discard != Discard.all)
    lost = Counter(_kind(stream) for stream in others if not _is_kept(stream))
    return ", ".join(f"{count} {kind}{'s' * (count > 1)}" for kind, count in lost.items())


class OtherTracks:
    """The sound and subtitle tracks of a video, which are written to a new one.

    The input is opened again and read only as far as the images have been written, so memory does
    not grow with the length of the video.

    Args:
        source: the video that has the tracks.
        output: the new file, to which nothing has been written yet.

    Raises:
        QuantFaceError: the input is damaged.
    """

    def __init__(self, source: VideoReader, output: OutputContainer) -> None:
        self._source, self._output = source, output
        self._input = open_input(source.path)
        _copy_tags(self._input, output, source.origin)
        kept = [stream for stream in self._input.streams if _is_kept(stream)]
        self._tracks = {stream.index: _track(stream, output, source.origin) for stream in kept}
        self._packets = demuxed(source.path, self._input, kept) if kept else iter(())
        self._next: Packet | None = next(self._packets, None)

    def write_until(self, time: Fraction | None) -> None:
        """Write the packets up to a time in seconds, or all that are left if it is None."""
        while self._next is not None and (time is None or self._time(self._next) <= time):
            for packet in self._tracks[self._next.stream.index].converted(self._next):
                self._output.mux(packet)
            self._next = next(self._packets, None)

    def close(self) -> None:
        """Close the input."""
        self._input.close()

    def _time(self, packet: Packet) -> Fraction:
        ticks = packet.pts if packet.dts is None else packet.dts
        return Fraction(0) if ticks is None else ticks * packet.time_base - self._source.origin


def _is_kept(stream: Stream) -> bool:
    if isinstance(stream, AudioStream):
        return stream.codec_context is not None
    return isinstance(stream, SubtitleStream) and _codec(stream) in _TEXTS


def _codec(stream: Stream) -> str:
    """Return FFmpeg's name for the format of a stream."""
    return stream.codec_context.codec.canonical_name if stream.codec_context else "unknown format"


def _kind(stream: Stream) -> str:
    """Return what messages call a stream that is not kept."""
    if isinstance(stream, VideoStream):
        is_cover = Disposition.attached_pic in stream.disposition
        return "cover image" if is_cover else "further video track"
    coded = stream.type in ("audio", "subtitle")
    return f"{_codec(stream)} {stream.type} track" if coded else f"{stream.type} track"


def _copy_tags(source: InputContainer, output: OutputContainer, origin: Fraction) -> None:
    """Copy the tags and the chapters of the file."""
    output.metadata.update(_without(source.metadata, _OWN_TAGS))
    chapters = source.chapters()
    for chapter in chapters:
        unit = chapter["time_base"]
        shift = round(origin / unit) if unit else 0
        chapter["start"] = max(0, chapter["start"] - shift)
        chapter["end"] = max(0, chapter["end"] - shift)
    output.set_chapters(chapters)


def _without(tags: dict[str, str], names: frozenset[str]) -> dict[str, str]:
    return {name: value for name, value in tags.items() if name.lower() not in names}


def _track(stream: Stream, output: OutputContainer, origin: Fraction) -> _Track:
    """Add a track to the new file, and return the object that converts its packets."""
    if isinstance(stream, SubtitleStream) and _codec(stream) != "mov_text":
        track: _Track = _Text(stream, output, origin)
    elif isinstance(stream, AudioStream) and _codec(stream) not in _SOUNDS:
        track = _Sound(stream, output, origin)
    else:
        track = _Copied(stream, output, origin)
    for name in _STREAM_TAGS:
        if name in stream.metadata:
            track.stream.metadata[name] = stream.metadata[name]
    track.stream.disposition = stream.disposition
    return track


class _Track:
    """A track of the new file.

    Args:
        stream: the track of the new file.
        origin: time in the input that counts as 0, in seconds.
    """

    def __init__(self, stream: Stream, origin: Fraction) -> None:
        self.stream, self._origin = stream, origin
        self._last: int | None = None

    def converted(self, packet: Packet) -> Iterator[Packet]:
        """Yield the packets of the new file that replace one packet of the input."""
        raise NotImplementedError

    def _timed(self, packet: Packet) -> Packet:
        """Move a packet to this track, with its time counted from the origin.

        Times must increase within a track; in some inputs they do not.
        """
        time = packet.pts if packet.dts is None else packet.dts
        shift = round(self._origin / packet.time_base)
        dts = (time or 0) - shift
        if self._last is not None:
            dts = max(dts, self._last + 1)
        packet.pts = packet.dts = self._last = dts
        packet.stream = self.stream
        return packet


class _Copied(_Track):
    """A track whose packets are copied."""

    def __init__(self, stream: Stream, output: OutputContainer, origin: Fraction) -> None:
        super().__init__(output.add_stream_from_template(stream), origin)

    def converted(self, packet: Packet) -> Iterator[Packet]:
        if packet.size:
            yield self._timed(packet)


class _Sound(_Track):
    """Sound that is encoded as AAC."""

    def __init__(self, stream: AudioStream, output: OutputContainer, origin: Fraction) -> None:
        self._decoder = stream.codec_context
        layout = _LAYOUTS.get(self._decoder.layout.name, "stereo")
        found = self._decoder.sample_rate
        rate = found if found in _AAC_RATES else _OTHER_RATE
        bits = _BITS_PER_CHANNEL * AudioLayout(layout).nb_channels
        self._encoder = output.add_stream("aac", rate=rate, layout=layout, bit_rate=bits)
        super().__init__(self._encoder, origin)

    def converted(self, packet: Packet) -> Iterator[Packet]:
        # Skip damaged sound, as players do; the images tell whether the file is damaged.
        frames, _ = step(lambda: self._decoder.decode(packet))
        for frame in frames or ():
            yield from self._encoded(frame)
        if not packet.size:
            yield from self._encoded(None)

    def _encoded(self, frame: AudioFrame | None) -> Iterator[Packet]:
        for packet in self._encoder.encode(frame):
            yield self._timed(packet)


class _Text(_Track):
    """Text subtitles that are converted to mov_text, the format for .mp4."""

    def __init__(self, stream: SubtitleStream, output: OutputContainer, origin: Fraction) -> None:
        self._decoder = stream.codec_context
        # The decoder provides the header that the encoder needs.
        self._decoder.open(strict=False)
        added = output.add_stream("mov_text")
        self._encoder = added.codec_context
        self._encoder.subtitle_header = self._decoder.subtitle_header
        super().__init__(added, origin)

    def converted(self, packet: Packet) -> Iterator[Packet]:
        found = step(lambda: self._decoder.decode2(packet))[0] if packet.size else None
        if found is not None:
            text = self._encoder.encode_subtitle(found)
            shown = Fraction(found.end_display_time - found.start_display_time, 1000)
            text.time_base, text.pts, text.dts = packet.time_base, packet.pts, packet.dts
            text.duration = packet.duration or round(shown / packet.time_base)
            yield self._timed(text)
