from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from lhopt.core.errors import ConfigurationError
from lhopt.server.keys import create_key
from lhopt.server.settings import is_loopback

if TYPE_CHECKING:
    from tests.server.conftest import Api

#: Every route of the application, with a body it would take.
ROUTES: list[tuple[str, str, Any]] = [
    ("GET", "/v1/sessions/{id}", None),
    ("GET", "/v1/sessions/{id}/decisions", None),
    ("POST", "/v1/sessions/{id}/close", {}),
    ("POST", "/v1/sessions/{id}/attempts", {"parent_attempt": 0, "next_index": 0}),
    ("PUT", "/v1/sessions/{id}/attempts/0/decisions/0", "report"),
    ("POST", "/v1/sessions/{id}/decisions", "keyed"),
]
OTHERS: list[tuple[str, str, Any]] = [
    ("GET", "/v1/sessions", None),
    ("POST", "/v1/sessions", {}),
    ("GET", "/v1/policies", None),
    ("GET", "/v1/policies/alpha", None),
    ("GET", "/metrics", None),
    ("GET", "/openapi.json", None),
    ("GET", "/nothing", None),
]
REPORT = {
    "statistics": {"train_loss": 1.0},
    "situation": {"progress": 0.5, "share": 0.1, "schedule": 0.0, "relative": {}},
}


def body_of(body: Any) -> Any:
    return {"report": REPORT, "keyed": REPORT | {"attempt": 0, "index": 0}}.get(
        body if isinstance(body, str) else "", body
    )


def test_the_table_of_routes_is_whole(api: Api) -> None:
    paths = api("GET", "/openapi.json").json()["paths"]
    served = {(m.upper(), p.replace("session_id", "id")) for p, ms in paths.items() for m in ms}
    named = {
        (m, p.replace("/0/", "/{attempt}/").replace("/0", "/{index}").replace("alpha", "{name}"))
        for m, p, _ in ROUTES + OTHERS
    } - {("GET", "/openapi.json"), ("GET", "/nothing")}
    assert served == named | {("GET", "/livez"), ("GET", "/readyz")}


@pytest.mark.parametrize("wrong", ["none", "unknown", "secret", "revoked", "scheme", "shape"])
def test_every_route_is_refused_without_a_living_key(api: Api, wrong: str) -> None:
    record, key = create_key(api.services.store, "one")
    if wrong == "revoked":
        api.services.store.revoke_key(record.short, time.time())
    header = {
        "none": {},
        "unknown": {"authorization": f"Bearer lho_aaaaaaaa_{'x' * 43}"},
        "secret": {"authorization": f"Bearer {key[:-1]}{'A' if key[-1] != 'A' else 'B'}"},
        "revoked": {"authorization": f"Bearer {key}"},
        "scheme": {"authorization": f"Basic {key}"},
        "shape": {"authorization": "Bearer lho__ x"},
    }[wrong]
    for method, path, body in ROUTES + OTHERS:
        answer = api(method, path.format(id="ses_x"), json=body_of(body), headers=header)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized"), path
        assert answer.headers["www-authenticate"].startswith("Bearer")


def test_where_every_key_is_revoked_a_refusal_says_how_to_make_one(api: Api) -> None:
    one, _ = create_key(api.services.store, "one")
    two, _ = create_key(api.services.store, "two")
    store = api.services.store
    store.revoke_key(one.short, time.time())
    assert "keys create" not in api("GET", "/v1/sessions").json()["detail"]
    store.revoke_key(two.short, time.time())
    assert "keys create" in api("GET", "/v1/sessions").json()["detail"]


def test_the_openapi_document_says_which_routes_want_a_key(api: Api) -> None:
    document = api("GET", "/openapi.json").json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for path, methods in document["paths"].items():
        for row in methods.values():
            assert ("security" in row) == (path not in ("/livez", "/readyz")), path


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_health_needs_no_key(api: Api, path: str) -> None:
    create_key(api.services.store, "one")
    assert api("GET", path).status_code == 200


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_another_keys_session_is_answered_like_one_that_never_was(
    api: Api, method: str, path: str, body: Any
) -> None:
    (_, mine), (_, theirs) = (create_key(api.services.store, name) for name in ("me", "them"))
    session = api.open(key=mine)["id"]
    api.decide(session, 0, 0, REPORT, key=mine)
    never = "ses_" + "a" * 26

    def ask(session: str) -> tuple[int, str]:
        answer = api(method, path.format(id=session), json=body_of(body), key=theirs)
        text = answer.text.replace(session, "ID")
        return answer.status_code, text.replace(answer.headers["x-request-id"], "REQUEST")

    assert ask(session) == ask(never)
    assert ask(session)[0] == 404
    owner = api("GET", f"/v1/sessions/{session}", key=mine).json()
    assert (owner["attempt"], owner["next_index"], owner["status"]) == (0, 1, "open")


def test_lists_and_idempotency_keys_are_each_keys_own(api: Api) -> None:
    (_, mine), (_, theirs) = (create_key(api.services.store, name) for name in ("me", "them"))
    headers = {"Idempotency-Key": "same"}
    one = api.open(key=mine, headers=headers)["id"]
    two = api.open(key=theirs, headers=headers)["id"]
    assert one != two
    rows = api("GET", "/v1/sessions", key=mine).json()["items"]
    assert [row["id"] for row in rows] == [one]


@pytest.mark.parametrize("peer", ["10.0.0.7", "::ffff:10.0.0.7", "fe80::1", "testclient"])
def test_without_a_key_other_machines_are_refused(start: Any, settings: Any, peer: str) -> None:
    api: Api = start(settings, peer=peer)
    assert api("GET", "/v1/sessions").status_code == 401
    assert api("GET", "/livez").status_code == 200
    _, key = create_key(api.services.store, "one")
    assert api("GET", "/v1/sessions", key=key).status_code == 200


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded", "via", "x-real-ip"])
def test_without_a_key_a_proxy_is_no_local_peer(api: Api, header: str) -> None:
    assert api("GET", "/v1/sessions", headers={header: "127.0.0.1"}).status_code == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example.com:8000", 401),
        ("10.0.0.1", 401),
        ("127.0.0.1.nip.io", 401),
        ("user@evil.example.com", 401),
        ("localhost:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
    ],
)
def test_without_a_key_only_local_host_names_are_served(api: Api, host: str, status: int) -> None:
    assert api("GET", "/v1/sessions", headers={"host": host}).status_code == status


def test_revoking_the_last_key_does_not_open_the_server(api: Api) -> None:
    record, _ = create_key(api.services.store, "one")
    api.services.store.revoke_key(record.short, time.time())
    assert api("GET", "/v1/sessions").status_code == 401


def test_a_reachable_host_without_a_key_is_refused_at_start(start: Any, settings: Any) -> None:
    with pytest.raises(ConfigurationError, match="lhopt keys create"):
        start(settings, host="0.0.0.0")
    api: Api = start(settings)
    create_key(api.services.store, "one")
    start(settings, host="0.0.0.0")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "::ffff:127.0.0.1"])
def test_loopback_addresses(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "localhost.evil.com", None])
def test_other_addresses(host: str | None) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 129])
def test_a_bad_key_name_is_refused(api: Api, name: str) -> None:
    with pytest.raises(ConfigurationError, match="1 to 128"):
        create_key(api.services.store, name)
