"""`python -m flows.cli`: the command line."""

from flows.cli.app import entry

entry()
