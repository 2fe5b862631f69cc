"""Drive headless Chromium, for web.py and the tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["Browser", "browsing", "missing"]

_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
_SIZE = (1280, 1480)
_TIMEOUT = 120


def missing() -> str | None:
    """Return a hint on what to install for driving a browser; None if nothing is missing."""
    if find_spec("selenium") is None:
        return "selenium is missing (pip install selenium)"
    if not any(map(shutil.which, _CHROMIUM)):
        return "Chromium is missing (Debian: apt-get install chromium)"
    if shutil.which("chromedriver") is None:
        return "chromedriver is missing (Debian: apt-get install chromium-driver)"
    return None


class Browser:
    """A tab that shows the page."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        self.url = url
        driver.get(url)
        self._wait("#photo input[type=file]")

    def upload(self, photo: Path) -> None:
        """Drop a photograph and wait until the page can restore it."""
        self.one("#photo input[type=file]").send_keys(str(photo))
        self._wait(".message.ready")

    def restore(self) -> str:
        """Press the button and return the message that comes with or instead of the result."""
        self.one("#restore").click()
        self._wait(".message.done, .message.failed")
        return self.one("#status").text

    def clear(self) -> None:
        """Remove the photograph and wait until its results are gone, too."""
        self.one('#photo button[aria-label="Remove Image"]').click()
        self._wait(".message.empty")

    def one(self, selector: str) -> Any:
        """Return the first element that matches a CSS selector."""
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        """Return the visible elements that match a CSS selector."""
        found = self.driver.find_elements("css selector", selector)
        return [element for element in found if element.is_displayed()]

    def wait_for_pictures(self, selector: str, count: int) -> None:
        """Wait until an element shows ``count`` fully loaded images."""
        from selenium.webdriver.support.ui import WebDriverWait

        script = "return arguments[0].complete && arguments[0].naturalWidth > 0"

        def are_there(driver: Any) -> bool:
            images = self.all(f"{selector} img")
            return len(images) == count and all(driver.execute_script(script, i) for i in images)

        WebDriverWait(self.driver, _TIMEOUT).until(are_there, f"{count} images in {selector}")

    def requested(self) -> set[str]:
        """Return the addresses of everything loaded since the last call."""
        events = [json.loads(entry["message"]) for entry in self.driver.get_log("performance")]
        sent = [event["message"] for event in events]
        return {
            event["params"]["request"]["url"]
            for event in sent
            if event["method"] == "Network.requestWillBeSent"
        }

    def _wait(self, selector: str) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        waiting = WebDriverWait(self.driver, _TIMEOUT, poll_frequency=0.05)
        waiting.until(lambda driver: driver.find_elements("css selector", selector), selector)


@contextmanager
def browsing() -> Iterator[Any]:
    """Yield a driver of Chromium, for :class:`Browser`."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, _CHROMIUM)))
    size = ",".join(map(str, _SIZE))
    # Root cannot use the sandbox, and containers have little shared memory.
    words = ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu")
    for word in (*words, "force-prefers-no-reduced-motion", f"window-size={size}"):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()
