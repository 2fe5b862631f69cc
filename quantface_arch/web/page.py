"""Lay out the page, and define the functions behind its controls."""

from __future__ import annotations

import os
import secrets
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import gradio as gr  # pyright: ignore[reportMissingImports]  (the extra app)
from gradio.data_classes import ImageData  # pyright: ignore[reportMissingImports]  (the extra app)
from gradio.themes import Default  # pyright: ignore[reportMissingImports]  (the extra app)

from quantface_arch.errors import QuantFaceError, one_line
from quantface_arch.faces.choices import AUTO_STRENGTH, COLOR_FIXES
from quantface_arch.utils.images import FORMAT_NAMES
from quantface_arch.web.limits import Limits
from quantface_arch.web.service import Service, count
from quantface_arch.web.views import message, timings, write_views

__all__ = ["CSS", "THEME", "make_page"]

CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
# Use fonts of the visitor's machine; the theme's own would be downloaded.
THEME = Default(
    primary_hue="blue",
    font=("system-ui", "sans-serif"),
    font_mono=("ui-monospace", "monospace"),
)
_EMPTY = "Drop a photograph on the left, or click there to choose one."
_READY = "Press Restore."
_BROKEN = "Not restored. The server failed (see its log); your photograph is not the cause."
# Gradio recognizes functions that report progress by this default value.
_PROGRESS = gr.Progress()
_OWN_COLOR = "default"
# The photograph, the model, the strength, the colour fix, and whether the strength is as needed.
Inputs: TypeAlias = tuple[gr.Image, gr.Dropdown, gr.Slider, gr.Dropdown, gr.Checkbox]
# Visitors look at these images and cannot replace them.
_SHOWN: dict[str, Any] = {"type": "filepath", "interactive": False, "buttons": ["fullscreen"]}


def make_page(service: Service, files: Path) -> gr.Blocks:
    """Return the page of a service.

    Args:
        service: restores the uploads, one after the other.
        files: folder for the results, from which Gradio also serves uploads.
    """
    with gr.Blocks(title="QuantFace", analytics_enabled=False) as page:
        gr.HTML(_header(service.limits))
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                inputs = _inputs(service)
                button = gr.Button("Restore", variant="primary", elem_id="restore")
            with gr.Column(scale=3, min_width=320):
                status, slider, download = _outcome()
        with gr.Row(visible=False) as details:
            boxes, faces, spent = _details()
        results = [status, slider, download, details, boxes, faces, spent]
        restoring = button.click(
            _action(service, files),
            list(inputs),
            results,
            api_name="restore",
            concurrency_limit=1,
            show_progress_on=slider,
        )
        photo = inputs[0]
        # Clear the results: they must never appear beside another photograph.
        photo.change(
            lambda path: _nothing(_READY, "ready") if path else _nothing(_EMPTY, "empty"),
            photo,
            results,
            queue=False,
            show_progress="hidden",
            cancels=[restoring],
            api_visibility="private",
        )
        _hide_slider(inputs)
    limit = service.limits.max_users
    page.queue(max_size=limit, default_concurrency_limit=1, api_open=False)
    return page


def _hide_slider(inputs: Inputs) -> None:
    """Show the slider of the strength only while a number is wanted."""
    *_, strength, _, as_needed = inputs
    as_needed.change(
        lambda chosen: gr.Slider(visible=not chosen),
        as_needed,
        strength,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )


def _inputs(service: Service) -> Inputs:
    """Create the controls for the photograph and the options."""
    photo = gr.Image(
        label="Photograph",
        type="filepath",
        sources=["upload", "clipboard"],
        height=320,
        buttons=[],
        elem_id="photo",
    )
    photo.preprocess = _as_uploaded
    model = gr.Dropdown(
        list(service.models), value=service.first_model, label="Model", elem_id="model"
    )
    as_needed = gr.Checkbox(
        value=True,
        label="Strength as needed",
        info="sharp faces stay nearly as they are",
        elem_id="as-needed",
    )
    hint = "0 keeps the input's faces, 1 replaces them"
    strength = gr.Slider(
        0, 1, value=1.0, step=0.05, label="Strength", info=hint, visible=False, elem_id="strength"
    )
    color = gr.Dropdown(
        [_OWN_COLOR, *COLOR_FIXES],
        value=_OWN_COLOR,
        label="Colour fix",
        info="what a face takes over from the photograph",
        elem_id="color",
    )
    return photo, model, strength, color, as_needed


