"""Serve the page from a temporary folder, without access to other machines."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from quantface_arch.web.address import Address
from quantface_arch.web.service import Service

__all__ = ["serve"]


def serve(service: Service, address: Address, notify: Callable[[str], None]) -> None:
    """Serve the page until the process is interrupted or terminated.

    Args:
        service: restores the uploads.
        address: where the page is served.
        notify: receives the page's address once the page can be opened.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="quantface-") as name:
        folder = Path(name).resolve()
        _set_environment(folder, address.host)
        minutes = service.limits.keep_minutes
        threading.Thread(target=_delete_old, args=(folder, minutes), daemon=True).start()
        _launch(service, folder, address, notify)


def _set_environment(folder: Path, host: str) -> None:
    """Set Gradio's environment variables, and remove all others that it would read."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_EXAMPLES_CACHE"] = str(folder)
    # Gradio requests its own page once it serves, and a proxy would not find it.
    for name in ("no_proxy", "NO_PROXY"):
        others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
        names = [*filter(None, others.split(",")), "localhost", "127.0.0.1", "::1", host]
        os.environ[name] = ",".join(dict.fromkeys(names))


def _delete_old(folder: Path, minutes: float) -> None:
    """Delete uploads and results that are too old; never return."""
    while True:
        time.sleep(min(30.0, minutes * 60 / 4))
        oldest = time.time() - minutes * 60
        for path in sorted(folder.rglob("*"), reverse=True):
            try:
                if path.stat().st_mtime < oldest:
                    path.rmdir() if path.is_dir() else path.unlink()
            except OSError:
                continue  # the folder is not empty, or the file has just been deleted


def _launch(
    service: Service, folder: Path, address: Address, notify: Callable[[str], None]
) -> None:
    """Start the server and wait until it is interrupted."""
    from gradio import processing_utils  # pyright: ignore[reportMissingImports]  (the extra app)
    from starlette.middleware import Middleware  # pyright: ignore[reportMissingImports]  (the extra app)

    from quantface_arch.web.guard import Guard, refuse_download
    from quantface_arch.web.page import CSS, THEME, make_page

    # Without this, Gradio fetches a web address that a visitor sends in place of an upload.
    processing_utils.async_ssrf_protected_download = refuse_download
    page = make_page(service, folder)
    limit = service.limits.max_bytes
    page.launch(
        server_name=address.host,
        server_port=address.port,
        root_path=address.root_path,
        max_file_size=limit,
        allowed_paths=[],
        blocked_paths=_everything_but(folder),
        app_kwargs={"middleware": [Middleware(Guard, max_bytes=limit)]},
        theme=THEME,
        css=CSS,
        footer_links=[],
        share=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        run_history=False,
        enable_monitoring=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    behind = f"; a proxy serves it at {address.root_path}" if address.root_path else ""
    notify(f"QuantFace is at {page.local_url} (press Ctrl+C to stop it){behind}")
    try:
        threading.Event().wait()
    finally:
        page.close()


def _everything_but(folder: Path) -> list[str]:
    """Return all top-level folders of the file system except the one that contains ``folder``."""
    return [str(path) for path in Path(folder.anchor).iterdir() if path not in folder.parents]
