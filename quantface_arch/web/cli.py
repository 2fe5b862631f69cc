"""The command line of ``inference/app.py``.

Nothing heavy is imported before the options are known to be good.
"""

from __future__ import annotations

import argparse
import socket
import sys
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.pretrained.names import resolve_model
from quantface_arch.restore.options import add_model_options, integer, load_restorer, number
from quantface_arch.utils.cli import Parser
from quantface_arch.utils.images import MAX_PIXELS, MIN_SIDE
from quantface_arch.web.limits import Limits

if TYPE_CHECKING:
    from quantface_arch.restore.restorer import FaceRestorer

__all__ = ["main", "make_parser"]

_LARGEST_PORT = 65535


def make_parser() -> argparse.ArgumentParser:
    """The options, as ``--help`` shows them."""
    parser = Parser(
        description="A page in the browser that restores the faces in photographs.",
        epilog="The page loads nothing from elsewhere and sends nothing away. By default only this "
        "machine can open it; with --host 0.0.0.0 everybody who reaches the machine can, without a "
        "password. Pictures are kept in a temporary folder for --keep-minutes, and deleted when "
        "the server ends.",
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=integer(0), default=7860, help="%(default)s; 0 takes a free one")
    usual = Limits()
    add("--max-mb", type=number(0.01, 1000), default=usual.max_mb, help="of a file (%(default)g)")
    add(
        "--max-side",
        type=integer(MIN_SIDE),
        default=usual.max_side,
        metavar="PIXELS",
        help=f"of a picture's longer side (%(default)s); {MAX_PIXELS // 10**6} megapixels in all",
    )
    add("--max-faces", type=integer(1), default=usual.max_faces, help="in a picture (%(default)s)")
    add("--max-users", type=integer(1), default=usual.max_users, help="that wait (%(default)s)")
    add(
        "--keep-minutes",
        type=number(0.5, 1440),
        default=usual.keep_minutes,
        help="for which pictures and results are kept (%(default)g)",
    )
    add_model_options(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    """Serve the page until interrupted.

    Returns:
        0.

    Raises:
        UsageError: something was typed wrong, Gradio is missing, the address cannot be listened
            on, or the model or the detector cannot be loaded.
    """
    if find_spec("gradio") is None:
        raise UsageError('the page needs Gradio: pip install gradio, or pip install -e ".[app]"')
    port = _free_port(args.host, args.port)
    limits = Limits(args.max_mb, args.max_side, args.max_faces, args.max_users, args.keep_minutes)
    try:
        resolve_model(args.model)
        from quantface_arch.web.service import Service

        sampling = {"sample": args.sample, "seed": args.seed}
        load = partial(_load, args)
        service = Service(load, args.model, limits, sampling)
        service.open()
    except QuantFaceError as error:
        raise UsageError(str(error)) from error

    from quantface_arch.web.server import serve

    serve(service, args.host, port, lambda message: print(message, file=sys.stderr))
    return 0


def _load(args: argparse.Namespace, model: str) -> FaceRestorer:
    return load_restorer(argparse.Namespace(**{**vars(args), "model": model}))


def _free_port(host: str, port: int) -> int:
    """The port itself if it can be listened on; for 0, one that can."""
    if port > _LARGEST_PORT:
        raise UsageError(f"--port {port}: at most {_LARGEST_PORT}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server((host, port), family=family) as listening:
            return listening.getsockname()[1]
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"cannot listen on --host {host} --port {port}: {reason}") from error
