"""Transfer a file of a repository, going on where an earlier transfer ended."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import IO

from quantface_arch.pretrained.hub.listing import Remote
from quantface_arch.utils.progress import progress_bar

__all__ = ["transfer"]

_TIMEOUT_SECONDS = 30
_PIECE = 1 << 20
_PARTIAL = 206


def transfer(remote: Remote, part: Path, endpoint: str | None) -> None:
    """Complete ``part``, which holds the first bytes of a file or does not exist.

    Raises:
        OSError: the hub refuses, the connection breaks, the hub sends something else, or the file
            cannot be written. What has arrived is kept.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(remote.mirror.repo, remote.path, revision=remote.commit, endpoint=endpoint)
    part.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() else 0
    if have == remote.size:
        return
    request = urllib.request.Request(url)
    for name, value in build_hf_headers().items():
        # A hub sends large files from another host, which must not see the user's token.
        request.add_unredirected_header(name, value)
    if 0 < have < remote.size:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as source:
        if source.headers.get_content_type() == "text/html":
            raise OSError("found a web page in place of the file")
        goes_on = source.status == _PARTIAL
        _copy(source, part, remote, have if goes_on else 0)
    found = part.stat().st_size
    if found < remote.size:
        raise OSError(f"the connection ended after {found} of {remote.size} bytes")


def _copy(source: IO[bytes], part: Path, remote: Remote, have: int) -> None:
    """Append what the hub sends to the first ``have`` bytes of a file."""
    name = remote.path.rpartition("/")[2]
    bar = progress_bar(
        desc=name, total=remote.size, initial=have, unit="B", unit_scale=True, leave=False
    )
    with part.open("ab") as sink, bar:
        sink.truncate(have)
        while piece := source.read(_PIECE):
            sink.write(piece)
            bar.update(len(piece))
