"""The command line: one file a group of commands."""

from flows.cli.app import app, entry, main

__all__ = ["app", "entry", "main"]
