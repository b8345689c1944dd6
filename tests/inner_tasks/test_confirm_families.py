"""What the data of the families that confirm a choice mean, recomputed another way."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from lhopt.core.types import FloatArray
from lhopt.inner_tasks import get_family
from lhopt.inner_tasks.crowds import _boards, _spins, _swarms
from lhopt.inner_tasks.data import Dataset, generator
from lhopt.inner_tasks.drawing import n_drawn
from lhopt.inner_tasks.heavens import _orbits, _stars
from lhopt.inner_tasks.letters import _brackets, _motifs
from lhopt.inner_tasks.records import _claims, _exams, _queues
from lhopt.inner_tasks.supervised import SupervisedFamily
from lhopt.inner_tasks.ways import _mazes, _strokes
from lhopt.policy.families import CONFIRM_FAMILIES


def _rows(data: Dataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    inputs, targets = data.splits["train"]
    return inputs.double().numpy(), targets.double().numpy()


def _unscaled(column: NDArray[np.float64]) -> NDArray[np.int64]:
    """Which of few values, in order: standardising moves them all alike."""
    return np.unique(column, return_inverse=True)[1]


def test_a_planet_is_where_newtons_law_takes_it() -> None:
    """Seven inputs, redrawn as they are before standardising, and an orbit that is integrated."""
    inputs, targets = _rows(_orbits(0.6, 1))
    rng = generator("orbits", 60, 1)
    n = n_drawn(8192)
    eccentric = 0.6 * np.sqrt(rng.random(n))
    axis, turned = rng.uniform(0.5, 1.5, n), rng.uniform(-np.pi, np.pi, n)
    begun, time = rng.uniform(-np.pi, np.pi, n), rng.uniform(0.0, 2.0, n)
    train = slice(256 + 2 * 1024, None)
    for column, drawn in zip(inputs.T, (axis, eccentric, time), strict=False):
        assert np.corrcoef(column, drawn[train])[0, 1] > 0.999999
    # from where the planet is nearest to the sun, as long as its clock says
    place = np.stack([axis * (1 - eccentric), np.zeros(n)])
    speed = np.stack([np.zeros(n), np.sqrt((1 + eccentric) / (1 - eccentric) / axis)])
    steps = 4000
    tick = (begun + time * axis**-1.5) / axis**-1.5 / steps
    for _ in range(steps):  # leapfrog
        place = place + 0.5 * tick * speed
        speed = speed - tick * place / np.linalg.norm(place, axis=0) ** 3
        place = place + 0.5 * tick * speed
    cos, sin = np.cos(turned), np.sin(turned)
    wanted = np.stack([cos * place[0] - sin * place[1], sin * place[0] + cos * place[1]], 1)[train]
    wanted = (wanted - wanted.mean(0)) / wanted.std(0)
    assert np.abs(wanted - targets).max() < 0.01


def test_a_flare_and_an_eclipse_look_like_themselves() -> None:
    inputs, kind = _rows(_stars(0.4, 1))
    spread = np.array([inputs[kind == k].std(1).mean() for k in range(6)])
    assert spread.argmin() == 0  # a star that does nothing
    skew = np.array([((x - x.mean(1, keepdims=True)) ** 3).mean() for x in
                     (inputs[kind == 1], inputs[kind == 3], inputs[kind == 5])])  # fmt: skip
    assert skew[0] < -0.1 < skew[1] < 0.1 < skew[2]
    # two waves have two peaks in the spectrum, one has one
    power = np.abs(np.fft.rfft(inputs - inputs.mean(1, keepdims=True))) ** 2
    share = np.sort(power, 1)[:, -2:].sum(1) / power.sum(1)
    assert share[kind == 4].mean() < share[kind == 3].mean() - 0.05
    falls = np.diff(inputs, axis=1)
    tooth = [((falls[kind == k] - falls[kind == k].mean()) ** 3).mean() for k in (2, 3)]
    assert tooth[0] > 10 * abs(tooth[1])  # quick rises, slow falls
    assert get_family("stars-few").default().arrays("train")[0].shape == (1200, 64)


def _way(free: NDArray[np.bool_]) -> int:
    """Steps from the top row to the bottom one; -1 is none."""
    side = len(free)
    found = {(0, x): 0 for x in range(side) if free[0, x]}
    queue = deque(found)
    while queue:
        y, x = queue.popleft()
        if y == side - 1:
            return found[y, x]
        for step in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            inside = 0 <= step[0] < side and 0 <= step[1] < side
            if inside and free[step] and step not in found:
                found[step] = found[y, x] + 1
                queue.append(step)
    return -1


def test_a_mazes_class_orders_the_shortest_way() -> None:
    inputs, label = _rows(_mazes(0.35, 1))
    ways = np.array([_way(row.reshape(8, 8) > 0) for row in inputs[:400]])
    assert ((ways < 0) == (label[:400] == 0)).all()
    most = [ways[label[:400] == k].max() for k in range(1, 3)]
    least = [ways[label[:400] == k].min() for k in range(1, 3)]
    # classes touch, where ways of one length are dealt by chance, and do not overlap
    assert all(a <= b for a, b in zip(most[:-1], least[1:], strict=True))
    shares = np.bincount(label.astype(int)) / len(label)
    assert np.ptp(shares[1:]) < 0.05


def test_the_longest_stroke_fades_where_it_goes() -> None:
    inputs, label = _rows(_strokes(0.1, 1))
    images = inputs.reshape(-1, 12, 12) - inputs.min()
    y, x = np.mgrid[:12, :12] - 5.5
    weight = np.clip(images - np.quantile(images, 0.9), 0.0, None)
    mass = weight.sum((1, 2))
    mean = np.stack([(weight * a).sum((1, 2)) / mass for a in (x, y)], 1)
    offset = np.stack([x, y])[None] - mean[:, :, None, None]
    radius = np.square(offset).sum(1)
    # along a stroke that fades, the third moment points to where it ends
    tail = (weight[:, None] * offset * radius[:, None]).sum((2, 3))
    toward = np.floor(np.arctan2(tail[:, 1], tail[:, 0]) % (2 * np.pi) / (np.pi / 4))
    assert (toward == label).mean() > 0.3  # an eighth by chance; other strokes lie about


def test_each_class_has_a_word_of_its_own_near_the_end() -> None:
    strands, label = _rows(_motifs(0.0, 1))
    windows = np.lib.stride_tricks.sliding_window_view(strands, 5, axis=1).astype(int)
    words = windows @ 4 ** np.arange(5)
    near, far = words[:, 8:], words[:, :4]  # a motif begins at one of the last four places
    tops = []
    for k in range(1, 5):
        mine = np.bincount(near[label == k].ravel(), minlength=1024) / (label == k).sum()
        none = np.bincount(near[label == 0].ravel(), minlength=1024) / (label == 0).sum()
        early = np.bincount(far[label == k].ravel(), minlength=1024) / (label == k).sum()
        tops.append(int((mine - none).argmax()))
        assert mine[tops[-1]] > 0.1 > 3 * none[tops[-1]]
        assert early[tops[-1]] < 0.05
    assert len(set(tops)) == 4


def test_no_bracket_closes_what_is_not_open() -> None:
    strings, later = _rows(_brackets(0.6, 1))
    np.testing.assert_array_equal(strings[:, 1:], later[:, :-1])
    for row in np.concatenate([strings, later[:, -1:]], 1)[:500].astype(int):
        held: list[int] = []
        for bracket in row.tolist():
            if bracket < 4:
                held.append(bracket)
            else:
                assert held.pop() == bracket - 4
    # which kind opens depends on what it opens in: chi-squared far beyond its 9 degrees of freedom
    pairs = np.zeros((4, 4))
    rows = strings.astype(int)
    inner = (rows[:, :-1] < 4) & (rows[:, 1:] < 4)
    np.add.at(pairs, (rows[:, :-1][inner], rows[:, 1:][inner]), 1)
    alike = pairs.sum(1, keepdims=True) * pairs.sum(0) / pairs.sum()
    assert ((pairs - alike) ** 2 / alike).sum() > 200


def test_no_pupil_meets_an_exercise_twice_in_any_split() -> None:
    data = _exams(0.3, 1)
    pairs = np.concatenate([inputs.numpy() for inputs, _ in data.splits.values()])
    assert len(np.unique(pairs, axis=0)) == len(pairs) == 8192 + 256 + 2 * 1024
    assert (pairs[:, 0] < 240).all()
    assert ((pairs[:, 1] >= 240) & (pairs[:, 1] < 300)).all()


def test_who_is_able_does_well_and_who_is_hard_to_please_gives_little() -> None:
    """Sums over what was trained on foretell what was not."""
    data = _exams(0.3, 1)
    (pairs, marks), (others, wanted) = (
        tuple(x.double().numpy() for x in data.splits[split]) for split in ("train", "test")
    )
    score = np.zeros(len(wanted))
    for column in range(2):
        who = pairs[:, column].astype(int)
        mean = np.bincount(who, marks, 300) / np.maximum(np.bincount(who, minlength=300), 1)
        found = mean[others[:, column].astype(int)]
        assert 0.2 < np.corrcoef(found, wanted)[0, 1] < 0.9
        score += found
    assert np.corrcoef(score, wanted)[0, 1] > 0.6


def test_claims_have_one_category_of_each_kind_and_rare_ones() -> None:
    inputs, targets = _rows(_claims(0.5, 1))
    starts = np.cumsum([0, 40, 12, 8, 5])
    for a, b in pairwise(starts):
        hot = np.stack([_unscaled(inputs[:, j]) for j in range(a, b)], 1)
        np.testing.assert_array_equal(hot.sum(1), 1)
    counts = np.stack([_unscaled(inputs[:, j]) for j in range(40)], 1).sum(0)
    assert counts[0] > 10 * counts[30:].mean()
    # what categories and amounts say together is more than what they say one by one
    amounts = inputs[:, 65:]
    one_by_one = np.c_[inputs, np.ones(len(inputs))]
    hot = np.stack([_unscaled(inputs[:, j]) for j in range(65)], 1)
    together = np.c_[one_by_one, (hot[:, :, None] * amounts[:, None]).reshape(len(inputs), -1)]
    half = len(inputs) // 2
    error = []
    for x in (one_by_one, together):
        weights = np.linalg.lstsq(x[:half], targets[:half], rcond=None)[0]
        error.append(float(np.square(x[half:] @ weights - targets[half:]).mean()))
    assert error[1] < 0.9 * error[0] < 0.9


def _kingman(
    service: FloatArray, varies: FloatArray, load: FloatArray, counters: FloatArray
) -> FloatArray:
    """Mean wait, with Sakasegawa's exponent; `varies` is the mean of both squared variations."""
    busy = load ** np.sqrt(2.0 * counters + 2.0) / load
    return np.asarray(service * varies * busy / (counters * (1.0 - load)))


