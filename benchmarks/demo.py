"""`lhopt demo`: a server, a training job steered over HTTP, its rivals, a table and a picture.

Every part is a process of its own, as it would be in life: the server is `lhopt serve`, the jobs
are `demo_job.py`. They end with the demo, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from ..core.errors import LhoptError
from ..env.frontier import Frontier
from .picture import BLUE, GREEN, GREY, ORANGE, PINK, Line, draw_demo

#: Rates that the rival is tuned over, and the budgets it is finished at, in units of ours.
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 2e-2, 3e-2, 5e-2, 1e-1, 2e-1)
BUDGETS = (0.5, 1.0, 2.0)
TUNING_SEED, SEED = 1, 0
UNTUNED_RATE = 1e-3
#: Seconds that the server may take to start, and a process to end once it is told to.
START, STOP = 90.0, 5.0


class DemoError(LhoptError):
    """A part of the demo did not start, or failed."""


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
    run: str
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


class Processes:
    """Children that end when the block does: on success, an error, Ctrl-C or SIGTERM."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: list[tuple[subprocess.Popen[str], Path]] = []
        self._before: Any = None

    def __enter__(self) -> Processes:
        def stop(number: int, frame: FrameType | None) -> None:
            raise KeyboardInterrupt

        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, stop)
        return self

    def __exit__(self, *error: object) -> None:
        for child, _ in self._children:
            if child.poll() is None:
                child.terminate()
        for child, _ in self._children:
            try:
                child.wait(STOP)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            if child.stdout:
                child.stdout.close()
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def start(
        self, name: str, module: str, arguments: Sequence[str], *, pipe: bool = False
    ) -> subprocess.Popen[str]:
        """Start `python -m module`; what it says on stderr is kept for `complaint`."""
        log = self._folder / f"{name}.log"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        environment.pop("LHOPT_URL", None)
        with log.open("w") as errors:
            child = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipe else errors,
                stderr=errors,
                text=True,
                env=environment,
            )
        self._children.append((child, log))
        return child

    def complaint(self, child: subprocess.Popen[str]) -> str:
        """The last lines that a child said on stderr."""
        log = next(path for held, path in self._children if held is child)
        return "\n".join(log.read_text(errors="replace").splitlines()[-8:])

    def check(self) -> None:
        """Raise if a child has failed.

        Raises:
            DemoError: One has.
        """
        for child, log in self._children:
            if child.poll() not in (None, 0):
                raise DemoError(
                    f"{log.stem} ended with status {child.returncode}:\n{self.complaint(child)}"
                )


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
            url = start_server(processes, plan, folder)
            steered, rivals, frontier = _train(processes, plan, folder, url)
    jobs = [*steered, *rivals]
    print(f"\n{table(jobs, frontier)}\n\n{footnote(plan, frontier, jobs)}")
    picture = plan.output / "demo.png"
    draw_demo(_lines(steered, rivals), _title(plan), plan.steps, picture)
    with (plan.output / "demo.jsonl").open("w") as file:
        for job in jobs:
            file.write(json.dumps({"job": job.label, **job.__dict__}, default=str) + "\n")
    print(f"\n{time.monotonic() - began:.0f} seconds; picture in {picture}")
    return picture


