"""Measure one forward pass of OSDFace on the CPU, in float32, with random weights.

    python benchmarks/osdface_memory.py

It builds the published sizes (979 million parameters) and restores one 512×512 image. "peak GB" is
the largest resident memory of the process with interpreter and libraries, in 10⁹ bytes.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from report import parser, peak_gb, report

from quantface_arch.archs.build import build_arch

# A smoke run has the same blocks with only a few thousand weights.
SMOKE: dict[str, Any] = {
    "vre": {
        "resolution": 64,
        "channels": 8,
        "attn_resolutions": (2,),
        "z_channels": 16,
        "num_codes": 32,
        "prompt_dim": 16,
        "norm_num_groups": 4,
    },
    "vae": {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4},
    "unet": {
        "block_out_channels": (16, 16, 32, 32),
        "attention_head_dim": (1, 1, 2, 2),
        "cross_attention_dim": 16,
        "norm_num_groups": 8,
    },
}


@torch.inference_mode()
def measure(size: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """Build the model, run it once on noise, and return time and memory."""
    torch.manual_seed(0)
    start = time.perf_counter()
    model = build_arch({"type": "OSDFace", "preset": "osdface", **overrides}).eval()
    built = time.perf_counter() - start
    built_peak = peak_gb()
    start = time.perf_counter()
    restored = model(torch.rand(1, 3, size, size) * 2 - 1)
    return {
        "parameters M": sum(p.numel() for p in model.parameters()) / 1e6,
        "picture": "x".join(str(side) for side in restored.shape[-2:]),
        "threads": torch.get_num_threads(),
        "build s": built,
        "forward s": time.perf_counter() - start,
        "peak GB built": built_peak,
        "peak GB": peak_gb(),
        "finite": bool(restored.isfinite().all()),
    }


def main() -> None:
    args = parser(__doc__).parse_args()
    report([measure(64, SMOKE) if args.smoke else measure(512, {})], args.json)


if __name__ == "__main__":
    main()
