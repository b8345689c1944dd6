"""`lhopt policies`: the bundled policies, what a policy steers and was trained on, and checks."""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ArtifactError, ConfigurationError, UnknownNameError
from . import headroom, noise
from .tables import print_table
from .task_bar import task_bar

if TYPE_CHECKING:
    from ..policy.artifact import Artifact, Policy

_HEADER = ("name", "optimizer", "digest", "features", "controls", "updates")
_RIGHT = {3, 5}  # columns of numbers
#: Of a policy's two files.
_SUFFIXES = (".json", ".safetensors")

#: Under a comparison.
_LEGEND = """\
Octaves of speed: 0 is as fast as AdamW with rate and weight decay tuned, 1 twice as fast; each run
counts within -2 and 1.5. "hold" keeps the default rate. Means over families; in brackets 95%,
families and tasks resampled. Tasks whose frontier is blunt {blunt}."""
_LEGEND_FEEDBACK = """\
"+slope": under the decisions the held-out loss's slope moves the weight decay, gain {gain:g}."""

_LEGEND_AVERAGES = """\
"+averages": the same runs, each with the best of its averages by held-out data of their own."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `policies`."""
    parser = subparsers.add_parser(
        "policies",
        help="list, show, verify, compare, combine policies, and what more there is to learn",
        description="A policy is given by the name of a bundled one, or by the path of its "
        "NAME.json or NAME.safetensors. Without a word, the bundled ones are listed.",
    )
    words = parser.add_subparsers(dest="what", metavar="WORD")
    words.add_parser("list", help="the bundled policies (the default)")
    show = words.add_parser("show", help="what one policy reads, steers and was trained on")
    show.add_argument("policy", metavar="NAME", help="name or path of a policy")
    combine = words.add_parser(
        "combine",
        help="several policies as one that answers with the mean of their logits",
        description="Write FOLDER/NAME.json and NAME.safetensors: one policy whose logits are the "
        "mean of those of the given ones, served like any other. They must steer the same "
        "controls under the same schedule.",
    )
    combine.add_argument("folder", metavar="FOLDER", type=Path, help="where to write it")
    combine.add_argument("policies", metavar="PATH_OR_NAME", nargs="+", help="what to combine")
    combine.add_argument("--name", required=True, help="the new policy's name")
    feedback = words.add_parser(
        "feedback",
        help="a policy, and under its decisions the held-out loss's slope moves the weight decay",
        description="Write FOLDER/NAME.json and NAME.safetensors: the given policy with feedback. "
        "Where a job tells the slope (Tuner(validate=...)), the weight decay follows it, and the "
        "policy sees its own moves alone; where it does not, the policy decides as before.",
    )
    feedback.add_argument("folder", metavar="FOLDER", type=Path, help="where to write it")
    feedback.add_argument("policy", metavar="PATH_OR_NAME", help="the policy")
    feedback.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="a field of lhopt.core.feedback.Feedback; gain is wanted, others have defaults",
    )
    feedback.add_argument(
        "--none", action="store_true", help="take its feedback away instead: the policy of before"
    )
    feedback.add_argument("--name", help="the new policy's name (default: the policy's)")
    transfer = words.add_parser(
        "transfer",
        help="a policy put before another optimizer, for a training to begin from",
        description="Write FOLDER/NAME.json and NAME.safetensors: the given policy with the "
        "controls of another optimizer, its heads for those that both have, and its feedback. "
        "Nothing is trained: `lhopt policies compare` says what it is worth there, and `lhopt "
        "train --from` goes on from it.",
    )
    transfer.add_argument("folder", metavar="FOLDER", type=Path, help="where to write it")
    transfer.add_argument("policy", metavar="PATH_OR_NAME", help="the policy")
    transfer.add_argument("--optimizer", required=True, help="as lhopt train takes it")
    transfer.add_argument("--name", required=True, help="the new policy's name")
    verify = words.add_parser("verify", help="check files; exit status 1 if one is broken")
    verify.add_argument("policies", metavar="PATH_OR_NAME", nargs="+", help="what to check")
    compare = words.add_parser(
        "compare",
        help="policies side by side on tasks that none of them was trained on",
        description="Mean log2 speed against tuned AdamW within [-2, 1.5], by family, from "
        "starting rates spread around the default, and beside it that of holding the default "
        "rate. The tasks are those of the evaluation families and of others that no training by "
        "default touches, or of the families named, without those that a policy was trained on; no "
        "held-out task is among them. Some minutes for a policy on two cores.",
    )
    compare.add_argument("policies", metavar="PATH_OR_NAME", nargs="+", help="what to compare")
    compare.add_argument(
        "--families",
        metavar="NAME",
        nargs="+",
        help='families of the tasks; "training" is all that policies train on, "evaluation" those '
        'that choose checkpoints, "comparison" those that neither a training nor its evaluation '
        'touches by default, "confirmation" others that are kept for a last look once a policy is '
        'chosen, "further" other nets on the data of "comparison", "crossed" on that of "training" '
        'too, "drawn" such as draw the program that makes their data; by default evaluation and '
        "comparison",
    )
    compare.add_argument(
        "--decades",
        type=float,
        default=1.0,
        help="spread of the starting rates, either way (default: %(default)s)",
    )
    compare.add_argument(
        "--longest",
        type=int,
        default=2000,
        help="leave out tasks of more steps (default: %(default)s)",
    )
    compare.add_argument(
        "--left-out",
        action="store_true",
        help="the policies are of one recipe, each trained with another --fold K/N: judge each on "
        "the families that it left out, all in one column",
    )
    compare.add_argument(
        "--beside",
        metavar="PATH_OR_NAME",
        nargs="+",
        default=[],
        help="with --left-out, other policies on the same tasks",
    )
    compare.add_argument("--validates", action="store_true", help="runs report a validation loss")
    compare.add_argument(
        "--slope",
        action="store_true",
        help="runs report a validation loss and its slope along the weights' size, as "
        "Tuner(validate=...) measures it",
    )
    compare.add_argument(
        "--feedback",
        type=float,
        default=0.0,
        metavar="GAIN",
        help="with the slope told, every column a second time with feedback of this gain, which "
        "moves the weight decay by it: `steerable` has 200",
    )
    compare.add_argument(
        "--averages",
        action="store_true",
        help="with the slope told, every column once more, of the same runs, each with the best of "
        "its averages, as Tuner.best_weights(validate) chooses by all the held-out data",
    )
    compare.add_argument(
        "--blunt",
        action="store_true",
        help="keep tasks whose tuned baseline gains little by more steps, which are left out: a "
        "loss within the noise of its own runs is at most 0.4 octaves there",
    )
    compare.add_argument("--processes", type=int, default=2, help="tasks run at once")
    headroom.add_parser(words)
    noise.add_parser(words)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Do what was asked; 0, 1 if a policy is broken, 2 if there is none of that name.

    2 also where policies cannot be compared or combined, or another one would be written over.
    """
    try:
        if args.what == "show":
            print("\n".join(_page(_find(args.policy))))
            return 0
        if args.what == "compare":
            return _compare(args)
        if args.what == "headroom":
            return headroom.show(_find(args.policy), args)
        if args.what == "noise":
            return noise.show(args)
        if args.what == "combine":
            return _combine(args)
        if args.what == "feedback":
            return _feedback(args)
        if args.what == "transfer":
            return _transfer(args)
        if args.what == "verify":
            return max([_verify(name) for name in args.policies])
        return _list()
    except (UnknownNameError, ConfigurationError) as error:
        print(f"lhopt policies: {error}", file=sys.stderr)
        return 2
    except ArtifactError as error:
        print(f"lhopt policies: {error}", file=sys.stderr)
        return 1


def _compare(args: argparse.Namespace) -> int:
    """Print the table and each policy's gap to the first, or a recipe's to what stands beside."""
    from ..policy.compare import AVERAGES, FEEDBACK, CompareConfig, compare, compare_left_out
    from ..policy.families import named

    if args.left_out and args.families:
        raise ConfigurationError(
            "--left-out takes the families that each policy left out; leave --families out."
        )
    if args.beside and not args.left_out:
        raise ConfigurationError("--beside goes with --left-out; name all policies in a row.")
    for flag in ("feedback", "averages"):
        if getattr(args, flag) and args.left_out:
            raise ConfigurationError(f"--{flag} does not go with --left-out.")
    families = named(args.families or ())
    config = CompareConfig(
        families=families or CompareConfig.families,
        decades=args.decades,
        longest=args.longest,
        validates=args.validates,
        tells_slope=args.slope or args.feedback > 0 or args.averages,
        feedback=args.feedback,
        averages=args.averages,
        keep_blunt=args.blunt,
    )
    policies = [_find(name) for name in args.policies]
    judge = (
        partial(compare_left_out, policies, {name: _find(name) for name in args.beside})
        if args.left_out
        else partial(compare, dict(zip(args.policies, policies, strict=True)))
    )
    with task_bar() as progress:
        found = judge(config, processes=args.processes, progress=progress)
    counts = Counter(task.split("/")[0] for task in found.speeds)
    names = _columns(found.policies, (AVERAGES, FEEDBACK))
    rows = [
        (family, str(counts[family]), *(f"{speed:.2f}" for speed in row))
        for family, row in found.by_family().items()
    ]
    mean = ("mean over families", str(sum(counts.values())), *(f"{v:.3f}" for v in found.mean))
    print_table([("family", "tasks", *names), *rows, mean], right=range(1, len(names) + 2))
    # what is judged is the first, with --left-out, and else each of the others
    pairs = [(0, i) if args.left_out else (i, 0) for i in range(1, len(names))]
    # and what is averaged beside the first that is
    averaged = [i for i, name in enumerate(names) if name.endswith(AVERAGES)]
    pairs += [(i, averaged[0]) for i in averaged[1:]]
    for judged, base in pairs:
        gap, low, high = found.gaps(base)[judged]
        interval = "-, of a single task" if math.isnan(low) else f"{low:+.3f} to {high:+.3f}"
        print(f"{names[judged]} over {names[base]}: {gap:+.3f} ({interval})")
    print(
        _LEGEND.format(
            blunt="are read no finer than their noise allows" if args.blunt else "fall out"
        )
    )
    if args.feedback:
        print(_LEGEND_FEEDBACK.format(gain=args.feedback))
    if args.averages:
        print(_LEGEND_AVERAGES)
    return 0


def _columns(names: Sequence[str], suffixes: Sequence[str]) -> list[str]:
    """Policies' paths as titles of columns, told apart; what is added to a path stays."""
    plain = list(names)
    for suffix in (*suffixes, *suffixes):  # in whatever order they were added
        plain = [name.removesuffix(suffix) for name in plain]
    title = _titles(list(dict.fromkeys(plain)))
    return [title[base] + name.removeprefix(base) for base, name in zip(plain, names, strict=True)]


