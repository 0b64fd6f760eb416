"""`python -m daemon` is `outboxd`, also where the command is not on PATH."""

from daemon.cli import main

main(prog_name="outboxd")
