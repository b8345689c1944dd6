"""The SDK against the real application, over real sockets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lhopt.client import ApiError, AsyncClient, Client, Tuner
from lhopt.core.feedback import Feedback
from lhopt.policy.artifact import Policy, save
from lhopt.policy.combine import with_feedback

uvicorn = pytest.importorskip("uvicorn")

FEEDBACK = Feedback(100.0)


@pytest.fixture
def app(policy: Policy, tmp_path: Path) -> Any:
    from lhopt.server.app import create_app
    from lhopt.server.settings import Settings

    folder = tmp_path / "policies"
    save(policy, folder)
    save(with_feedback(policy, FEEDBACK, "fed"), folder)
    return create_app(Settings(database=tmp_path / "db.sqlite3", policies_folder=folder))


@pytest.fixture
def url(app: Any) -> Iterator[str]:
    import socket

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", lifespan="on", ws="none", timeout_keep_alive=1)
    )
    loop_errors: list[BaseException] = []

    def serve() -> None:
        try:
            asyncio.run(server.serve(sockets=[listener]))
        except BaseException as error:
            loop_errors.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with Client(address, timeout=5.0) as client:
        for _ in range(100):
            if client.alive():
                break
    yield address
    server.should_exit = True
    thread.join(10)
    listener.close()
    assert not loop_errors


def test_a_run_on_the_real_server_is_the_run_in_process(
    url: str, make_job: Any, policy: Policy
) -> None:
    local, job = make_job(), make_job()
    optimizer = torch.optim.AdamW(local.groups())
    embedded = Tuner(optimizer, 60, interval=5, policy=policy)
    local.run(optimizer, embedded, range(60))
    optimizer = torch.optim.AdamW(job.groups())
    tuner = Tuner(optimizer, 60, interval=5, url=url, policy="random", timeout=10.0, name="job")
    job.run(optimizer, tuner, range(60))
    tuner.close()
    assert [r.source for r in tuner.history] == ["policy"] * 12
    assert list(embedded.history) == list(tuner.history)
    assert torch.equal(job.weights(), local.weights())


def test_a_resumed_run_on_the_real_server(url: str, make_job: Any) -> None:
    job = make_job()
    optimizer = torch.optim.AdamW(job.groups())
    tuner = Tuner(optimizer, 60, interval=5, url=url, policy="random", timeout=10.0)
    job.run(optimizer, tuner, range(23))
    state = tuner.state_dict()
    tuner.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)  # pre-empted
    again = Tuner(optimizer, 60, interval=5, url=url, policy="random", timeout=10.0)
    again.load_state_dict(state)
    job.run(optimizer, again, range(23, 60))
    assert [r.source for r in again.history] == ["policy"] * 7
    session_id = state["steering"]["backend"]["session"]
    with Client(url) as client:
        decisions = client.decisions(session_id)
        assert [d["index"] for d in decisions] == list(range(11))
        assert [d["attempt"] for d in decisions] == [0] * 4 + [1] * 7
        again.close()
        assert client.session(session_id)["status"] == "closed"
        assert client.session(session_id)["outcome"]["steps"] == 60
        with pytest.raises(ApiError) as caught:
            client.session("ses_" + "a" * 26)
    assert caught.value.status == 404


@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_whose_policy_left_the_server_goes_on_with_another(
    url: str,
    app: Any,
    make_job: Any,
    policy: Policy,
    caplog: pytest.LogCaptureFixture,
    resumed: bool,
) -> None:
    job = make_job()
    optimizer = torch.optim.AdamW(job.groups())
    options: Any = {"interval": 5, "url": url, "policy": "random", "timeout": 10.0}
    tuner = Tuner(optimizer, 60, **options)
    job.run(optimizer, tuner, range(23))
    session = tuner.state_dict()["steering"]["backend"]["session"]
    # an upgrade: the same name, other weights
    bias = policy.weights["head.bias"]
    newer = replace(policy, weights={**policy.weights, "head.bias": bias + np.float32(0.5)})
    app.state.services.catalog.__init__([newer])
    if resumed:
        state = tuner.state_dict()
        tuner.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        tuner = Tuner(optimizer, 60, **options)
        tuner.load_state_dict(state)
    job.run(optimizer, tuner, range(23, 60))
    assert {r.source for r in tuner.history} == {"policy"}
    assert tuner.steps == 60
    (warning,) = caplog.messages
    assert f"no longer has policy random ({policy.digest[:12]})" in warning
    backend = tuner.state_dict()["steering"]["backend"]
    assert backend["policy"]["digest"] == newer.digest
    with Client(url) as client:
        old = client.session(session)
        assert (old["status"], old["outcome"]) == ("closed", {"superseded_by": backend["session"]})
        indices = [d["index"] for d in client.decisions(backend["session"])]
    assert indices == list(range(len(indices)))
    tuner.close()


def test_a_run_that_validates_is_steered_by_the_slope_alike(
    url: str, make_job: Any, policy: Policy
) -> None:
    """The server says that its policy goes by the slope; the job measures it, also once resumed."""
    fed = with_feedback(policy, FEEDBACK, "fed")
    histories, decays = [], []
    for where in ({"policy": fed}, {"policy": "fed", "url": url, "timeout": 10.0}):
        job = make_job()
        optimizer = torch.optim.AdamW(job.groups())

        def validate(job: Any = job) -> Any:
            return (job.net(job.x[48:]) - job.y[48:]).square().mean()

        made: Any = lambda opt=optimizer, w=where, v=validate: Tuner(  # noqa: E731
            opt, 60, interval=5, validate=v, **w
        )
        tuner = made()
        job.run(optimizer, tuner, range(23))
        state, first = tuner.state_dict(), list(tuner.history)
        tuner.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)  # pre-empted
        again = made()
        again.load_state_dict(state)
        job.run(optimizer, again, range(23, 60))
        again.close()
        histories.append(first + list(again.history))
        decays.append(optimizer.param_groups[0]["weight_decay"])
        assert all("valid_slope" in r.statistics for r in histories[-1] if r.statistics)
        assert {r.source for r in histories[-1]} == {"policy"}
    assert histories[0] == histories[1]
    plain = make_job()
    optimizer = torch.optim.AdamW(plain.groups())
    plain.run(optimizer, Tuner(optimizer, 60, interval=5, policy=policy), range(60))
    assert decays[0] == decays[1] != optimizer.param_groups[0]["weight_decay"]


def test_both_clients_speak_to_the_real_server(url: str, policy: Policy) -> None:
    async def talk() -> list[dict[str, Any]]:
        async with AsyncClient(url, timeout=10.0) as client:
            assert await client.alive()
            session = await client.open_session(
                optimizer="torch.optim.AdamW", controls=["eps"], share=0.5, policy="random"
            )
            assert session.opened.controls == ("eps",)
            assert np.isfinite(session.opened.decision.delta).all()
            await session.close({"train_loss": 1.0})
            return await client.policies()

    names = {row["name"] for row in asyncio.run(talk())}
    assert policy.name in names