def _titles(names: Sequence[str]) -> dict[str, str]:
    """The shortest end of each path that no other has, without a policy's suffix."""
    parts = {}
    for name in names:
        path = Path(name)
        parts[name] = (path.with_suffix("") if path.suffix in _SUFFIXES else path).parts
    titles: dict[str, str] = {}
    for length in range(1, max(map(len, parts.values()), default=0) + 1):
        ends = {name: "/".join(own[-length:]) for name, own in parts.items()}
        counts = Counter(ends.values())
        for name, end in ends.items():
            if counts[end] == 1:
                titles.setdefault(name, end)
    return {name: titles.get(name, name) for name in names}


def _combine(args: argparse.Namespace) -> int:
    from ..policy.combine import combine

    policy = combine([_find(name) for name in args.policies], args.name)
    path = _save(policy, args.folder)
    print(f"{path}: {policy.name} {policy.digest[:12]}, an LSTM of {policy.hidden_size}")
    return 0


def _feedback(args: argparse.Namespace) -> int:
    from ..core.feedback import Feedback
    from ..policy.combine import with_feedback

    given: dict[str, float] = {}
    for item in args.set:
        name, _, text = item.partition("=")
        try:
            given[name] = float(text)
        except ValueError as error:
            raise ConfigurationError(f"--set {item}: {text!r} is not a number.") from error
    if args.none and given:
        raise ConfigurationError("--none takes the feedback away; leave --set out.")
    if not args.none and "gain" not in given:
        raise ConfigurationError(
            "No gain is given, and it has no default: add --set gain=200, as `steerable` has it, "
            "or --none to take the feedback away."
        )
    feedback = None if args.none else Feedback.read(given)
    made = with_feedback(_find(args.policy), feedback, args.name)
    path = _save(made, args.folder)
    print(f"{path}: {made.name} {made.digest[:12]}, feedback {_moved(made)}")
    return 0


