"""`lhopt`, the command line: each word is one file beside this one."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from .. import __version__
from ..core.errors import LhoptError

#: One module per word, in the order of the help text. Each has `add_parser` and `run`, and imports
#: what is heavy only when it runs.
WORDS: tuple[str, ...] = (
    "demo",
    "serve",
    "keys",
    "train",
    "search",
    "policies",
    "bench",
    "tasks",
    "optimizers",
)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="lhopt",
        description="A learned policy that steers the hyperparameters of a running training job.",
    )
    parser.add_argument("--version", action="version", version=f"lhopt {__version__}")
    subparsers = parser.add_subparsers(dest="word", metavar="WORD", required=True)
    for word in WORDS:
        module = importlib.import_module(f".{word}", __package__)
        module.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one word; what it refuses is printed without a traceback, exit status 2.

    So is what the file system or a network refuses.
    """
    args = build_parser().parse_args(argv)
    try:
        status: int = args.func(args)
    except LhoptError as error:
        print(f"lhopt {args.word}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `lhopt tasks | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"lhopt {args.word}: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"lhopt {args.word}: stopped", file=sys.stderr)
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
