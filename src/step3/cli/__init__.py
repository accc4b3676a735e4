"""The `step3` command: one file a subcommand, each thin over the room that does the work."""

from step3.cli.main import app, main

__all__ = ["app", "main"]
