from __future__ import annotations

import pytest

from lhopt.benchmarks.suited import line, measure, training_tasks
from lhopt.benchmarks.tasks import HELD_OUT_FAMILIES
from lhopt.optimizers.catalogue import get_entry
from lhopt.policy.families import TRAIN_FAMILIES


def test_only_training_families_decide() -> None:
    chosen = {task.family for task in training_tasks(quick=False)}
    assert chosen <= set(TRAIN_FAMILIES)
    assert not chosen & set(HELD_OUT_FAMILIES)


def test_a_policy_that_helps_is_told_from_one_that_harms() -> None:
    tasks = [task for task in training_tasks(quick=True) if task.family == "clusters-resmlp"]
    good, bad = measure([get_entry("adamw"), get_entry("prodigy")], tasks, steps=100)
    assert good.ratio < 1.0 < bad.ratio
    assert (good.lower, bad.lower) == (1.0, 0.0)
    assert (good.named, bad.named) == (False, True)
    assert "does good, taken unasked" in line(good)
    assert "does harm, taken only if named" in line(bad)
    assert good.tasks == pytest.approx(1)
