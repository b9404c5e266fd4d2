"""`python -m mmreason.cli`: the same as the `mmreason` command, for torchrun."""

from __future__ import annotations

from mmreason.cli import main

if __name__ == "__main__":
    main()
