"""The command ``airflow openmarkets sessions``. Airflow loads commands of providers since 3.2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from openmarkets_provider.sessions.calendar import ASX

if TYPE_CHECKING:
    from argparse import Namespace

    from airflow.cli.cli_config import GroupCommand


def get_commands() -> list[GroupCommand]:
    """Return the commands for Airflow's command line."""
    from airflow.cli.cli_config import ARG_OUTPUT, ActionCommand, Arg, GroupCommand

    first = Arg(("--from",), dest="first", required=True, metavar="DATE", help="The first day, such as 2026-04-01")
    last = Arg(("--to",), dest="last", required=True, metavar="DATE", help="The last day, such as 2026-04-30")
    listing = ActionCommand(
        name="sessions",
        help="List the sessions of the exchange, with their times in Sydney",
        func=print_sessions,
        args=(first, last, ARG_OUTPUT),
    )
    return [GroupCommand(name="openmarkets", help="The exchange's calendar", subcommands=(listing,))]


def print_sessions(args: Namespace) -> None:
    """Print the sessions from one day to another, both included, with open, close and whether it is a half day."""
    from airflow.cli.simple_table import AirflowConsole

    try:
        sessions = ASX.sessions_in_range(args.first, args.last)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    rows: list[dict[str, Any]] = [
        {
            "session": session,
            "open": ASX.session_open(session).isoformat(),
            "close": ASX.session_close(session).isoformat(),
            "half_day": ASX.is_half_day(session),
        }
        for session in sessions
    ]
    AirflowConsole().print_as(data=rows, output=args.output)
