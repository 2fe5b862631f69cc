"""Fetch a restorer from a hub with random faults: no wrong file may be accepted.

    python benchmarks/hub_faults.py --rounds 200

Each round serves fabricated files on this machine with one to three random faults: answers that
refuse, cut, altered, misplaced or late bytes, pages in place of files, moved repositories, and a
kill of the fetching process. The restorer is fetched until that succeeds. ``wrong`` counts files
that were kept although they differ from what the hub lists, ``unfinished`` rounds that never
succeeded, ``went on`` rounds in which a download went on where it had ended.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from hub_server import FAULTS, Fault, Hub, Repository
from report import parser, table, write

from quantface_arch.errors import QuantFaceError
from quantface_arch.pretrained.hub.fetch import fetch
from quantface_arch.pretrained.hub.options import FetchOptions
from quantface_arch.pretrained.hub.sources import Source, sources
from quantface_arch.utils.progress import progress_bar

OWN, BASE, MIRROR = (mirror.repo for part in sources()["osdface"].parts for mirror in part.mirrors)
KILL = "kill"
# A plain fork would share the progress bars' lock, which a killed process may hold for ever.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["quantface_arch.pretrained.hub.fetch", "huggingface_hub"])
SIZES = {"associate_2.ckpt": 12_000_000, "pytorch_lora_weights.safetensors": 40_000}
TRIES = 6


def repositories(chance: random.Random) -> dict[str, Repository]:
    """Return fabricated repositories of OSDFace's files and of its base, twice."""
    own = {f"weights/{name}": chance.randbytes(size) for name, size in SIZES.items()}
    own |= {"embedding_change_weights.pth": chance.randbytes(9000), "README.md": b"a model"}
    base = {"scheduler/scheduler_config.json": b"{}"}
    for part in ("unet", "vae"):
        base[f"{part}/config.json"] = b'{"part": "%s"}' % part.encode()
        base[f"{part}/diffusion_pytorch_model.fp16.safetensors"] = chance.randbytes(60_000)
    return {OWN: Repository(own), BASE: Repository(base), MIRROR: Repository(dict(base))}


def faults(chance: random.Random) -> list[Fault]:
    """Draw what goes wrong in a round."""
    places = ("/api/models/", "/resolve/", "associate_2", "unet", "config.json", BASE)
    return [
        Fault(chance.choice(FAULTS), chance.choice(places), chance.randint(1, 3), chance.random())
        for _ in range(chance.randint(1, 3))
    ]


def wrong_files(source: Source, hub: Hub) -> list[str]:
    """Return the files that were kept although the hub has others."""
    wanted = {
        path.rpartition("weights/")[2]: data for path, data in hub.repositories[OWN].files.items()
    }
    folder = source.parts[1].folder
    wanted |= {f"{folder}/{path}": data for path, data in hub.repositories[BASE].files.items()}
    names = [part.kept(name) for part in source.parts for names in part.files for name in names]
    kept = [name for name in names if (source.folder / name).is_file()]
    return [name for name in kept if (source.folder / name).read_bytes() != wanted.get(name)]


def fetch_killed(source: Source, options: FetchOptions, seconds: float) -> None:
    """Fetch in a process of its own, and kill it after a while."""
    cache = os.environ["QUANTFACE_CACHE"]
    process = PROCESSES.Process(target=fetch_once, args=(source, options, cache))
    process.start()
    process.join(seconds)
    process.kill()
    process.join()


def fetch_once(source: Source, options: FetchOptions, cache: str) -> str:
    """Fetch into a cache without a word; return what went wrong."""
    os.environ["QUANTFACE_CACHE"] = cache
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            fetch(source, options, lambda line: None)
        except QuantFaceError as error:
            return str(error)
    return ""


def one_round(chance: random.Random, source: Source) -> dict[str, Any]:
    """Fetch from a hub with faults until it succeeds; return counts."""
    hub = Hub(repositories(chance), faults(chance))
    counts: Counter[str] = Counter({fault.kind for fault in hub.faults})
    with hub.serving():
        options = FetchOptions(yes=True, endpoint=hub.url)
        if chance.random() < 0.5:
            counts[KILL] += 1
            fetch_killed(source, options, chance.uniform(0.1, 1.0))
            counts["wrong"] += len(wrong_files(source, hub))
        problem = "not tried"
        for _ in range(TRIES):
            problem = fetch_once(source, options, os.environ["QUANTFACE_CACHE"])
            counts["wrong"] += len(wrong_files(source, hub))
            if not problem:
                break
            counts["refused"] += 1
        counts["unfinished"] += bool(problem)
        counts["went on"] += bool(hub.ranges)
    return counts


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, default=200, metavar="N", help="fetches (200)")
    made.add_argument("--seed", type=int, default=0, help="seed of the faults (0)")
    args = made.parse_args()
    chance, total, begun = random.Random(args.seed), Counter(), time.monotonic()
    rounds = 4 if args.smoke else args.rounds
    for _ in progress_bar(range(rounds), desc="fetching", unit="round"):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["QUANTFACE_CACHE"] = str(Path(folder) / "cache")
            total += one_round(chance, sources()["osdface"])
    names = ("wrong", "unfinished", "refused", "went on", KILL, *FAULTS)
    row = {"rounds": rounds, **{name: total[name] for name in names}}
    row["minutes"] = round((time.monotonic() - begun) / 60, 2)
    table([row])
    write([row], args.json)


if __name__ == "__main__":
    main()
