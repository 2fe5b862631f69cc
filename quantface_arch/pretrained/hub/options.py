"""How restorers are fetched from the hub, and whether the user agrees to it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from quantface_arch.errors import UsageError

__all__ = ["BASE_VARIABLE", "FetchOptions", "ask"]

VARIABLE = "QUANTFACE_YES"
BASE_VARIABLE = "QUANTFACE_SD_BASE"


@dataclass(frozen=True)
class FetchOptions:
    """How a restorer is fetched.

    Attributes:
        yes: fetch without asking.
        offline: fetch nothing.
        base: folder or hub id (``USER/REPOSITORY``, optionally ``@REVISION``) of Stable Diffusion
            2.1-base, in place of the mirrors.
        revision: branch, tag or commit of OSDFace's repository.
        endpoint: address of the hub. None takes the variable HF_ENDPOINT, then the public hub.
    """

    yes: bool = False
    offline: bool = False
    base: str | None = None
    revision: str | None = None
    endpoint: str | None = None

    @property
    def base_place(self) -> str | None:
        """The base, or the variable QUANTFACE_SD_BASE; None for the mirrors."""
        return self.base or os.environ.get(BASE_VARIABLE) or None

    @property
    def hub(self) -> str | None:
        """The hub's address; None for the public hub."""
        return self.endpoint or os.environ.get("HF_ENDPOINT") or None


def ask(text: str, yes: bool) -> None:
    """Show what is about to be fetched and ask once whether to go on.

    Args:
        text: what, from where, how large, under which terms.
        yes: do not ask. Nor does the variable QUANTFACE_YES.

    Raises:
        UsageError: the user does not agree, or there is no terminal to ask at.
    """
    print(text, file=sys.stderr)
    given = os.environ.get(VARIABLE, "")
    if given not in ("", "0", "1"):
        raise UsageError(f"{VARIABLE}: found {given!r}, allowed are 0 and 1")
    if yes or given == "1":
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(
            f"nothing was fetched: there is no terminal to ask at; {VARIABLE}=1 agrees, and so "
            "does --yes where a command has it"
        )
    print("Fetch this? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was fetched")
