from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import hypothesis
import hypothesis.strategies as st
import pytest

if TYPE_CHECKING:
    from tests.server.conftest import Api

JSON = {"content-type": "application/json"}
PROBLEM_MEMBERS = {
    "type", "title", "status", "detail", "instance", "code", "request_id", "retryable",
}  # fmt: skip


def check_problem(answer: Any, status: int, code: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert set(body) >= PROBLEM_MEMBERS
    assert (body["code"], body["status"]) == (code, status)
    assert body["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"share": NaN}',
        b'{"share": Infinity}',
        b'{"share": -Infinity}',
        b'{"share": 1e999}',
        b'{"metadata": {"a": [1, [1e999]]}}',
        b'{"name": "\\ud800"}',
        b'{"name": "\xff\xfe"}',
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b'{"share": ' + b"9" * 5_000 + b"}",
        b"",
        b"{",
        b"{} {}",
        b"\xef\xbb\xbf{}",
        b"\x00",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_what_is_no_json_is_refused(api: Api, body: bytes) -> None:
    for route in ("/v1/sessions", "/v1/sessions/ses_x/decisions"):
        check_problem(api("POST", route, content=body, headers=JSON), 400, "invalid-json")


@pytest.mark.parametrize("body", [b"null", b"[]", b"3", b'"x"', b"{}", b'{"share": 1e308}'])
def test_json_of_another_shape_is_refused(api: Api, body: bytes) -> None:
    check_problem(api("POST", "/v1/sessions", content=body, headers=JSON), 422, "invalid-request")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_another_content_type_is_refused(api: Api, kind: str) -> None:
    answer = api("POST", "/v1/sessions", content=b"{}", headers={"content-type": kind})
    check_problem(answer, 415, "unsupported-media-type")


def test_100_000_nested_brackets_are_refused(start: Any, settings: Any) -> None:
    api: Api = start(settings, max_body_bytes=200_000)
    body = b"[" * 100_000 + b"]" * 100_000
    check_problem(api("POST", "/v1/sessions", content=body, headers=JSON), 400, "invalid-json")


def test_an_announced_oversized_body_is_refused(api: Api) -> None:
    body = b'{"name": "' + b"a" * 70_000 + b'"}'
    answer = api("POST", "/v1/sessions", content=body, headers=JSON)
    check_problem(answer, 413, "body-too-large")
    assert answer.json()["limit_bytes"] == 65536


def test_an_oversized_body_in_chunks_is_refused_without_reading_it_all(api: Api) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b"a" * 10_000

    answer = api("POST", "/v1/sessions", content=chunks(), headers=JSON)
    check_problem(answer, 413, "body-too-large")
    assert sent < 20


def test_a_body_that_does_not_arrive_is_refused(start: Any, settings: Any) -> None:
    api: Api = start(settings, body_timeout=0.05)

    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(10)

    answer = api("POST", "/v1/sessions", content=never(), headers=JSON)
    check_problem(answer, 408, "body-timeout")


def test_an_unknown_path_is_a_problem(api: Api) -> None:
    check_problem(api("GET", "/nothing/here"), 404, "not-found")
    check_problem(api("GET", "/v1/sessions/"), 404, "not-found")


def test_another_method_is_a_problem_that_names_every_allowed_one(api: Api) -> None:
    answer = api("DELETE", "/v1/sessions")
    check_problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "GET, POST"
    assert "GET, POST" in answer.json()["detail"]


@pytest.mark.parametrize("session", ["ses_%00", "ses_%ff", "ses_é", "%2e%2e", "'; --"])
def test_a_strange_session_id_is_not_found(api: Api, session: str) -> None:
    check_problem(api("GET", f"/v1/sessions/{session}"), 404, "no-session")


def test_a_session_id_that_is_too_long_is_refused(api: Api) -> None:
    check_problem(api("GET", f"/v1/sessions/{'a' * 4000}"), 422, "invalid-request")


def test_a_fault_of_ours_is_a_problem_without_its_secrets(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("a secret")

    monkeypatch.setattr(type(api.services.store), "sessions", fail)
    answer = api("GET", "/v1/sessions")
    check_problem(answer, 500, "internal-error")
    assert "secret" not in answer.text


def test_a_given_request_id_comes_back_if_it_is_harmless(api: Api) -> None:
    good = api("GET", "/livez", headers={"x-request-id": "job-7"})
    bad = api("GET", "/livez", headers={"x-request-id": "a b\t" + "c" * 100})
    assert good.headers["x-request-id"] == "job-7"
    assert len(bad.headers["x-request-id"]) == 32


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["NaN", "Infinity", "learning_rate", "torch.optim.AdamW", "alpha"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
SOUND: dict[str, dict[str, Any]] = {
    "/v1/sessions": {
        "wire_version": 1,
        "name": None,
        "policy": None,
        "optimizer": "torch.optim.AdamW",
        "controls": ["learning_rate"],
        "share": 0.5,
        "scheduled": True,
        "metadata": {},
    },
    "/v1/sessions/{id}/decisions": {
        "attempt": 0,
        "index": 0,
        "statistics": {"train_loss": 1.0, "log_grad_norm": 0.5},
        "situation": {
            "progress": 0.5,
            "share": 0.5,
            "schedule": 0.0,
            "relative": {"learning_rate": 0.0},
        },
    },
    "/v1/sessions/{id}/attempts": {"parent_attempt": 0, "next_index": 0},
    "/v1/sessions/{id}/close": {"outcome": {}},
}


def test_no_json_whatever_makes_the_server_fail(api: Api) -> None:
    session = api.open()["id"]

    @hypothesis.settings(
        max_examples=150,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.data())
    def check(data: st.DataObject) -> None:
        route = data.draw(st.sampled_from(list(SOUND)))
        body = copy.deepcopy(SOUND[route])
        where: Any = body
        key = data.draw(st.sampled_from(list(body)))
        while isinstance(where[key], dict) and where[key] and data.draw(st.booleans()):
            where = where[key]
            key = data.draw(st.sampled_from(list(where)))
        where[key] = data.draw(anything)
        answer = api("POST", route.format(id=session), json=body)
        assert answer.status_code < 500, (route, body, answer.text)
        if answer.status_code >= 400:
            check_problem(answer, answer.status_code, answer.json()["code"])

    check()
