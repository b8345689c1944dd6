"""`lhopt train`: train a policy."""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.errors import ConfigurationError, MissingExtraError, UnknownNameError
from .folders import check_folder

if TYPE_CHECKING:
    from ..policy.artifact import Artifact
    from ..policy.env_train import EnvTrainConfig
    from ..policy.ppo import PPOConfig, PPOTrainer
    from ..policy.train_config import TrainConfig

A = TypeVar("A", bound="Artifact")

OPTIMIZERS = ("torch.optim.AdamW", "lhopt.SteerableAdamW")


#: What a folder's training was started with, so that --resume needs no flag repeated.
CONFIG = "config.json"


def add_parser(subparsers: Any) -> None:
    """Add `lhopt train`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "train",
        help="train a policy with PPO on many small training runs",
        description="Train a policy with RecurrentPPO: one that steers training jobs, or with "
        "--env one of another environment. The folder gets a checkpoint every few minutes, "
        "TensorBoard logs, a line of curve.jsonl per evaluation and the policy; Ctrl-C or SIGTERM "
        "saves and stops, with exit status 130 where updates are left; --resume continues exactly.",
    )
    parser.add_argument(
        "folder", type=Path, nargs="?",
        help="where checkpoint, logs and policy go (default with --env: runs/NAME)",
    )  # fmt: skip
    parser.add_argument(
        "--env",
        metavar="NAME",
        help="train in this environment instead (a wrong name lists them), and print what the "
        "policy is worth on its test split",
    )
    parser.add_argument("--optimizer", choices=OPTIMIZERS, help="what the policy will steer")
    parser.add_argument("--updates", type=int, help="PPO updates")
    parser.add_argument("--seed", type=int, help="of tasks, episodes, weights and minibatches")
    parser.add_argument("--name", help="of the policy")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="any other field of lhopt.policy.train_config.TrainConfig (with --env: of "
        "lhopt.policy.env_train.EnvTrainConfig), e.g. --set lstm=32; repeatable",
    )
    parser.add_argument(
        "--config", type=Path, help="a JSON file of fields, or the manifest of a policy to repeat"
    )
    parser.add_argument(
        "--keep-measured", action="store_true",
        help="train nothing: write the frontiers and experts that trainings with the defaults have "
        "measured here into the package, and forget those that no such training reads",
    )  # fmt: skip
    parser.add_argument(
        "--from", dest="start", metavar="PATH",
        help="a policy to begin from instead of imitating, NAME.json or the name of a bundled one; "
        "or the folder of a training (its checkpoint is trusted like code), to begin from what it "
        "exported with its critic",
    )  # fmt: skip
    parser.add_argument(
        "--fold", metavar="K/N",
        help="leave out the K-th of N parts of the training families, to judge the recipe by them: "
        "lhopt policies compare --left-out",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="continue from the folder")
    parser.add_argument(
        "--device", default="cpu",
        help="of PPO's inner runs (cpu, cuda); the learner, the warm start and evaluations stay on "
        "the CPU",
    )  # fmt: skip
    parser.add_argument(
        "--processes", type=int, default=2,
        help="that share the frontiers, costs, experts, runs and evaluations (default 2)",
    )  # fmt: skip
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Train, with progress bars; 0, or 130 if it was stopped before its last update."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(args)
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(args: argparse.Namespace) -> int:
    """As `run`; SIGTERM is a Ctrl-C here."""
    try:
        from tqdm import tqdm

        from ..inner_tasks.engine import checked_device
        from ..policy.pools import make_pools
        from ..policy.train import Trainer, check_start
    except ImportError as error:
        raise MissingExtraError(error.name or "a package of the extra", "train") from error
    if args.keep_measured:
        return _keep_measured(args)
    if args.env is None and args.resume:
        args.env = _stored_environment(args.folder)
    if args.env is not None:
        return _run_environment(args)
    if args.folder is None:
        raise ConfigurationError(
            "Name the folder where checkpoint, logs and policy go: lhopt train runs/adamw"
        )
    checked_device(args.device)
    config = read_config(args)
    _check_folder(args, config)  # before the frontiers, which may take long
    if not args.resume:
        check_start(config)
    check_folder(args.folder)
    print(f"lhopt train: {config.name} for {config.optimizer}, {config.updates} updates")
    with tqdm(desc="frontiers", unit="task", leave=False) as bar:

        def measured(done: int, total: int, name: str) -> None:
            bar.total = total
            bar.n = done
            bar.set_postfix_str(name)

        try:
            pool, valid = make_pools(
                config,
                processes=args.processes,
                progress=measured,
                device=args.device,
                costs=not args.resume,
            )
        except KeyboardInterrupt:
            print(
                "lhopt train: stopped before the first update. The frontiers measured so far are "
                "cached: the same command, without --resume, goes on from them.",
                file=sys.stderr,
            )
            return 130
    families = sorted({entry.spec.family for entry in pool.entries})
    print(f"{len(pool)} training tasks of {len(families)} families: {', '.join(families)}")
    trainer = Trainer(
        config, args.folder, pool, valid, device=args.device, processes=args.processes
    )
    return 0 if _train(trainer, args) else 130


def _train(trainer: PPOTrainer[A], args: argparse.Namespace) -> A | None:
    """Warm start and PPO; the policy, or None if it was stopped before its last update."""
    from ..policy.artifact import write_whole

    with closing(trainer):
        if args.resume:
            trainer.resume()
            print(f"resumed after update {trainer.update}")
        # once nothing was refused: the settings are those of the checkpoint beside them
        text = json.dumps(trainer.config.to_json(), indent=1)
        write_whole(args.folder / CONFIG, f"{text}\n".encode())
        if not _warm_start(trainer):
            return None
        policy = _learn(trainer, trainer.config.updates)
    print(f"policy {policy.name} ({policy.digest[:12]}) in {args.folder}: {_chosen(trainer)}")
    if trainer.update < trainer.config.updates:
        print(
            f"lhopt train: stopped after update {trainer.update} of {trainer.config.updates}; "
            "--resume goes on.",
            file=sys.stderr,
        )
        return None
    return policy


def _chosen(trainer: PPOTrainer[A]) -> str:
    """Of which update the exported weights are, and why."""
    if trainer.best is None:
        return f"the averaged weights after update {trainer.update}; nothing was evaluated"
    score, update, _ = trainer.best
    where = f"after update {update}" if update else "of before the first update"
    return f"the averaged weights {where}, the best evaluation ({score:+.3f})"


def _keep_measured(args: argparse.Namespace) -> int:
    """Ship what trainings and comparisons with the defaults read; 1 if something is missing."""
    from ..env.frontier import cache_folder
    from ..env.measured import ARCHIVE, pack
    from ..policy.pools import compared_names, measured_names
    from ..policy.train_config import TrainConfig

    words = ("folder", "env", "optimizer", "updates", "seed", "name", "set", "config",
             "start", "fold", "resume")  # fmt: skip
    other = [word for word in words if getattr(args, word)]
    if other:
        raise ConfigurationError(
            "--keep-measured is about trainings with the defaults; leave "
            f"{'--from' if other[0] == 'start' else other[0]} out."
        )
    configs = [TrainConfig(optimizer=name) for name in OPTIMIZERS]
    names = {n for c in configs for n in (*measured_names(c), *compared_names(c))}
    kept = pack(cache_folder(), names)
    print(f"{kept} of {len(names)} files kept in {ARCHIVE.name}")
    return int(kept < len(names))


def _run_environment(args: argparse.Namespace) -> int:
    """Train in one of `env.registry.ENVIRONMENTS`; 0, or 130 if it was stopped."""
    from ..env.registry import get_environment
    from ..policy.env_train import EnvTrainer

    row = get_environment(args.env)
    other = [flag for flag, word, default in (
                ("--optimizer", "optimizer", None), ("--device", "device", "cpu"),
                ("--processes", "processes", 2), ("--from", "start", None),
                ("--fold", "fold", None),
             ) if getattr(args, word) != default]  # fmt: skip
    if other:
        raise ConfigurationError(
            f"{other[0]} belongs to policies that steer training jobs, not to --env {args.env}; "
            "leave it out."
        )
    args.folder = args.folder or Path("runs") / args.env
    config = read_env_config(args)
    _check_folder(args, config)
    check_folder(args.folder)
    print(f"lhopt train: {config.name} in {args.env} ({row.summary}), {config.updates} updates")
    policy = _train(EnvTrainer(config, args.folder), args)
    if policy is None:
        return 130
    print(f"\n{row.evaluate(policy)}")
    return 0


def _stored_environment(folder: Path | None) -> str | None:
    """The environment that a folder's training was started in; None if it steers jobs."""
    if folder is None or not (folder / CONFIG).exists():
        return None
    name = _read_file(folder / CONFIG).get("environment")
    return None if name is None else str(name)


