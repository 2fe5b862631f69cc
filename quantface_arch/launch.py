"""Run BasicSR's pipelines, and report a user's mistakes in one line."""

from __future__ import annotations

import os
import re
import sys
import traceback
from importlib import import_module
from pathlib import Path

from quantface_arch.errors import QuantFaceError, one_line
from quantface_arch.utils.cli import EXIT_FAILED, EXIT_INTERRUPTED, describe
from quantface_arch.utils.files import kind_of
from quantface_arch.utils.limits import MAX_PIXELS

__all__ = ["launch"]

_BASICSR_REFUSALS = (AssertionError, NotImplementedError, TypeError, ValueError)
FORCED = re.compile(r"[\w.-]+(:[\w.-]+)* ?=")


def launch(phase: str, root: Path) -> None:
    """Run ``basicsr.train`` or ``basicsr.test`` with the options of the command line.

    Bad input ends the process with status 1 and one line. ``--debug`` adds the traceback.

    Args:
        phase: ``train`` or ``test``.
        root: the folder in which ``experiments/`` and ``results/`` are made.
    """
    # Set these before OpenCV and torch are imported: data sets and weights are untrusted, too.
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        check_arguments(sys.argv[1:])
        import quantface_arch.register  # noqa: F401

        pipeline = import_module(f"basicsr.{phase}")
        getattr(pipeline, f"{phase}_pipeline")(str(root))
    except KeyboardInterrupt:
        print("interrupted; --auto_resume continues from the last saved state", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        # BasicSR also prints the error, so our line must come last.
        sys.stdout.flush()
        print(f"error: {explain(error)}", file=sys.stderr)
        sys.exit(EXIT_FAILED)


def check_arguments(words: list[str]) -> None:
    """Refuse arguments on which BasicSR's own parser would hang, or which it would execute.

    Raises:
        QuantFaceError: the options file is not a regular file, or ``--force_yml`` has an argument
            other than ``NAME:NAME=VALUE``. BasicSR would execute such an argument.
    """
    forced = False
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "-opt" and Path(following).exists():
            kind = kind_of(Path(following).stat().st_mode)
            if kind is not None:
                raise QuantFaceError(f"options file {following}: it is {kind}, expected a file")
        if word.startswith("-"):
            forced = word.startswith("--force")
        elif forced and not FORCED.match(word):
            raise QuantFaceError(f"--force_yml: found {word!r}, expected NAME:NAME=VALUE")


def explain(error: Exception) -> str:
    """Return one line that explains an exception from BasicSR's loop."""
    if isinstance(error, KeyError):
        # BasicSR reports a missing option by its bare key, but an unknown type by a sentence.
        name = str(error.args[0])
        return name if " " in name else f"options file: {name} is missing"
    if isinstance(error, FileNotFoundError):
        return (
            f"{describe(error)} (options file; --force_yml datasets:PHASE:dataroot_gt=FOLDER "
            "selects another folder)"
        )
    if isinstance(error, QuantFaceError):
        # An error from a data loader's worker carries the worker's traceback before its message.
        last = str(error).strip().splitlines()[-1]
        return last.removeprefix(f"{QuantFaceError.__module__}.QuantFaceError: ")
    if isinstance(error, _BASICSR_REFUSALS) and _raised_by_basicsr(error):
        return f"options file: {one_line(error)}"
    return describe(error)


def _raised_by_basicsr(error: Exception) -> bool:
    """Return whether BasicSR's own code raised the error and gave a reason."""
    frames = list(traceback.walk_tb(error.__traceback__))
    module = frames[-1][0].f_globals.get("__name__", "") if frames else ""
    return module.partition(".")[0] == "basicsr" and bool(str(error))
