"""Find the ffmpeg program, which encodes H.264 and copies the sound of a video."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

__all__ = ["ENCODER", "file_url", "find_ffmpeg", "sound_options"]

ENCODER = "libx264"
# Used if an .mp4 cannot hold the sound as it is.
_RECODED = ("-c:a", "aac", "-b:a", "192k")


@functools.cache
def find_ffmpeg() -> str | None:
    """Return the path of an ffmpeg that encodes H.264, or None."""
    program = shutil.which("ffmpeg")
    if program is None:
        return None
    listed = _call(program, "-encoders")
    return program if f" {ENCODER} " in listed.stdout else None


def file_url(path: Path) -> str:
    """Return a path as a URL, so that ffmpeg takes it for neither an option nor a protocol."""
    return f"file:{path.absolute()}"


def sound_options(program: str, source: Path) -> tuple[str, ...] | None:
    """Return ffmpeg's options for a video's sound, or None if it has no sound.

    The sound is copied if an .mp4 can hold it, which is tested with the first second; otherwise it
    is encoded as AAC.
    """
    source_options = ("-protocol_whitelist", "file", "-i", file_url(source))
    if "Audio:" not in _call(program, *source_options).stderr:
        return None
    copied = ("-c:a", "copy")
    with tempfile.TemporaryDirectory(prefix="quantface-") as folder:
        target = file_url(Path(folder) / "sound.mp4")
        tried = _call(program, *source_options, "-map", "0:a", *copied, "-t", "1", target)
    return _RECODED if tried.returncode else copied


def _call(program: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, "-hide_banner", "-nostdin", *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