def _check_folder(args: argparse.Namespace, config: PPOConfig) -> None:
    """Refuse a folder that holds another training than the one asked for."""
    from ..policy.ppo import CHECKPOINT, read_checkpoint

    if args.resume:
        read_checkpoint(args.folder, config)
    elif (args.folder / CHECKPOINT).exists():
        raise ConfigurationError(
            f"{args.folder} holds a checkpoint. Add --resume to continue it, or name another "
            "folder."
        )


def _learn(trainer: PPOTrainer[A], updates: int) -> A:
    """PPO, with a progress bar."""
    from tqdm import tqdm

    with tqdm(total=updates, initial=trainer.update, desc="updates", unit="") as bar:

        def updated(update: int, row: dict[str, float]) -> None:
            bar.n = update
            bar.set_postfix({k.split("/")[-1]: f"{v:+.2f}" for k, v in row.items() if "/" in k})

        return trainer.learn(updated)


def _warm_start(trainer: PPOTrainer[A]) -> bool:
    """Imitate the experts, with a progress bar for each stage; whether it came to its end."""
    from tqdm import tqdm

    from ..env.frontier import cache_folder
    from ..policy.ppo import CHECKPOINT

    if trainer.started:
        return True
    try:
        with tqdm(desc="warm start", unit="", leave=False) as bar:

            def advanced(stage: str, done: int, total: int, figure: float) -> None:
                if done == 1:
                    bar.set_postfix_str("", refresh=False)  # of the stage before
                    bar.reset(total)
                    bar.set_description(stage)
                bar.set_postfix_str(f"{'rate' if stage == 'experts' else 'loss'} {figure:.3g}")
                bar.update(done - bar.n)

            trainer.warm_start(advanced)
    except KeyboardInterrupt:
        # it may have come just after the warm start's own checkpoint
        if trainer.started and (trainer.folder / CHECKPOINT).exists():
            kept = "It was complete and is saved: add --resume to go on."
        else:
            kept = "No checkpoint was written: the same command again begins it anew."
            if cache_folder().exists():
                kept += f" Frontiers and experts that were measured are kept in {cache_folder()}."
        print(f"lhopt train: stopped in the warm start. {kept}", file=sys.stderr)
        return False
    return True


