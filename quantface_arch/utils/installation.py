"""Say what is missing where only the packages for restoring are installed."""

from __future__ import annotations

from importlib.util import find_spec

from quantface_arch.errors import QuantFaceError

__all__ = ["is_full", "missing_message", "need"]


# Every network in torch needs these.
FULL = ("torch", "safetensors", "diffusers")


def is_full() -> bool:
    """Return whether networks can be built in torch here."""
    return all(map(find_spec, FULL))


def missing_message(package: str) -> str:
    """Return what to do about a package that is missing."""
    return (
        f"the package {package} is missing here; the full installation has it: "
        "pip install . in its repository"
    )


def need(what: str, *packages: str) -> None:
    """Check that packages are installed that restoring with a compiled model does not need.

    Args:
        what: what needs them, such as an option, for the message.
        packages: names of modules besides those in ``FULL``.

    Raises:
        QuantFaceError: one is missing. The message names it and says how to install it.
    """
    for package in (*FULL, *packages):
        if find_spec(package) is None:
            raise QuantFaceError(f"{what}: {missing_message(package)}")
