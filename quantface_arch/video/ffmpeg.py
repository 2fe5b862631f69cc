"""The ffmpeg program, where there is one: H.264, and the sound of the clip that was read."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

__all__ = ["ENCODER", "file_url", "find_ffmpeg", "sound_options"]

ENCODER = "libx264"
# Where a container's sound does not fit into an .mp4.
_RECODED = ("-c:a", "aac", "-b:a", "192k")


@functools.cache
def find_ffmpeg() -> str | None:
    """Path of an ffmpeg that encodes H.264; None where there is none."""
    program = shutil.which("ffmpeg")
    if program is None:
        return None
    listed = _call(program, "-encoders")
    return program if f" {ENCODER} " in listed.stdout else None


def file_url(path: Path) -> str:
    """A path as ffmpeg takes it: never as an option or another protocol, whatever it is called."""
    return f"file:{path.absolute()}"


def sound_options(program: str, source: Path) -> tuple[str, ...] | None:
    """How a clip's sound goes into an .mp4: copied where it fits, else as AAC; None without sound.

    Whether it fits is tried out on its first second.
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
