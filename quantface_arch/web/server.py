"""Serving the page: a folder of its own, nothing from elsewhere, nothing left behind."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from quantface_arch.web.service import Service

__all__ = ["serve"]


def serve(service: Service, host: str, port: int, notify: Callable[[str], None]) -> None:
    """Serve the page until the process is interrupted or terminated.

    Args:
        service: does the work.
        host, port: where to listen.
        notify: told the page's address when it can be opened.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="quantface-") as name:
        folder = Path(name).resolve()
        _set_environment(folder)
        minutes = service.limits.keep_minutes
        threading.Thread(target=_delete_old, args=(folder, minutes), daemon=True).start()
        _launch(service, folder, host, port, notify)


def _set_environment(folder: Path) -> None:
    """Gradio takes options from the environment, too: none but these."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_EXAMPLES_CACHE"] = str(folder)


def _delete_old(folder: Path, minutes: float) -> None:
    """Every upload and every result goes when its time is over."""
    while True:
        time.sleep(min(30.0, minutes * 60 / 4))
        oldest = time.time() - minutes * 60
        for path in sorted(folder.rglob("*"), reverse=True):
            try:
                if path.stat().st_mtime < oldest:
                    path.rmdir() if path.is_dir() else path.unlink()
            except OSError:
                continue  # a folder that is not empty, or a file that has just gone


def _launch(
    service: Service, folder: Path, host: str, port: int, notify: Callable[[str], None]
) -> None:
    from gradio import processing_utils
    from starlette.middleware import Middleware

    from quantface_arch.web.guard import Guard, refuse_download
    from quantface_arch.web.page import CSS, THEME, make_page

    # Gradio would fetch an address that a visitor names in place of an upload.
    processing_utils.async_ssrf_protected_download = refuse_download
    page = make_page(service, folder)
    limit = service.limits.max_bytes
    page.launch(
        server_name=host,
        server_port=port,
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
    notify(f"QuantFace is at {page.local_url} (Ctrl+C ends it)")
    try:
        threading.Event().wait()
    finally:
        page.close()


def _everything_but(folder: Path) -> list[str]:
    """The folders at the top of the file system, without the one that ``folder`` is in."""
    return [str(path) for path in Path(folder.anchor).iterdir() if path not in folder.parents]
