"""Make test videos with PyAV and inspect them."""

from __future__ import annotations

import hashlib
from fractions import Fraction

import av
import numpy as np

from quantface_arch.video.reader import VideoReader
from quantface_arch.video.writer import video_writer

SOUND_RATE = 48000
_BLOCK = 960

USUAL_CODECS = {".webm": "libvpx-vp9", ".avi": "mpeg4", ".mpg": "mpeg2video"}


def write_video(
    path,
    frames,
    rate=25,
    sound=None,
    *,
    codec=None,
    aspect=None,
    gop=12,
    times=None,
    attachment=None,
    **container,
):
    """Encode (H, W, 3) uint8 RGB frames.

    Args:
        rate: frames per second.
        sound: name of the encoder of a tone that lasts as long as the frames; None for no sound.
        codec: name of the encoder of the frames; H.264, or what the suffix needs, if None.
        aspect: width of a pixel divided by its height.
        gop: a frame that is coded on its own follows this many frames after the last one.
        times: times of the frames in units of 1 / ``rate``; evenly spaced if None.
        attachment: content of a font that is attached.
        container: options of the file format.
    """
    codec = codec or USUAL_CODECS.get(path.suffix, "libx264")
    options = {"crf": "10"} if codec.startswith("lib") else {"qmin": "1", "qmax": "2"}
    with av.open(f"file:{path.absolute()}", "w", container_options=container) as output:
        video = output.add_stream(codec, rate=Fraction(rate).limit_denominator(1001))
        video.options, video.gop_size = options, gop
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = "yuv420p"
        if aspect is not None:
            video.codec_context.sample_aspect_ratio = aspect
        tone = output.add_stream(sound, rate=SOUND_RATE, layout="stereo") if sound else None
        if attachment is not None:
            output.add_attachment("font.ttf", "font/ttf", attachment)
        write_frames(output, video, frames, times or range(len(frames)))
        if tone is not None:
            write_tone(output, tone, 0, float(len(frames) / Fraction(rate)))


def write_frames(output, stream, frames, times):
    """Encode frames at times in units of the inverse frame rate."""
    for time, rgb in zip(times, frames, strict=True):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        frame.pts, frame.time_base = time, 1 / stream.codec_context.framerate
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def write_tone(output, stream, start, end, silent_until=0.0):
    """Encode a tone of 440 Hz from ``start`` to ``end`` seconds, silent before a time."""
    for begin in range(round(start * SOUND_RATE), round(end * SOUND_RATE), _BLOCK):
        at = np.arange(begin, begin + _BLOCK) / SOUND_RATE
        wave = 0.5 * np.sin(2 * np.pi * 440 * at) * (at >= silent_until)
        samples = np.stack([wave, wave]).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = SOUND_RATE, begin
        frame.time_base = Fraction(1, SOUND_RATE)
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def turn(path, degrees):
    """Set the rotation in the header of an .mp4 file, in degrees clockwise."""
    one = 1 << 16
    a, b = {0: (one, 0), 90: (0, one), 180: (-one, 0), 270: (0, -one)}[degrees]
    matrix = np.array([a, b, 0, -b, a, 0, 0, 0, 1 << 30], ">i4").tobytes()
    whole = np.array([one, 0, 0, 0, one, 0, 0, 0, 1 << 30], ">i4").tobytes()
    data = path.read_bytes()
    header = data.index(b"tkhd")
    place = data.index(whole, header)
    path.write_bytes(data[:place] + matrix + data[place + len(matrix) :])


def copy_video(source, target):
    """Read and write a video without changing its frames."""
    with VideoReader(source) as reader, video_writer(target, reader) as write:
        for rgb, span in reader:
            write(rgb, span)


def frames_of(path):
    """Return the frames of a video."""
    with VideoReader(path) as reader:
        return [rgb for rgb, _ in reader]


def streams(path):
    """Return the streams of a file by their type, as dictionaries of facts."""
    with av.open(f"file:{path.absolute()}") as found:
        return {stream.type: _facts(stream) for stream in found.streams}


def _facts(stream):
    facts = {"codec": stream.codec_context.name if stream.codec_context else None}
    facts |= {"frames": stream.frames, "tags": dict(stream.metadata)}
    if stream.type == "video":
        facts |= {"size": (stream.width, stream.height), "rate": stream.average_rate}
        facts |= {"aspect": stream.sample_aspect_ratio, "colours": stream.colorspace}
    return facts


def sound_hash(path):
    """Return the hash of the encoded sound, which copying does not change."""
    found = hashlib.sha256()
    with av.open(str(path)) as source:
        for packet in source.demux(audio=0):
            found.update(bytes(packet))
    return found.hexdigest()
