"""Test large batches: kills, long runs, several processes, faults.

    python benchmarks/robustness.py                       # all parts
    python benchmarks/robustness.py kill --kill-rounds 20 # runs of 2 processes, killed and resumed
    python benchmarks/robustness.py soak --soak 2000      # memory of one run
    python benchmarks/robustness.py throughput faults
    python benchmarks/robustness.py threads               # eight threads share a restorer
    python benchmarks/robustness.py fuzz --inputs 20000   # broken files of every kind

Part NAME is the function ``rows`` of robustness_NAME.py beside this file; each prints a table.
"""

from __future__ import annotations

import signal
from importlib import import_module
from pathlib import Path

from report import parser, table, write

PREFIX = "robustness_"


def main() -> None:
    found = sorted(Path(__file__).parent.glob(f"{PREFIX}*.py"))
    parts = [path.stem.removeprefix(PREFIX) for path in found]
    args_parser = parser(__doc__)
    add = args_parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)} (all)")
    add("--kill-rounds", type=int, default=20, metavar="N", help="runs to kill (20)")
    add("--soak", type=int, default=2000, metavar="N", help="images of the long run (2000)")
    add("--calls", type=int, default=200, metavar="N", help="calls of each of 8 threads (200)")
    add("--images", type=int, default=40, metavar="N", help="images per timed run (40)")
    add(
        "--turns",
        type=int,
        default=5,
        metavar="N",
        help="rounds of timing one process, then two (5)",
    )
    add("--weights-dir", type=Path, metavar="DIR", help="holds RetinaFace's weights, for threads")
    add("--commands", nargs="+", metavar="NAME", help="commands to test (all)")
    add("--faults", nargs="+", metavar="NAME", help="faults to inject (all)")
    add("--model", default="mini-w4a8", help="(%(default)s)")
    add("--inputs", type=int, default=20000, metavar="N", help="fuzzing inputs (20000)")
    add("--seconds", type=int, default=900, metavar="N", help="time limit of fuzzing (900)")
    add("--seed", type=int, default=0, help="seed of kills and inputs (0)")
    args = args_parser.parse_args()
    if unknown := set(args.parts) - set(parts):
        args_parser.error(f"no part {min(unknown)}; there are {', '.join(parts)}")
    # A process that a shell starts in the background ignores Ctrl-C, and so do its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rows = []
    for name in args.parts or parts:
        found_rows = import_module(PREFIX + name).rows(args)
        print(f"\n{name}\n")
        table(found_rows)
        rows += [{"part": name, **row} for row in found_rows]
    write(rows, args.json)


if __name__ == "__main__":
    main()
