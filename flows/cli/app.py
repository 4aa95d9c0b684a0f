"""The command line: `espalier <command>`. Results go to standard output, everything else to standard error.

A user's mistake is one line and exit code 2; a build that could not finish is exit code 1; --debug shows the traceback.

The commands are in the modules beside, one a group. They import what they need when they run, so that `--help` and the
commands that only read start fast.
"""

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

from flows.cli.build import approve, build, plan, retry, schema
from flows.cli.console import CLOSED, INTERRUPTED, explained, fail, finish, give_up, is_closed, reopen_closed
from flows.cli.demo import demo
from flows.cli.maintain import gc, takedown, verify
from flows.cli.read import diff, errors, ls, report, show, sql, versions, why
from flows.cli.schedule import deploy, worker
from flows.cli.search import index, search

COMMANDS: Final[tuple[Callable[..., Any], ...]] = (
    build,
    plan,
    sql,
    ls,
    versions,
    show,
    diff,
    gc,
    errors,
    why,
    approve,
    retry,
    search,
    index,
    verify,
    takedown,
    report,
    schema,
    deploy,
    worker,
    demo,
)
"""In the order in which `--help` lists them."""

app = typer.Typer(
    name="espalier",
    help="Build, prune, version and query image-text datasets. A recipe (YAML) defines a dataset.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in COMMANDS:
    app.command()(command)


def _version(asked: bool) -> None:
    if asked:
        from flows.build.code_version import code_version

        print(f"espalier {code_version()}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and stop")
    ] = False,
) -> None:
    """Build, prune, version and query image-text datasets. A recipe (YAML) defines a dataset."""


def main() -> None:
    """Run the command line."""
    debug = "--debug" in sys.argv
    sys.argv = [a for a in sys.argv if a != "--debug"]
    if bad := next((a for a in sys.argv if not _is_text(a)), None):
        fail(f"{os.fsencode(bad)!r} is no UTF-8 text", 2)
    try:
        code = app(standalone_mode=False, prog_name="espalier")
    except SystemExit as exit_:  # typer makes 1 of a closed pipe
        sys.exit(CLOSED if is_closed() else exit_.code)
    except BaseException as error:
        if debug and (trace := getattr(error, "traceback", "")):
            print(trace, file=sys.stderr)
        fail(*explained(error), debug)
    if code == INTERRUPTED:  # typer gives exit codes back, and makes one of Ctrl-C
        fail(*explained(KeyboardInterrupt()))
    sys.exit(code if isinstance(code, int) else 0)


def _is_text(argument: str) -> bool:
    """Return whether an argument can be written as text: the shell passes any bytes."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


def entry() -> None:
    """Run the command line as a program."""
    from catalog.duck import on_stuck

    reopen_closed()
    on_stuck(give_up)
    code: object = 0
    try:
        main()
    except SystemExit as exit_:
        code = exit_.code
    finish(code)
