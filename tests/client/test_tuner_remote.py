from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from lhopt.client import Client, Tuner
from lhopt.policy.artifact import Policy
from lhopt.policy.bundled import bundled


def remote(job: Any, client: Client, **options: Any) -> tuple[torch.optim.AdamW, Tuner]:
    optimizer = torch.optim.AdamW(job.groups())
    return optimizer, Tuner(optimizer, 60, interval=5, client=client, **options)


def still(policy: Policy) -> Policy:
    """The same policy with a head that always chooses the no-op."""
    bias = [np.eye(len(c.choices), dtype=np.float32)[c.noop] for c in policy.controls]
    weights = {
        **policy.weights,
        "head.weight": np.zeros_like(policy.weights["head.weight"]),
        "head.bias": np.concatenate(bias),
    }
    return replace(policy, weights=weights, selection="mode")


def sources(tuner: Tuner) -> list[str]:
    return [record.source for record in tuner.history]


def test_a_server_decides_as_the_policy_in_process(
    make_job: Any, policy: Policy, fake_server: Any
) -> None:
    local, job = make_job(), make_job()
    optimizer = torch.optim.AdamW(local.groups())
    embedded = Tuner(optimizer, 60, interval=5, policy=policy)
    local.run(optimizer, embedded, range(60))
    optimizer, tuner = remote(job, fake_server.client(), name="a job", policy="random")
    job.run(optimizer, tuner, range(60))
    tuner.close()
    assert torch.equal(job.weights(), local.weights())
    for ours, theirs in zip(embedded.history, tuner.history, strict=True):
        assert ours == theirs
    assert fake_server.opened["name"] == "a job"
    assert fake_server.opened["policy"] == "random"
    assert fake_server.outcome["steps"] == 60
    assert fake_server.requests[0].headers["Authorization"] == "Bearer secret-key"


