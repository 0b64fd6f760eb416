"""The command `outboxd`, also as `python -m daemon` where it is not on PATH."""

import gc

# What an import makes is there to stay. To look through it for rubbish takes a tenth of the time until a command answers.
gc.disable()
from daemon.cli import main  # noqa: E402

gc.freeze()
gc.enable()

if __name__ == "__main__":
    main(prog_name="outboxd")