def _queue(rng: np.random.Generator, load: float, varies: float, n: int) -> float:
    """Mean wait at one counter whose arrivals and service have this squared variation."""
    shape = 1.0 / varies
    gaps = rng.gamma(shape, 1.0 / shape, n) / load
    service = rng.gamma(shape, 1.0 / shape, n)
    # Lindley: the wait is how far the walk of service less gaps stands above its lowest point
    walk = np.concatenate([[0.0], np.cumsum(service[:-1] - gaps[1:])])
    return float((walk - np.minimum.accumulate(walk)).mean())


def test_kingmans_formula_is_near_a_queue_that_is_played() -> None:
    rng = np.random.default_rng(0)
    for load, varies in ((0.5, 1.0), (0.8, 1.0), (0.8, 0.5)):
        one = np.ones(1)
        formula = float(_kingman(one, varies * one, load * one, one)[0])
        assert _queue(rng, load, varies, 1_000_000) == pytest.approx(formula, rel=0.15)


def test_a_wait_is_kingmans_and_columns_that_mean_nothing_mean_nothing() -> None:
    inputs, targets = _rows(_queues(0.9, 1))
    rng = generator("queues", 90, 1)
    n = n_drawn(2400)
    counters = rng.integers(1, 6, n)
    service = np.exp(rng.normal(0.0, 0.5, n))
    load = rng.uniform(0.2, 0.9, n)
    varies = rng.gamma(2.0, 0.5, (n, 2))
    train = slice(256 + 2 * 1024, None)
    assert np.corrcoef(inputs[:, 5], np.log(service)[train])[0, 1] > 0.99
    arrivals = np.log(load * counters / service)
    assert np.corrcoef(inputs[:, 6], arrivals[train])[0, 1] > 0.99
    known = np.log(_kingman(service, varies.mean(1), load, counters.astype(float)))[train]
    wait = targets[:, 0]
    # targets are standardised: in the unit of the log, what is left is the noise of 0.3 alone
    rest = wait * np.hypot(known.std(), 0.3) - known
    assert rest.std() == pytest.approx(0.3, rel=0.05)
    for what in (np.log(load), np.log1p(-load), np.log(service), counters, varies.sum(1)):
        assert abs(np.corrcoef(what[train], rest)[0, 1]) < 0.08
    assert abs(np.corrcoef(inputs[:, 9:].T, wait)[-1, :-1]).max() < 0.1


