"""The command line: one thin function per command. Heavy imports happen inside the command that needs them."""

from __future__ import annotations

import os
import sys

import typer

from mmreason.cli.bench import register as register_bench
from mmreason.cli.look import register as register_look
from mmreason.cli.make import register as register_make
from mmreason.cli.run import register as register_run

app = typer.Typer(
    name="mmreason",
    help="Train models that reason over images, video and audio: SFT, then curriculum GRPO, from one recipe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
register_run(app)
register_look(app)
register_bench(app)
register_make(app)


def main() -> None:
    """Run a command. A user's mistake prints its message and exits 1; MMREASON_TRACEBACK=1 shows where it arose."""
    if "LOCAL_RANK" in os.environ:  # the deepspeed launcher tells it by an argument, too
        sys.argv[1:] = [given for given in sys.argv[1:] if not given.startswith("--local_rank=")]
    try:
        app()
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("MMREASON_TRACEBACK") == "1":
            raise
        print(f"mmreason: {error}", file=sys.stderr)
        sys.exit(1)
