"""The budgets of a bit allocation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from quantface_arch.errors import QuantFaceError, check_choice, check_keys
from quantface_arch.utils.deprecated import renamed_key

__all__ = ["LIMITS", "TIMED", "Budget"]

# This maps the runtimes that can be timed to the devices on which they are, unless a budget names
# one. The reference simulates quantization, so that all choices take equally long.
TIMED = {"openvino": "cpu", "cuda": "cuda"}
LIMITS = ("activation_bits", "weight_bits", "megabytes", "milliseconds")


@dataclass(frozen=True)
class Budget:
    """Upper limits; None means no limit.

    Attributes:
        activation_bits: average bit width of inputs, weighted by multiply-accumulates.
        weight_bits: average bit width of weights, weighted by parameters.
        megabytes: size of the checkpoint, in 10⁶ bytes.
        milliseconds: time of one image on this machine.
        runtime: the runtime that is timed, ``openvino`` or ``cuda``; None is ``openvino``.
        device: the torch device on which it is timed; None is ``cpu``, and ``cuda`` with that
            runtime.

    Raises:
        QuantFaceError: a limit is not a positive number, a runtime cannot be timed, or a runtime or
            device is given without ``milliseconds``.
    """

    activation_bits: float | None = None
    weight_bits: float | None = None
    megabytes: float | None = None
    milliseconds: float | None = None
    runtime: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        for name in LIMITS:
            value = getattr(self, name)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (is_number and 0 < value < math.inf):
                raise QuantFaceError(f"budget {name}: found {value!r}, a positive number is wanted")
        check_choice("budget runtime", self.runtime, (*TIMED, None))
        if not isinstance(self.device, str | None):
            raise QuantFaceError(f"budget device: found {self.device!r}, a torch device is wanted")
        for name in ("runtime", "device"):
            value = getattr(self, name)
            if value is not None and self.milliseconds is None:
                raise QuantFaceError(
                    f"budget {name}: found {value!r} without milliseconds, which it belongs to"
                )

    @property
    def has_file_or_time(self) -> bool:
        """Return whether ranks and balancing count in the budget."""
        return self.megabytes is not None or self.milliseconds is not None

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> Budget:
        """Return the budget of a mapping from YAML; ``bytes`` is an old name of ``megabytes``.

        Raises:
            QuantFaceError: a key is unknown, or a value is not allowed.
        """
        given = renamed_key("budget", options, "bytes", "megabytes", 1e-6)
        check_keys("budget", given, (item.name for item in fields(cls)))
        return cls(**given)
