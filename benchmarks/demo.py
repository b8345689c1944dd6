"""`lhopt demo`: a server, a training job steered over HTTP, its rivals, a table and a picture.

Every part is a process of its own, as it would be in life: the server is `lhopt serve`, the jobs
are `demo_job.py`. They end with the demo, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..env.frontier import Frontier
from .demo_job import BATCH_SIZES, cosine
from .demo_rivals import TUNING_SEED, best_rates
from .picture import BLUE, GREEN, GREY, ORANGE, PINK, Line, draw_demo
from .processes import DemoError, Processes

#: Rates that the rival is tuned over, and the budgets it is finished at, in units of ours.
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 2e-2, 3e-2, 5e-2, 1e-1, 2e-1)
BUDGETS = (0.5, 1.0, 2.0)
STEERED = ("AdamW", "SteerableAdamW")
#: Seconds that the server may take to start.
START = 90.0


@dataclass(frozen=True)
class Plan:
    """What a demo does.

    Attributes:
        data: "digits" or "fashion-mnist".
        steps: Steps of every job.
        rates: Rates that the rival is tuned over.
        output: Folder of the picture and the raw lines.
        policies: A folder of policies for the server, beside the bundled ones.
    """

    data: str
    steps: int
    rates: tuple[float, ...]
    output: Path
    policies: Path | None = None

    @property
    def lengths(self) -> tuple[int, ...]:
        """Steps of the rival's runs."""
        return tuple(round(budget * self.steps) for budget in BUDGETS)

    @property
    def tuning_steps(self) -> int:
        """Steps that tuning the rival takes."""
        return len(self.rates) * sum(self.lengths)


@dataclass
class Job:
    """One line of the table, as its process has reported it so far."""

    label: str
    steps: int
    rate: float | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)
    path: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    decisions: int = 0
    held: int = 0
    end: dict[str, Any] | None = None

    def take(self, row: dict[str, Any]) -> None:
        """Read one line of the process."""
        if row["kind"] == "begin":
            self.rate = row["lr"]
        elif row["kind"] == "curve" and row["loss"] is not None:
            self.curve.append((row["step"], row["loss"]))
        elif row["kind"] == "decision":
            self.decisions += 1
            self.held += row["by"] != "policy"
            for name, value in row["values"].items():
                self.path.setdefault(name, []).append((row["step"], value))
        elif row["kind"] == "end":
            self.end = row

    @property
    def final(self) -> dict[str, Any]:
        """The outcome.

        Raises:
            DemoError: There is none.
        """
        if self.end is None:
            raise DemoError(f"The job {self.label!r} ended without a result.")
        return self.end


def start_server(processes: Processes, plan: Plan, folder: Path) -> str:
    """Start `lhopt serve` on a free port with a database of its own; its URL once it is ready.

    Raises:
        DemoError: It did not start.
    """
    arguments = ["serve", "--port", "0", "--database", str(folder / "demo.sqlite3")]
    if plan.policies is not None:
        arguments += ["--policies", str(plan.policies)]
    child = processes.start("server", "lhopt.cli.main", arguments, pipe=True)
    said: queue.Queue[str] = queue.Queue()
    assert child.stdout is not None
    stream = child.stdout

    def listen() -> None:
        with contextlib.suppress(ValueError):  # closed when the demo ends
            for line in stream:
                said.put(line)

    threading.Thread(target=listen, daemon=True).start()
    deadline = time.monotonic() + START
    while time.monotonic() < deadline and child.poll() is None:
        try:
            line = said.get(timeout=0.2)
        except queue.Empty:
            continue
        if "serving on http" in line:
            print(line.strip())
            return line.split("serving on ")[1].split()[0]
    raise DemoError(f"The server did not start:\n{processes.complaint(child)}")


def run_demo(plan: Plan) -> Path:
    """Run everything; the picture's path.

    Raises:
        DemoError: A part failed; the message has its last words.
    """
    began = time.monotonic()
    plan.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lhopt-demo-") as name:
        folder = Path(name)
        with Processes(folder) as processes:
            steered, rivals, frontier = _train(processes, plan, folder)
    jobs = [*steered, *rivals]
    print(f"\n{table(jobs, frontier)}\n\n{footnote(plan, frontier)}")
    picture = plan.output / "demo.png"
    draw_demo(_lines(steered, rivals), _title(plan), plan.steps, picture)
    with (plan.output / "demo.jsonl").open("w") as file:
        for job in jobs:
            file.write(json.dumps(asdict(job)) + "\n")
    print(f"\n{time.monotonic() - began:.0f} seconds; picture in {picture}")
    return picture


