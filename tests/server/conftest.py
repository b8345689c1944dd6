"""An application with small random policies, driven from plain test functions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lhopt.core.controls import get_controls
from lhopt.core.features import FEATURES
from lhopt.core.schedules import Schedule
from lhopt.policy.artifact import Policy, Selection, save
from lhopt.server.app import create_app
from lhopt.server.services import Services, open_services
from lhopt.server.settings import Settings

CONTROLS = ("learning_rate", "one_minus_beta1", "weight_decay")


def random_policy(
    name: str, seed: int, *, optimizer: str = "torch.optim.AdamW", selection: Selection = "mode"
) -> Policy:
    """A policy of random weights, large enough that its decisions differ from report to report."""
    rng = np.random.default_rng(seed)
    controls = get_controls(CONTROLS)
    hidden, features = 16, len(FEATURES)
    n_choices = sum(len(control.choices) for control in controls)
    shapes = {
        "lstm.weight_ih": (4 * hidden, features),
        "lstm.weight_hh": (4 * hidden, hidden),
        "lstm.bias": (4 * hidden,),
        "hidden.weight": (hidden, hidden),
        "hidden.bias": (hidden,),
        "head.weight": (n_choices, hidden),
        "head.bias": (n_choices,),
    }
    weights = {key: rng.normal(0, 1.0, shape).astype(np.float32) for key, shape in shapes.items()}
    return Policy(name, FEATURES, controls, Schedule(), selection, optimizer, weights)


class Api:
    """One running application and a client of it, used synchronously on a loop of its own."""

    def __init__(self, settings: Settings, *, peer: str = "127.0.0.1") -> None:
        self.settings = settings
        self.services: Services = open_services(settings)
        self._runner = asyncio.Runner()
        self.app = create_app(settings, self.services)
        self._lifespan = self.app.router.lifespan_context(self.app)
        self._runner.run(self._lifespan.__aenter__())
        self.key: str | None = None
        self.peer = peer

    async def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request; `key=` names another bearer key than the default, None for no key."""
        key = options.pop("key", self.key)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        headers |= options.pop("headers", {})
        transport = httpx.ASGITransport(self.app, client=(self.peer, 50000))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, headers=headers, **options)

    def __call__(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._runner.run(self.send(method, path, **options))

    def together(self, *requests: tuple[str, str, dict[str, Any]]) -> list[httpx.Response]:
        """Several requests at once, each (method, path, options)."""

        async def all_of_them() -> list[httpx.Response]:
            return await asyncio.gather(*(self.send(m, p, **dict(o)) for m, p, o in requests))

        return self._runner.run(all_of_them())

    def spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        """Begin a coroutine on the application's loop; it goes on during the next requests."""
        return self._runner.get_loop().create_task(coroutine)

    def wait(self, task: asyncio.Task[Any]) -> Any:
        """The result of a spawned coroutine."""

        async def result() -> Any:
            return await task

        return self._runner.run(result())

    def open(self, **changes: Any) -> dict[str, Any]:
        """Open a session that must open."""
        options = {k: changes.pop(k) for k in ("key", "headers") if k in changes}
        answer = self("POST", "/v1/sessions", json=session_request(**changes), **options)
        assert answer.status_code == 201, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def decide(
        self, session: str, attempt: int, index: int, body: Any = None, **options: Any
    ) -> httpx.Response:
        """Report interval `index`; the report is `report(index)` if none is given."""
        path = decision_path(session, attempt, index)
        return self("PUT", path, json=report(index) if body is None else body, **options)

    def metric(self, name: str) -> float:
        """Sum of a metric's samples of exactly this name."""
        samples = [
            sample.value
            for family in self.services.metrics.registry.collect()
            for sample in family.samples
            if sample.name == name
        ]
        return sum(samples)

    def close(self) -> None:
        """Stop the application as its server would."""
        self._runner.run(self._lifespan.__aexit__(None, None, None))
        self._runner.close()


def decision_path(session: str, attempt: int, index: int) -> str:
    return f"/v1/sessions/{session}/attempts/{attempt}/decisions/{index}"


def session_request(**changes: Any) -> dict[str, Any]:
    return {
        "wire_version": 1,
        "name": "a job",
        "policy": None,
        "optimizer": "torch.optim.AdamW",
        "controls": ["learning_rate", "weight_decay", "one_minus_beta2"],
        "share": 0.03125,
        "scheduled": True,
        "metadata": {"team": "vision"},
    } | changes


def report(index: int, seed: int = 0) -> dict[str, Any]:
    """What an interval may have measured; another one for each index and seed."""
    rng = np.random.default_rng([index, seed])
    loss = float(np.exp(-0.1 * index) + 0.1 * rng.random())
    return {
        "statistics": {
            "train_loss": loss,
            "train_loss_std": 0.1 * loss,
            "train_loss_sem": 0.01 * loss,
            "train_loss_last": loss * 0.99,
            "log_grad_norm": float(rng.normal()),
            "cos_grad_momentum": float(rng.uniform(-1, 1)),
            "adam_like": float(rng.random()),
        },
        "situation": {
            "progress": min((index + 1) * 0.03125, 1.0),
            "share": 0.03125,
            "schedule": -0.5,
            "relative": {"learning_rate": float(rng.normal()), "weight_decay": 0.5},
        },
    }


@pytest.fixture(scope="session")
def policies() -> dict[str, Policy]:
    return {
        policy.name: policy
        for policy in (
            random_policy("alpha", 1),
            random_policy("beta", 2, optimizer="torch.optim.SGD"),
            random_policy("drawn", 3, optimizer="mine", selection="sample"),
        )
    }


@pytest.fixture
def settings(tmp_path: Path, policies: dict[str, Policy]) -> Settings:
    for policy in policies.values():
        save(policy, tmp_path / "policies")
    return Settings(
        database=tmp_path / "lhopt.sqlite3", policies_folder=tmp_path / "policies", key_refresh=0.0
    )


@pytest.fixture
def start() -> Iterator[Callable[..., Api]]:
    """Starts applications that are stopped after the test."""
    with ExitStack() as stack:

        def make(settings: Settings, *, peer: str = "127.0.0.1", **changes: Any) -> Api:
            api = Api(replace(settings, **changes), peer=peer)
            stack.callback(api.close)
            return api

        yield make


@pytest.fixture
def api(start: Callable[..., Api], settings: Settings) -> Api:
    return start(settings)
