"""The `mtbi` command: `command.py` is the whole of it, and each group of subcommands has a file of its own."""

from mtbi.cli.command import build_parser, main

__all__ = ["build_parser", "main"]
