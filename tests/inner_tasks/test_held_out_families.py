"""What is special about the families of the held-out tasks, against torch and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lhopt.inner_tasks import get_task
from lhopt.inner_tasks.data import available
from lhopt.inner_tasks.engine import BatchedRuns
from lhopt.inner_tasks.ill_conditioned import ill_conditioned
from lhopt.inner_tasks.movielens import MOVIELENS, N_ITEMS, N_USERS, NEGATIVES, NeuMF, movielens
from lhopt.inner_tasks.nets import StridedCNN

needs_movielens = pytest.mark.skipif(
    not available((MOVIELENS,)), reason=f"missing under LHOPT_DATA: {MOVIELENS}"
)


def test_batch_norm_is_torchs_in_training_mode() -> None:
    net = StridedCNN(2, 8, (4, 6), 3, "relu", "batch")
    params = net.init(torch.Generator().manual_seed(0))
    for i, width in enumerate((4, 6)):
        params[f"norm{i}.weight"] = torch.linspace(0.5, 2.0, width)
        params[f"norm{i}.bias"] = torch.linspace(-1.0, 1.0, width)
    rows = torch.randn(16, 2 * 8 * 8, generator=torch.Generator().manual_seed(1))
    x = rows.reshape(16, 2, 8, 8)
    for i, width in enumerate((4, 6)):
        layer = torch.nn.BatchNorm2d(width).train()
        layer.weight.data, layer.bias.data = params[f"norm{i}.weight"], params[f"norm{i}.bias"]
        conv = torch.nn.functional.conv2d(
            x, params[f"conv{i}.weight"], params[f"conv{i}.bias"], stride=2, padding=1
        )
        x = layer(conv).relu()
    wanted = x.flatten(1) @ params["head.weight"].T + params["head.bias"]
    torch.testing.assert_close(net(params, rows), wanted, rtol=1e-4, atol=1e-5)


def test_runs_of_one_batch_do_not_share_batch_statistics() -> None:
    task = get_task("digits-cnn:norm=batch")
    together = BatchedRuns(task, [1, 2])
    alone = BatchedRuns(task, [2])
    for runs in (together, alone):
        runs.advance(5)
    np.testing.assert_allclose(together.evaluate()[1], alone.evaluate()[0], rtol=1e-4)


def test_layer_norm_is_what_it_was() -> None:
    net = StridedCNN(1, 8, (4,), 3, "relu", "layer")
    params = net.init(torch.Generator().manual_seed(0))
    rows = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    conv = torch.nn.functional.conv2d(
        rows.reshape(3, 1, 8, 8), params["conv0.weight"], params["conv0.bias"], stride=2, padding=1
    )
    x = torch.nn.functional.layer_norm(conv, conv.shape[1:]).relu()
    wanted = x.flatten(1) @ params["head.weight"].T + params["head.bias"]
    torch.testing.assert_close(net(params, rows), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("condition", [100, 10_000])
def test_inputs_have_the_condition_number_and_no_axis_shows_it(condition: int) -> None:
    x = np.concatenate(
        [a[0].double().numpy() for a in ill_conditioned(condition, 1).splits.values()]
    )
    values = np.linalg.eigvalsh(np.cov(x.T))
    # the extreme eigenvalues of a sample of 6,400 are some 10% too wide
    assert values[-1] / values[0] == pytest.approx(condition, rel=0.25)
    assert values.sum() == pytest.approx(32.0, rel=0.1)
    columns = x.var(0)
    assert columns.max() / columns.min() < 0.1 * condition
    ranks, logs = np.log(np.arange(1, 33)), np.log(values[::-1])
    assert np.corrcoef(ranks, logs)[0, 1] < -0.99  # a power law is a line in logarithms


def test_the_target_needs_the_small_directions() -> None:
    inputs, targets = (a.double().numpy() for a in ill_conditioned(10_000, 1).splits["train"])
    values, directions = np.linalg.eigh(np.cov(inputs.T))
    whitened = inputs @ directions / np.sqrt(values)
    weights, *_ = np.linalg.lstsq(whitened, targets, rcond=None)
    share = (weights[:16] ** 2).sum() / (weights**2).sum()
    assert 0.2 < share < 0.8  # the smaller half of the directions carries its part


@needs_movielens
def test_movielens_blocks_are_one_rated_film_and_four_that_were_not() -> None:
    for inputs, targets in movielens().splits.values():
        blocks = inputs.reshape(-1, 1 + NEGATIVES, 2)
        assert (blocks[..., 0] == blocks[:, :1, 0]).all()
        assert int(inputs[:, 0].max()) < N_USERS
        assert int(inputs[:, 1].max()) < N_ITEMS
        assert (targets.reshape(-1, 1 + NEGATIVES) == torch.tensor([1, 0, 0, 0, 0])).all()


@needs_movielens
def test_no_pair_of_a_movielens_split_is_in_another_or_both_rated_and_not() -> None:
    seen: dict[int, tuple[str, int]] = {}
    for split, (inputs, targets) in movielens().splits.items():
        codes = (inputs[:, 0] * N_ITEMS + inputs[:, 1]).tolist()
        for code, label in zip(codes, targets.tolist(), strict=True):
            assert seen.setdefault(code, (split, label)) == (split, label)


@needs_movielens
def test_movielens_test_pairs_are_those_of_the_file() -> None:
    from lhopt.inner_tasks.data import require

    with np.load(require(MOVIELENS)) as stored:
        train, held = stored["train"].astype(int), stored["test"].astype(int)
    inputs, targets = movielens().splits["test"]
    positives = inputs[targets == 1]
    counts = np.bincount(train[:, 1])
    popular = np.argsort(-counts, kind="stable")[:N_ITEMS]
    users = set(map(tuple, held.tolist()))
    # users are renumbered: each test positive must be the test pair of some user
    films = {int(popular[item]) for item in positives[:, 1].tolist()}
    assert films <= {film for _, film in users}
    assert len(positives) > 100
    assert len(set(positives[:, 0].tolist())) == len(positives)  # leave-one-out: one per user


def test_neumf_is_a_product_and_an_mlp() -> None:
    net = NeuMF(5, 7, 4, 6, "relu", 30.0)
    p = net.init(torch.Generator().manual_seed(0))
    pairs = torch.tensor([[0, 6], [4, 2]])
    users, items = pairs.T
    product = p["product_user.weight"][users] * p["product_item.weight"][items]
    both = torch.cat([p["mlp_user.weight"][users], p["mlp_item.weight"][items]], 1)
    hidden = (both @ p["layer0.weight"].T + p["layer0.bias"]).relu()
    deep = hidden @ p["layer1.weight"].T + p["layer1.bias"]
    wanted = torch.cat([product, deep], 1) @ p["head.weight"].T + p["head.bias"]
    torch.testing.assert_close(net(p, pairs), wanted)
