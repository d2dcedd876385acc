"""The sandbox on the command line: `python -m openmarkets_provider.sandbox`."""

from __future__ import annotations

import argparse
import ipaddress
import json
import shlex
import signal
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from openmarkets_provider.sandbox.import_server import MissingExtraError, import_server

if TYPE_CHECKING:
    from openmarkets_provider.sandbox.server import SandboxServer

_STOP = {signal.SIGINT, signal.SIGTERM}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sandbox until SIGINT or SIGTERM, and return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        server = import_server()
    except MissingExtraError as error:
        print(error, file=sys.stderr)
        return 2
    # Blocked before the server's thread starts, which inherits the mask, so that only this thread gets the signal.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
    try:
        with server(**vars(options)) as sandbox:
            print(_greeting(sandbox), flush=True)
            signal.sigwait(_STOP)
    except OSError as error:
        reason = f"{error.strerror} ({error.filename})" if error.filename else error.strerror
        print(f"Cannot listen on {options.host}:{options.port}: {reason}", file=sys.stderr)
        return 1
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m openmarkets_provider.sandbox",
        description="A local stand-in for Openmarkets' identity server and APIs.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=_port, default=8765, help="0 picks a free one")
    parser.add_argument(
        "--token-lifetime", type=_lifetime, default=3600, metavar="SECONDS", help="how long a token is valid"
    )
    parser.add_argument("--latency", type=_seconds, default=0.0, metavar="SECONDS", help="delay of answers")
    parser.add_argument(
        "--now", type=_moment, metavar="TIME", help="time at which the sandbox stands still, with an offset"
    )
    parser.add_argument(
        "--tls", type=Path, metavar="FOLDER", help="serve HTTPS, with the authority to trust in FOLDER/ca.pem"
    )
    parser.add_argument("--name", help="host in the URLs and in the certificate, if not the address")
    return parser


def _port(text: str) -> int:
    return int(_bounded(int(text), 65535))


def _lifetime(text: str) -> int:
    return int(_bounded(int(text), 10**9))


def _seconds(text: str) -> float:
    return _bounded(float(text), 10**9)


def _moment(text: str) -> datetime | None:
    from openmarkets_provider.sandbox.clock import parse

    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _bounded(number: float, most: float) -> float:
    if not 0 <= number <= most:
        raise argparse.ArgumentTypeError(f"{number} isn't from 0 to {most}")
    return number


def _greeting(sandbox: SandboxServer) -> str:
    extra = sandbox.connection["extra"]
    # In the order and with the labels of the form, which a test compares.
    fields = {
        "Connection ID": "openmarkets_default",
        "Connection Type": "Openmarkets",
        "Identity URL": sandbox.identity_url,
        "Client ID": sandbox.client_id,
        "Client secret": sandbox.client_secret,
        "Identity port": str(urlsplit(sandbox.url).port),
        "Environment": "Test (stage, UAT)",
        "Orders": "Test environment only",
        "Market data URL": extra["market_data_url"],
        "News URL": extra["news_url"],
        "OMS URL": extra["oms_url"],
    } | ({"CA bundle": extra["ca_bundle"]} if "ca_bundle" in extra else {})
    lines = [
        "Openmarkets sandbox: a stand-in made from public documentation, not the real service.",
        f"URL: {sandbox.url}",
        "In Airflow's form (Admin > Connections > Add Connection), the last four under Advanced:",
        *(f"  {label}: {value}" for label, value in fields.items()),
        "Or in the shell that starts Airflow:",
        f"export AIRFLOW_CONN_OPENMARKETS_DEFAULT={shlex.quote(json.dumps(sandbox.connection))}",
    ]
    if not ipaddress.ip_address(sandbox.address).is_loopback:
        lines.insert(1, "Warning: other machines can reach this server, and its secret is public.")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
