from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lhopt.benchmarks import search
from lhopt.benchmarks.search import (
    ADAMW_NAME,
    Search,
    SearchConfig,
    Setting,
    chosen,
    default,
    draw_rule,
    draw_setting,
    mutate,
    mutate_rule,
    plain,
    search_specs,
    speeds,
)
from lhopt.core.errors import ResumeError
from lhopt.core.schedules import Schedule
from lhopt.env.config import EnvConfig, get_optimizer
from lhopt.env.frontier import Frontier
from lhopt.env.pool import Entry, TaskSpec
from lhopt.inner_tasks.registry import get_task
from lhopt.optimizers.update import ADAMW, STEERABLE
from lhopt.policy.evaluate import hold, run


def entry(name: str, steps: int) -> Entry:
    losses = tuple(float(x) for x in 1.0 / np.array([0.25, 0.5, 1.0, 2.0]))
    frontier = Frontier(
        name, steps, (0.25, 0.5, 1.0, 2.0), losses, (0.01,) * 4, 0.0, 10.0, (0.001, 0.01, 0.1)
    )
    return Entry(TaskSpec(name, steps), get_task(name), frontier)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "BATCH", 3)


def test_a_setting_scores_what_the_no_op_policy_does_with_it() -> None:
    task = entry("friedman-mlp", 70)
    values = dict(get_optimizer("lhopt.SteerableAdamW").start)
    setting = Setting(STEERABLE, values, Schedule())
    faster = replace(setting, values={**values, "learning_rate": 2.0 * values["learning_rate"]})
    ours = speeds(task, [setting, faster], (3, 4))
    config = EnvConfig(optimizer="lhopt.SteerableAdamW", schedule=Schedule(), valid_share=0.0)
    rates = np.repeat([s.values["learning_rate"] for s in (setting, faster)], 2)
    theirs = run(task, config, lambda _: hold, seeds=[3, 4, 3, 4], starts={"learning_rate": rates})
    np.testing.assert_allclose(ours.reshape(-1), theirs.log2_speed, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("small")
def test_the_final_stage_chooses_and_a_search_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SearchConfig(families=("friedman-mlp",), random=2, refine=1, leaders=4)
    first, last = [entry("friedman-mlp", 40)], [entry("friedman-mlp/1", 40)]
    stages: list[tuple[str, int]] = []
    best = Search(config, tmp_path, first, last).run(lambda s, d, t, b: stages.append((s, d)))
    assert stages[:3] == [("random", 1), ("random", 2), ("refine", 1)]
    assert stages[-1][0] == "final"
    scores = [row["log2_speed"] for row in best["leaders"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 5  # the leaders and the default of today
    settings = [Setting.from_json(row["setting"]) for row in best["leaders"]]
    assert default(search.STEERABLE_NAME) in settings
    again = speeds(last[0], [chosen(best)], (750,))
    assert scores[0] == pytest.approx(np.clip(again, *search.CLIP).mean(), abs=1e-3)

    rows = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(rows.splitlines()[0] + "\n")
    resumed = Search(config, tmp_path, first, last).run()
    assert resumed["leaders"] == best["leaders"]
    assert (tmp_path / "rows.jsonl").read_text() == rows

    def refuse(job: object) -> None:
        raise AssertionError("a finished batch was trained again")

    monkeypatch.setattr(search, "_job", refuse)
    assert Search(config, tmp_path, first, last).run()["leaders"] == best["leaders"]
    assert json.loads((tmp_path / "best.json").read_text())["leaders"] == best["leaders"]
    with pytest.raises(ResumeError, match="another configuration"):
        Search(replace(config, seed=1), tmp_path, first, last)


@pytest.mark.usefixtures("small")
def test_no_rule_has_more_leaders_than_its_share(tmp_path: Path) -> None:
    config = SearchConfig(families=("friedman-mlp",), random=3, refine=0, leaders=6, per_rule=2)
    first, last = [entry("friedman-mlp", 30)], [entry("friedman-mlp/1", 30)]
    best = Search(config, tmp_path, first, last).run()
    rules = [Setting.from_json(row["setting"]).rule for row in best["leaders"]]
    assert len(rules) == 7
    drawn = [rule for rule in rules if rule != STEERABLE]
    assert sorted(drawn.count(rule) for rule in set(drawn)) == [2, 2, 2]


def test_around_the_default_a_grid_is_compared_and_nothing_is_drawn(tmp_path: Path) -> None:
    config = SearchConfig(families=("friedman-mlp",), around=True)
    stages: list[str] = []
    tasks = [entry("friedman-mlp", 20)], [entry("friedman-mlp/1", 20)]
    best = Search(config, tmp_path, *tasks).run(lambda s, d, t, b: stages.append(s))
    assert set(stages) == {"final"}
    settings = [Setting.from_json(row["setting"]) for row in best["leaders"]]
    assert len(settings) == 48
    assert default(search.STEERABLE_NAME) in settings
    assert len({json.dumps(s.to_json()) for s in settings}) == 48


def test_a_grid_around_a_rule_without_room_has_no_setting_twice() -> None:
    plain_rule = replace(default(search.STEERABLE_NAME), rule=replace(STEERABLE, trust_power=0.0))
    held = replace(plain_rule, schedule=Schedule(hold=0.2))
    for setting, n in ((default(search.STEERABLE_NAME), 48), (plain_rule, 24), (held, 12)):
        texts = [json.dumps(s.to_json()) for s in search.around(setting)]
        assert len(texts) == len(set(texts)) == n


def test_what_was_measured_for_another_default_is_not_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SearchConfig(families=("friedman-mlp",), around=True)
    tasks = [entry("friedman-mlp", 20)], [entry("friedman-mlp/1", 20)]
    asked: list[float] = []

    def job(work: tuple[Entry, list[Setting], tuple[int, ...]]) -> list[list[float]]:
        asked.extend(setting.values["learning_rate"] for setting in work[1])
        return [[0.0] for _ in work[1]]

    monkeypatch.setattr(search, "_job", job)
    Search(config, tmp_path, *tasks).run()
    Search(config, tmp_path, *tasks).run()
    assert len(asked) == 48
    today = default(search.STEERABLE_NAME)
    other = replace(today, values={**today.values, "learning_rate": 0.8})
    monkeypatch.setattr(search, "default", lambda optimizer: other)
    Search(config, tmp_path, *tasks).run()
    assert len(asked) == 96
    assert 0.8 in asked[48:]


def test_draws_stay_inside_what_the_rule_and_controls_allow() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        rule = draw_rule(rng, search.STEERABLE_NAME)
        setting = draw_setting(rng, rule, search.STEERABLE_NAME)
        near = mutate(rng, setting, mutate_rule(rng, rule, search.STEERABLE_NAME),
                      search.STEERABLE_NAME)  # fmt: skip
        for each in (setting, near):
            assert 0.0 < each.values["learning_rate"] < 3.0
            assert 0.0 < each.values["clip_ratio"] < 1.0
            assert Setting.from_json(json.loads(json.dumps(each.to_json()))) == each
            if not each.rule.relative_eps:
                assert each.values["eps"] < 1e-6
        seen.add(rule.orthogonal)
        assert near.rule.orthogonal or not near.rule.precondition
    assert seen == {True, False}
    adamw = draw_setting(rng, draw_rule(rng, ADAMW_NAME), ADAMW_NAME)
    assert adamw.rule == ADAMW
    assert adamw.schedule is None


def test_a_family_gives_its_sharpest_tasks() -> None:
    def blurred(name: str, noise: float) -> Entry:
        sharp = entry(name, 40)
        return Entry(sharp.spec, sharp.task, replace(sharp.frontier, noise=noise))

    tasks = [blurred("friedman-mlp/1", 0.3), blurred("friedman-mlp/2", 0.1),
             blurred("friedman-mlp/3", 0.2), blurred("coordinate-mlp/1", 0.9)]  # fmt: skip
    kept = [e.spec.task for e in search.sharpest(tasks, 2)]
    assert kept == ["friedman-mlp/2", "friedman-mlp/3", "coordinate-mlp/1"]


def test_one_ruined_task_counts_no_more_than_the_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SearchConfig(families=("friedman-mlp",), around=True)
    tasks = [entry("friedman-mlp", 20)], [entry("friedman-mlp/1", 20)]
    monkeypatch.setattr(search, "_job", lambda work: [[-3.0] for _ in work[1]])
    best = Search(config, tmp_path, *tasks).run()
    assert best["leaders"][0]["log2_speed"] == search.CLIP[0]


def test_the_stages_have_different_tasks_and_no_rescaled_ones() -> None:
    config = SearchConfig(families=("friedman-mlp", "coordinate-mlp"))
    first, last = search_specs(config)
    assert not {spec.task for spec in first} & {spec.task for spec in last}
    kept = plain([*first, *last])
    configs = [getattr(get_task(spec.task), "config", {}) for spec in kept]
    assert kept
    assert all(float(c.get("reparam", 1.0)) == 1.0 for c in configs)