def test_colder_spins_agree_more() -> None:
    inputs, label = _rows(_spins(1.5, 1))
    spin = np.stack([_unscaled(column) for column in inputs.T], 1).reshape(-1, 8, 8) * 2 - 1
    agree = (spin * np.roll(spin, 1, 1) + spin * np.roll(spin, 1, 2)).mean((1, 2)) / 2
    by_class = [agree[label == k].mean() for k in range(4)]
    assert by_class == sorted(by_class, reverse=True)
    # Onsager: neighbours agree by .71 at T = 2.27, by less above
    assert by_class[0] > 0.7 > 0.45 > by_class[3]


def test_who_has_three_in_a_row() -> None:
    inputs, label = _rows(_boards(7, 1))
    board = np.stack([_unscaled(column) for column in inputs.T], 1).reshape(-1, 5, 5) - 1
    assert ((board == 1).sum((1, 2)) == 7).all()
    assert ((board == -1).sum((1, 2)) == 7).all()
    ways = ((0, 1), (1, 0), (1, 1), (1, -1))
    for stones, told in zip(board[:300], label[:300], strict=True):
        won = {1: False, -1: False}
        for y in range(5):
            for x in range(5):
                for dy, dx in ways:
                    ends = (y + 2 * dy, x + 2 * dx)
                    if all(0 <= e < 5 for e in ends):
                        line = {int(stones[y + i * dy, x + i * dx]) for i in range(3)}
                        if len(line) == 1 and line != {0}:
                            won[line.pop()] = True
        assert told == won[1] + 2 * won[-1]


