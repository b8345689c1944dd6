"""What families draw, and what the draws mean for a task."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from lhopt.core.errors import ConfigurationError
from lhopt.inner_tasks import FAMILIES, SPLITS, get_family
from lhopt.inner_tasks.digits import DigitsMLP
from lhopt.inner_tasks.mixed_tables import mixed_table
from lhopt.inner_tasks.supervised import SupervisedFamily, SupervisedTask
from lhopt.inner_tasks.synthetic import AdditionRNN, ParityRNN
from lhopt.inner_tasks.tabular import TabularMLP
from lhopt.inner_tasks.text import python_docs

SUPERVISED = [
    name for name in FAMILIES if isinstance(get_family(name), SupervisedFamily)
]  # all but the noisy quadratic


def _family(name: str) -> SupervisedFamily:
    family = get_family(name)
    assert isinstance(family, SupervisedFamily)
    return family


def _loss(task: SupervisedTask) -> tuple[float, float]:
    params = task.init(torch.Generator().manual_seed(0))
    rows = task.arrays("inner_valid")
    return float(task.loss(params, rows)), float(task.evaluate(params, rows))


@pytest.mark.parametrize("name", SUPERVISED)
def test_draws_stay_in_their_ranges_and_are_the_same_again(name: str) -> None:
    family = _family(name)
    configs = [family.draw(seed) for seed in range(200)]
    assert configs == [family.draw(seed) for seed in range(200)]
    assert all(0.5 <= c["init_gain"] <= 2.0 and 0.1 <= c["loss_scale"] <= 10.0 for c in configs)
    noisy = [c["label_noise"] for c in configs if c["label_noise"] > 0]
    assert 0.25 < len(noisy) / len(configs) < 0.55  # 40%
    assert max(noisy) <= 0.2
    for key, (_, values) in family.settings.items():
        assert {c[key] for c in configs} <= set(values)
    assert json.loads(json.dumps(configs)) == configs


def test_the_draw_of_a_seed_never_changes() -> None:
    """Recorded: names of tasks key frontiers on disk, so a changed draw is a broken release."""
    assert DigitsMLP().draw(1) == {
        "width": 64,
        "depth": 1,
        "activation": "elu",
        "norm": "none",
        "loss": "cross-entropy",
        "batch_size": 64,
        "init_gain": 1.5043,
        "loss_scale": 2.4458,
        "label_noise": 0.0,
        "noise_seed": 1270551447,
        "reparam": 6.4579,
    }


def test_different_families_draw_differently_from_one_seed() -> None:
    assert len({_family(name).draw(3)["noise_seed"] for name in SUPERVISED}) == len(SUPERVISED)


def test_the_default_is_plain() -> None:
    config = DigitsMLP().default().config
    assert (config["init_gain"], config["loss_scale"], config["label_noise"]) == (1.0, 1.0, 0.0)


def test_the_loss_scale_leaves_the_evaluation_alone() -> None:
    family = DigitsMLP()
    loss, value = _loss(family.default())
    scaled_loss, scaled_value = _loss(family.build({"loss_scale": 7.0}))
    assert scaled_loss == pytest.approx(7 * loss, rel=1e-5)
    assert scaled_value == value
    assert value == pytest.approx(loss + 1e-4, rel=1e-6)


def test_label_noise_changes_that_share_of_train_targets_and_nothing_else() -> None:
    clean, noisy = DigitsMLP().default(), DigitsMLP().build({"label_noise": 0.2})
    changed = (clean.arrays("train")[1] != noisy.arrays("train")[1]).float().mean()
    assert float(changed) == pytest.approx(0.2, abs=0.04)
    assert torch.equal(clean.arrays("train")[0], noisy.arrays("train")[0])
    for split in SPLITS[1:]:
        assert torch.equal(clean.arrays(split)[1], noisy.arrays(split)[1])
    assert int(noisy.arrays("train")[1].max()) == 9


def test_noise_on_values_is_normal_and_noise_on_clicks_flips() -> None:
    family = get_family("teacher-regression")
    assert isinstance(family, SupervisedFamily)
    clean, noisy = family.default(), family.build({"label_noise": 0.1})
    gap = noisy.arrays("train")[1] - clean.arrays("train")[1]
    assert float(gap.std()) == pytest.approx(0.1, rel=0.05)
    clicks = _family("recommender").build({"label_noise": 0.2}).arrays("train")[1]
    assert set(clicks.tolist()) == {0, 1}


def test_a_drawn_task_is_built_again_from_its_configuration() -> None:
    drawn = DigitsMLP().sample(5)
    again = DigitsMLP().build(drawn.config, drawn.name)
    assert repr(again) == repr(drawn)
    assert again.describe() == drawn.describe()
    assert json.loads(drawn.describe()) == {"family": "digits-mlp", **drawn.config}


def test_a_built_task_is_named_by_its_configuration() -> None:
    one, two = DigitsMLP().build({"width": 20}), DigitsMLP().build({"width": 21})
    assert one.name.startswith("digits-mlp@")
    assert one.name != two.name
    assert one.name == DigitsMLP().build({"width": 20}).name


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"widht": 3}, "no setting widht"),
        ({"activation": "sin"}, "allows elu, gelu"),
        ({"width": 0}, "integer >= 1"),
        ({"loss_scale": 0.0}, "above 0"),
        ({"init_gain": math.nan}, "above 0"),
        ({"label_noise": 2.0}, r"in \[0, 1\]"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(
    config: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        DigitsMLP().build(config)


@pytest.mark.parametrize(
    ("family", "config", "says"),
    [
        ("friedman-mlp", {"problem": 4}, "problem is 4; friedman-mlp allows 1, 2, 3"),
        ("char-gru", {"context": 3000}, "context is 3000; char-gru allows 1 to 1024"),
        ("signal-rnn", {"pieces": 7}, "allows 6, 8, 12"),
        ("coordinate-mlp", {"features": 9}, "allows 8, 16, 32"),
        ("dreams-mixer", {"grid": 5}, "allows 2, 4"),
        ("recall-linear", {"marks": 30}, "allows 1, 2"),
        ("topics-bag", {"focus": 1.5}, "allows 0 to 1"),
        ("forest-mlp", {"classes": 1}, "allows 2 to 64"),
        ("ballots-mlp", {"rows": 5000}, "rows is 5000; there are 2400 to train on"),
    ],
)
def test_a_setting_that_would_make_another_task_is_refused(
    family: str, config: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        _family(family).build(config)


def test_diabetes_takes_squared_error_in_place_of_cross_entropy() -> None:
    task = TabularMLP().build({"table": "diabetes"})
    assert task.config["loss"] == "squared-error"
    assert task.arrays("train")[1].shape[1:] == (1,)


def test_parity_targets_are_the_parity_of_the_inputs_signs() -> None:
    x, y = ParityRNN().build({"length": 7}).arrays("train")
    bits = (x[..., 0] > 0).long()
    agrees = (bits.sum(1) % 2 == y).float().mean()
    assert float(agrees) > 0.999  # jitter of 0.2 almost never turns a sign


def test_addition_targets_are_the_bits_of_the_sum() -> None:
    x, y = AdditionRNN().build({"length": 6}).arrays("test")
    bits = np.asarray((x > 0).long())
    powers = 2 ** np.arange(6)
    sums = (bits * powers[:, None]).sum((1, 2))
    np.testing.assert_array_equal((np.asarray(y) * powers).sum(1), sums % 64)


def test_language_targets_are_the_inputs_moved_by_one() -> None:
    task = get_family("char-gru").default()
    tokens, targets = task.arrays("train")
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    assert int(max(tokens.max(), targets.max())) < 96


def test_no_click_stands_in_two_splits_of_the_recommender() -> None:
    task = _family("recommender").default()
    codes = [set((p[:, 0] * 150 + p[:, 1]).tolist()) for p, _ in map(task.arrays, SPLITS)]
    assert sum(map(len, codes)) == len(set().union(*codes))


def test_no_link_stands_in_two_splits_of_a_graph() -> None:
    task = _family("graph-distance").default()
    seen = [{tuple(sorted(pair)) for pair in task.arrays(s)[0].tolist()} for s in SPLITS]
    assert sum(len(pairs) for pairs in seen) == len(set.union(*seen))
    assert all(a != b for pairs in seen for a, b in pairs)


def test_the_rare_levels_of_a_drawn_table_are_large_numbers() -> None:
    inputs, targets = _family("forest-mlp").default().arrays("train")
    assert float(inputs.abs().max()) > 9  # one-hot, then standardised, which ends at 10
    shares = torch.bincount(targets) / len(targets)
    assert len(shares) == 3
    assert 0.0 < float(shares.min()) < 0.8 * float(shares.max())


def test_a_drawn_language_has_frequent_and_rare_words_that_depend_on_those_before() -> None:
    inputs, targets = _family("vocabulary-mlp").default().arrays("train")
    counts = torch.bincount(targets, minlength=600).sort(descending=True).values
    assert int(counts[:60].sum()) > 0.4 * len(targets)
    assert int((counts < 10).sum()) > 100
    # the most frequent word is far from equally likely behind different words
    top = int(torch.bincount(targets).argmax())
    behind = [float((targets[inputs[:, -1] == w] == top).float().mean()) for w in range(30)]
    assert max(behind) > 3 * (min(behind) + 0.01)


@pytest.mark.parametrize(
    "family", ["clusters-few", "forest-few", "signal-few", "texture-few", "docs-few",
               "coordinate-few", "chaos-few", "pendulum-few", "ballots-tied"],
)  # fmt: skip
def test_few_rows_are_the_first_of_many(family: str) -> None:
    few, more = (_family(family).build({"rows": n}) for n in (300, 600))
    assert len(few.arrays("train")[0]) == 300
    assert torch.equal(few.arrays("train")[0], more.arrays("train")[0][:300])
    for split in SPLITS[1:]:
        assert torch.equal(few.arrays(split)[0], more.arrays(split)[0])


def test_half_a_glyph_is_asked_for_from_the_other_half() -> None:
    x, y = _family("glyphs-inpaint").default().arrays("train")
    assert x.shape == y.shape == (6144, 72)
    # halves of one glyph hang together: the last row seen tells of the first one asked for
    assert float((x[:, -12:] * y[:, :12]).mean()) > 0.3


def test_entries_of_a_tensor_name_one_row_of_each_side() -> None:
    names, value = _family("tensor-factors").default().arrays("train")
    assert names.min(0).values.tolist() == [0, 120, 180]
    assert names.max(0).values.tolist() == [119, 179, 203]
    assert value.shape == (12288, 1)


def test_no_entry_of_a_tensor_stands_in_two_splits() -> None:
    task = _family("tensor-factors").default()
    rows = [task.arrays(split)[0].tolist() for split in SPLITS]
    seen = [{tuple(entry) for entry in part} for part in rows]
    assert len(set.union(*seen)) == sum(map(len, rows))
    often = torch.bincount(task.arrays("train")[0][:, 0])
    assert int(often.max()) > 3 * int(often.median())  # some rows of it have many


def test_no_class_of_a_drawn_table_is_nearly_all_of_it() -> None:
    for classes, sharpness, seed in ((2, 4.0, 11), (3, 8.0, 6)):  # first tables: 99.6%, 99.5%
        labels = mixed_table(classes, sharpness, seed).splits["train"][1]
        assert 0.5 < np.bincount(labels).max() / len(labels) < 0.96


def test_pythons_documentation_is_not_held_out_and_trained_on() -> None:
    # windows of 8 have much in common by themselves; 64 in a row only where lines are repeated
    data = python_docs(64)
    seen = {row.tobytes() for row in np.asarray(data.splits["train"][0])}
    for split in SPLITS[1:]:
        rows = np.asarray(data.splits[split][0])
        assert np.mean([row.tobytes() in seen for row in rows]) < 0.02
