"""Choose a bit width for every layer of a restorer, without an options file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from quantface_arch.data.calibration_faces import Faces
from quantface_arch.quant import CalibrationData, Recipe
from quantface_arch.quant.allocation.allocation import solve_allocation
from quantface_arch.quant.allocation.budget import Budget
from quantface_arch.quant.allocation.distance import network_distance
from quantface_arch.quant.allocation.pipeline import Measurement, measure_network
from quantface_arch.quant.allocation.settings import AllocationSettings
from quantface_arch.quant.config.bitmap import bits_of, load_bit_map, save_bit_map
from quantface_arch.quant.nn.traits import traits_of

__all__ = ["MIXED", "RECIPE", "allocated"]

# The name of the mixed precision, and of the recipe whose bit widths it replaces.
MIXED, RECIPE = "mp", "w4a4"
_WIDTHS, _BUDGET = {"w": (4,), "a": (3, 4, 5, 6, 8)}, Budget(activation_bits=4.0)


def allocated(
    load: Callable[[], nn.Module], faces: Faces, path: Path
) -> dict[str, tuple[int, int]]:
    """Return bit widths by layer, and keep them in ``path``, a bit map in YAML.

    The sensitivities are kept beside the bit map while they are measured, so that a killed run goes
    on.

    Args:
        load: loads the restorer in full precision; only called if the bit map does not exist.
        faces: degraded faces to measure on; they get the range of the model's input.

    Raises:
        QuantFaceError: the bit map is damaged, or no bit widths meet the budget.
    """
    if path.is_file():
        return bits_of(load_bit_map(path))
    net = load()
    faces.input_range = traits_of(net).input_range
    job = Measurement(
        recipe=replace(Recipe.from_name(RECIPE), eight_bit=traits_of(net).eight_bit_patterns),
        plan=None,
        distance=network_distance(net),
        path=path.with_suffix(".sensitivities.json"),
        described_by=[RECIPE, len(faces)],
    )
    settings = AllocationSettings(widths=_WIDTHS, budget=_BUDGET, image_size=faces[0].shape[-1])
    data = CalibrationData(faces, batch_size=1)
    found = solve_allocation(measure_network(net, data, job, settings), settings)
    save_bit_map(path, found.choices, found.averages, "measured on the shipped faces")
    job.path.unlink(missing_ok=True)
    return bits_of(found.choices)
