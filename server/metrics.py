"""Prometheus metrics, in a registry of the application's own. Never a session id as a label."""

from __future__ import annotations

from typing import get_args

from .store import Status

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
except ModuleNotFoundError as error:  # pragma: no cover
    from ..core.errors import MissingExtraError

    raise MissingExtraError("prometheus_client", "server") from error

_SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    2.5, 10.0,
)  # fmt: skip
PHASES = ("queue", "load", "decide", "commit")


class Metrics:
    """What the server counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Histogram(
            "http_server_request_duration_seconds", "Time from request to answer",
            ("method", "route", "status"), buckets=_SECONDS, registry=r,
        )  # fmt: skip
        self.decisions = Counter(
            "lhopt_decisions", "Committed decisions: move, hold or brake",
            ("policy", "outcome"), registry=r,
        )  # fmt: skip
        self.batch_size = Histogram(
            "lhopt_batch_size", "Decisions made at once",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=r,
        )  # fmt: skip
        self.replays = Counter("lhopt_replays", "Answers given again from the store", registry=r)
        self.conflicts = Counter(
            "lhopt_conflicts", "Refusals because of a session's state", ("code",), registry=r
        )
        self.sessions = Gauge("lhopt_sessions", "Sessions in the store", ("status",), registry=r)
        self.store_errors = Counter(
            "lhopt_store_errors", "Requests that the store failed", registry=r
        )
        self.phases = Histogram(
            "lhopt_step_phase_seconds", "Time of one group of decisions by phase",
            ("phase",), buckets=_SECONDS, registry=r,
        )  # fmt: skip
        for phase in PHASES:
            self.phases.labels(phase)

    def text(self, counts: dict[Status, int]) -> bytes:
        """The exposition, with the sessions of now."""
        for status in get_args(Status):
            self.sessions.labels(status).set(counts.get(status, 0))
        return generate_latest(self.registry)