def test_the_address_comes_from_the_environment(
    job: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LHOPT_URL", "http://127.0.0.1:9")
    optimizer = torch.optim.AdamW(job.groups())
    tuner = Tuner(optimizer, 60, interval=5, timeout=0.5)
    assert sources(tuner) == ["hold:server-unreachable"]
    assert "127.0.0.1:9" in caplog.text
    tuner.close()


def slow(connection: Any) -> None:
    connection.recv(65536)
    time.sleep(5)


def trickle(connection: Any) -> None:
    connection.recv(65536)
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n" + b"X-A: b\r\n" * 1000:
        connection.sendall(bytes([byte]))
        time.sleep(0.02)


def cut(connection: Any) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 5000\r\n\r\n{")


def garbage(connection: Any) -> None:
    connection.recv(65536)
    connection.sendall(b"\x00\xff\x17 hello, this is not HTTP\r\n\r\n")


def html(connection: Any) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>")


def endless(connection: Any) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")


def error_500(connection: Any) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\nOops")


def redirect(connection: Any) -> None:
    connection.recv(65536)
    connection.sendall(
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n"
    )


@pytest.mark.parametrize(
    "treat", [None, slow, trickle, cut, garbage, html, endless, error_500, redirect]
)
def test_training_with_a_broken_server_is_training_without_one(
    treat: Callable[[Any], None] | None,
    make_job: Any,
    raw_server: Callable[[Callable[[Any], None]], str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    alone, job = make_job(), make_job()
    alone.run(torch.optim.AdamW(alone.groups()), None, range(60))
    url = "http://127.0.0.1:9" if treat is None else raw_server(treat)
    timeout = 0.25
    optimizer = torch.optim.AdamW(job.groups())
    began = time.monotonic()
    tuner = Tuner(optimizer, 60, interval=5, url=url, timeout=timeout)
    job.run(optimizer, tuner, range(60))
    tuner.close()
    # at most: the opening, 2 more failures, then every fourth of the 9 left
    assert time.monotonic() - began < 6 * (timeout + 0.1) + 1.0
    assert torch.equal(job.weights(), alone.weights())
    assert all(source.startswith("hold:") for source in sources(tuner))
    assert 1 <= len(caplog.records) <= 3
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def break_nothing(answer: dict[str, Any]) -> None:
    pass


def nan_delta(answer: dict[str, Any]) -> None:
    answer["decision"]["moves"]["learning_rate"]["delta"] = "NaN"


def huge_delta(answer: dict[str, Any]) -> None:
    answer["decision"]["moves"]["learning_rate"]["delta"] = 40.0


def huge_action(answer: dict[str, Any]) -> None:
    answer["decision"]["moves"]["eps"]["delta"] = 3.0
    answer["decision"]["action"]["eps"] = 3.0


def foreign_move(answer: dict[str, Any]) -> None:
    answer["decision"]["moves"]["clip_ratio"]["delta"] = 0.3
    answer["decision"]["action"]["clip_ratio"] = 0.3


def not_adding_up(answer: dict[str, Any]) -> None:
    answer["decision"]["action"]["eps"] = 0.1


def no_schedule(answer: dict[str, Any]) -> None:
    del answer["decision"]["schedule"]


def another_index(answer: dict[str, Any]) -> None:
    answer["index"] = answer.get("index", 0) + 1


def another_session(answer: dict[str, Any]) -> None:
    answer["session"] = "ses_2"


def a_list(answer: dict[str, Any]) -> None:
    answer["decision"] = [1, 2]


LIES = [
    nan_delta,
    huge_delta,
    huge_action,
    foreign_move,
    not_adding_up,
    no_schedule,
    another_index,
    another_session,
    a_list,
]


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("from_the_start", [True, False])
def test_a_lying_server_is_not_believed(
    lie: Callable[[dict[str, Any]], None],
    from_the_start: bool,
    make_job: Any,
    fake_server: Any,
    policy: Policy,
) -> None:
    def interfere(request: httpx.Request) -> httpx.Response | None:
        opening = request.url.path == "/v1/sessions"
        if opening and (not from_the_start or lie in (another_index, another_session)):
            return None
        if request.url.path.endswith("close"):
            return None
        answer = json.loads(fake_server.answer(request).content)
        if "decision" in answer:
            lie(answer)
        return httpx.Response(200, text=json.dumps(answer))

    alone, job = make_job(), make_job()
    fake_server.interfere = interfere
    optimizer, tuner = remote(job, fake_server.client())
    job.run(optimizer, tuner, range(60))
    tuner.close()
    plain = torch.optim.AdamW(alone.groups())
    opened = sources(tuner)[0] == "policy"  # then the default schedule goes on without answers
    holding = Tuner(plain, 60, interval=5, policy=still(policy)) if opened else None
    alone.run(plain, holding, range(60))
    assert torch.equal(job.weights(), alone.weights())
    assert all(source.startswith("hold:") for source in sources(tuner)[1:])


def test_an_answer_that_was_lost_is_made_up_for(make_job: Any, fake_server: Any) -> None:
    lost: list[str] = []

    def interfere(request: httpx.Request) -> httpx.Response | None:
        if request.url.path.endswith("decisions/3") and len(lost) < 3:
            lost.append(request.url.path)
            fake_server.answer(request)  # committed, but nobody hears of it
            raise httpx.ReadError("cut")
        return None

    job = make_job()
    fake_server.interfere = interfere
    optimizer, tuner = remote(job, fake_server.client())
    job.run(optimizer, tuner, range(60))
    assert sources(tuner) == ["policy"] * 4 + ["hold:server-unreachable"] + ["policy"] * 7
    # the next report found decision 3 taken with other statistics, and went on with 4
    assert fake_server.next_index == 11
    tuner.close()


def test_a_retried_put_is_one_decision(make_job: Any, fake_server: Any, policy: Policy) -> None:
    seen: set[str] = set()

    def interfere(request: httpx.Request) -> httpx.Response | None:
        if request.url.path not in seen:
            seen.add(request.url.path)
            fake_server.answer(request)
            return fake_server.problem(503, "overloaded", retryable=True)  # type: ignore[no-any-return]
        return None

    local, job = make_job(), make_job()
    optimizer = torch.optim.AdamW(local.groups())
    local.run(optimizer, Tuner(optimizer, 60, interval=5, policy=policy), range(60))
    fake_server.interfere = interfere
    optimizer, tuner = remote(job, fake_server.client(), timeout=5.0)
    job.run(optimizer, tuner, range(60))
    assert sources(tuner) == ["policy"] * 12
    assert torch.equal(job.weights(), local.weights())
    tuner.close()


def test_a_server_that_lost_decisions_is_met_where_it_is(job: Any, fake_server: Any) -> None:
    optimizer, tuner = remote(job, fake_server.client())
    job.run(optimizer, tuner, range(27))
    for k in (3, 4):  # a power cut
        del fake_server.answers[0, k], fake_server.states[0, k]
    fake_server.next_index = 3
    job.run(optimizer, tuner, range(27, 60))
    assert sources(tuner) == ["policy"] * 12
    tuner.close()


@pytest.mark.parametrize(
    ("status", "code"), [(409, "stale-attempt"), (410, "session-closed"), (404, "no-session")]
)
def test_a_run_that_was_taken_over_holds_for_good(
    status: int, code: str, job: Any, fake_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer, tuner = remote(job, fake_server.client())
    job.run(optimizer, tuner, range(12))
    fake_server.interfere = lambda request: fake_server.problem(status, code)
    job.run(optimizer, tuner, range(12, 60))
    tuner.close()
    assert sources(tuner) == ["policy"] * 3 + [f"hold:{code}"] * 9
    assert len(caplog.records) == 1
    assert len([r for r in fake_server.requests if r.method == "PUT"]) == 3


@pytest.mark.parametrize("status", [404, 410])
def test_a_refusal_of_a_proxy_in_between_passes(status: int, job: Any, fake_server: Any) -> None:
    optimizer, tuner = remote(job, fake_server.client())
    job.run(optimizer, tuner, range(12))
    fake_server.interfere = lambda request: httpx.Response(status, html="<h1>deploying</h1>")
    job.run(optimizer, tuner, range(12, 17))
    fake_server.interfere = lambda request: None
    job.run(optimizer, tuner, range(17, 60))
    assert sources(tuner) == ["policy"] * 3 + [f"hold:http-{status}"] + ["policy"] * 8
    tuner.close()


def test_a_server_that_comes_late_takes_over(job: Any, fake_server: Any) -> None:
    def away(request: httpx.Request) -> httpx.Response | None:
        raise httpx.ConnectError("refused")

    fake_server.interfere = away
    optimizer, tuner = remote(job, fake_server.client(timeout=1.0), timeout=0.3)
    job.run(optimizer, tuner, range(7))
    fake_server.interfere = lambda request: None
    job.run(optimizer, tuner, range(7, 60))
    assert sources(tuner) == ["hold:server-unreachable"] * 2 + ["policy"] * 10
    # the default schedule was caught up with, not left out
    assert tuner._steering._schedule < -2.0
    tuner.close()


def test_a_late_server_that_steers_less_than_was_offered_is_asked_about_that_alone(
    job: Any, fake_server: Any
) -> None:
    def away(request: httpx.Request) -> httpx.Response | None:
        raise httpx.ConnectError("refused")

    fake_server.policy = bundled("adamw")  # leaves eps alone
    fake_server.interfere = away
    optimizer, tuner = remote(job, fake_server.client(timeout=1.0), timeout=0.3)
    fake_server.interfere = lambda request: None
    job.run(optimizer, tuner, range(20))
    assert sources(tuner) == ["hold:server-unreachable"] + ["policy"] * 4
    assert optimizer.param_groups[0]["eps"] == 1e-8
    tuner.close()


def test_after_three_failures_only_every_fourth_decision_asks(job: Any, fake_server: Any) -> None:
    fake_server.interfere = lambda request: fake_server.problem(500, "internal-error")
    optimizer, tuner = remote(job, fake_server.client())
    job.run(optimizer, tuner, range(60))
    tuner.close()
    assert len(fake_server.requests) == 1 + 2 + 2
    paused = [i for i, source in enumerate(sources(tuner)) if source == "hold:pausing"]
    assert paused == [3, 4, 5, 7, 8, 9, 11]


def test_a_server_that_dies_early_leaves_the_job_on_the_default_schedule(
    make_job: Any, fake_server: Any, policy: Policy
) -> None:
    # the same weights as a run whose policy holds: standing still would strand the job at a
    # tenth of its rate, where the opening decision puts it
    died, held = make_job(), make_job()
    optimizer, tuner = remote(died, fake_server.client())
    fake_server.interfere = lambda request: fake_server.problem(500, "internal-error")
    died.run(optimizer, tuner, range(60))
    reference = torch.optim.AdamW(held.groups())
    holding = Tuner(reference, 60, interval=5, policy=still(policy))
    held.run(reference, holding, range(60))
    assert set(sources(tuner)[1:]) <= {"hold:internal-error", "hold:pausing"}
    assert set(sources(holding)) == {"policy"}
    rates = [record.values["learning_rate"] for record in tuner.history]
    assert rates == [record.values["learning_rate"] for record in holding.history]
    assert max(rates) > 0.005
    assert torch.equal(died.weights(), held.weights())


@pytest.mark.parametrize("stop", [10, 13])
def test_a_resumed_run_forks_and_decides_the_same(
    stop: int, make_job: Any, policy: Policy, fake_server: Any
) -> None:
    whole = make_job()
    optimizer = torch.optim.AdamW(whole.groups())
    whole.run(optimizer, Tuner(optimizer, 60, interval=5, policy=policy), range(60))
    job = make_job()
    client = fake_server.client()
    optimizer, tuner = remote(job, client)
    job.run(optimizer, tuner, range(stop))
    net, saved, state = copy.deepcopy(
        (job.net.state_dict(), optimizer.state_dict(), tuner.state_dict())
    )
    job.run(optimizer, tuner, range(stop, stop + 9))  # then the machine died

    zombie, stolen = job, optimizer
    job = make_job()
    optimizer = torch.optim.AdamW(job.groups())
    again = Tuner(optimizer, 60, interval=5, client=client)
    job.net.load_state_dict(net)
    optimizer.load_state_dict(saved)
    again.load_state_dict(state)
    job.run(optimizer, again, range(stop, 60))
    assert torch.equal(job.weights(), whole.weights())
    assert fake_server.attempt == 1
    # the old process is not dead after all: it is fenced off
    zombie.run(stolen, tuner, range(stop + 9, stop + 15))
    assert sources(tuner)[-1] == "hold:stale-attempt"


def test_a_resume_without_a_server_forks_when_it_is_back(make_job: Any, fake_server: Any) -> None:
    job, client = make_job(), fake_server.client()
    optimizer, tuner = remote(job, client)
    job.run(optimizer, tuner, range(13))
    state = tuner.state_dict()

    def away(request: httpx.Request) -> httpx.Response | None:
        raise httpx.ConnectError("refused")

    fake_server.interfere = away
    job = make_job()
    optimizer, again = remote(job, client, timeout=0.2)
    again.load_state_dict(state)
    assert again.state_dict()["steering"]["backend"] == state["steering"]["backend"]
    fake_server.interfere = lambda request: None
    job.run(optimizer, again, range(13, 60))
    assert sources(again) == ["policy"] * 9
    assert fake_server.attempt == 1
    tuner.close()


def test_a_job_that_dies_leaves_its_session_open(job: Any, fake_server: Any) -> None:
    optimizer = torch.optim.AdamW(job.groups())
    tuner = Tuner(optimizer, 60, interval=5, client=fake_server.client())

    def train() -> None:
        with tuner:
            job.run(optimizer, tuner, range(12))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert fake_server.outcome is None
    job.run(optimizer, tuner, range(12, 60))
    assert len(tuner.history) == 3


@pytest.mark.parametrize(("status", "code"), [(410, "session-closed"), (404, "no-session")])
def test_a_resume_whose_session_is_gone_opens_another(
    status: int, code: str, make_job: Any, fake_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    job, client = make_job(), fake_server.client()
    optimizer, tuner = remote(job, client)
    job.run(optimizer, tuner, range(13))
    state = tuner.state_dict()
    tuner.close()
    assert not caplog.records

    def gone(request: httpx.Request) -> httpx.Response | None:
        if request.url.path.endswith("attempts"):
            fake_server.next_index = 0
            fake_server.answers.clear()
            return fake_server.problem(status, code)  # type: ignore[no-any-return]
        return None

    fake_server.interfere = gone
    optimizer, again = remote(job, client)
    again.load_state_dict(state)
    job.run(optimizer, again, range(13, 60))
    assert sources(again) == ["policy"] * 9
    assert again.steps == 60
    (warning,) = caplog.messages  # once, though every decision since is without that memory
    assert "closed or lost this run's session" in warning


def test_an_opening_whose_answer_was_lost_is_not_opened_twice(job: Any, fake_server: Any) -> None:
    def interfere(request: httpx.Request) -> httpx.Response | None:
        if len(fake_server.requests) <= 3:
            fake_server.answer(request)
            raise httpx.ReadError("cut")
        return None

    fake_server.interfere = interfere
    optimizer, tuner = remote(job, fake_server.client())
    job.run(optimizer, tuner, range(60))
    assert sources(tuner) == ["hold:server-unreachable"] + ["policy"] * 11
    openings = [r for r in fake_server.requests if r.url.path == "/v1/sessions"]
    assert len({r.headers["Idempotency-Key"] for r in openings}) == 1
    tuner.close()
