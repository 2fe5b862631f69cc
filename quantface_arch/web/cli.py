"""The command line of ``inference/app.py``.

Heavy imports wait until the options have been checked.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.integration.obtain import obtain
from quantface_arch.pretrained.hub.options import FetchOptions
from quantface_arch.pretrained.names import resolve_model
from quantface_arch.restore.arguments import add_model_arguments, integer, number
from quantface_arch.restore.load import load_restorer, note_printer
from quantface_arch.restore.options import FaceOptions, RuntimeOptions, build
from quantface_arch.utils.cli import HUB_VARIABLES, Parser, ending, run
from quantface_arch.utils.distributed import Shard
from quantface_arch.utils.images import MAX_PIXELS, MIN_SIDE
from quantface_arch.web.address import Address, free_port
from quantface_arch.web.limits import Limits

if TYPE_CHECKING:
    from quantface_arch.restore.restorer import FaceRestorer

__all__ = ["PageOptions", "main", "make_parser", "parse_options"]

DESCRIPTION = """\
Serve a web page that restores the faces in photographs.

The page loads nothing from other machines and sends nothing to them. By default only this machine
can open it. With --host 0.0.0.0, everybody who reaches this machine can open it without a password.
Photographs are kept in a temporary folder for --keep-minutes; the folder is deleted when the server
ends.

examples:
  on this machine, at http://127.0.0.1:7860:
    python inference/app.py
  for everybody on the network, with smaller limits:
    python inference/app.py --host 0.0.0.0 --max-mb 5 --max-faces 4
"""


@dataclass(frozen=True)
class PageOptions:
    """All options of the web page.

    Attributes:
        address: where the page is served.
        limits: bounds on what visitors may ask for.
        faces, runtime: options of the restorer.
    """

    address: Address
    limits: Limits
    faces: FaceOptions
    runtime: RuntimeOptions


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the page's command."""
    parser = Parser(
        description=DESCRIPTION,
        epilog=ending(*HUB_VARIABLES, "OMP_NUM_THREADS", done="the server has ended"),
    )
    add = parser.add_argument_group("server").add_argument
    add("--host", default=Address.host, help="address to listen on (default: %(default)s)")
    add("--port", type=integer(0), default=Address.port, help="0 selects a free one (%(default)s)")
    add(
        "--root-path",
        type=_root_path,
        default=Address.root_path,
        metavar="URL",
        help="where a reverse proxy serves the page, such as /faces or https://my.org/faces",
    )
    _add_limits(parser)
    add_model_arguments(parser)
    return parser


def _root_path(text: str) -> str:
    """Return the path or address at which a reverse proxy serves the page."""
    if not re.fullmatch(r"(https?://[\w.:\[\]-]+)?(/(?!\.+(?:/|$))[\w.~-]+)*/?", text):
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected a path such as /faces, or an address such as "
            "https://my.org/faces"
        )
    return text.rstrip("/")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``Limits``, each with its type, its unit and its meaning."""
    megapixels = f"{MAX_PIXELS // 10**6} megapixels"
    limits = {
        "max_mb": (number(0.01, 1000), "MB", "largest file"),
        "max_side": (
            integer(MIN_SIDE),
            "PIXELS",
            f"largest side of an image (at most {megapixels} in all)",
        ),
        "max_faces": (integer(1), "N", "most faces in an image"),
        "max_users": (integer(1), "N", "most pending requests"),
        "keep_minutes": (
            number(0.5, 1440),
            "MINUTES",
            "time after which photographs and results are deleted",
        ),
    }
    add = parser.add_argument_group("limits").add_argument
    for name, (kind, unit, meaning) in limits.items():
        add(
            f"--{name.replace('_', '-')}",
            type=kind,
            default=getattr(Limits(), name),
            metavar=unit,
            help=f"{meaning} (default: %(default)g)",
        )


def parse_options(args: argparse.Namespace) -> PageOptions:
    """Return the parsed command line as typed options."""
    values = vars(args)
    return PageOptions(
        build(Address, values),
        build(Limits, values),
        build(FaceOptions, values),
        build(RuntimeOptions, {**values, "fetching": build(FetchOptions, values)}),
    )


def main(args: argparse.Namespace) -> int:
    """Serve the page until interrupted.

    Returns:
        0.

    Raises:
        UsageError: an option is wrong, Gradio is missing, the server cannot listen on the address,
            or the model or the detector cannot be loaded.
    """
    options = parse_options(args)
    if find_spec("gradio") is None:
        raise UsageError('the page needs Gradio: pip install gradio, or pip install -e ".[app]"')
    address = replace(options.address, port=free_port(options.address))
    try:
        # Ask, fetch and quantize before the page is there, not in its first visitor's request.
        runtime = options.runtime
        path = str(obtain(runtime.model, runtime.fetching, note_printer(Shard())))
        resolve_model(path)
        if path != runtime.model:
            options = replace(options, runtime=replace(runtime, fetching=FetchOptions()))
        from quantface_arch.web.service import Service

        service = Service(
            lambda model: _load(options, model),
            options.runtime.model,
            options.limits,
            {"sample": options.faces.sample, "seed": options.faces.seed},
            options.faces.identity,
        )
        service.open()
    except QuantFaceError as error:
        raise UsageError(str(error)) from error

    from quantface_arch.web.server import serve

    serve(service, address, lambda message: print(message, file=sys.stderr))
    return 0


def _load(options: PageOptions, model: str) -> FaceRestorer:
    """Load a model with the other options of the command line."""
    own = model == options.runtime.model
    fidelity = options.runtime.fidelity if own else None
    return load_restorer(replace(options.runtime, model=model, fidelity=fidelity), options.faces)


if __name__ == "__main__":
    run(main, make_parser())
