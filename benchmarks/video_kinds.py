"""Count how many videos of twelve kinds keep their frames, times and sound when they are rewritten.

    python benchmarks/video_kinds.py              # 60 videos, about half a minute

Each video is made with PyAV, so that its frames, the time of each and the start of a tone are known
exactly. This package reads and writes it without changing the frames, and PyAV reads the result.
"frames equal" counts the videos that show the same frames in the same order. The errors are the
largest of a kind, in frames: the time error is that of any frame or of the length, and the sound
error is that of the time between the first frame and the tone. "complete" counts the videos that
keep subtitles, chapters and title. The exit status is 1 if a video is not kept to within one frame.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report import parser, report

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/helpers"))

from video_clips import Clip, Verdict, judge, make
from video_kinds import KINDS

from quantface_arch.video.reader import VideoReader
from quantface_arch.video.writer import video_writer


def rewritten(clip: Clip, folder: Path) -> Verdict:
    """Make a video, read and write it, and compare the result."""
    source, copy = folder / f"source{clip.suffix}", folder / "copy.mp4"
    make(clip, source)
    with VideoReader(source) as reader, video_writer(copy, reader) as write:
        for rgb, span in reader:
            write(rgb, span)
    return judge(clip, copy)


def row(kind: str, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return the table's row for one kind of videos."""
    return {
        "kind": kind,
        "videos": len(verdicts),
        "frames equal": sum(verdict.equal for verdict in verdicts),
        "complete": sum(verdict.complete for verdict in verdicts),
        "worst time error in frames": max(verdict.time_error for verdict in verdicts),
        "worst sound error in frames": max(verdict.sound_error for verdict in verdicts),
        "kept": sum(verdict.good for verdict in verdicts),
    }


def main() -> None:
    args = parser(__doc__).parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, clips in KINDS.items():
            chosen = clips[:1] if args.smoke else clips
            rows.append(row(kind, [rewritten(clip, Path(folder)) for clip in chosen]))
    report(rows, args.json)
    sys.exit(any(row["kept"] < row["videos"] for row in rows))


if __name__ == "__main__":
    main()
