"""Shapes of requests and of answers. Requests are strict: no unknown member, no coercion."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Name = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Word = Annotated[str, StringConstraints(min_length=1, max_length=64)]
#: Numbers that are not finite travel as strings; `core.wire` reads both.
Number = float | Literal["NaN", "Infinity", "-Infinity"]
Index = Annotated[int, Field(ge=0, le=2**31 - 1)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class SessionRequest(_Request):
    """A training job that wants to be steered.

    `policy` is a name or a digest; null takes the one trained for `optimizer`. `controls` are the
    hyperparameters that the job lets us steer. `share` is the fraction of the run that one interval
    takes. `scheduled` is false where the job brings its own learning-rate schedule.
    """

    wire_version: int
    name: Name | None = None
    policy: Name | None = None
    optimizer: Name
    controls: Annotated[list[Word], Field(min_length=1, max_length=32)]
    share: Annotated[float, Field(gt=0.0, le=1.0)]
    scheduled: bool = True
    metadata: Annotated[
        dict[Word, Annotated[str, StringConstraints(max_length=256)]], Field(max_length=32)
    ] = {}


class SituationRequest(_Request):
    """Where the job stands; see `core.features.Situation`. `relative` has the steered controls."""

    progress: float
    share: float
    schedule: float
    relative: Annotated[dict[Word, float], Field(max_length=32)]


class ReportRequest(_Request):
    """What the interval that just ended measured, and where the job stands."""

    statistics: Annotated[dict[Word, Number], Field(max_length=256)]
    situation: SituationRequest


class KeyedReportRequest(ReportRequest):
    """A report whose key is in the body, for hand-written requests."""

    attempt: Index
    index: Index


class ForkRequest(_Request):
    """Go on from a checkpoint: decisions 0 to `next_index` - 1 of `parent_attempt` are kept."""

    parent_attempt: Index
    next_index: Index


class CloseRequest(_Request):
    """How the job ended; free words and numbers.

    With `attempt`, only the current attempt may close: a process that was replaced cannot end the
    run of the one that took over.
    """

    outcome: Annotated[
        dict[Word, Annotated[str, StringConstraints(max_length=256)] | float | bool | None],
        Field(max_length=32),
    ] = {}
    attempt: Index | None = None


class PolicyReply(BaseModel):
    """The policy that a session is pinned to."""

    name: str
    digest: str


class SessionReply(BaseModel):
    """A session opened or forked. `decision` is in force until `next_index` is reported.

    `schedule` is the policy's default shape, which a job follows by itself while it has no answer;
    it comes with a session that is opened, unless the job brings its own schedule. `needs_slope`,
    which comes then too, says whether decisions depend on the statistics `valid_slope`
    and `valid_curvature`.
    """

    id: str
    attempt: int
    next_index: int
    policy: PolicyReply
    controls: list[str]
    decision: dict[str, Any]
    wire_version: int
    schedule: dict[str, Any] | None = None
    needs_slope: bool | None = None


class DecisionReply(BaseModel):
    """The decision for the next interval."""

    session: str
    attempt: int
    index: int
    decision: dict[str, Any]
    policy: str


class SessionView(BaseModel):
    """A session as lists and dashboards see it. Times are Unix seconds."""

    id: str
    name: str | None
    status: Literal["open", "closed"]
    attempt: int
    next_index: int
    policy: PolicyReply
    optimizer: str
    controls: list[str]
    share: float
    scheduled: bool
    metadata: dict[str, str]
    created: float
    updated: float
    outcome: dict[str, Any] | None


class SessionDetail(SessionView):
    """One session; `relative` is where each control stands once the last decision is applied."""

    relative: dict[str, float]


class SessionPage(BaseModel):
    """Sessions, newest first; `next_cursor` leads to the next page."""

    items: list[SessionView]
    next_cursor: str | None


class HistoryItem(BaseModel):
    """One committed decision and what it was made of."""

    attempt: int
    index: int
    statistics: dict[str, Number]
    situation: dict[str, Any]
    decision: dict[str, Any]
    at: float


class HistoryPage(BaseModel):
    """Decisions in order, across forks; `next_from` leads to the next page."""

    session: str
    attempt: int
    items: list[HistoryItem]
    next_from: int | None


class PolicyPage(BaseModel):
    """Manifests of the loaded policies, without their training reports."""

    items: list[dict[str, Any]]


class ProblemReply(BaseModel):
    """RFC 9457 problem details, with members of its own per `code`."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    retryable: bool
