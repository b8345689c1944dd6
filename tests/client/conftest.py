from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lhopt.client import Client, Tuner
from lhopt.core.actions import COLUMN, N_CONTROLS
from lhopt.core.controls import get_controls
from lhopt.core.features import FEATURES
from lhopt.core.schedules import Schedule
from lhopt.core.wire import (
    WIRE_VERSION,
    decode_situation,
    decode_statistics,
    encode_decision,
)
from lhopt.policy import runtime
from lhopt.policy.artifact import Policy

torch.set_num_threads(1)


def random_policy(seed: int = 0, schedule: Schedule | None = None) -> Policy:
    """Steers everything, and moves a lot."""
    controls = get_controls()
    n, h, generator = sum(len(c.choices) for c in controls), 16, np.random.default_rng(seed)

    def weight(*shape: int) -> Any:
        return generator.standard_normal(shape).astype(np.float32)

    return Policy(
        name="random",
        features=FEATURES,
        controls=controls,
        schedule=Schedule() if schedule is None else schedule,
        selection="mean",
        optimizer="torch.optim.AdamW",
        weights={
            "lstm.weight_ih": weight(4 * h, len(FEATURES)),
            "lstm.weight_hh": weight(4 * h, h),
            "lstm.bias": weight(4 * h),
            "hidden.weight": weight(h, h),
            "hidden.bias": weight(h),
            "head.weight": weight(n, h),
            "head.bias": weight(n),
        },
    )


@pytest.fixture(scope="session")
def policy() -> Policy:
    return random_policy()


@pytest.fixture(scope="session")
def flat_policy() -> Policy:
    """Without a default schedule: its opening decision changes nothing."""
    return random_policy(schedule=Schedule.off())


