from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lhopt.core.wire import decode_situation, decode_statistics, encode_decision
from lhopt.policy import runtime
from lhopt.server.deciding import Ask, seed

if TYPE_CHECKING:
    from lhopt.policy.artifact import Policy
    from tests.server.conftest import Api


@pytest.fixture
def reports() -> list[dict[str, Any]]:
    """Statistics and situations of eight intervals."""
    out = []
    for index in range(8):
        rng = np.random.default_rng([7, index])
        out.append(
            {
                "statistics": {
                    "train_loss": float(rng.lognormal()),
                    "train_loss_sem": 0.01,
                    "log_grad_norm": float(rng.normal()),
                    "cos_grad_momentum": float(rng.uniform(-1, 1)),
                },
                "situation": {
                    "progress": (index + 1) / 32,
                    "share": 1 / 32,
                    "schedule": -0.25,
                    "relative": {"learning_rate": float(rng.normal()), "weight_decay": 0.1},
                },
            }
        )
    return out


def in_process(policy: Policy, session: str, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The decisions that `runtime.decide` makes without a server."""
    state, out = runtime.State.initial(policy), []
    for index, body in enumerate(bodies):
        statistics = decode_statistics(body["statistics"])
        situation = decode_situation(**body["situation"])
        key = seed(Ask("", session, 0, index, statistics, situation))
        state, decision = runtime.decide(policy, state, statistics, situation, seeds=[key])
        out.append(encode_decision(decision))
    return out


@pytest.mark.parametrize("name", ["alpha", "drawn"])
def test_decisions_equal_those_made_in_process_to_the_bit(
    api: Api, policies: dict[str, Policy], reports: list[dict[str, Any]], name: str
) -> None:
    session = api.open(policy=name)["id"]
    answers = [api.decide(session, 0, k, body).json() for k, body in enumerate(reports)]
    assert [a["decision"] for a in answers] == in_process(policies[name], session, reports)
    assert len({json.dumps(a["decision"]["moves"]) for a in answers}) > 1
    assert {k: v for k, v in answers[3].items() if k != "decision"} == {
        "session": session,
        "attempt": 0,
        "index": 3,
        "policy": policies[name].digest,
    }


def test_a_restarted_server_goes_on_as_if_it_had_not_stopped(
    start: Any, settings: Any, policies: dict[str, Policy], reports: list[dict[str, Any]]
) -> None:
    before: Api = start(settings)
    session = before.open()["id"]
    answers = [before.decide(session, 0, k, reports[k]).content for k in range(4)]
    after: Api = start(settings)  # a second process on the same file, as far as it can tell
    replayed = [after.decide(session, 0, k, reports[k]) for k in range(4)]
    assert [r.content for r in replayed] == answers
    assert all(r.headers["idempotent-replayed"] == "true" for r in replayed)
    rest = [after.decide(session, 0, k, reports[k]).json()["decision"] for k in range(4, 8)]
    assert rest == in_process(policies["alpha"], session, reports)[4:]


def test_a_server_that_fell_behind_another_reads_the_store_again(
    start: Any, settings: Any, reports: list[dict[str, Any]]
) -> None:
    one: Api = start(settings)
    other: Api = start(settings)
    session = one.open()["id"]
    for k, body in enumerate(reports):
        made, repeated = (one, other) if k % 2 else (other, one)
        first = made.decide(session, 0, k, body)
        again = repeated.decide(session, 0, k, body)
        assert (first.status_code, again.status_code) == (200, 200)
        assert first.content == again.content
    other("POST", f"/v1/sessions/{session}/attempts", json={"parent_attempt": 0, "next_index": 8})
    assert one.decide(session, 0, 7, reports[7]).json()["code"] == "stale-attempt"
    assert one.decide(session, 0, 8).json()["code"] == "stale-attempt"
    assert one.decide(session, 1, 8).status_code == 200
    other("POST", f"/v1/sessions/{session}/close", json={})
    assert one.decide(session, 1, 8).json()["code"] == "session-closed"


def test_the_same_report_again_is_answered_with_the_stored_bytes(api: Api) -> None:
    session = api.open()["id"]
    first = api.decide(session, 0, 0)
    api.decide(session, 0, 1)
    again = api.decide(session, 0, 0)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.content == first.content
    assert api.metric("lhopt_replays_total") == 1


def test_the_same_numbers_written_otherwise_are_the_same_report(
    api: Api, reports: list[dict[str, Any]]
) -> None:
    session = api.open()["id"]
    body = reports[0]
    body["statistics"]["train_loss"] = 2.0
    first = api.decide(session, 0, 0, body)
    body["statistics"] = dict(reversed(body["statistics"].items())) | {
        "train_loss": 2,
        "valid_loss": "NaN",  # not measured, as if left out
    }
    assert api.decide(session, 0, 0, body).content == first.content


def test_other_statistics_for_a_made_decision_are_refused(
    api: Api, reports: list[dict[str, Any]]
) -> None:
    session = api.open()["id"]
    api.decide(session, 0, 0, reports[0])
    answer = api.decide(session, 0, 0, reports[1])
    assert (answer.status_code, answer.json()["code"]) == (422, "statistics-mismatch")
    assert (answer.json()["expected_index"], answer.json()["retryable"]) == (1, False)


def test_a_decision_that_skips_one_is_refused_with_the_expected_index(api: Api) -> None:
    session = api.open()["id"]
    api.decide(session, 0, 0)
    answer = api.decide(session, 0, 2)
    assert (answer.status_code, answer.json()["code"]) == (409, "decision-gap")
    assert answer.json()["expected_index"] == 1
    assert answer.json()["detail"] == (
        "Decision 2 came before 1. Send 1 first, or open a new attempt."
    )
    assert api.metric("lhopt_conflicts_total") == 1


def test_an_older_attempt_is_fenced_off_even_for_repeats(api: Api) -> None:
    session = api.open()["id"]
    api.decide(session, 0, 0)
    api("POST", f"/v1/sessions/{session}/attempts", json={"parent_attempt": 0, "next_index": 1})
    for index in (0, 1, 7):
        answer = api.decide(session, 0, index)
        assert (answer.status_code, answer.json()["code"]) == (409, "stale-attempt")
        assert (answer.json()["attempt"], answer.json()["expected_index"]) == (1, 1)


def test_an_attempt_that_was_never_opened_is_refused(api: Api) -> None:
    answer = api.decide(api.open()["id"], 1, 0)
    assert (answer.status_code, answer.json()["code"]) == (409, "unknown-attempt")


def test_a_closed_session_decides_nothing_more_but_can_be_read(api: Api) -> None:
    session = api.open()["id"]
    api.decide(session, 0, 0)
    api("POST", f"/v1/sessions/{session}/close", json={})
    for index in (0, 1):
        answer = api.decide(session, 0, index)
        assert (answer.status_code, answer.json()["code"]) == (410, "session-closed")
    fork = {"parent_attempt": 0, "next_index": 0}
    assert api("POST", f"/v1/sessions/{session}/attempts", json=fork).status_code == 410
    assert len(api("GET", f"/v1/sessions/{session}/decisions").json()["items"]) == 1


def test_the_key_may_stand_in_the_body(api: Api, reports: list[dict[str, Any]]) -> None:
    session = api.open()["id"]
    body = reports[0] | {"attempt": 0, "index": 0}
    first = api("POST", f"/v1/sessions/{session}/decisions", json=body)
    again = api.decide(session, 0, 0, reports[0])
    assert first.status_code == 200
    assert again.content == first.content


def test_a_fork_goes_on_from_the_state_it_forked_at(
    api: Api, policies: dict[str, Policy], reports: list[dict[str, Any]]
) -> None:
    session = api.open()["id"]
    answers = [api.decide(session, 0, k, reports[k]).json()["decision"] for k in range(5)]
    forks = f"/v1/sessions/{session}/attempts"
    forked = api("POST", forks, json={"parent_attempt": 0, "next_index": 3})
    assert forked.status_code == 201
    assert (forked.json()["attempt"], forked.json()["next_index"]) == (1, 3)
    assert forked.json()["decision"] == answers[2]
    other = [*reports[:3], *reports[5:8]]
    rest = [api.decide(session, 1, k, other[k]).json()["decision"] for k in range(3, 6)]
    assert rest == in_process(policies["alpha"], session, other)[3:]

    kept = api.decide(session, 1, 2, reports[2])  # made by the parent, asked by its child
    assert kept.headers["idempotent-replayed"] == "true"
    assert kept.json()["decision"] == answers[2]

    # below the first fork: the lineage of attempt 2 leaves attempt 1 no decision of its own
    third = api("POST", forks, json={"parent_attempt": 1, "next_index": 1}).json()
    assert (third["attempt"], third["decision"]) == (2, answers[0])
    last = api.decide(session, 2, 1, reports[6]).json()["decision"]
    assert last == in_process(policies["alpha"], session, [reports[0], reports[6]])[1]


def test_a_fork_at_zero_begins_with_the_opening(api: Api) -> None:
    opened = api.open()
    api.decide(opened["id"], 0, 0)
    body = {"parent_attempt": 0, "next_index": 0}
    forked = api("POST", f"/v1/sessions/{opened['id']}/attempts", json=body).json()
    del opened["schedule"], opened["needs_slope"]  # the job has them already
    assert forked == opened | {"attempt": 1}


def test_a_fork_from_an_old_attempt_reaches_as_far_as_it_came(api: Api) -> None:
    session = api.open()["id"]
    for k in range(4):
        api.decide(session, 0, k)
    forks = f"/v1/sessions/{session}/attempts"
    api("POST", forks, json={"parent_attempt": 0, "next_index": 1})
    again = api("POST", forks, json={"parent_attempt": 0, "next_index": 4})
    assert (again.status_code, again.json()["attempt"]) == (201, 2)
    too_far = api("POST", forks, json={"parent_attempt": 1, "next_index": 2})
    assert (too_far.status_code, too_far.json()["code"]) == (409, "decision-gap")
    assert too_far.json()["expected_index"] == 1
    unknown = api("POST", forks, json={"parent_attempt": 3, "next_index": 0})
    assert (unknown.status_code, unknown.json()["code"]) == (409, "unknown-attempt")


def test_forking_twice_with_one_idempotency_key_forks_once(api: Api) -> None:
    session = api.open()["id"]
    request = ("POST", f"/v1/sessions/{session}/attempts")
    body, headers = {"parent_attempt": 0, "next_index": 0}, {"Idempotency-Key": "fork"}
    first, again = (api(*request, json=body, headers=headers) for _ in range(2))
    assert (first.status_code, first.content) == (again.status_code, again.content)
    assert api("GET", f"/v1/sessions/{session}").json()["attempt"] == 1
    reused = api(*request, json={"parent_attempt": 1, "next_index": 0}, headers=headers)
    assert reused.json()["code"] == "idempotency-key-reused"


def test_history_follows_the_lineage_page_by_page(api: Api, reports: list[dict[str, Any]]) -> None:
    session = api.open()["id"]
    path = f"/v1/sessions/{session}"
    for k in range(4):
        api.decide(session, 0, k, reports[k])
    api("POST", f"{path}/attempts", json={"parent_attempt": 0, "next_index": 2})
    for k in (2, 3, 4):
        api.decide(session, 1, k, reports[k + 3])

    def read(**query: int) -> tuple[list[tuple[int, int]], int | None]:
        page = api("GET", f"{path}/decisions", params=query).json()
        return [(row["attempt"], row["index"]) for row in page["items"]], page["next_from"]

    assert read() == ([(0, 0), (0, 1), (1, 2), (1, 3), (1, 4)], None)
    assert read(attempt=0) == ([(0, 0), (0, 1), (0, 2), (0, 3)], None)
    assert read(limit=3) == ([(0, 0), (0, 1), (1, 2)], 3)
    assert read(limit=3, **{"from": 3}) == ([(1, 3), (1, 4)], None)
    row = api("GET", f"{path}/decisions").json()["items"][2]
    assert row["statistics"] == reports[5]["statistics"]
    assert row["situation"] == reports[5]["situation"]
    ahead = api("GET", f"{path}/decisions", params={"attempt": 2})
    assert (ahead.status_code, ahead.json()["code"]) == (409, "unknown-attempt")


def test_sessions_decided_together_get_the_decisions_they_get_alone(
    api: Api, policies: dict[str, Policy], reports: list[dict[str, Any]]
) -> None:
    sessions = [api.open(policy=("alpha", "beta")[i % 2])["id"] for i in range(20)]
    shifted = {s: reports[i % 3 :] + reports[: i % 3] for i, s in enumerate(sessions)}
    got: dict[str, list[Any]] = {s: [] for s in sessions}
    engine = api.services.engine

    def wait() -> None:
        deadline = time.monotonic() + 4.0
        # the first few are taken at once, and wait in a batch of their own
        while len(engine._queue) < len(sessions) - 5 and time.monotonic() < deadline:
            time.sleep(0.005)

    for k in range(3):
        # the worker is busy with something else until most reports have come in
        busy = api.spawn(engine.write(wait))
        answers = api.together(
            *(
                ("PUT", f"/v1/sessions/{s}/attempts/0/decisions/{k}", {"json": shifted[s][k]})
                for s in sessions
            )
        )
        for session, answer in zip(sessions, answers, strict=True):
            got[session].append(answer.json()["decision"])
        assert busy.done()
    for i, session in enumerate(sessions):
        policy = policies[("alpha", "beta")[i % 2]]
        assert got[session] == in_process(policy, session, shifted[session][:3])
    assert api.metric("lhopt_batch_size_sum") == 60
    assert api.metric("lhopt_batch_size_count") < 12
    assert api.metric("lhopt_decisions_total") == 60


def test_identical_reports_at_the_same_time_make_one_decision(
    api: Api, reports: list[dict[str, Any]]
) -> None:
    session = api.open()["id"]
    path = f"/v1/sessions/{session}/attempts/0/decisions/0"
    answers = api.together(*[("PUT", path, {"json": reports[0]})] * 10)
    assert {a.status_code for a in answers} == {200}
    assert len({a.content for a in answers}) == 1
    assert sum("idempotent-replayed" in a.headers for a in answers) == 9
    assert api.metric("lhopt_decisions_total") == 1


def test_different_reports_at_the_same_time_make_one_decision(
    api: Api, reports: list[dict[str, Any]]
) -> None:
    session = api.open()["id"]
    path = f"/v1/sessions/{session}/attempts/0/decisions/0"
    answers = api.together(*(("PUT", path, {"json": body}) for body in reports))
    assert sorted(a.status_code for a in answers) == [200] + [422] * 7


def test_statistics_that_are_not_finite_brake(api: Api, reports: list[dict[str, Any]]) -> None:
    session = api.open()["id"]
    for k, loss in enumerate(("NaN", "Infinity", "-Infinity")):
        body = reports[k]
        body["statistics"]["train_loss"] = loss
        answer = api.decide(session, 0, k, body)
        assert answer.status_code == 200
        assert "non-finite-statistics" in answer.json()["decision"]["reasons"]
    items = api("GET", f"/v1/sessions/{session}/decisions").json()["items"]
    losses = [row["statistics"]["train_loss"] for row in items]
    assert losses == ["NaN", "Infinity", "-Infinity"]


@pytest.mark.parametrize("value", [1e308, -1e308, 5e-324, 0, -0.0, 10**300])
def test_extreme_statistics_are_decided_within_bounds(
    api: Api, reports: list[dict[str, Any]], value: float
) -> None:
    session = api.open()["id"]
    for k in range(2):
        body = reports[k]
        body["statistics"] = dict.fromkeys(body["statistics"], value)
        assert api.decide(session, 0, k, body).status_code == 200


@pytest.mark.parametrize(
    ("part", "change", "says"),
    [
        ("statistics", {"train_los": 1.0}, "train_loss"),
        ("statistics", {"train_loss": True}, "True"),
        ("statistics", {"train_loss": "1.5"}, "1.5"),
        ("statistics", {"train_loss": "nan"}, "nan"),
        ("statistics", {"train_loss": None}, "None"),
        ("statistics", {"train_loss": 10**400}, "statistics"),
        ("situation", {"progress": 0.0}, "progress"),
        ("situation", {"progress": 1.5}, "progress"),
        ("situation", {"progress": "NaN"}, "progress"),
        ("situation", {"share": True}, "share"),
        ("situation", {"schedule": 1e6}, "schedule"),
        ("situation", {"schedule": -1000.0}, "schedule"),
        ("situation", {"relative": {"learning_rate": 1e6}}, "learning_rate"),
        ("situation", {"relative": {"lr": 0.0}}, "lr"),
        ("situation", {"relative": {"one_minus_beta1": 0.0}}, "one_minus_beta1"),
        ("situation", {"step": 3}, "step"),
    ],
)
def test_a_report_is_refused(
    api: Api, reports: list[dict[str, Any]], part: str, change: dict[str, Any], says: str
) -> None:
    body = reports[0]
    body[part] = body[part] | change
    answer = api.decide(api.open()["id"], 0, 0, body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert says in answer.json()["detail"]


def test_a_report_without_a_loss_is_refused(api: Api, reports: list[dict[str, Any]]) -> None:
    del reports[0]["statistics"]["train_loss"]
    answer = api.decide(api.open()["id"], 0, 0, reports[0])
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-report")


@pytest.mark.parametrize("key", ["0/decisions/-1", "-1/decisions/0", "0/decisions/x"])
@pytest.mark.parametrize("digits", ["", "9" * 30])
def test_a_key_that_is_no_index_is_refused(
    api: Api, reports: list[dict[str, Any]], key: str, digits: str
) -> None:
    path = f"/v1/sessions/{api.open()['id']}/attempts/{key}{digits}"
    answer = api("PUT", path, json=reports[0])
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")
