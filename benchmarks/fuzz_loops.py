"""Make command lines of BasicSR's training and test loops for benchmarks/robustness_fuzz.py.

A loop runs in the process of the fuzzer with the options of a small training or test, of which
--force_yml changes some.
"""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from fault_commands import small_options
from fuzz_commands import VALUES, make_inputs, run_inside
from fuzz_inputs import Strategy
from hypothesis import strategies as st

from quantface_arch.launch import launch

__all__ = ["loop_lines", "run_loop"]

# A loop is interrupted after this many seconds, because some options ask for a long training.
SECONDS = 10
INTERRUPTED = 130
WORDS = ("-opt", "--launcher", "--auto_resume", "--debug", "--local_rank", *VALUES)


def loop_lines(folder: Path) -> tuple[Strategy, str, Callable[[Path], None]]:
    """Return a target of ``fuzz_targets``; its inputs are command lines as JSON lists."""
    make_inputs(folder)
    lines = []
    for phase, options in (("train", _training()), ("test", _test())):
        (folder / f"{phase}.yml").write_text(yaml.safe_dump(options))
        forced = st.builds("{}={}".format, st.sampled_from(list(_keys(options))), _values())
        some = st.lists(forced, max_size=2).map(lambda words: ["--force_yml", *words])
        other = st.lists(st.sampled_from(WORDS), max_size=1)
        line = st.tuples(other, some).map(
            lambda parts, phase=phase: [phase, "-opt", f"{phase}.yml", *parts[0], *parts[1]]
        )
        lines.append(line)
    return st.one_of(lines).map(lambda line: json.dumps(line).encode()), ".json", run_loop


def run_loop(path: Path) -> None:
    """Run the loop that a file holds, in the folder of that file.

    Raises:
        QuantFaceError: the loop refused its arguments, options or files, or was interrupted.
        RuntimeError: the loop ended in an error that it did not expect.
    """
    # BasicSR can be imported only after this package has patched it.
    import quantface_arch.register  # noqa: F401

    from basicsr.utils.logger import initialized_logger  # isort: skip

    phase, *words = json.loads(path.read_text())
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(SECONDS)
    try:
        call = lambda: launch(phase, path.parent)  # noqa: E731
        run_inside(path.parent, [phase, *words], call, (0, 1, 2, INTERRUPTED))
    finally:
        signal.alarm(0)
        # BasicSR adds a file to its logger in every run and never closes it.
        for handler in list(logging.getLogger("basicsr").handlers):
            logging.getLogger("basicsr").removeHandler(handler)
            handler.close()
        initialized_logger.clear()


def _values() -> Strategy:
    numbers = st.integers(-3, 300) | st.floats(-3, 3)
    return st.sampled_from(VALUES) | numbers.map(str) | st.sampled_from(("~", "true", "[]", "[1]"))


def _training() -> dict[str, Any]:
    options = small_options(Path("faces"))
    train = {**options["train"], "total_iter": 2}
    del options["allocate"]
    return {**options, "train": train}


def _test() -> dict[str, Any]:
    options = small_options(Path("faces"))
    data = {
        "name": "faces",
        "type": "QuantFacePairedDataset",
        "dataroot_gt": "faces",
        "dataroot_lq": "faces",
        "io_backend": {"type": "disk"},
    }
    kept = ("num_gpu", "manual_seed", "scale", "network_g", "path", "dist_params")
    return {
        **{key: options[key] for key in kept},
        "name": "tested",
        "model_type": "OSDFaceModel",
        "datasets": {"test": data},
        "val": {
            "save_img": True,
            "suffix": None,
            "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 0}},
        },
    }


def _keys(options: Mapping[str, Any], start: str = "") -> Iterator[str]:
    """Yield the name of every option, as --force_yml takes it."""
    for key, value in options.items():
        yield start + key
        if isinstance(value, Mapping):
            yield from _keys(value, f"{start}{key}:")
