"""Families whose data seed draws a program: that it does, and that what it makes can be learnt."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lhopt.core.errors import ConfigurationError
from lhopt.inner_tasks import SPLITS, drawn_images, drawn_sequences, drawn_tables, get_family
from lhopt.inner_tasks.crossing import Crossing
from lhopt.inner_tasks.data import Dataset, generator
from lhopt.inner_tasks.drawn_images import _images, _Network, dreams
from lhopt.inner_tasks.drawn_sequences import KINDS, _clues, _next, _told, chains, chains_on
from lhopt.inner_tasks.drawn_tables import _classes, _values, causes, causes_values
from lhopt.inner_tasks.supervised import SupervisedFamily, SupervisedTask
from lhopt.inner_tasks.worlds import (
    WORLDS,
    Draw,
    binned,
    drawn_world,
    explained,
    largest,
    uneven,
)
from lhopt.policy.families import DRAWN_FAMILIES, GROUPS

SEEDS = (1, 2, 3, 4, 5, 6)


def _dreams(seed: int) -> Dataset:
    return dreams(2, 8, seed)


def _paint(
    program: np.random.Generator, rng: np.random.Generator, n: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    return _images(2, 8, program, rng, n)


MADE: dict[str, Callable[[int], Dataset]] = {
    "causes": causes,
    "causes-values": causes_values,
    "chains": chains,
    "chains-on": chains_on,
    "dreams": _dreams,
}
DRAWS: dict[str, Draw] = {
    "causes": _classes,
    "causes-values": _values,
    "chains": _told,
    "chains-on": _next,
    "dreams": _paint,
}
BOUNDS = {
    "causes": drawn_tables.EXPLAINED,
    "causes-values": drawn_tables.EXPLAINED,
    "chains": drawn_sequences.EXPLAINED,
    "chains-on": drawn_sequences.EXPLAINED,
    "dreams": drawn_images.EXPLAINED,
}


def _default(name: str) -> SupervisedTask:
    family = get_family(name)
    assert isinstance(family, SupervisedFamily)
    return family.default()


def _whole(data: Dataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    parts = [data.splits[split] for split in SPLITS]
    x, y = (torch.cat([part[i] for part in parts]) for i in range(2))
    return x.double().numpy(), y.double().numpy()


@pytest.mark.parametrize("name", MADE)
def test_a_seed_gives_its_data_again_and_another_seed_other_data(name: str) -> None:
    draw, clues = DRAWS[name], _clues if name.startswith("chains") else np.asarray
    one, again, other = (
        drawn_world(name, seed, 500, draw, BOUNDS[name], clues) for seed in (1, 1, 2)
    )
    for a, b in zip(one, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert one[0].shape != other[0].shape or (one[0] != other[0]).any()


@pytest.mark.parametrize("name", DRAWS)
def test_what_a_seed_draws_is_a_program_and_not_rows(name: str) -> None:
    """What a regression learns of one program's rows holds for others of it, and of no other."""
    draw, clues = DRAWS[name], _clues if name.startswith("chains") else np.asarray

    def carried(seed: int, other: int) -> float:
        """Explained of one program's rows by a fit to another's, on what both have of each."""
        fit = draw(generator(name, seed), generator(name, "fit"), 2000)
        told = draw(generator(name, other), generator(name, "told"), 1000)
        seen, later = clues(fit[0]), clues(told[0])
        width = min(seen.shape[1], later.shape[1])
        x = np.concatenate([seen[:, :width], later[:, :width]])
        targets = [y if y.ndim == 1 else y[:, :1] for y in (fit[1], told[1])]
        return explained(x, np.concatenate(targets))

    own = {seed: carried(seed, seed) for seed in range(24)}
    kept = [seed for seed, found in own.items() if found > 0.2][:5]
    assert len(kept) == 5
    pairs = [carried(a, b) for a in kept for b in kept if a != b]
    assert sum(found < 0.1 for found in pairs) >= 0.75 * len(pairs)


def test_programs_differ_in_shape_too() -> None:
    shapes = {(causes(seed).n_inputs, causes(seed).n_outputs) for seed in SEEDS}
    assert len(shapes) == len(SEEDS)
    assert len({chains_on(seed).n_outputs for seed in SEEDS}) > 2
    assert len({_dreams(seed).n_outputs for seed in SEEDS}) > 2
    assert {causes_values(seed).n_outputs for seed in range(1, 13)} == {1, 2, 3}
    assert len(WORLDS) == len(set(WORLDS))


