"""What the data of the families that confirm a choice mean, recomputed another way."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from lhopt.inner_tasks import get_family
from lhopt.inner_tasks.crowds import _boards, _spins, _swarms
from lhopt.inner_tasks.data import Dataset
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


def test_a_planet_on_a_circle_keeps_its_distance() -> None:
    # inputs are standardised, so only what no scale changes is asked: on an orbit that is nearly a
    # circle the distance from the sun is the axis
    inputs, targets = _rows(_orbits(0.3, 1))
    axis, eccentric = inputs[:, 0], inputs[:, 1]
    round_ones = eccentric < np.quantile(eccentric, 0.01)
    distance = np.linalg.norm(targets, axis=1)
    assert np.corrcoef(axis[round_ones], distance[round_ones])[0, 1] > 0.99
    assert np.corrcoef(axis, distance)[0, 1] < 0.98


def test_a_flare_and_an_eclipse_look_like_themselves() -> None:
    inputs, kind = _rows(_stars(0.4, 1))
    spread = np.array([inputs[kind == k].std(1).mean() for k in range(6)])
    assert spread.argmin() == 0  # a star that does nothing
    skew = np.array([((x - x.mean(1, keepdims=True)) ** 3).mean() for x in
                     (inputs[kind == 1], inputs[kind == 3], inputs[kind == 5])])  # fmt: skip
    assert skew[0] < -0.1 < skew[1] < 0.1 < skew[2]
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
    ways = np.array([_way(row.reshape(12, 12) > 0) for row in inputs[:400]])
    assert ((ways < 0) == (label[:400] == 0)).all()
    most = [ways[label[:400] == k].max() for k in range(1, 5)]
    least = [ways[label[:400] == k].min() for k in range(1, 5)]
    # classes touch, where ways of one length are dealt by chance, and do not overlap
    assert all(a <= b for a, b in zip(most[:-1], least[1:], strict=True))
    shares = np.bincount(label.astype(int)) / len(label)
    assert np.ptp(shares[1:]) < 0.05


def test_a_lone_stroke_is_brighter_where_it_begins() -> None:
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


def test_a_motif_lies_where_the_class_says_that_one_does() -> None:
    strands, label = _rows(_motifs(0.0, 1))

    def most_frequent(rows: NDArray[np.float64]) -> float:
        windows = np.lib.stride_tricks.sliding_window_view(rows, 5, axis=1).astype(int)
        words = (windows @ 4 ** np.arange(5)).ravel()
        return float(np.bincount(words).max() / len(rows))

    without = most_frequent(strands[label == 0])
    assert all(most_frequent(strands[label == k]) > 2.0 * without for k in range(1, 5))


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


def test_no_pupil_meets_an_exercise_twice_in_any_split() -> None:
    data = _exams(0.3, 1)
    pairs = np.concatenate([inputs.numpy() for inputs, _ in data.splits.values()])
    assert len(np.unique(pairs, axis=0)) == len(pairs) == 8192 + 256 + 2 * 1024
    assert (pairs[:, 0] < 240).all()
    assert ((pairs[:, 1] >= 240) & (pairs[:, 1] < 300)).all()


def test_claims_have_one_category_of_each_kind_and_rare_ones() -> None:
    inputs, _ = _rows(_claims(0.5, 1))
    starts = np.cumsum([0, 40, 12, 8, 5])
    for a, b in pairwise(starts):
        hot = np.stack([_unscaled(inputs[:, j]) for j in range(a, b)], 1)
        np.testing.assert_array_equal(hot.sum(1), 1)
    counts = np.stack([_unscaled(inputs[:, j]) for j in range(40)], 1).sum(0)
    assert counts[0] > 10 * counts[30:].mean()


def test_a_wait_grows_with_the_load_and_not_with_what_means_nothing() -> None:
    inputs, targets = _rows(_queues(0.9, 1))
    wait = targets[:, 0]
    assert abs(np.corrcoef(inputs[:, 9:].T, wait)[-1, :-1]).max() < 0.1
    weights = np.linalg.lstsq(np.c_[inputs, np.ones(len(wait))], wait, rcond=None)[0]
    assert (weights[5:7] > 0).all()  # slower service, more arrivals
    assert (weights[7:9] > 0).all()  # what varies more waits longer


def test_colder_spins_agree_more() -> None:
    inputs, label = _rows(_spins(1.5, 1))
    spin = np.stack([_unscaled(column) for column in inputs.T], 1).reshape(-1, 8, 8) * 2 - 1
    agree = (spin * np.roll(spin, 1, 1) + spin * np.roll(spin, 1, 2)).mean((1, 2)) / 2
    by_class = [agree[label == k].mean() for k in range(4)]
    assert by_class == sorted(by_class, reverse=True)
    # Onsager: near T = 2.27 half of the order is gone; far above little is left
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
    assert by_class.argmax() == 3
    assert by_class.argmin() == 4
    assert np.array([around[manner == k].mean() for k in range(5)]).argmax() == 2


@pytest.mark.parametrize("name", CONFIRM_FAMILIES)
def test_every_drawn_set_can_be_made_and_none_has_an_empty_class(name: str) -> None:
    family = get_family(name)
    assert isinstance(family, SupervisedFamily)
    own = next(iter(family.settings))
    for value in set(family.settings[own][1]):
        task = family.build({own: value, "data_seed": 16})
        inputs, targets = task.arrays("train")
        assert inputs.isfinite().all()
        if not targets.is_floating_point():
            assert targets.flatten().bincount().min() > 0
