"""`lhopt serve`: run the decision server until it is told to stop."""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ..core.errors import ConfigurationError, LhoptError, MissingExtraError
from ..server.settings import DEFAULT_DATABASE, Durability, Settings

if TYPE_CHECKING:
    from ..server.services import Services

#: Seconds that open requests get to finish once the server was told to stop.
GRACE = 10


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `serve` to the command line."""
    default = Settings()
    parser = subparsers.add_parser(
        "serve",
        help="serve decisions over HTTP",
        description="Serve the bundled policies, and those of a folder, over HTTP.",
    )
    parser.add_argument("--host", default=default.host, help="address (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=default.port, help="0 picks a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--database",
        type=Path,
        default=DEFAULT_DATABASE,
        metavar="PATH",
        help="SQLite file, made if missing (default: %(default)s)",
    )
    parser.add_argument(
        "--policies",
        type=Path,
        metavar="DIR",
        help="folder of NAME.json and NAME.safetensors to serve before the bundled policies; of "
        "several for one optimizer the first by file name is the default",
    )
    parser.add_argument(
        "--durability",
        choices=get_args(Durability),
        default=default.durability,
        help="what an answered decision survives: the process's death, or the loss of power too",
    )
    parser.add_argument(
        "--max-sessions",
        type=int,
        default=default.max_sessions,
        metavar="N",
        help="open sessions that one key may hold, those without a decision for "
        f"{default.idle_days:g} days not counted (default: %(default)s)",
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C; 0 after a clean stop, 2 where it cannot start."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(message)s")
    try:
        settings = Settings(
            database=args.database,
            host=args.host,
            port=args.port,
            policies_folder=args.policies,
            durability=args.durability,
            max_sessions=args.max_sessions,
        )
        try:
            import uvicorn  # noqa: F401

            from ..server.services import open_services
        except ModuleNotFoundError as error:
            raise MissingExtraError(error.name or "fastapi", "server") from error
        listening = _listen(settings.host, settings.port)
        try:
            services = open_services(settings)
        except BaseException:
            listening.close()
            raise
    except LhoptError as error:
        print(f"lhopt serve: {error}", file=sys.stderr)
        return 2
    _serve(settings, services, listening)
    return 0


def _serve(settings: Settings, services: Services, listening: socket.socket) -> None:
    import uvicorn

    from ..server.app import create_app
    from ..server.protocol import bounded

    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{listening.getsockname()[1]}"
    served = services.catalog.all()
    names = [policy.name for policy in served]
    policies = ", ".join(
        f"{one.name} {one.digest[:12]}" if names.count(one.name) > 1 else one.name for one in served
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                print(f"lhopt serving on {url} (policies: {policies})", flush=True)

    config = uvicorn.Config(
        create_app(settings, services),
        http=bounded(settings),
        log_config=None,
        access_log=False,
        server_header=False,
        # the peer's own address decides whether it is local; no header may say otherwise
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=GRACE,
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # uvicorn stops cleanly on these, then raises them again for whoever handled them before
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host.strip("[]"), port))
    except OSError as error:
        listening.close()
        raise ConfigurationError(
            f"Cannot listen on {host}:{port}: {error.strerror or error}. Take another --port (0 "
            "picks a free one) or --host."
        ) from error
    return listening