def read_config(args: argparse.Namespace) -> TrainConfig:
    """The configuration from file, then `--set`, then the named options.

    Raises:
        UnknownNameError: A field that `TrainConfig` does not have.
        ConfigurationError: A file that cannot be read, or a value that is not JSON or does not fit.
    """
    from ..policy.folds import fold
    from ..policy.train_config import TrainConfig

    given = _given(args, TrainConfig(), ("optimizer", "updates", "seed", "name", "start"))
    config = replace(TrainConfig(), **given)
    if args.fold is not None:
        if config.leave_out:
            raise ConfigurationError("--fold and leave_out both name what is left out; give one.")
        config = replace(config, leave_out=fold(config.families, args.fold))
    _check_nested(config)
    return config


def stored_config(folder: Path) -> TrainConfig:
    """The configuration that a folder's training was started with, as `--resume` reads it.

    Raises:
        ConfigurationError: The folder holds no training or one in another environment, or as
            `read_config`.
        UnknownNameError: As `read_config`.
    """
    from ..policy.ppo import CHECKPOINT
    from ..policy.train_config import TrainConfig

    missing = [name for name in (CHECKPOINT, CONFIG) if not (folder / name).is_file()]
    if missing:
        raise ConfigurationError(
            f"{folder} has no {' and no '.join(missing)}, so no training can be restored from it. "
            f"Name a folder that `lhopt train` wrote, with its {CHECKPOINT} and {CONFIG}."
        )
    if (environment := _stored_environment(folder)) is not None:
        raise ConfigurationError(
            f"The training in {folder} is of the environment {environment!r}. Name one that "
            "steers training jobs: `lhopt train` without --env."
        )
    defaults = TrainConfig()
    config = replace(defaults, **_checked(_read_file(folder / CONFIG), defaults))
    _check_nested(config)
    return config


def _check_nested(config: TrainConfig) -> None:
    """Refuse fields that the two nested configurations do not have."""
    from ..policy.imitation import ImitationConfig

    try:
        config.env_config()
        ImitationConfig(**(config.imitation or {}))
    except ConfigurationError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"env is {config.env!r} and imitation is {config.imitation!r}: {error}. Fields "
            "of EnvConfig and ImitationConfig are wanted."
        ) from error


