"""`lhopt train`: train a policy."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigurationError, MissingExtraError, UnknownNameError

if TYPE_CHECKING:
    from ..policy.train import TrainConfig

OPTIMIZERS = ("torch.optim.AdamW", "lhopt.SteerableAdamW")


def add_parser(subparsers: Any) -> None:
    """Add `lhopt train`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "train",
        help="train a policy with PPO on many small training runs",
        description="Train a policy with RecurrentPPO. The folder gets a checkpoint every few "
        "minutes, TensorBoard logs and the policy; Ctrl-C saves and stops; --resume continues "
        "exactly.",
    )
    parser.add_argument("folder", type=Path, help="where checkpoint, logs and policy go")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, help="what the policy will steer")
    parser.add_argument("--updates", type=int, help="PPO updates")
    parser.add_argument("--seed", type=int, help="of tasks, episodes, weights and minibatches")
    parser.add_argument("--name", help="of the policy")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="any other field of lhopt.policy.train.TrainConfig, e.g. --set lstm=32; repeatable",
    )
    parser.add_argument(
        "--config", type=Path, help="a JSON file of fields, or the manifest of a policy to repeat"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the folder")
    parser.add_argument("--device", default="cpu", help="of the inner runs (cpu, cuda)")
    parser.add_argument("--processes", type=int, default=2, help="frontiers measured at once")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Train, with a progress bar."""
    try:
        from tqdm import tqdm

        from ..policy.train import Trainer, make_pools
    except ImportError as error:
        raise MissingExtraError(error.name or "a package of the extra", "train") from error
    config = read_config(args)
    print(f"lhopt train: {config.name} for {config.optimizer}, {config.updates} updates")
    with tqdm(desc="frontiers", unit="task", leave=False) as bar:

        def measured(done: int, total: int, name: str) -> None:
            bar.total = total
            bar.n = done
            bar.set_postfix_str(name)

        pool, valid = make_pools(config, processes=args.processes, progress=measured)
    families = sorted({entry.spec.family for entry in pool.entries})
    print(f"{len(pool)} training tasks of {len(families)} families: {', '.join(families)}")
    trainer = Trainer(config, args.folder, pool, valid, device=args.device)
    if args.resume:
        trainer.resume()
        print(f"resumed after update {trainer.update}")
    elif (args.folder / "checkpoint.pt").exists():
        raise ConfigurationError(
            f"{args.folder} holds a checkpoint. Add --resume to continue it, or name another "
            "folder."
        )
    with tqdm(total=config.updates, initial=trainer.update, desc="updates", unit="") as bar:

        def updated(update: int, row: dict[str, float]) -> None:
            bar.n = update
            bar.set_postfix({k.split("/")[-1]: f"{v:+.2f}" for k, v in row.items() if "/" in k})

        policy = trainer.learn(updated)
    print(f"policy {policy.name} ({policy.digest[:12]}) in {args.folder}")
    return 0


def read_config(args: argparse.Namespace) -> TrainConfig:
    """The configuration from file, then `--set`, then the named options.

    Raises:
        UnknownNameError: A field that `TrainConfig` does not have.
        ConfigurationError: A value that is not JSON.
    """
    from ..policy.train import TrainConfig

    known = {field.name for field in fields(TrainConfig)}
    given: dict[str, Any] = {}
    if args.config is not None:
        loaded = json.loads(args.config.read_text())
        given.update(loaded.get("training", {}).get("config", loaded))
    for item in args.set:
        name, _, text = item.partition("=")
        try:
            given[name] = json.loads(text)
        except ValueError as error:
            raise ConfigurationError(
                f"--set {item}: {text!r} is not JSON. Strings need quotes: "
                f"--set '{name}=\"{text}\"'."
            ) from error
    for name in ("optimizer", "updates", "seed", "name"):
        if getattr(args, name) is not None:
            given[name] = getattr(args, name)
    for name in given:
        if name not in known:
            raise UnknownNameError("training setting", name, known)
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return replace(TrainConfig(), **given)
