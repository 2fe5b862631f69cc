"""Report progress and failures of a restore command on stderr."""

from __future__ import annotations

import sys
import traceback

from tqdm import tqdm

from quantface_arch.errors import one_line
from quantface_arch.restore.files import Source
from quantface_arch.utils.cli import describe
from quantface_arch.utils.distributed import Shard
from quantface_arch.utils.progress import progress_bar

__all__ = ["report_failure", "shard_progress"]


def shard_progress(total: int, shard: Shard, unit: str = "image") -> tqdm:
    """Return a progress bar that only the first process shows.

    Args:
        total: number of items of this process; 0 if it is unknown.
        shard: this process.
        unit: name of an item.
    """
    name = f"process 1 of {shard.count}" if shard.count > 1 else None
    return progress_bar(total=total, unit=unit, desc=name, disable=not shard.is_first)


def report_failure(source: Source, error: Exception, debug: bool) -> str:
    """Print on stderr, in one line, why an input failed; return the reason.

    Args:
        source: the input.
        error: why it failed.
        debug: also print the traceback.
    """
    if debug:
        tqdm.write("".join(traceback.format_exception(error)), file=sys.stderr)
    text, name = describe(error), one_line(str(source.path))
    named = text if text.startswith(f"{name}: ") else f"{name}: {text}"
    tqdm.write(f"error: {named}", file=sys.stderr)
    return text