def _as_uploaded(payload: ImageData | None) -> str | None:
    """Return the path of the upload; Gradio's default would decode and convert the file."""
    return None if payload is None else payload.path


def _outcome() -> tuple[gr.HTML, gr.ImageSlider, gr.DownloadButton]:
    """Create the controls that show the result."""
    status = gr.HTML(message(_EMPTY, "empty"), elem_id="status")
    slider = gr.ImageSlider(label="Before and after", max_height=520, elem_id="slider", **_SHOWN)
    download = gr.DownloadButton("Download the result (PNG)", interactive=False, elem_id="download")
    return status, slider, download


def _details() -> tuple[gr.Image, gr.Gallery, gr.HTML]:
    """Create the controls that show the faces and the timings."""
    boxes = gr.Image(label="Faces found", height=300, elem_id="boxes", **_SHOWN)
    faces = gr.Gallery(
        label="Each face, before and after",
        columns=1,
        height=300,
        object_fit="contain",
        buttons=["download", "fullscreen"],
        interactive=False,
        elem_id="faces",
    )
    return boxes, faces, gr.HTML(elem_id="timings", container=True)


def _action(service: Service, files: Path) -> Callable[..., list[Any]]:
    """Return the function behind the button, which maps the inputs to the results."""

    def restore(
        path: str | None,
        name: str,
        strength: float,
        color: str,
        as_needed: bool,
        progress: gr.Progress = _PROGRESS,
    ) -> list[Any]:
        if path is None:
            return _nothing(_EMPTY, "failed")
        try:
            os.utime(path)  # postpones its deletion
            chosen = name, AUTO_STRENGTH if as_needed else strength, color
            return _results(service, files, Path(path), chosen, progress)
        except FileNotFoundError:
            minutes = service.limits.keep_minutes
            gone = f"Photographs are deleted after {minutes:g} minutes: upload it again."
            return _nothing(f"Not restored. {gone}", "failed")
        except QuantFaceError as error:
            return _nothing(f"Not restored. {one_line(error)}", "failed")
        except Exception:
            traceback.print_exc()
            return _nothing(_BROKEN, "failed")

    return restore


def _results(
    service: Service,
    files: Path,
    path: Path,
    chosen: tuple[str, float | str, str],
    progress: gr.Progress,
) -> list[Any]:
    """Restore a photograph and return the values of the result controls."""
    name, strength, color = chosen
    color_fix = None if color == _OWN_COLOR else color
    done = service.restore(path, name, strength, progress, color_fix)
    folder = files / secrets.token_hex(16)
    folder.mkdir()
    views = write_views(done, folder)
    return [
        message(f"{count(len(done.faces))} restored", "done"),
        (views.before, views.after),
        gr.DownloadButton(value=views.result, interactive=True),
        gr.Row(visible=True),
        views.boxes,
        [
            (file, f"face {number}, strength {face.strength:.2f}")
            for number, (file, face) in enumerate(zip(views.faces, done.faces, strict=True), 1)
        ],
        timings(done),
    ]


def _nothing(text: str, kind: str) -> list[Any]:
    """Return empty result controls with a message."""
    download, details = gr.DownloadButton(value=None, interactive=False), gr.Row(visible=False)
    return [message(text, kind), None, download, details, None, None, ""]


def _header(limits: Limits) -> str:
    """Return the title, the description and the limits as HTML."""
    return f"""<div id="top"><h1>QuantFace</h1>
<p>Restores blurred, noisy and compressed faces in photographs. Photographs
stay on this server and are deleted after {limits.keep_minutes:g} minutes.</p>
<p class="limits">{FORMAT_NAMES};
at most {limits.max_mb:g} MB, {limits.max_side} pixels on the longer side,
{count(limits.max_faces)}.</p></div>"""