@pytest.mark.parametrize("name", DRAWN_FAMILIES)
def test_the_tasks_of_a_family_are_worlds_of_their_own(name: str) -> None:
    family = get_family(name)
    assert isinstance(family, SupervisedFamily)
    worlds = [family.draw(k)["data_seed"] for k in range(8)]
    assert len(set(worlds)) >= 7


def test_a_program_that_cannot_be_sound_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lhopt.inner_tasks.worlds._ATTEMPTS", 3)

    def noise(
        program: np.random.Generator, rng: np.random.Generator, n: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        return rng.normal(size=(n, 4)), rng.integers(2, size=n)

    with pytest.raises(ConfigurationError, match=r"'noise', seed 5: of 3 programs none has"):
        drawn_world("noise", 5, 10, noise, (0.2, 0.9))


@pytest.mark.parametrize("name", MADE)
def test_no_column_is_constant_and_no_class_is_rare(name: str) -> None:
    for seed in SEEDS:
        data = MADE[name](seed)
        x, y = _whole(data)
        assert np.isfinite(x).all()
        assert np.isfinite(y).all()
        assert (x.std(0) > 0.01).all()
        if data.kind == "values":
            assert (y.std(0) > 0.5).all()
            continue
        shares = np.bincount(y.ravel().astype(int), minlength=data.n_outputs) / y.size
        assert len(shares) == data.n_outputs >= 2
        assert shares.min() >= 0.01
        train = data.splits["train"][1]
        assert len(np.unique(train.numpy())) == data.n_outputs


@pytest.mark.parametrize("name", MADE)
def test_targets_can_be_told_but_not_wholly(name: str) -> None:
    """The regression on rows that were no part of the trial: the bounds hold, with some slack."""
    for seed in SEEDS:
        inputs, targets = (part.numpy() for part in MADE[name](seed).splits["train"])
        clues = inputs[:3000]
        if name.startswith("chains"):
            clues, targets = _clues(clues), targets[:, -1] if targets.ndim == 2 else targets
        found = explained(clues, targets[: len(clues)])
        assert BOUNDS[name][0] - 0.05 < found < BOUNDS[name][1] + 0.05


def test_noise_explains_nothing_and_a_sum_everything() -> None:
    rng = generator("explained test")
    x = rng.normal(size=(3000, 8))
    total = x.sum(1, keepdims=True)
    assert abs(explained(x, rng.normal(size=(3000, 1)))) < 0.1
    assert explained(x, total) > 0.97
    assert explained(x, (total[:, 0] > 0).astype(int)) > 0.6
    assert explained(x, np.square(x[:, :1])) < explained(x[:, :1], np.square(x[:, :1]))


def test_a_program_that_cannot_be_told_is_drawn_anew() -> None:
    tried = []

    def draw(
        program: np.random.Generator, rng: np.random.Generator, n: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        useful = program.random() < 0.3
        tried.append(useful)
        x = rng.normal(size=(n, 3))
        return x, 0.5 * useful * x[:, :1] + rng.normal(size=(n, 1)) * 0.5

    for seed in range(1, 9):
        drawn_world("test", seed, 10, draw, (0.3, 0.9))
        assert tried[-1]  # the rows are of the program that passed
        assert tried[-2]
    assert not all(tried)


def test_shares_are_uneven_and_none_is_small() -> None:
    rng = generator("shares")
    for n in range(2, 9):
        shares = uneven(rng, n)
        assert shares.sum() == pytest.approx(1.0)
        assert shares.min() >= 0.4 / n
        values = rng.normal(size=4000)
        found = np.bincount(binned(values, shares), minlength=n) / 4000
        np.testing.assert_allclose(found, shares, atol=1e-3)


def test_a_score_that_is_hardly_ever_the_largest_stands_back() -> None:
    scores = generator("largest").normal(size=(5000, 4))
    scores[:, 1] -= 5.0
    label = largest(scores)
    np.testing.assert_array_equal(np.delete(scores, 1, 1).argmax(1), label)
    scores[:, 0] += 99.0  # two stay, whatever becomes of one of them
    assert len(set(largest(scores, 0.3))) == 1


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__.strip("_"))
def test_related_programs_are_one_where_nothing_sets_them_apart(
    kind: Callable[..., NDArray[np.int64]],
) -> None:
    which = np.arange(6000) % 2
    gaps = []
    for apart in (0.0, 1.0):
        string = kind(generator("kin"), generator("rows"), which, 2, apart, 5, 16)
        assert string.shape == (6000, 16)
        assert set(np.unique(string)) <= set(range(5))
        pairs = 5 * string[:, :-1] + string[:, 1:]
        often = [np.bincount(pairs[which == k].ravel(), minlength=25) for k in range(2)]
        gaps.append(float(np.abs(often[0] - often[1]).sum() / pairs.size))
    assert gaps[0] < 0.03 < 0.1 < gaps[1]


def test_every_kind_of_program_is_drawn() -> None:
    """Where the next symbol is the class, too: which kind it is stands at the program's head."""
    kinds: list[int] = []

    def draw(
        program: np.random.Generator, rng: np.random.Generator, n: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        kinds.append(int(deepcopy(program).integers(len(KINDS))))
        return _next(program, rng, n)

    found = set()
    for seed in range(1, 40):
        drawn_world("chains on", seed, 50, draw, BOUNDS["chains-on"], _clues)
        found.add(kinds[-1])  # the last is the one whose rows came
        if len(found) == len(KINDS):
            return
    raise AssertionError(f"only {found}")


def test_the_next_symbols_are_the_strings_one_place_later() -> None:
    strings, later = chains_on(1).splits["train"]
    assert torch.equal(strings[:, 1:], later[:, :-1])


def test_an_image_is_what_the_network_paints_of_its_latents() -> None:
    """Of the same latents the same image, of others another; planes lie one after the other."""
    network = _Network(generator("network"), 3, 2)
    place = generator("places").normal(size=(1, 64, 3))
    latents = generator("latents").normal(size=(2, 3))
    places = place.repeat(3, 0)
    images = network(places, latents[[0, 1, 0]])
    assert images.shape == (3, 2, 64)
    np.testing.assert_allclose(images[0], images[2], atol=1e-6)
    assert np.abs(images[0] - images[1]).max() > 0.01
    assert _dreams(1).n_inputs == 2 * 8 * 8


def test_the_drawn_group_is_of_fourteen_families_of_which_five_have_few_rows() -> None:
    assert GROUPS["drawn"] == DRAWN_FAMILIES
    assert len(DRAWN_FAMILIES) == 14
    few = [
        family
        for name in DRAWN_FAMILIES
        if isinstance(family := get_family(name), Crossing) and max(family.rows) <= 1200
    ]
    assert len(few) >= 5
    for crossed in few:
        assert crossed.plain_config()["rows"] in crossed.rows
    kinds = {get_family(name).architecture for name in DRAWN_FAMILIES}
    assert len(kinds) >= 7


def _constant(task: SupervisedTask) -> float:
    """Held-out loss of what knows only how often each class is, or the mean."""
    told, wanted = task.arrays("train")[1], task.arrays("outer_valid")[1]
    if told.is_floating_point():
        return float((wanted - told.mean(0)).square().mean())
    chance = torch.bincount(told.ravel()).double() / told.numel()
    return float(-chance.log()[wanted.ravel()].mean())


@pytest.mark.parametrize("name", DRAWN_FAMILIES)
def test_a_short_run_learns_something_and_not_everything(name: str) -> None:
    torch.set_num_threads(1)
    task = _default(name)
    params = task.init(torch.Generator().manual_seed(0))
    for value in params.values():
        value.requires_grad_()
    optimizer = torch.optim.AdamW(list(params.values()), 3e-3)
    order = torch.Generator().manual_seed(1)
    rows, losses = task.arrays("train"), []
    for step in range(1, 401):
        picked = torch.randint(len(rows[0]), (task.batch_size,), generator=order)
        optimizer.zero_grad()
        task.loss(params, tuple(part[picked] for part in rows)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % 50 == 0:
            with torch.no_grad():
                losses.append(float(task.evaluate(params, task.arrays("outer_valid"))))
    constant = _constant(task)
    assert 0.05 * constant < min(losses) < 0.97 * constant
