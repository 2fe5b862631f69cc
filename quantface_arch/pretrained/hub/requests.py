"""Make requests of a hub, and say in a few words why one fails."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar
from urllib.error import HTTPError

from quantface_arch.errors import QuantFaceError, WriteError, one_line

__all__ = ["HubError", "persistently"]

_PAUSES_SECONDS = (0.5, 1.0)
# Answers that do not change when they are asked for again.
_FINAL = (401, 403, 404)
_REFUSALS = {
    401: "no such repository, or a login is needed (set HF_TOKEN)",
    403: "access is refused (agree to its terms on the hub, then set HF_TOKEN)",
    404: "no such repository, revision or file",
    429: "too many requests; try again later",
}
T = TypeVar("T")


class HubError(QuantFaceError):
    """A hub, or one of its repositories, that does not give what is asked of it.

    Attributes:
        status: HTTP status of the hub's answer, if it answered.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def persistently(request: Callable[[], T], what: str) -> T:
    """Make a request a few times before giving up; a hub that refuses it is asked once.

    Raises:
        HubError: the request fails. The message names ``what`` and gives the reason.
        WriteError: there is no room on the disk for what it writes.
    """
    for pause in (*_PAUSES_SECONDS, None):
        try:
            return request()
        except Exception as error:  # The client raises what its HTTP library raises.
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise WriteError(f"{what}: cannot be written: {_reason(error)}") from error
            if pause is None or _status(error) in _FINAL:
                raise HubError(f"{what}: {_reason(error)}", _status(error)) from error
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of the answer that an error is about, if any."""
    if isinstance(error, HTTPError):
        return error.code
    return getattr(getattr(error, "response", None), "status_code", None)


def _reason(error: BaseException) -> str:
    """Return why a request to a hub failed, in a few words."""
    status = _status(error)
    if status in _REFUSALS:
        return f"{_REFUSALS[status]} ({status})"
    if status is not None and status >= 500:
        return f"the hub does not work at the moment ({status})"
    return one_line(error) or type(error).__name__
