"""Videos of twelve kinds keep their frames, their times and their sound to within one frame."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from video_clips import Clip, judge, make
from video_kinds import KINDS

from quantface_arch.video.reader import VideoReader
from quantface_arch.video.writer import video_writer


def copied(clip, folder):
    """Return the verdict on a copy of a clip."""
    source = folder / f"source{clip.suffix}"
    make(clip, source)
    with VideoReader(source) as reader, video_writer(folder / "copy.mp4", reader) as write:
        for rgb, span in reader:
            write(rgb, span)
    return judge(clip, folder / "copy.mp4")


def test_there_are_five_videos_of_twelve_kinds():
    assert len(KINDS) == 12 and {len(clips) for clips in KINDS.values()} == {5}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_videos_are_kept(tmp_path, kind):
    verdicts = [copied(clip, tmp_path) for clip in KINDS[kind]]
    assert [verdict.good for verdict in verdicts] == [True] * 5, verdicts


def test_the_times_of_uneven_frames_are_exact(tmp_path):
    clip = replace(KINDS["variable rate, mkv"][0], sound=None)
    times = clip.times()
    make(clip, tmp_path / "a.mkv")
    found = []
    with (
        VideoReader(tmp_path / "a.mkv") as reader,
        video_writer(tmp_path / "b.mp4", reader) as write,
    ):
        for rgb, span in reader:
            write(rgb, span)
            found.append(span)
    with VideoReader(tmp_path / "b.mp4") as reader:
        again = [span for _, span in reader]
    assert [span.start for span in found] == times[:-1]
    assert again == found


def test_a_judge_sees_wrong_copies(tmp_path):
    """The other tests rely on this judge."""
    clip = Clip(".mp4", (Fraction(1, 25),) * 20)
    make(clip, tmp_path / "a.mp4")
    assert judge(clip, tmp_path / "a.mp4").good
    for wrong in (
        replace(clip, gaps=clip.gaps[1:]),
        replace(clip, gaps=(*clip.gaps[:9], Fraction(3, 25), *clip.gaps[10:])),
        replace(clip, late=Fraction(1, 10)),
        replace(clip, degrees=180),
        replace(clip, texts="mov_text"),
    ):
        make(wrong, tmp_path / "b.mp4")
        if wrong.texts:
            assert not judge(wrong, tmp_path / "a.mp4").good
        else:
            assert not judge(clip, tmp_path / "b.mp4").good


def test_gaps_in_avi_files_are_kept(tmp_path):
    """The writer fills them with empty chunks, which repeat a frame."""
    gaps = (Fraction(1, 25), Fraction(3, 25), Fraction(1, 25), Fraction(2, 25), Fraction(1, 25))
    make(Clip(".avi", gaps, codec="mpeg4", sound=None), tmp_path / "a.avi")
    with VideoReader(tmp_path / "a.avi") as reader:
        assert [span.duration for _, span in reader] == list(gaps)


def test_the_clock_of_a_recording_starts_at_any_time(tmp_path):
    clip = Clip(".mpg", (Fraction(1, 25),) * 30, codec="mpeg2video", sound="mp2")
    make(clip, tmp_path / "a.mpg")
    with VideoReader(tmp_path / "a.mpg") as reader:
        assert reader.origin > Fraction(1, 4)
        assert next(iter(reader))[1].start < Fraction(1, 25)
    assert copied(clip, tmp_path).good