def _transfer(args: argparse.Namespace) -> int:
    from ..policy.transfer import transferred

    made = transferred(_find(args.policy), args.optimizer, args.name)
    path = _save(made, args.folder)
    controls = ", ".join(control.name for control in made.controls)
    print(f"{path}: {made.name} {made.digest[:12]} for {made.optimizer}, steers {controls}")
    return 0


def _save(policy: Policy, folder: Path) -> Path:
    """Write a policy that was made of others, but never over another one.

    Raises:
        ConfigurationError: Files of that name hold something else.
        ArtifactError: As `artifact.save`.
    """
    from ..policy.artifact import check_name, load, paths, save

    check_name(policy.name)
    target = folder / f"{policy.name}.json"
    if any(path.exists() for path in paths(target)):
        try:
            there = load(target).digest
        except ArtifactError:
            there = "no sound policy"
        if there != policy.digest:
            raise ConfigurationError(
                f"{target} is there and holds another policy ({there[:15]}). Give another --name "
                "or folder, or move it away first."
            )
    return save(policy, folder)


def _moved(policy: Policy) -> str:
    """What moves under a policy's decisions."""
    if policy.feedback is None:
        return "none"
    return ", ".join(f"{k} {v:g}" for k, v in policy.feedback.to_json().items())


def _find(name: str) -> Policy:
    """A bundled policy by name, or any by path."""
    from ..policy.bundled import find

    return find(name)


