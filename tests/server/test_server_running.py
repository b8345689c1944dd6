"""What an operator meets: health, metrics, broken stores and policies, the command line."""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lhopt.cli import keys as keys_command
from lhopt.cli import serve as serve_command
from lhopt.core.errors import ArtifactError, ConfigurationError, LhoptError
from lhopt.server import health, schema
from lhopt.server.catalog import load_catalog
from lhopt.server.deciding import make
from lhopt.server.settings import Settings
from lhopt.server.sqlite_store import SqliteStore
from lhopt.server.store import StoreError

from .conftest import session_request

if TYPE_CHECKING:
    from lhopt.policy.artifact import Policy
    from tests.server.conftest import Api


def locked(settings: Settings) -> sqlite3.Connection:
    """Another process that holds the database's write lock."""
    other = sqlite3.connect(settings.database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    return other


def test_a_store_that_takes_no_write_is_not_ready_and_refuses_retryably(
    start: Any, settings: Settings
) -> None:
    api: Api = start(settings, store_timeout=0.05)
    session = api.open()["id"]
    first = api.decide(session, 0, 0)
    other = locked(settings)
    ready = api("GET", "/readyz")
    assert (ready.status_code, ready.json()["code"]) == (503, "not-ready")
    assert api("GET", "/livez").status_code == 200
    refused = api.decide(session, 0, 1)
    assert (refused.status_code, refused.json()["code"]) == (503, "store-unavailable")
    assert refused.json()["retryable"] is True
    assert refused.headers["retry-after"] == "1"
    assert api.decide(session, 0, 0).content == first.content  # what is kept can be read
    assert api.metric("lhopt_store_errors_total") == 1
    other.execute("ROLLBACK")
    other.close()
    time.sleep(health.FRESH_SECONDS)  # a failure counts as long as a success
    ready = api("GET", "/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
    assert api.decide(session, 0, 1).status_code == 200


def test_however_many_ask_whether_it_is_ready_one_probe_is_written(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes: list[float] = []

    def probe() -> None:
        time.sleep(0.05)
        probes.append(time.monotonic())

    monkeypatch.setattr(api.services.store, "probe", probe)
    answers = api.together(*(("GET", "/readyz", {}) for _ in range(50)))
    assert {a.status_code for a in answers} == {200}
    assert api("GET", "/readyz").status_code == 200
    assert len(probes) == 1


def test_a_full_disk_refuses_retryably_and_loses_nothing(api: Api, settings: Settings) -> None:
    session = api.open()["id"]
    store = api.services.store
    assert isinstance(store, SqliteStore)
    pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
    store._writer.execute(f"PRAGMA max_page_count = {pages + 12}")
    answers: list[bytes] = []
    while (answer := api.decide(session, 0, len(answers))).status_code == 200:
        answers.append(answer.content)
        assert len(answers) < 100
    assert (answer.status_code, answer.json()["code"]) == (503, "store-unavailable")
    assert "full" in answer.json()["detail"]
    assert api("GET", f"/v1/sessions/{session}").json()["next_index"] == len(answers)
    store._writer.execute("PRAGMA max_page_count = 1000000")
    assert api.decide(session, 0, len(answers)).status_code == 200
    assert [api.decide(session, 0, k).content for k in range(len(answers))] == answers
    assert store._writer.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_slow_store_is_answered_at_the_deadline_and_a_repeat_gets_the_decision(
    start: Any, settings: Settings
) -> None:
    api: Api = start(settings, deadline=0.1)
    session = api.open()["id"]
    busy = api.spawn(api.services.engine.write(lambda: time.sleep(0.4)))
    late = api.decide(session, 0, 0)
    assert (late.status_code, late.json()["code"]) == (503, "deadline")
    with pytest.raises(Exception, match="Not done within"):
        api.wait(busy)
    time.sleep(0.4)
    again = api.decide(session, 0, 0)
    assert again.status_code == 200
    assert api.metric("lhopt_decisions_total") == 1


@pytest.mark.parametrize(
    ("headers", "retryable", "says"),
    [({"Idempotency-Key": "k"}, True, "Send the same again"), ({}, False, "look before")],
)
def test_a_late_opening_may_be_repeated_only_under_its_key(
    start: Any, settings: Settings, headers: dict[str, str], retryable: bool, says: str
) -> None:
    api: Api = start(settings, deadline=0.5)
    release = threading.Event()
    busy = api.spawn(api.services.engine.write(release.wait))
    late = api("POST", "/v1/sessions", json=session_request(), headers=headers)
    assert (late.status_code, late.json()["code"]) == (503, "deadline")
    assert late.json()["retryable"] is retryable
    assert says in late.json()["detail"]
    with pytest.raises(Exception, match="Not done within"):
        api.wait(busy)
    release.set()
    api.open(headers=headers)
    opened = api("GET", "/v1/sessions").json()["items"]
    assert len(opened) == (1 if retryable else 2)


def test_a_full_queue_is_refused(start: Any, settings: Settings) -> None:
    api: Api = start(settings, max_queue=2)
    sessions = [api.open()["id"] for _ in range(8)]
    body = {
        "statistics": {"train_loss": 1.0},
        "situation": {"progress": 0.5, "share": 0.1, "schedule": 0.0, "relative": {}},
    }
    api.spawn(api.services.engine.write(lambda: time.sleep(0.2)))
    answers = api.together(
        *(("PUT", f"/v1/sessions/{s}/attempts/0/decisions/0", {"json": body}) for s in sessions)
    )
    codes = {a.json().get("code") for a in answers}
    assert codes == {None, "overloaded"}


def test_a_decision_that_fails_does_not_fail_its_batch(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = [api.open()["id"] for _ in range(4)]

    def sometimes(policy: Policy, asks: Any, *rest: Any) -> Any:
        if any(ask.session == sessions[1] for ask in asks):
            raise FloatingPointError("planted")
        return make(policy, asks, *rest)

    monkeypatch.setattr("lhopt.server.ledger.make", sometimes)
    body = {
        "statistics": {"train_loss": 1.0},
        "situation": {"progress": 0.5, "share": 0.1, "schedule": 0.0, "relative": {}},
    }
    api.spawn(api.services.engine.write(lambda: time.sleep(0.1)))
    answers = api.together(
        *(("PUT", f"/v1/sessions/{s}/attempts/0/decisions/0", {"json": body}) for s in sessions)
    )
    assert [a.status_code for a in answers] == [200, 500, 200, 200]


def test_metrics_name_routes_and_never_sessions(api: Api) -> None:
    session = api.open()["id"]
    api.decide(session, 0, 0)
    api.decide(session, 0, 5)
    api("BREW", "/coffee")
    answer = api("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    text = answer.text
    assert session not in text
    assert 'route="/v1/sessions/{session_id}/attempts/{attempt}/decisions/{index}"' in text
    assert 'lhopt_conflicts_total{code="decision-gap"} 1.0' in text
    assert 'lhopt_sessions{status="open"} 1.0' in text
    assert 'lhopt_step_phase_seconds_count{phase="commit"} 1.0' in text
    assert 'le="0.0005"' in text
    assert "BREW" not in text
    assert "lhopt_decisions_total{outcome=" in text


def test_a_session_whose_policy_is_gone_says_so(
    start: Any, settings: Settings, tmp_path: Path
) -> None:
    before: Api = start(settings)
    session = before.open(policy="beta")["id"]
    before.decide(session, 0, 0)
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for path in (tmp_path / "policies").glob("alpha.*"):
        shutil.copy(path, fewer)
    after: Api = start(settings, policies_folder=fewer)
    answer = after.decide(session, 0, 1)
    assert (answer.status_code, answer.json()["code"]) == (503, "policy-not-loaded")
    assert "beta" in answer.json()["detail"]
    assert after.decide(session, 0, 0).headers["idempotent-replayed"] == "true"
    fork = {"parent_attempt": 0, "next_index": 1}
    answer = after("POST", f"/v1/sessions/{session}/attempts", json=fork)
    assert (answer.status_code, answer.json()["code"]) == (503, "policy-not-loaded")
    assert after("GET", f"/v1/sessions/{session}").json()["policy"]["name"] == "beta"


def test_a_state_of_another_version_is_refused(start: Any, settings: Settings) -> None:
    before: Api = start(settings)
    session = before.open()["id"]
    before.decide(session, 0, 0)
    with sqlite3.connect(settings.database) as db:
        db.execute("UPDATE decision SET state_after = x'00'")
    db.close()
    after: Api = start(settings)
    answer = after.decide(session, 0, 1)
    assert (answer.status_code, answer.json()["code"]) == (409, "state-incompatible")


def test_a_broken_policy_file_stops_the_start_and_is_named(settings: Settings) -> None:
    assert settings.policies_folder is not None
    weights = settings.policies_folder / "beta.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="'beta'"):
        load_catalog(settings.policies_folder)


def test_weights_without_a_manifest_stop_the_start(settings: Settings) -> None:
    assert settings.policies_folder is not None
    (settings.policies_folder / "beta.json").unlink()
    with pytest.raises(ArtifactError, match=r"beta\.json is missing"):
        load_catalog(settings.policies_folder)


def test_a_manifest_without_weights_stops_the_start(settings: Settings) -> None:
    assert settings.policies_folder is not None
    (settings.policies_folder / "beta.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"beta\.safetensors is missing"):
        load_catalog(settings.policies_folder)


@pytest.mark.parametrize("content", ['{"name": "beta"}', "[1]", "not JSON", "[" * 100_000])
def test_what_a_training_leaves_beside_its_policy_is_no_policy(
    settings: Settings, content: str
) -> None:
    assert settings.policies_folder is not None
    (settings.policies_folder / "config.json").write_text(content)
    assert load_catalog(settings.policies_folder).find("beta").name == "beta"


def test_two_policies_of_one_name_stop_the_start(settings: Settings) -> None:
    assert settings.policies_folder is not None
    for suffix in ("json", "safetensors"):
        path = settings.policies_folder / f"beta.{suffix}"
        shutil.copy(path, path.with_name(f"copy.{suffix}"))
    with pytest.raises(ConfigurationError, match="both policy 'beta'"):
        load_catalog(settings.policies_folder)


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "db"
    SqliteStore(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    db.close()
    with pytest.raises(ConfigurationError, match="newer"):
        SqliteStore(path)


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs (x)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="another program"):
        SqliteStore(path)
    assert path.read_bytes() == before, "not even its journal mode is changed"


@pytest.mark.parametrize("content", [b"", b"not a database at all, but long enough" * 100])
def test_a_file_that_is_no_database_is_refused_unless_it_is_empty(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "db"
    path.write_bytes(content)
    if content:
        with pytest.raises(ConfigurationError, match="cannot be opened"):
            SqliteStore(path)
    else:
        SqliteStore(path).close()


@pytest.mark.parametrize(("durability", "level"), [("process", 1), ("power", 2)])
def test_durability_sets_what_sqlite_flushes(tmp_path: Path, durability: Any, level: int) -> None:
    store = SqliteStore(tmp_path / "db", durability=durability)
    assert store._writer.execute("PRAGMA synchronous").fetchone() == (level,)
    assert store._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    store.close()


@pytest.mark.parametrize(
    "change",
    [
        {"durability": "forever"},
        {"port": 70000},
        {"max_batch": 0},
        {"deadline": 0.0},
        {"policies_folder": Path("/nowhere/at/all")},
    ],
)
def test_a_setting_out_of_range_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        replace(Settings(), **change)


def command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers(required=True)
    keys_command.add_parser(subparsers)
    serve_command.add_parser(subparsers)
    args = parser.parse_args(words)
    code: int = args.func(args)
    return code


def test_keys_are_made_listed_and_revoked_on_the_command_line(
    api: Api, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    database = ("--database", str(settings.database))
    assert command("keys", "create", "--name", "team a", *database) == 0
    key = capsys.readouterr().out.strip()
    assert api("GET", "/v1/sessions", key=key).status_code == 200
    assert command("keys", "list", *database) == 0
    listed = capsys.readouterr().out
    short = key.split("_")[1]
    assert short in listed
    assert "active  team a" in listed
    assert key.split("_", 2)[2] not in listed
    api.open(key=key)
    assert command("keys", "revoke", short, *database) == 0
    assert "1 open sessions are that key's own" in capsys.readouterr().err
    assert command("keys", "revoke", short, *database) == 1
    assert api("GET", "/v1/sessions", key=key).status_code == 401


def test_keys_of_a_database_that_is_not_there_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("keys", "list", "--database", str(tmp_path / "none")) == 2
    assert "There is no database" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--host", "0.0.0.0", "--port", "0"), "lhopt keys create"),
        (("--port", "70000"), "0 to 65535"),
        (("--host", "203.0.113.1", "--port", "0"), "Cannot listen"),
    ],
)
def test_serve_refuses_to_start(
    settings: Settings,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    says: str,
) -> None:
    where = ("--database", str(settings.database), "--policies", str(settings.policies_folder))
    assert command("serve", *where, *words) == 2
    assert says in capsys.readouterr().err


WITHOUT = """
import argparse, sys
sys.modules[sys.argv[1]] = None
from lhopt.cli import serve
parser = argparse.ArgumentParser()
serve.add_parser(parser.add_subparsers(required=True))
args = parser.parse_args(["serve", "--port", "0", "--database", sys.argv[2]])
sys.exit(args.func(args))
"""


@pytest.mark.parametrize("package", ["uvicorn", "fastapi", "prometheus_client"])
def test_serve_without_a_package_names_the_extra(settings: Settings, package: str) -> None:
    words = [sys.executable, "-c", WITHOUT, package, str(settings.database)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"lhopt serve: {package} is not installed. Run: pip install 'lhopt[server]'\n"
    )


def test_every_problem_of_the_store_is_one_of_ours() -> None:
    assert issubclass(StoreError, LhoptError)


def test_the_openapi_document_names_every_refusal(api: Api) -> None:
    document = api("GET", "/openapi.json").json()
    decide = document["paths"]["/v1/sessions/{session_id}/attempts/{attempt}/decisions/{index}"]
    assert set(decide["put"]["responses"]) >= {"200", "401", "404", "409", "410", "413", "422"}
    assert "requestBody" in decide["put"]
    posts = [document["paths"][path]["post"] for path in document["paths"] if "post" in
             document["paths"][path]]  # fmt: skip
    keyed = [post for post in posts if "Idempotency-Key" in json.dumps(post)]
    assert {post["operationId"].split("_v1")[0] for post in keyed} == {
        "open_session",
        "fork_session",
    }
    assert "session_id" in json.dumps(document["paths"]["/v1/sessions/{session_id}/attempts"])
    assert "text/plain" in document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]
    for path in {part.split('"')[0] for part in json.dumps(document).split('"$ref": "')[1:]}:
        part = document
        for word in path.removeprefix("#/").split("/"):
            part = part[word]