def _train(processes: Processes, plan: Plan, folder: Path) -> tuple[list[Job], list[Job], Frontier]:
    """The steered jobs one after another; server and rivals beside them."""
    from tqdm import tqdm

    files = {name: folder / f"{name}.jsonl" for name in ("rivals", *STEERED)}
    for path in files.values():
        path.touch()

    def job(name: str, module: str, *arguments: str) -> subprocess.Popen[str]:
        given = ["--data", plan.data, "--steps", str(plan.steps), "--out", str(files[name])]
        return processes.start(name, f"lhopt.benchmarks.{module}", [*given, *arguments])

    lengths, rates = [str(n) for n in plan.lengths], [f"{rate:g}" for rate in plan.rates]
    running = [job("rivals", "demo_rivals", "--lengths", *lengths, "--rates", *rates)]
    url = start_server(processes, plan, folder)
    waiting = list(STEERED)
    steering: subprocess.Popen[str] | None = None
    totals = {
        "steered over HTTP": (len(STEERED) * plan.steps, STEERED),
        "rivals and tuning": (
            plan.tuning_steps + sum(plan.lengths) + 2 * plan.steps, ("rivals",)
        ),
    }  # fmt: skip
    every = 0.3 if sys.stderr.isatty() else 10.0
    with contextlib.ExitStack() as stack:
        bars = [
            stack.enter_context(
                tqdm(total=n, desc=name, unit="step", position=i, mininterval=every)
            )
            for i, (name, (n, _)) in enumerate(totals.items())
        ]
        while True:
            processes.check()
            if waiting and (steering is None or steering.poll() is not None):
                optimizer = waiting.pop(0)
                steering = job(optimizer, "demo_job", "--optimizer", optimizer, "--url", url)
                running.append(steering)
            over = not waiting and all(child.poll() is not None for child in running)
            for bar, (_, names) in zip(bars, totals.values(), strict=True):
                rows = [_read(files[name]) for name in names]
                bar.set_postfix_str(_latest(rows), refresh=False)
                bar.update(sum(map(_steps_done, rows)) - bar.n)
            if over:
                break
            time.sleep(0.2)
    processes.check()
    return _gather(plan, {name: _read(path) for name, path in files.items()})


def _gather(
    plan: Plan, rows: dict[str, list[dict[str, Any]]]
) -> tuple[list[Job], list[Job], Frontier]:
    """Steered jobs, rivals and the tuned cosine's frontier, from what the processes wrote."""

    def finished(label: str, file: str, run: str) -> Job:
        made = Job(label, plan.steps)
        for row in rows[file]:
            if row["run"] == run:
                made.take(row)
        assert made.final
        return made

    tuned = best_rates(rows["rivals"])
    if set(tuned) != set(plan.lengths):
        raise DemoError("Every rate of the tuned cosine diverged.")
    rivals = [
        finished("AdamW, tuned cosine", "rivals", f"tuned {plan.steps}"),
        finished("AdamW 1e-3 cosine", "rivals", "cosine"),
        finished("AdamW 1e-3 constant", "rivals", "constant"),
    ]
    steered = [finished(f"{optimizer} + lhopt", optimizer, "steered") for optimizer in STEERED]
    ends = [finished("", "rivals", f"tuned {length}").final for length in plan.lengths]
    losses = tuple(float("inf") if e["valid"]["loss"] is None else e["valid"]["loss"] for e in ends)
    frontier = Frontier(
        task=plan.data,
        steps=plan.steps,
        budgets=BUDGETS,
        losses=losses,
        best_rates=tuple(tuned[length] for length in plan.lengths),
        noise=0.0,
        untrained=rivals[2].curve[0][1],
        rates=plan.rates,
    )
    return steered, rivals, frontier


