from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lhopt.core.actions import COLUMN, N_CONTROLS
from lhopt.core.wire import decode_decision, encode_decision
from lhopt.policy.runtime import opening

if TYPE_CHECKING:
    from lhopt.policy.artifact import Policy
    from lhopt.server.settings import Settings
    from tests.server.conftest import Api

REQUEST: dict[str, Any] = {
    "wire_version": 1,
    "optimizer": "torch.optim.AdamW",
    "controls": ["learning_rate"],
    "share": 0.5,
}


def test_opening_a_session_answers_with_its_place_and_its_first_decision(
    api: Api, policies: dict[str, Policy]
) -> None:
    answer = api("POST", "/v1/sessions", json=REQUEST | {"controls": ["eps", "learning_rate"]})
    body = answer.json()
    steered = np.zeros((1, N_CONTROLS), np.bool_)
    steered[0, COLUMN["learning_rate"]] = True
    first = opening(policies["alpha"].schedule, np.array([0.5]), steered)
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v1/sessions/{body['id']}"
    assert len(body["id"]) == 30
    assert body["id"].startswith("ses_")
    del body["id"]
    assert body == {
        "attempt": 0,
        "next_index": 0,
        "policy": {"name": "alpha", "digest": policies["alpha"].digest},
        "controls": ["learning_rate"],
        "decision": encode_decision(first),
        "wire_version": 1,
        "schedule": policies["alpha"].schedule.to_json(),
        "needs_slope": policies["alpha"].needs_slope(["learning_rate"]),
    }


def test_controls_come_back_in_registry_order(api: Api) -> None:
    session = api.open(controls=["weight_decay", "one_minus_beta1", "learning_rate"])
    assert session["controls"] == ["learning_rate", "one_minus_beta1", "weight_decay"]


def test_a_job_with_its_own_schedule_is_not_warmed_up(api: Api) -> None:
    assert api.open(scheduled=True)["decision"]["schedule"] < 0.0
    assert api.open(scheduled=False)["decision"]["hold"] is True


@pytest.mark.parametrize("by", ["name", "digest"])
def test_a_policy_can_be_named(api: Api, policies: dict[str, Policy], by: str) -> None:
    session = api.open(policy=getattr(policies["beta"], by))
    assert session["policy"]["name"] == "beta"


def test_without_a_name_the_optimizer_picks_the_policy(api: Api) -> None:
    assert api.open(optimizer="torch.optim.SGD")["policy"]["name"] == "beta"


def test_an_operators_policy_comes_before_the_bundled_one(api: Api) -> None:
    assert api.open(optimizer="torch.optim.AdamW")["policy"]["name"] == "alpha"


def test_an_optimizer_that_no_policy_knows_gets_the_default(api: Api) -> None:
    assert api.open(optimizer="torch.optim.AdamX")["policy"]["name"] == "adamw"


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"policy": "alpah"}, "unknown-policy", "alpha"),
        ({"controls": ["learning_rat"]}, "unknown-control", "learning_rate"),
        ({"controls": ["eps", "eps"]}, "invalid-controls", "once"),
        ({"controls": ["eps"]}, "no-common-control", "weight_decay"),
        ({"wire_version": 2}, "wire-version", "this server speaks 1"),
        ({"share": 0.0}, "invalid-request", "share"),
        ({"share": 1.5}, "invalid-request", "share"),
        ({"share": True}, "invalid-request", "True came"),
        ({"wire_version": "1"}, "invalid-request", "wire_version"),
        ({"controls": []}, "invalid-request", "controls"),
        ({"surprise": 1}, "invalid-request", "surprise"),
        ({"metadata": {"a": "b" * 300}}, "invalid-request", "metadata"),
    ],
)
def test_opening_is_refused(api: Api, change: dict[str, Any], code: str, says: str) -> None:
    answer = api("POST", "/v1/sessions", json=REQUEST | change)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert says in answer.json()["detail"]


def test_opening_twice_with_one_idempotency_key_opens_once(api: Api) -> None:
    headers = {"Idempotency-Key": "k1"}
    first = api("POST", "/v1/sessions", json=REQUEST, headers=headers)
    again = api("POST", "/v1/sessions", json=REQUEST, headers=headers)
    assert again.content == first.content
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert len(api("GET", "/v1/sessions").json()["items"]) == 1