def test_swarms_move_as_their_class_says() -> None:
    inputs, manner = _rows(_swarms(0.4, 1))
    where, motion = inputs[..., :2], inputs[..., 2:]
    out = where - where.mean(1, keepdims=True)
    own = motion - motion.mean(1, keepdims=True)
    apart = (out * own).sum(-1).mean(1)
    around = np.abs((out[..., 0] * own[..., 1] - out[..., 1] * own[..., 0]).mean(1))
    by_class = np.array([apart[manner == k].mean() for k in range(5)])
    common = np.linalg.norm(motion.mean(1), axis=1)
    together = np.array([common[manner == k].mean() for k in range(5)])
    assert together.argmax() == 1
    assert together[1] > 1.5 * np.delete(together, 1).max()
    assert by_class.argmax() == 3
    assert by_class.argmin() == 4
    assert np.array([around[manner == k].mean() for k in range(5)]).argmax() == 2


@pytest.mark.parametrize("name", CONFIRM_FAMILIES)
def test_sets_of_every_drawn_kind_can_be_made_and_have_no_empty_class(name: str) -> None:
    family = get_family(name)
    assert isinstance(family, SupervisedFamily)
    own = next(iter(family.settings))
    for seed, value in enumerate(dict.fromkeys(family.settings[own][1]), start=14):
        _, data = family.make(family.complete({own: value, "data_seed": seed}))
        for inputs, targets in data.splits.values():
            assert inputs.isfinite().all()
            if data.kind == "classes":
                counts = targets.flatten().bincount(minlength=data.n_outputs)
                assert len(counts) == data.n_outputs
                assert counts.min() > 0
            else:
                assert targets.shape[1] == data.n_outputs
