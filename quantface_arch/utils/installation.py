"""Say what is missing where only the packages for restoring are installed."""

from __future__ import annotations

from importlib.util import find_spec

from quantface_arch.errors import QuantFaceError

__all__ = ["need"]


def need(what: str, *packages: str) -> None:
    """Check that packages are installed that restoring with a compiled model does not need.

    Args:
        what: what needs them, such as an option, for the message.
        packages: names of modules.

    Raises:
        QuantFaceError: one is missing. The message names it and says how to install it.
    """
    for package in packages:
        if find_spec(package) is None:
            raise QuantFaceError(
                f"{what}: the package {package} is missing here; the full installation has it: "
                "pip install . in its repository"
            )
