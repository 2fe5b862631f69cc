"""Measure how long visitors of the page wait.

    python benchmarks/web.py                   # a browser; then 8 visitors at once
    python benchmarks/web.py --users 16

"start" is the launch of inference/app.py on a machine that has already compiled the model. "in the
browser" is the time from the click on Restore, or from the start, until the result is on the page.
The visitors send their requests in quick succession; "order kept" says whether they were served in
the same order. The last column shows the load of the machine: the mean number of runnable processes
in the last minute.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from report import parser, report
from web_browser import Browser, browsing, missing
from web_client import Client, serving

PHOTO = Path(__file__).resolve().parents[1] / "inputs/astronaut.jpg"


def row(what: str, value: Any) -> dict[str, Any]:
    return {"what": what, "value": value, "load": round(os.getloadavg()[0], 1)}


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def in_browser(
    driver: Any, client: Client, start: float, repeats: int, shot: Path | None
) -> list[dict[str, Any]]:
    """Measure one visitor, whose browser is open before the server starts."""
    browser = Browser(driver, client.url)
    browser.upload(PHOTO)
    said = browser.restore()
    rows = [
        row("start to first face in the browser, s", time.perf_counter() - start),
        row("the server's processor time until then, s", cpu_seconds(client.process.pid)),
    ]
    seconds = []
    for _ in range(repeats):
        browser.clear()
        browser.upload(PHOTO)
        click = time.perf_counter()
        said = browser.restore()
        seconds.append(time.perf_counter() - click)
    if "restored" not in said:
        sys.exit(f"the page says: {said}")
    if shot is not None:
        driver.save_screenshot(str(shot))
    return [*rows, row(f"next face in the browser, s, worst of {repeats}", max(seconds))]


def at_once(client: Client, model: str, users: int) -> list[dict[str, Any]]:
    """Measure many visitors at once, without a browser."""
    path = client.upload(PHOTO.read_bytes(), PHOTO.name)
    client.restore(path, model=model)
    start = time.perf_counter()
    events = [client.enqueue(path, model=model) for _ in range(users)]

    def wait(event: str) -> tuple[bool, float]:
        fields = client.wait(event)
        return fields is not None and "restored" in fields[0], time.perf_counter() - start

    with ThreadPoolExecutor(users) as pool:
        served = list(pool.map(wait, events))
    moments = [moment for _, moment in served]
    name = f"{users} visitors at once"
    return [
        row(f"{name}: failed", sum(not good for good, _ in served)),
        row(f"{name}: order kept", "yes" if moments == sorted(moments) else "no"),
        row(f"{name}: the first waits, s", moments[0]),
        row(f"{name}: the last waits, s", moments[-1]),
    ]


def main() -> None:
    args_parser = parser(__doc__)
    args_parser.add_argument("--model", default="mini-w4a8", help="model to serve (%(default)s)")
    args_parser.add_argument("--users", type=int, default=8, help="simultaneous visitors (8)")
    args_parser.add_argument("--repeats", type=int, default=5, help="faces after the first (5)")
    args_parser.add_argument("--screenshot", type=Path, metavar="FILE", help="PNG file of the page")
    args = args_parser.parse_args()
    if find_spec("gradio") is None:
        report([row("skipped: Gradio is missing (pip install gradio)", "")], args.json)
        return
    if args.smoke:
        args.users = args.repeats = 2
    reason = missing()
    with browsing() if reason is None else nullcontext() as driver:
        start = time.perf_counter()
        with serving("--model", args.model) as client:
            rows = [row("start to page, s", time.perf_counter() - start)]
            if reason is None:
                rows += in_browser(driver, client, start, args.repeats, args.screenshot)
            else:
                rows.append(row(f"no browser: {reason}", ""))
            rows += at_once(client, args.model, args.users)
    report(rows, args.json)


if __name__ == "__main__":
    main()
