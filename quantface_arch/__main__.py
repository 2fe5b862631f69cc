"""Run ``python -m quantface_arch``, which is the command ``quantface``."""

from __future__ import annotations

from quantface_arch.commands.main import main

if __name__ == "__main__":
    main()
