"""Settings of the property tests, and a fixture that several tests share."""

from __future__ import annotations

import pytest
import torch
from cost_helpers import Wide, recipe_of
from hypothesis import settings
from quant_helpers import pictures

from quantface_arch.quant import quantize

# A busy machine is no failure.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="module")
def wide_model():
    """Return a quantized model, balanced and branched."""
    # With this seed the layers choose different kinds of balancing.
    torch.manual_seed(4)
    net = Wide().eval()
    quantize(net, recipe_of("auto"), pictures(2), progress=False)
    return net
