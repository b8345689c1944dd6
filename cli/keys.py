"""`lhopt keys`: make, list and revoke the keys of a server, on the server's own database."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.errors import ConfigurationError, LhoptError
from ..server.keys import create_key
from ..server.settings import DEFAULT_DATABASE
from ..server.sqlite_store import SqliteStore


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `keys create`, `keys list` and `keys revoke` to the command line."""
    parser = subparsers.add_parser(
        "keys",
        help="make, list and revoke API keys",
        description="Keys of the server on this database; a running server notices in a second.",
    )
    actions = parser.add_subparsers(dest="action", required=True)
    create = actions.add_parser("create", help="make a key and show it, this once")
    create.add_argument("--name", required=True, help="whose key it is, for people")
    listing = actions.add_parser("list", help="show every key, without secrets")
    revoke = actions.add_parser("revoke", help="make a key worthless")
    revoke.add_argument("short", metavar="ID", help="its short id, as `lhopt keys list` shows it")
    for action in (create, listing, revoke):
        action.add_argument(
            "--database",
            type=Path,
            default=DEFAULT_DATABASE,
            metavar="PATH",
            help="the server's SQLite file (default: %(default)s)",
        )
        action.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Do what was asked; 0 done, 1 there is no such key, 2 the database cannot be used."""
    try:
        with _store(args.database, make=args.action == "create") as store:
            if args.action == "create":
                record, key = create_key(store, args.name)
                print(key)
                if lost := store.count_open("local"):
                    print(
                        f"{lost} open sessions were opened without a key; no key reaches them.",
                        file=sys.stderr,
                    )
                print(
                    f"Key {record.short} for {record.name!r}. It is shown this once; within a "
                    "second the server wants a key from everyone.",
                    file=sys.stderr,
                )
                return 0
            if args.action == "list":
                for row in store.list_keys():
                    state = "active" if row.revoked is None else f"revoked {_day(row.revoked)}"
                    print(f"{row.short}  {_day(row.created)}  {state}  {row.name}")
                return 0
            if store.revoke_key(args.short, time.time()):
                print(f"Key {args.short} is revoked.")
                if lost := store.count_open(args.short):
                    print(
                        f"{lost} open sessions are that key's own; no other key reaches them. "
                        "Their jobs hold, or open sessions anew when they are resumed.",
                        file=sys.stderr,
                    )
                return 0
            print(
                f"lhopt keys: no active key {args.short!r} in {args.database}; `lhopt keys list` "
                "shows them.",
                file=sys.stderr,
            )
            return 1
    except LhoptError as error:
        print(f"lhopt keys: {error}", file=sys.stderr)
        return 2


@contextmanager
def _store(path: Path, *, make: bool) -> Iterator[SqliteStore]:
    if not make and not path.exists():
        raise ConfigurationError(f"There is no database {path}. Name the server's --database.")
    store = SqliteStore(path)
    try:
        yield store
    finally:
        store.close()


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