def table(jobs: Sequence[Job], frontier: Frontier) -> str:
    """What every job came to."""
    header = (
        "job", "starting lr", "valid loss", "test loss", "test acc.", "steps", "seconds", "h*",
        "decisions",
    )  # fmt: skip
    lines = [header]
    for job in jobs:
        end = job.final
        loss = end["valid"]["loss"]
        lines.append(
            (
                job.label,
                f"{job.rate:.2g}",
                _number(loss),
                _number(end["test"]["loss"]),
                f"{end['test']['accuracy']:.1%}",
                str(end["steps"]),
                f"{end['seconds']:.1f}",
                speed(loss, frontier),
                f"{job.decisions} ({job.held} held)" if job.decisions else "-",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    rows = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([rows[0], "-" * max(map(len, rows)), *rows[1:]])


def speed(loss: float | None, frontier: Frontier) -> str:
    """The budget at which the tuned cosine reaches a loss; no guess outside what it was run at."""
    if not falls(frontier):
        return "-"
    if loss is None or loss > frontier.losses[0]:
        return f"< {frontier.budgets[0]:g}"
    if loss < min(frontier.losses):
        return f"> {frontier.budgets[-1]:g}"
    return f"{2.0 ** float(frontier.log2_speed(loss)):.2f}"


def falls(frontier: Frontier) -> bool:
    """Whether a larger budget gave the tuned cosine a lower loss; or budgets measure nothing."""
    return all(a > b for a, b in pairwise(frontier.losses))


def footnote(plan: Plan, frontier: Frontier) -> str:
    """What the figures mean, and what the rival's tuning cost."""
    runs = len(plan.rates) * len(BUDGETS)
    points = ", ".join(
        f"{loss:.4g} after {length} steps at {rate:g}"
        for loss, length, rate in zip(
            frontier.losses, plan.lengths, frontier.best_rates, strict=True
        )
    )
    edge = " (the best rate lies ON THE EDGE of the grid)" if frontier.edge else ""
    return "\n".join(
        (
            f"Tuned cosine: {runs} runs, {plan.tuning_steps:,} steps of tuning ({len(plan.rates)} "
            f"rates from {min(plan.rates):g} to {max(plan.rates):g} at {len(BUDGETS)} lengths, "
            f"seed {TUNING_SEED}){edge}; the other jobs: no tuning, one run each.",
            f"h*: budget, in units of ours, at which the tuned cosine reaches the same validation "
            f"loss; it came to {points}."
            + ("" if falls(frontier) else " That does not fall, so no speed can be read off it."),
            "One seed, so a story and no claim: `lhopt bench` has many tasks, seeds and intervals. "
            "Seconds: of the training loop, the server's answers included.",
        )
    )


def _number(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.4f}"


def _title(plan: Plan) -> str:
    name = {"digits": "Digits (8x8)", "fashion-mnist": "Fashion-MNIST (28x28)"}[plan.data]
    return f"{name}, a small CNN, {plan.steps} steps of {BATCH_SIZES[plan.data]} images"


def _lines(steered: Sequence[Job], rivals: Sequence[Job]) -> list[Line]:
    looks = [(BLUE, "-"), (ORANGE, "-"), (GREEN, "--"), (PINK, "-."), (GREY, ":")]
    lines = []
    for job, (colour, style) in zip([*steered, *rivals], looks, strict=True):
        steps, losses = zip(*job.curve, strict=True) if job.curve else ((), ())
        label = f"{job.label} (lr {job.rate:.2g})" if job in rivals[:1] else job.label
        rates: list[tuple[float, float]] = []
        if job in rivals[:1] and job.rate is not None:
            # down to a hundredth of its peak: further, the log axis would show little else
            every = ((step, cosine(step, job.steps)) for step in range(job.steps))
            rates = [(step, job.rate * share) for step, share in every if share >= 0.01]
        lines.append(Line(label, colour, style, steps, losses, job.path, rates))
    return lines


def _read(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):  # the last line may be half written
            rows.append(json.loads(line))
    return rows


def _steps_done(rows: Sequence[dict[str, Any]]) -> int:
    done = sum(int(row["steps"]) for row in rows if row["kind"] == "end")
    if rows and rows[-1]["kind"] != "end":
        done += int(rows[-1].get("step", 0))
    return done


def _latest(files: Sequence[Sequence[dict[str, Any]]]) -> str:
    for rows in reversed(files):
        for row in reversed(rows):
            if row["kind"] == "curve" and row["loss"] is not None:
                return f"validation loss {row['loss']:.3f}"
    return ""
