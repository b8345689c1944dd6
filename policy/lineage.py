"""What a policy's manifest says of the trainings that it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def lineage(training: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A policy's training, then those of the policies that it comes from, by its manifest.

    It comes from the one that its training began from, that was transferred from another optimizer,
    or from those that were combined. What several of them come from is there once.
    """
    return _stages(None, training, set())


def _stages(
    digest: str | None, training: Mapping[str, Any] | None, met: set[str]
) -> Iterator[Mapping[str, Any]]:
    """The same from a policy of that digest on, without those met before."""
    if not training:
        return
    # feedback is put under a policy without any training
    digest = training.get("feedback_under", {}).get("digest", digest)
    if digest is not None and digest in met:
        return
    if digest is not None:
        met.add(digest)
    yield training
    single = (training.get(word) for word in ("transferred", "from"))
    for part in (*training.get("combined", ()), *single):
        if part:
            yield from _stages(part.get("digest"), part.get("training"), met)


def families_trained_on(training: Mapping[str, Any]) -> set[str]:
    """Families that a policy was trained on, and those it began from, by manifest."""
    met: set[str] = set()
    for stage in lineage(training):
        config = stage.get("config", {})
        met |= set(config.get("families", ())) - set(config.get("leave_out", ()))
    return met


def families_met(training: Mapping[str, Any]) -> set[str]:
    """Families that a policy was trained on or chosen by, and those it began from, by manifest."""
    from ..inner_tasks.registry import family_of  # torch, which `lineage` does without

    met: set[str] = set()
    for stage in lineage(training):
        config = stage.get("config", {})
        own = {family_of(str(task)) for task, *_ in stage.get("tasks", ())}
        own |= {*config.get("families", ()), *config.get("valid_families", ())}
        met |= own - set(config.get("leave_out", ()))
    return met