def test_an_idempotency_key_with_another_request_is_refused(api: Api) -> None:
    headers = {"Idempotency-Key": "k1"}
    api("POST", "/v1/sessions", json=REQUEST, headers=headers)
    answer = api("POST", "/v1/sessions", json=REQUEST | {"share": 0.25}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency-key-reused")


def test_a_refused_opening_leaves_the_idempotency_key_free(api: Api) -> None:
    headers = {"Idempotency-Key": "k1"}
    api("POST", "/v1/sessions", json=REQUEST | {"policy": "nobody"}, headers=headers)
    answer = api("POST", "/v1/sessions", json=REQUEST, headers=headers)
    assert answer.status_code == 201


@pytest.mark.parametrize("key", ["", "a b", "x" * 256])
def test_a_bad_idempotency_key_is_refused(api: Api, key: str) -> None:
    answer = api("POST", "/v1/sessions", json=REQUEST, headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json()["code"]) == (400, "idempotency-key")


def test_too_many_open_sessions_are_refused_until_one_is_closed(start: Any, settings: Any) -> None:
    api: Api = start(settings, max_sessions=2)
    session = api.open()
    api.open()
    refused = api("POST", "/v1/sessions", json=REQUEST)
    assert (refused.status_code, refused.json()["code"]) == (429, "too-many-sessions")
    assert refused.json()["retryable"] is True
    api("POST", f"/v1/sessions/{session['id']}/close", json={})
    api.open()


def test_sessions_of_jobs_that_died_do_not_count_and_may_be_resumed(
    start: Any, settings: Settings
) -> None:
    api: Api = start(settings, max_sessions=2)
    dead = [api.open()["id"] for _ in range(2)]
    assert api("POST", "/v1/sessions", json=REQUEST).status_code == 429
    with sqlite3.connect(settings.database) as db:
        db.execute("UPDATE session SET updated = updated - ?", (8 * 86400.0,))
    db.close()
    api.open()
    assert api.decide(dead[0], 0, 0).status_code == 200  # it lives, and counts again
    assert api("POST", "/v1/sessions", json=REQUEST).status_code == 429


@pytest.mark.parametrize("headers", [{}, {"content-type": "application/json"}])
def test_a_session_is_closed_without_a_body(api: Api, headers: dict[str, str]) -> None:
    session = api.open()["id"]
    answer = api("POST", f"/v1/sessions/{session}/close", headers=headers)
    assert (answer.status_code, answer.json()["status"]) == (200, "closed")
    fork = api("POST", f"/v1/sessions/{session}/attempts", headers=headers)
    assert fork.status_code == (400 if headers else 415)  # there a body says where


def test_sessions_are_listed_newest_first_page_by_page(api: Api) -> None:
    ids = [api.open(name=f"job {i}")["id"] for i in range(5)]
    seen: list[str] = []
    cursor = None
    for _ in range(3):
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = api("GET", "/v1/sessions", params=query).json()
        seen += [row["id"] for row in page["items"]]
        cursor = page["next_cursor"]
    assert seen == ids[::-1]
    assert cursor is None


def test_sessions_are_listed_by_status(api: Api) -> None:
    session, other = api.open()["id"], api.open()["id"]
    api("POST", f"/v1/sessions/{session}/close", json={})

    def listed(status: str) -> list[str]:
        rows = api("GET", "/v1/sessions", params={"status": status}).json()["items"]
        return [row["id"] for row in rows]

    assert (listed("open"), listed("closed")) == ([other], [session])


@pytest.mark.parametrize(
    "query",
    [
        {"cursor": "nonsense"},
        {"cursor": "W251bGwsIDFd"},
        {"cursor": "é"},
        {"cursor": "WzEuMCwiXHVkODAwIl0"},
        {"limit": "0"},
        {"limit": "201"},
        {"limit": "9" * 5000},
        {"status": "asleep"},
    ],
)
def test_a_list_query_is_refused(api: Api, query: dict[str, str]) -> None:
    answer = api("GET", "/v1/sessions", params=query)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_session_shows_where_it_stands(api: Api) -> None:
    opened = api.open(name="job")
    before = api("GET", f"/v1/sessions/{opened['id']}").json()
    warmup = opened["decision"]["moves"]["learning_rate"]["delta"]
    assert before["relative"] == {"learning_rate": warmup, "weight_decay": 0.0}
    decision = api.decide(opened["id"], 0, 0).json()["decision"]
    shown = api("GET", f"/v1/sessions/{opened['id']}").json()
    assert (shown["attempt"], shown["next_index"], shown["status"]) == (0, 1, "open")
    assert shown["relative"]["weight_decay"] == pytest.approx(
        0.5 + decision["moves"]["weight_decay"]["delta"]
    )
    assert shown["updated"] > shown["created"]
    assert shown["metadata"] == {"team": "vision"}
    decode_decision(decision)


def test_closing_keeps_the_outcome_and_may_be_repeated(api: Api) -> None:
    path = f"/v1/sessions/{api.open()['id']}"
    body = {"outcome": {"final_loss": 0.5, "note": "done", "better": True}}
    first, again = (api("POST", f"{path}/close", json=body) for _ in range(2))
    assert (
        first.json()
        == again.json()
        == {k: v for k, v in api("GET", path).json().items() if k != "relative"}
    )
    assert first.json()["outcome"] == body["outcome"]
    other = api("POST", f"{path}/close", json={"outcome": {"final_loss": 0.4}})
    assert (other.status_code, other.json()["code"]) == (410, "session-closed")


def test_policies_are_listed_and_shown(api: Api, policies: dict[str, Policy]) -> None:
    items = api("GET", "/v1/policies").json()["items"]
    assert {row["name"] for row in items} >= set(policies)
    alpha = policies["alpha"]
    for by in (alpha.name, alpha.digest):
        manifest = api("GET", f"/v1/policies/{by}").json()
        assert manifest == {**alpha.manifest(), "digest": alpha.digest}


def test_an_unknown_policy_is_not_found_and_the_nearest_is_named(api: Api) -> None:
    answer = api("GET", "/v1/policies/alpa")
    assert (answer.status_code, answer.json()["nearest"][0]) == (404, "alpha")


def test_a_process_that_was_replaced_cannot_close_the_session(api: Api) -> None:
    opened = api.open()
    path = f"/v1/sessions/{opened['id']}"
    api("POST", f"{path}/attempts", json={"parent_attempt": 0, "next_index": 0})
    stale = api("POST", f"{path}/close", json={"attempt": 0})
    assert (stale.status_code, stale.json()["code"]) == (409, "stale-attempt")
    assert api("GET", path).json()["status"] == "open"
    assert api("POST", f"{path}/close", json={"attempt": 1}).json()["status"] == "closed"


def test_the_default_policy_is_not_taken_where_it_does_harm(api: Api) -> None:
    answer = api("POST", "/v1/sessions", json=REQUEST | {"optimizer": "torch.optim.Adadelta"})
    assert (answer.status_code, answer.json()["code"]) == (422, "unsuited-policy")
    assert "policy='adamw'" in answer.json()["detail"]
    assert api.open(optimizer="torch.optim.Adadelta", policy="adamw")["policy"]["name"] == "adamw"