def _list() -> int:
    from ..policy.bundled import names

    rows, broken = [], []
    for name in names():
        try:
            policy = _find(name)
        except ArtifactError as error:
            broken.append(f"{name} is broken: {error}")
            continue
        rows.append(
            (
                policy.name,
                policy.optimizer,
                policy.digest[:12],
                str(len(policy.features)),
                ", ".join(control.name for control in policy.controls),
                _updates(policy),
            )
        )
    print_table([_HEADER, *rows], right=_RIGHT)
    for line in broken:
        print(line, file=sys.stderr)
    return 1 if broken else 0


def _updates(policy: Policy) -> str:
    """Of its training and of those that it began from; "-" where no manifest tells."""
    from ..policy.lineage import lineage

    told = [int(stage["updates"]) for stage in lineage(policy.training) if "updates" in stage]
    return str(sum(told)) if told else "-"


def _verify(name: str) -> int:
    """Print one line; 0 if the policy is sound."""
    try:
        policy, use = _sound(name)
    except (ArtifactError, ConfigurationError) as error:
        print(f"{name}: FAILED. {error}")
        return 1
    print(f"{name}: OK, {policy.name} {policy.digest[:12]} for {use}")
    return 0


def _sound(name: str) -> tuple[Artifact, str]:
    """A policy as `_find`, or one of `lhopt train --env` by its path; and what it is for."""
    from ..policy.artifact import is_manifest, paths
    from ..policy.bundled import names
    from ..policy.small import FORMAT, SmallPolicy

    by_path = name and name not in names() and paths(name)[0].is_file()
    if by_path and is_manifest(paths(name)[0], FORMAT):
        small = SmallPolicy.load(name)
        return small, f"the environment {small.environment}"
    policy = _find(name)
    return policy, policy.optimizer


def _page(policy: Policy) -> list[str]:
    from ..policy.lineage import lineage

    schedule = ", ".join(f"{k} {_short(v)}" for k, v in policy.schedule.to_json().items())
    lines = [
        policy.name,
        f"  digest     {policy.digest}",
        f"  optimizer  {policy.optimizer}",
        f"  selection  {policy.selection}",
        f"  schedule   {schedule}",
        f"  feedback   {_moved(policy)}",
        f"  network    LSTM of {policy.hidden_size}, reads {len(policy.features)} features",
        "",
        "controls",
    ]
    width = max((len(control.name) for control in policy.controls), default=0)
    for control in policy.controls:
        sign = "x" if control.kind == "scale" else "shift"
        choices = " ".join(f"{choice:g}" for choice in control.choices)
        bounds = f"in [{control.low:g}, {control.high:g}]"
        lines.append(f"  {control.name:<{width}}  {sign} {choices}  {bounds}")
    training = policy.training
    if not training:
        return [*lines, "", "no training report"]
    lines += ["", "training"]
    if "transferred" in training:
        one = training["transferred"]
        lines.append(f"  transferred from {one['name']} {one['digest'][:12]} of {one['optimizer']}")
    if "feedback_under" in training:
        under = training["feedback_under"]
        lines.append(f"  feedback was put under {under['name']} {under['digest'][:12]}")
    lines += [
        f"  combined     {part['name']} {part['digest'][:12]}"
        for part in training.get("combined", ())
    ]
    if "updates" in training:
        lines.append(f"  updates      {training['updates']}")
    if "cpu_seconds" in training:
        lines.append(f"  cpu_seconds  {training['cpu_seconds']}")
    stages = list(lineage(training))
    if len(stages) > 1:
        seconds = sum(float(stage.get("cpu_seconds", 0.0)) for stage in stages)
        lines.append(
            f"  in all       {_updates(policy)} updates and {seconds:.0f} CPU seconds, "
            "with what it began from"
        )
    tasks = training.get("tasks")
    if isinstance(tasks, Sequence) and tasks:
        families = Counter(str(task).split("/")[0] for task, *_ in tasks)
        counted = ", ".join(f"{family} {n}" for family, n in families.items())
        lines.append(f"  tasks        {len(tasks)}: {counted}")
    curve = training.get("curve")
    if isinstance(curve, Sequence) and curve:
        lines += ["", "last row of the curve", *_table(curve[-1])]
    for part in ("config", "env"):
        if isinstance(training.get(part), Mapping):
            lines += ["", part, *_table(training[part])]
    return lines


def _table(row: Mapping[str, Any]) -> list[str]:
    width = max(map(len, row), default=0)
    return [f"  {key:<{width}}  {_short(value)}" for key, value in row.items()]


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_short(v)}" for k, v in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(_short, value)) or "-"
    return f"{value:g}" if isinstance(value, float) else str(value)