class Job:
    """A small regression, the same in every test: net, data order and noise are seeded."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))
        with torch.no_grad():
            for p in self.net.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
        self.x = torch.randn(64, 12, generator=generator)
        self.y = torch.randn(64, 3, generator=generator)

    def groups(self, lr: float = 0.01) -> list[dict[str, Any]]:
        first, second = self.net[0], self.net[2]
        return [
            {"params": list(first.parameters()), "lr": lr},
            {"params": list(second.parameters()), "lr": 0.1 * lr},
        ]

    def loss(self, step: int) -> Tensor:
        rows = (torch.arange(16) + 16 * step) % 64
        predicted: Tensor = self.net(self.x[rows])
        return (predicted - self.y[rows]).square().mean()

    def run(
        self,
        optimizer: torch.optim.Optimizer,
        tuner: Tuner | None,
        steps: range,
        scheduler: Any = None,
    ) -> None:
        for step in steps:
            optimizer.zero_grad()
            loss = self.loss(step)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            if tuner is not None:
                tuner.report(loss)

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.net.parameters()]).clone()


@pytest.fixture
def job() -> Job:
    return Job()


@pytest.fixture
def make_job() -> Callable[[], Job]:
    return Job


class FakeServer:
    """The API in memory, around `runtime.decide`; tests break it on purpose.

    Attributes:
        interfere: Called with each request first; an answer from it replaces ours.
        requests: Every request that came.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.requests: list[httpx.Request] = []
        self.interfere: Callable[[httpx.Request], httpx.Response | None] = lambda request: None
        self.answers: dict[tuple[int, int], tuple[bytes, dict[str, Any]]] = {}
        self.states: dict[tuple[int, int], runtime.State] = {}
        self.attempt = 0
        self.next_index = 0
        self.opened: dict[str, Any] = {}
        self.outcome: dict[str, Any] | None = None
        self.keys: dict[str, httpx.Response] = {}

    def client(self, **options: Any) -> Client:
        transport = httpx.MockTransport(self.handle)
        return Client("http://test", "secret-key", transport=transport, **options)

    def problem(self, status: int, code: str, **members: Any) -> httpx.Response:
        body = {"code": code, "detail": "no", "retryable": False, **members}
        return httpx.Response(
            status, content=json.dumps(body), headers={"content-type": "application/problem+json"}
        )

    def handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.interfere(request) or self.answer(request)

    def answer(self, request: httpx.Request) -> httpx.Response:
        parts = request.url.path.strip("/").split("/")
        key = request.headers.get("Idempotency-Key")
        if key in self.keys:
            return self.keys[key]
        if parts == ["livez"]:
            return httpx.Response(200, json={"status": "ok"})
        if parts == ["v1", "policies"]:
            return httpx.Response(200, json={"items": [{"name": self.policy.name}]})
        body = json.loads(request.content) if request.content else {}
        if request.method == "POST" and parts == ["v1", "sessions"]:
            answer = self._open(body)
        elif request.method == "PUT":
            return self._decide(int(parts[4]), int(parts[6]), body, request.content)
        elif parts[-1] == "attempts":
            answer = self._fork(body)
        elif parts[-1] == "close":
            self.outcome = body["outcome"]
            return httpx.Response(200, json={"status": "closed"})
        elif parts[-1] == "decisions":
            start = int(request.url.params["from"])
            items = [{"index": k[1]} for k in self.answers][start : start + 2]
            following = start + 2 if start + 2 < len(self.answers) else None
            return httpx.Response(200, json={"items": items, "next_from": following})
        else:
            return httpx.Response(200, json={"id": parts[2], "next_index": self.next_index})
        assert key is not None, "a POST without a key cannot be repeated safely"
        self.keys[key] = answer
        return answer

    def _open(self, body: dict[str, Any]) -> httpx.Response:
        assert body["wire_version"] == WIRE_VERSION
        self.opened = body
        controls = [c.name for c in self.policy.controls if c.name in body["controls"]]
        steered = np.zeros((1, N_CONTROLS), bool)
        steered[0, [COLUMN[c] for c in controls]] = True
        decision = runtime.opening(
            self.policy.schedule,
            np.array([body["share"]]),
            steered,
            np.array([body["scheduled"]]),
        )
        self.states[0, -1] = runtime.State.initial(self.policy)
        return httpx.Response(
            201,
            json={
                "id": "ses_1",
                "attempt": 0,
                "next_index": 0,
                "policy": {"name": self.policy.name, "digest": self.policy.digest},
                "controls": controls,
                "decision": encode_decision(decision),
                "schedule": self.policy.schedule.to_json() if body["scheduled"] else None,
            },
        )

    def _decide(self, attempt: int, k: int, body: dict[str, Any], raw: bytes) -> httpx.Response:
        if attempt != self.attempt:
            return self.problem(409, "stale-attempt")
        if (attempt, k) in self.answers:
            before, answer = self.answers[attempt, k]
            if before != raw:
                return self.problem(422, "statistics-mismatch", expected_index=self.next_index)
            return httpx.Response(200, json=answer)
        if k != self.next_index:
            return self.problem(409, "decision-gap", expected_index=self.next_index)
        if set(body["situation"]["relative"]) - {c.name for c in self.policy.controls}:
            return self.problem(422, "unknown-control")
        state, decision = runtime.decide(
            self.policy,
            self.states[attempt, k - 1],
            decode_statistics(body["statistics"]),
            decode_situation(**body["situation"]),
            scheduled=np.array([self.opened["scheduled"]]),
        )
        self.states[attempt, k] = state
        self.next_index = k + 1
        answer = {
            "session": "ses_1",
            "attempt": attempt,
            "index": k,
            "decision": encode_decision(decision),
            "policy": self.policy.digest,
        }
        self.answers[attempt, k] = (raw, answer)
        return httpx.Response(200, json=answer)

    def _fork(self, body: dict[str, Any]) -> httpx.Response:
        parent, start = body["parent_attempt"], body["next_index"]
        if (parent, start - 1) not in self.states:
            head = max(k for a, k in self.states if a == parent) + 1
            return self.problem(409, "decision-gap", expected_index=head)
        self.attempt += 1
        self.next_index = start
        self.states[self.attempt, start - 1] = self.states[parent, start - 1]
        return httpx.Response(201, json={"attempt": self.attempt, "next_index": start})


@pytest.fixture
def fake_server(policy: Policy) -> FakeServer:
    return FakeServer(policy)


@pytest.fixture(autouse=True)
def _no_address_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LHOPT_URL", raising=False)
    monkeypatch.delenv("LHOPT_API_KEY", raising=False)


@pytest.fixture
def raw_server() -> Iterator[Callable[[Callable[[Any], None]], str]]:
    """Start a socket server that treats each connection as the test says; gives its URL."""
    import socket

    stops: list[Callable[[], None]] = []

    def start(treat: Callable[[Any], None]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(0.1)
        stopping = threading.Event()

        def one(connection: Any) -> None:
            with connection, contextlib.suppress(OSError):
                treat(connection)

        def serve() -> None:
            with listener:
                while not stopping.is_set():
                    try:
                        connection, _ = listener.accept()
                    except TimeoutError:
                        continue
                    threading.Thread(target=one, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()

        def stop() -> None:
            stopping.set()
            thread.join()

        stops.append(stop)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for stop in stops:
        stop()
