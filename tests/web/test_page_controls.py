"""The functions behind the controls of the page, called without a server."""

from __future__ import annotations

import pytest

pytest.importorskip("gradio", reason="Gradio is not installed (pip install gradio)")

from quantface_arch.web.limits import Limits
from quantface_arch.web.page import make_page
from quantface_arch.web.service import Service


def test_a_click_passes_all_inputs_on_and_unexpected_errors_reveal_no_details(tmp_path):
    asked, photo = [], tmp_path / "photo.png"
    photo.touch()

    def fail(*words):
        asked.append((*words[:3], words[4]))
        raise ValueError(f"a fault in {tmp_path}")

    service = Service(fail, "mini", Limits())
    service.restore = fail
    click = make_page(service, tmp_path).fns[0].fn
    answer = click(str(photo), "mini", 0.25, "lowres", False)
    click(str(photo), "mini", 0.25, "none", True)
    assert asked == [(photo, "mini", 0.25, "lowres"), (photo, "mini", "auto", "none")]
    assert "The server failed" in answer[0] and str(tmp_path) not in str(answer)


def test_changing_the_photograph_clears_the_results(tmp_path):
    change = make_page(Service(str, "mini", Limits()), tmp_path).fns[1].fn
    for path, said in ((str(tmp_path / "a.jpg"), "Press Restore"), (None, "Drop a photograph")):
        text, pair, button, details, *rest = change(path)
        assert said in text and pair is None and rest == [None, None, ""]
        assert button.value is None and not button.interactive and not details.visible


def test_the_slider_is_shown_while_a_number_is_wanted(tmp_path):
    show = list(make_page(Service(str, "mini", Limits()), tmp_path).fns.values())[-1].fn
    assert show(False).visible and not show(True).visible
