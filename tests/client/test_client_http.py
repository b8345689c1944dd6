from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import numpy as np
import pytest

from lhopt.client import (
    AnswerError,
    ApiError,
    AsyncClient,
    Client,
    DeadlineExceeded,
    ServerUnreachable,
)
from lhopt.core.actions import N_CONTROLS
from lhopt.core.errors import ConfigurationError, ProtocolError
from lhopt.core.features import Situation
from lhopt.core.statistics import Statistics

OPEN: dict[str, Any] = {
    "optimizer": "torch.optim.AdamW",
    "controls": ["learning_rate", "eps"],
    "share": 0.1,
}
STATISTICS = Statistics.from_mapping({"train_loss": 1.5})


def situation(session: Any, k: int) -> Situation:
    relative = np.full((1, N_CONTROLS), np.nan)
    relative[0, [0, 3]] = 0.0
    schedule = session.opened.decision.schedule
    return Situation(np.array([0.1 * (k + 1)]), np.array([0.1]), relative, schedule)


def answering(*answers: httpx.Response | Exception) -> tuple[Client, list[httpx.Request]]:
    """A client whose server gives these answers, the last one for ever."""
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        answer = answers[min(len(seen), len(answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return Client("http://test", transport=httpx.MockTransport(handle)), seen


def test_a_session_from_open_to_close(fake_server: Any) -> None:
    with fake_server.client() as client:
        assert client.alive()
        assert client.policies() == [{"name": "random"}]
        session = client.open_session(**OPEN, metadata={"team": "a"})
        assert session.opened.controls == ("learning_rate", "eps")
        for k in range(5):
            decision = session.decide(k, STATISTICS, situation(session, k))
            assert not decision.is_hold()
        assert [item["index"] for item in session.decisions()] == [0, 1, 2, 3, 4]
        assert session.fork(3) == 3
        assert session.attempt == 1
        session.decide(3, STATISTICS, situation(session, 3))
        assert client.session(session.id)["next_index"] == 4
        session.close({"train_loss": 0.5})
    assert fake_server.outcome == {"train_loss": 0.5}


def test_the_async_client_makes_the_same_requests(fake_server: Any) -> None:
    async def talk() -> list[Any]:
        transport = httpx.MockTransport(fake_server.handle)
        async with AsyncClient("http://test", transport=transport) as client:
            assert await client.alive()
            await client.policies()
            session = await client.open_session(**OPEN)
            decisions = [
                await session.decide(k, STATISTICS, situation(session, k)) for k in range(5)
            ]
            assert len(await session.decisions()) == 5
            assert await session.fork(2) == 2
            assert (await client.session(session.id))["next_index"] == 2
            await session.close()
        return decisions

    ours = asyncio.run(talk())
    asynchronous = [(r.method, r.url.path) for r in fake_server.requests]
    blocking = type(fake_server)(fake_server.policy)
    with blocking.client() as client:
        client.alive()
        client.policies()
        session = client.open_session(**OPEN)
        theirs = [session.decide(k, STATISTICS, situation(session, k)) for k in range(5)]
        session.decisions()
        session.fork(2)
        client.session(session.id)
        session.close()
    assert [(r.method, r.url.path) for r in blocking.requests] == asynchronous
    for a, b in zip(ours, theirs, strict=True):
        assert np.array_equal(a.delta, b.delta)


def problem(status: int, **members: Any) -> httpx.Response:
    return httpx.Response(status, text=json.dumps(members))


GOOD = httpx.Response(200, json={"items": []})


@pytest.mark.parametrize(
    ("first", "tries"),
    [
        (httpx.ConnectError("refused"), 2),
        (httpx.ReadError("cut"), 2),
        (httpx.RemoteProtocolError("garbage"), 2),
        (problem(408), 2),
        (problem(429), 2),
        (problem(502), 2),
        (problem(503), 2),
        (problem(504), 2),
        (problem(409, code="session-busy", retryable=True), 2),
        (problem(409, code="decision-gap", retryable=False), 1),
        (problem(400), 1),
        (problem(401), 1),
        (problem(422), 1),
        (problem(500), 1),
        (httpx.Response(200, text="no json"), 1),
        (httpx.Response(200, text='{"items": [NaN]}'), 1),
        (httpx.Response(200, json={"items": 3}), 1),
        (httpx.Response(302, headers={"Location": "http://elsewhere"}), 1),
    ],
)
def test_what_may_pass_is_tried_again(first: Any, tries: int) -> None:
    client, seen = answering(first, GOOD)
    if tries == 2:
        assert client.policies() == []
    else:
        with pytest.raises((ApiError, AnswerError)):
            client.policies()
    assert len(seen) == tries


def test_retries_end_after_two(fake_server: Any) -> None:
    client, seen = answering(httpx.ConnectError("refused"))
    began = time.monotonic()
    with pytest.raises(ServerUnreachable, match="refused"):
        client.policies()
    assert len(seen) == 3
    assert 0.3 <= time.monotonic() - began < 1.0
    assert not client.alive()


def test_retry_after_is_honoured_within_the_deadline() -> None:
    busy = httpx.Response(429, headers={"Retry-After": "0.4"})
    client, seen = answering(busy, GOOD)
    began = time.monotonic()
    client.policies()
    assert time.monotonic() - began >= 0.4
    late, seen = answering(httpx.Response(503, headers={"Retry-After": "30"}), GOOD)
    began = time.monotonic()
    with pytest.raises(ApiError) as caught:
        late.policies()
    assert caught.value.status == 503
    assert len(seen) == 1
    assert time.monotonic() - began < 0.3


def test_a_post_keeps_its_key_when_it_is_repeated(fake_server: Any) -> None:
    fails = [httpx.ReadError("cut")]

    def interfere(request: httpx.Request) -> httpx.Response | None:
        fake_server.answer(request)
        if fails:
            raise fails.pop()
        return None

    fake_server.interfere = interfere
    fake_server.client().open_session(**OPEN)
    first, second = (r.headers["Idempotency-Key"] for r in fake_server.requests)
    assert first == second


def test_errors_carry_the_problem() -> None:
    client, _ = answering(
        problem(409, code="decision-gap", detail="Send 3 first.", expected_index=3, extra="x")
    )
    with pytest.raises(ApiError) as caught:
        client.policies()
    error = caught.value
    assert (error.status, error.code, error.expected_index) == (409, "decision-gap", 3)
    assert error.problem["extra"] == "x"
    assert "Send 3 first." in str(error)
    client, _ = answering(httpx.Response(500, text="<html>"))
    with pytest.raises(ApiError, match="http-500"):
        client.policies()


def test_a_decision_that_cannot_be_one_is_refused(fake_server: Any) -> None:
    def interfere(request: httpx.Request) -> httpx.Response | None:
        if request.method != "PUT":
            return None
        answer = json.loads(fake_server.answer(request).content)
        answer["decision"]["moves"]["eps"]["delta"] = "Infinity"
        return httpx.Response(200, json=answer)

    fake_server.interfere = interfere
    session = fake_server.client().open_session(**OPEN)
    with pytest.raises(ProtocolError):
        session.decide(0, STATISTICS, situation(session, 0))


def test_a_divergence_arrives(fake_server: Any) -> None:
    session = fake_server.client().open_session(**OPEN)
    diverged = Statistics.from_mapping({"train_loss": float("inf"), "log_grad_norm": 1e300})
    decision = session.decide(0, diverged, situation(session, 0))
    assert "non-finite-statistics" in decision.reasons[0]
    assert json.loads(fake_server.requests[-1].content)["statistics"]["train_loss"] == "Infinity"


def test_secrets_do_not_show() -> None:
    client = Client("https://user:hunter2@host:8000/?token=hunter3", "hunter4")
    assert "hunter" not in repr(client)
    assert "https://host:8000" in repr(client)
    asynchronous = AsyncClient("http://host", "hunter4")
    assert "hunter" not in repr(asynchronous)
    assert "AsyncClient" in repr(asynchronous)
    client.close()


@pytest.mark.parametrize("url", [None, "", "host:8000", "ftp://host", "http://"])
def test_addresses_that_lead_nowhere_are_refused(url: str | None) -> None:
    with pytest.raises(ConfigurationError):
        Client(url)


def test_a_base_path_is_kept_and_a_version_is_not_doubled() -> None:
    for base in ("http://test/lhopt", "http://test/lhopt/", "http://test/lhopt/v1"):
        seen: list[str] = []

        def handle(request: httpx.Request, seen: list[str] = seen) -> httpx.Response:
            seen.append(request.url.path)
            return GOOD

        Client(base, transport=httpx.MockTransport(handle)).policies()
        assert seen == ["/lhopt/v1/policies"]


def test_the_time_limit_is_total(raw_server: Any) -> None:
    def trickle(connection: Any) -> None:
        connection.recv(65536)
        for byte in b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000:
            connection.sendall(bytes([byte]))
            time.sleep(0.02)

    url = raw_server(trickle)
    client = Client(url, timeout=0.2)
    for _ in range(6):
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            client.policies()
        assert time.monotonic() - began < 0.4

    async def ask() -> None:
        async with AsyncClient(url, timeout=0.2) as asynchronous:
            with pytest.raises(DeadlineExceeded):
                await asynchronous.policies()

    began = time.monotonic()
    asyncio.run(ask())
    assert time.monotonic() - began < 0.6