def read_env_config(args: argparse.Namespace) -> EnvTrainConfig:
    """As `read_config`, for `--env`; the environment's own defaults come first.

    Raises:
        UnknownNameError: An environment or a field that does not exist.
        ConfigurationError: As in `read_config`, or a file of another environment.
    """
    from ..policy.cloning import CloningConfig
    from ..policy.env_train import EnvTrainConfig

    defaults = EnvTrainConfig.of(args.env)
    config = replace(defaults, **_given(args, defaults, ("updates", "seed", "name")))
    if config.environment != args.env:
        raise ConfigurationError(
            f"The settings are of the environment {config.environment!r}; --env is {args.env!r}. "
            "Give settings of the same environment, or another folder."
        )
    try:
        CloningConfig(**(config.imitation or {}))
    except TypeError as error:
        raise ConfigurationError(
            f"imitation is {config.imitation!r}: {error}. Fields of CloningConfig are wanted."
        ) from error
    return config


def _given(
    args: argparse.Namespace, defaults: PPOConfig, options: tuple[str, ...]
) -> dict[str, Any]:
    """Fields that file, `--set` or an option gives, each of its default's kind."""
    given: dict[str, Any] = {}
    if args.config is not None:
        given.update(_read_file(args.config))
        named = any(item.partition("=")[0] == "start" for item in args.set)
        began = given.get("start") if hasattr(defaults, "start") else None
        if began and not (args.resume or args.start or named):
            _check_told(args.config, began)
    elif args.resume and (args.folder / CONFIG).exists():
        given.update(_read_file(args.folder / CONFIG))  # what it was started with
    for item in args.set:
        name, _, text = item.partition("=")
        try:
            given[name] = json.loads(text)
        except ValueError as error:
            raise ConfigurationError(
                f"--set {item}: {text!r} is not JSON. Strings need quotes: "
                f"--set '{name}=\"{text}\"'."
            ) from error
    for name in options:
        if getattr(args, name) is not None:
            given[name] = getattr(args, name)
    return _checked(given, defaults)


def _check_told(path: Path, start: Any) -> None:
    """Refuse to look for what a training began from by its name, which is all that is kept of it.

    Raises:
        ConfigurationError: The file is a policy's manifest, or a training's own settings.
    """
    from ..policy.ppo import CHECKPOINT

    kept = path.name == CONFIG and (path.parent / CHECKPOINT).exists()
    if kept or "training" in json.loads(path.read_text()):
        raise ConfigurationError(
            f"The training of {path} began from {start!r}, and where that lies is not kept; say "
            f"where it is: --from PATH, or --set start=null to begin without it."
        )


def _checked(given: dict[str, Any], defaults: PPOConfig) -> dict[str, Any]:
    """The same fields, each of its default's kind.

    Raises:
        UnknownNameError: A field that `defaults` does not have.
        ConfigurationError: A value of another kind.
    """
    known = {field.name: field for field in fields(defaults)}
    for name in given:
        if name not in known:
            raise UnknownNameError("training setting", name, known)
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    for name, value in given.items():
        if not _finite(value):
            raise ConfigurationError(f"{name} is {value!r}; finite numbers alone are wanted.")
        default = getattr(defaults, name)
        if not _fits(value, default, str(known[name].type)):
            raise ConfigurationError(
                f"{name} is {value!r}; something like its default {default!r} is wanted."
            )
        if isinstance(default, float):
            given[name] = float(value)  # 1 and 1.0 are one setting, and have one fingerprint
    return given


def _read_file(path: Path) -> dict[str, Any]:
    """Fields from a JSON object, or from the training report in a policy's manifest."""
    try:
        loaded = json.loads(path.read_text())
        given = loaded.get("training", {}).get("config", loaded)
        if not isinstance(given, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error}. A JSON object of TrainConfig's fields is "
            "wanted, or the manifest of a policy."
        ) from error
    return given


def _finite(value: Any) -> bool:
    """Whether no number in a value from JSON is nan or infinite, both of which Python's reads."""
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    if isinstance(value, tuple | list):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _fits(value: Any, default: Any, declared: str) -> bool:
    """Whether a value from JSON is of its default's kind, or what its field is declared to take."""
    if "None" in declared and value is None:
        return True
    if declared == "str | None":
        return isinstance(value, str)
    if default is None or isinstance(default, Mapping):
        return isinstance(value, Mapping)
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))
