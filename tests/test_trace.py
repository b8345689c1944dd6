"""One run, recorded in the environment, is decided again by server and client: all must agree."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from lhopt.client import AsyncClient
from lhopt.client.backends import Deadline, Embedded, Terms
from lhopt.core.actions import COLUMN, Decision
from lhopt.core.controls import get_controls
from lhopt.core.features import FEATURES, Situation
from lhopt.core.schedules import Schedule
from lhopt.core.statistics import Statistics
from lhopt.env.config import EnvConfig
from lhopt.env.episode import Episode, draw
from lhopt.inner_tasks.registry import get_task
from lhopt.policy.artifact import Policy, save
from lhopt.policy.evaluate import closed_loop
from lhopt.server.app import create_app
from lhopt.server.settings import Settings

N_RUNS = 5
CONFIG = EnvConfig(optimizer="lhopt.SteerableAdamW", intervals=(8, 8), valid_share=1.0)


@dataclass
class Trace:
    """Per decision: what K runs reported, where they stood, and what the environment did."""

    share: float
    statistics: list[Statistics]
    situations: list[Situation]
    decisions: list[Decision]
    opening: np.ndarray


def lively_policy() -> Policy:
    """Random weights, large enough that every decision moves something."""
    rng = np.random.default_rng(3)
    controls = get_controls(CONFIG.steered.controls)
    n, h, f = sum(len(c.choices) for c in controls), 16, len(FEATURES)
    shapes = {
        "lstm.weight_ih": (4 * h, f), "lstm.weight_hh": (4 * h, h), "lstm.bias": (4 * h,),
        "hidden.weight": (h, h), "hidden.bias": (h,), "head.weight": (n, h), "head.bias": (n,),
    }  # fmt: skip
    weights = {k: rng.normal(0, 0.7, shape).astype(np.float32) for k, shape in shapes.items()}
    return Policy("lively", FEATURES, controls, Schedule(), "mean", "lhopt.SteerableAdamW", weights)


def record(policy: Policy) -> Trace:
    """Train a batch of runs in the environment; the hottest start diverges on the way."""
    drawn = draw(CONFIG, np.random.default_rng(0), N_RUNS)
    drawn.start[0, COLUMN["learning_rate"]] = 1e2
    drawn.start[0, COLUMN["weight_decay"]] = 1e1
    episode = Episode(get_task("digits-mlp"), 64, CONFIG, drawn)
    trace = Trace(float(episode.share[0]), [], [], [], episode.situation().schedule)
    controller = closed_loop(policy, N_RUNS)
    while not episode.finished:
        assert episode.statistics is not None
        trace.statistics.append(episode.statistics)
        trace.situations.append(episode.situation())
        episode.step(controller(episode.observation, len(trace.decisions)))
        assert episode.decision is not None
        trace.decisions.append(episode.decision)
    assert not episode.alive[0]
    assert episode.alive[1:].all()
    return trace


def one(situation: Situation, run: int) -> Situation:
    rows = slice(run, run + 1)
    return Situation(
        situation.progress[rows],
        situation.share[rows],
        situation.relative[rows],
        situation.schedule[rows],
    )


def same(ours: Decision, environment: Decision, run: int) -> bool:
    """Equal to the bit: moves, schedule and reasons."""
    return (
        bool((ours.delta == environment.delta[run]).all())
        and bool((ours.action_delta == environment.action_delta[run]).all())
        and float(ours.schedule[0]) == float(environment.schedule[run])
        and ours.reasons[0] == environment.reasons[run]
    )


def test_one_trace_gives_equal_decisions_through_environment_server_and_client(
    tmp_path: Path,
) -> None:
    policy = lively_policy()
    save(policy, tmp_path / "policies")
    trace = record(policy)
    assert any(not d.is_hold(1) for d in trace.decisions)
    terms = Terms("lhopt.SteerableAdamW", CONFIG.steered.controls, trace.share, True, None)
    app = create_app(
        Settings(database=tmp_path / "lhopt.db", policies_folder=tmp_path / "policies")
    )

    async def through_the_server() -> list[list[Decision]]:
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 5000))
        async with (
            app.router.lifespan_context(app),
            AsyncClient("http://localhost", transport=transport) as client,
        ):
            sessions = [
                await client.open_session(
                    optimizer=terms.optimizer,
                    controls=terms.controls,
                    share=terms.share,
                    policy="lively",
                )
                for _ in range(N_RUNS)
            ]
            assert [s.opened.decision.schedule[0] for s in sessions] == list(trace.opening)
            out = []
            for k, statistics in enumerate(trace.statistics):
                # all at once: the server decides them in one batch
                rows = await asyncio.gather(
                    *(
                        session.decide(
                            k,
                            Statistics(statistics.values[i : i + 1]),
                            one(trace.situations[k], i),
                        )
                        for i, session in enumerate(sessions)
                    )
                )
                out.append(list(rows))
            return out

    served = asyncio.run(through_the_server())
    for i in range(N_RUNS):
        embedded = Embedded(policy, terms)
        opening = embedded.open(Deadline.after(1.0)).decision
        assert opening.schedule[0] == trace.opening[i]
        for k, environment in enumerate(trace.decisions):
            statistics = Statistics(trace.statistics[k].values[i : i + 1])
            ours = embedded.decide(k, statistics, one(trace.situations[k], i), Deadline.after(1.0))
            assert same(ours, environment, i), (i, k)
            assert same(served[k][i], environment, i), (i, k)
