"""Names that change settings: "digits-cnn:norm=batch,batch_size=64"."""

from __future__ import annotations

import pytest

from lhopt.core.errors import ConfigurationError, UnknownNameError
from lhopt.env.pool import TaskSpec
from lhopt.inner_tasks import check_inner_task, get_family, get_task
from lhopt.inner_tasks.registry import Configured, TaskName, family_of, parse


def test_a_name_with_settings_is_the_default_task_with_these_changed() -> None:
    name = "digits-cnn:norm=batch,batch_size=64"
    task = get_task(name)
    plain = getattr(get_task("digits-cnn"), "config", {})
    assert (task.name, task.family, task.batch_size) == (name, "digits-cnn", 64)
    assert getattr(task, "config", {}) == {**plain, "norm": "batch", "batch_size": 64}
    check_inner_task(task)


def test_a_spec_of_such_a_task_knows_its_family() -> None:
    assert TaskSpec("digits-cnn:norm=batch", 200).family == "digits-cnn"
    assert [family_of(n) for n in ("a-b", "a-b/3", "a-b:c=1/2", "a-b@0f")] == ["a-b"] * 4


def test_values_are_json_or_text() -> None:
    found = parse("x:a=1,b=0.5,c=relu,d=product+mlp, e = 2")
    assert found == TaskName(
        "x", settings={"a": 1, "b": 0.5, "c": "relu", "d": "product+mlp", "e": 2}
    )
    assert parse("x/7") == TaskName("x", 7)
    assert parse("x") == TaskName("x")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("digits-cnn:", "KEY=VALUE"),
        ("digits-cnn:norm", "KEY=VALUE"),
        ("digits-cnn:norm=", "KEY=VALUE"),
        ("digits-cnn:width=4,", "KEY=VALUE"),
        ("digits-cnn:width=4,width=8", "sets width twice"),
        ("digits-cnn/3:width=4", "leave the seed out: 'digits-cnn:width=4'"),
        ("digits-cnn:widht=4", "has no setting widht. It has: width"),
        ("digits-cnn:norm=group", "allows batch, layer, none"),
        ("digits-mlp:norm=batch", "allows layer, none"),
        ("digits-cnn:width=0", "integer >= 1"),
        ("digits-cnn:width=4.0", "integer >= 1"),
        ("digits-cnn:width=true", "integer >= 1"),
        ("digits-cnn:label_noise=much", "must be a number"),
        ("digits-cnn:loss_scale=NaN", "above 0"),
        ("spots-cnn:noise=-1", "noise is -1; it must be at least 0 and finite"),
        ("spots-cnn:noise=much", "at least 0 and finite"),
        ("prices-mlp:tail=0", "tail is 0; it must be above 0 and finite"),
        ("entities-mlp:skew=NaN", "at least 0 and finite"),
        ("noisy-quadratic:dim=2.5", "an integer above 0"),
        ("noisy-quadratic:condition=-1", "a finite number above 0"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_can(name: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says.replace("+", r"\+")):
        get_task(name)


def test_an_unknown_family_with_settings_is_unknown() -> None:
    with pytest.raises(UnknownNameError, match="digits-cnn"):
        get_task("digit-cnn:width=4")


def test_batch_norm_is_built_and_never_drawn() -> None:
    family = get_family("digits-cnn")
    assert isinstance(family, Configured)
    norms = {family.draw(seed)["norm"] for seed in range(200)}
    assert norms == {"none", "layer"}