def _train(
    processes: Processes, plan: Plan, folder: Path, url: str
) -> tuple[list[Job], list[Job], Frontier]:
    """The steered jobs in one stream of processes, their rivals beside them in another."""
    from tqdm import tqdm

    common = ["--data", plan.data]
    steps = str(plan.steps)

    def job(out: str, *arguments: str) -> subprocess.Popen[str]:
        path = folder / f"{out}.jsonl"
        path.touch()
        return processes.start(
            out, "lhopt.benchmarks.demo_job", [*common, *arguments, "--out", str(path)]
        )

    curve = ["--curve", "--steps", steps, "--seed", str(SEED)]
    cosine = ["--schedule", "cosine"]
    rates = [f"{rate:g}" for rate in plan.rates]
    lengths = [str(n) for n in plan.lengths]
    streams: dict[str, Iterator[tuple[str, list[str]]]] = {}
    tuned: dict[int, float] = {}

    def ours() -> Iterator[tuple[str, list[str]]]:
        for optimizer in ("AdamW", "SteerableAdamW"):
            yield f"steered-{optimizer}", [*curve, "--optimizer", optimizer, "--url", url]

    def theirs() -> Iterator[tuple[str, list[str]]]:
        tuning = ["--lr", *rates, "--steps", *lengths, "--seed", str(TUNING_SEED)]
        yield "tuning", [*cosine, *tuning]
        tuned.update(best_rates(_read(folder / "tuning.jsonl")))
        for length, rate in tuned.items():
            at_one = length == plan.steps
            arguments = [*cosine, "--lr", f"{rate:g}", "--steps", str(length), "--seed", str(SEED)]
            yield f"tuned-{length}", [*arguments, *(["--curve"] if at_one else [])]
        yield "constant", [*curve, "--lr", f"{UNTUNED_RATE:g}"]
        yield "cosine", [*curve, *cosine, "--lr", f"{UNTUNED_RATE:g}"]

    streams = {"steered over HTTP": ours(), "rivals and tuning": theirs()}
    own = {
        "steered over HTTP": 2 * plan.steps,
        "rivals and tuning": plan.tuning_steps + sum(plan.lengths) + 2 * plan.steps,
    }
    files: dict[str, list[Path]] = {name: [] for name in streams}
    running: dict[str, subprocess.Popen[str] | None] = dict.fromkeys(streams)
    with contextlib.ExitStack() as stack:
        bars = {
            name: stack.enter_context(
                tqdm(total=own[name], desc=name, unit="step", position=i, mininterval=0.5)
            )
            for i, name in enumerate(streams)
        }
        while streams:
            for name in list(streams):
                child = running[name]
                if child is None or child.poll() is not None:
                    processes.check()
                    try:
                        out, arguments = next(streams[name])
                    except StopIteration:
                        del streams[name]
                        bars[name].update(own[name] - bars[name].n)
                        continue
                    files[name].append(folder / f"{out}.jsonl")
                    running[name] = job(out, *arguments)
                rows = [_read(path) for path in files[name]]
                bars[name].n = min(own[name], sum(map(_steps_done, rows)))
                bars[name].set_postfix_str(_latest(rows), refresh=False)
                bars[name].refresh()
            time.sleep(0.3)
    processes.check()

    def finished(label: str, out: str) -> Job:
        rows = _read(folder / f"{out}.jsonl")
        made = Job(label, plan.steps, rows[0]["run"] if rows else "")
        for row in rows:
            made.take(row)
        assert made.final
        return made

    rivals = [
        finished("AdamW, tuned cosine", f"tuned-{plan.steps}"),
        finished("AdamW 1e-3 cosine", "cosine"),
        finished("AdamW 1e-3 constant", "constant"),
    ]
    steered = [
        finished("AdamW + lhopt", "steered-AdamW"),
        finished("SteerableAdamW + lhopt", "steered-SteerableAdamW"),
    ]
    ends = [finished("", f"tuned-{length}").final for length in plan.lengths]
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


def best_rates(rows: Sequence[dict[str, Any]]) -> dict[int, float]:
    """The rate of the lowest final validation loss, by length.

    Raises:
        DemoError: Every rate diverged.
    """
    best: dict[int, tuple[float, float]] = {}
    for row in rows:
        if row["kind"] == "end" and row["valid"]["loss"] is not None:
            found = (row["valid"]["loss"], row["lr"])
            best[row["steps"]] = min(best.get(row["steps"], found), found)
    if not best:
        raise DemoError("Every rate of the tuned cosine diverged.")
    return {steps: rate for steps, (_, rate) in best.items()}


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
        speed = 2.0 ** float(frontier.log2_speed(float("inf") if loss is None else loss))
        rate = job.end["lr"] if job.end and job.end["lr"] is not None else job.rate
        lines.append(
            (
                job.label,
                f"{rate:.2g}",
                _number(loss),
                _number(end["test"]["loss"]),
                f"{end['test']['accuracy']:.1%}",
                str(end["steps"]),
                f"{end['seconds']:.1f}",
                f"{speed:.2f}",
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


def footnote(plan: Plan, frontier: Frontier, jobs: Sequence[Job]) -> str:
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
            f"loss; it came to {points}.",
            "One seed, so a story and no claim: `lhopt bench` has many tasks, seeds and intervals. "
            "Seconds: of the training loop, the server's answers included.",
        )
    )


def _number(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.4f}"


def _title(plan: Plan) -> str:
    name = {"digits": "Digits (8x8)", "fashion-mnist": "Fashion-MNIST (28x28)"}[plan.data]
    return f"{name}, a small CNN, {plan.steps} steps of 64 images"


def _lines(steered: Sequence[Job], rivals: Sequence[Job]) -> list[Line]:
    looks = [(BLUE, "-"), (ORANGE, "-"), (GREEN, "--"), (PINK, "-."), (GREY, ":")]
    lines = []
    for job, (colour, style) in zip([*steered, *rivals], looks, strict=True):
        steps, losses = zip(*job.curve, strict=True) if job.curve else ((), ())
        rate = job.final["lr"] if job.final["lr"] is not None else job.rate
        label = f"{job.label} (lr {rate:.2g})" if job in rivals[:1] else job.label
        lines.append(Line(label, colour, style, steps, losses, job.path))
    return lines


def _read(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):  # the last line may be half written
            rows.append(json.loads(line))
    return rows


def _steps_done(rows: Sequence[dict[str, Any]]) -> int:
    done = sum(row["steps"] for row in rows if row["kind"] == "end")
    last = rows[-1] if rows else None
    return done + (int(last.get("step", 0)) if last and last["kind"] != "end" else 0)


def _latest(files: Sequence[Sequence[dict[str, Any]]]) -> str:
    for rows in reversed(files):
        for row in reversed(rows):
            if row["kind"] == "curve" and row["loss"] is not None:
                return f"validation loss {row['loss']:.3f}"
    return ""
