from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from lhopt.core.errors import ConfigurationError, MissingDataError, MissingExtraError
from lhopt.inner_tasks import tables, text
from lhopt.inner_tasks.data import available, data_root, deal, from_rows, missing, require


def test_an_empty_variable_is_no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LHOPT_DATA", "")
    assert data_root() is None


def test_files_are_found_under_the_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LHOPT_DATA", str(tmp_path))
    (tmp_path / "here").write_text("")
    assert require("here") == tmp_path / "here"
    assert available(["here"])
    assert not available(["here", "gone"])
    assert missing(["here", "gone"]) == ("gone",)
    with pytest.raises(MissingDataError, match=r"gone is missing: put it at \$LHOPT_DATA/gone; "):
        require("gone")


def test_nothing_is_needed_for_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LHOPT_DATA", raising=False)
    assert available(())


@pytest.mark.parametrize("n", [178, 1797, 100_000])
def test_every_row_is_dealt_to_one_split(n: int) -> None:
    rows = deal(n, "some table")
    dealt = np.concatenate(list(rows.values()))
    assert len(np.unique(dealt)) == len(dealt)
    assert len(dealt) == n or len(rows["train"]) == 60_000
    assert len(rows["inner_valid"]) <= 256
    assert len(rows["test"]) <= 2048


def test_the_deal_depends_on_the_name_alone() -> None:
    assert np.array_equal(deal(50, "a")["train"], deal(50, "a")["train"])
    assert not np.array_equal(deal(50, "a")["train"], deal(50, "b")["train"])


def test_inputs_are_standardised_by_train_statistics() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(5.0, 3.0, (1000, 4))
    x[:, 3] = 7.0  # a constant column carries nothing and must not become nan
    data = from_rows("t", x, np.zeros(1000, int), 2)
    train = data.splits["train"][0].numpy()
    np.testing.assert_allclose(train.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(train.std(0), [1, 1, 1, 0], atol=1e-5)
    assert data.n_inputs == 4


def test_an_official_test_split_is_kept_apart_and_capped() -> None:
    x = np.zeros((100, 1))
    test = np.ones((5000, 1)), np.ones(5000, int)
    data = from_rows("t", x, np.zeros(100, int), 2, test=test)
    assert data.splits["test"][1].tolist() == [1] * 2048
    assert int(data.splits["train"][1].max()) == 0


def test_a_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"lhopt\[tasks\]"):
        tables._bundled("digits")


def test_pooling_is_the_mean_of_squares() -> None:
    image = np.arange(16).reshape(1, 4, 4)
    assert tables._pool(image, 2).tolist() == [[[2.5, 4.5], [10.5, 12.5]]]
    assert tables._pool(image, 1) is image
    with pytest.raises(ConfigurationError, match="must divide"):
        tables._pool(image, 3)


def test_differences_are_undone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4), dtype=np.uint8)
    across = np.diff(image, axis=-1, prepend=np.uint8(0))
    stored = np.diff(across, axis=-2, prepend=np.uint8(0))
    np.testing.assert_array_equal(tables._undo_differences(stored), image)


def test_windows_share_only_their_border() -> None:
    windows = text._windows(np.arange(10), 3, 3)
    assert windows.tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]


def test_python_source_is_ascii_and_large_enough() -> None:
    library = text._library_text()
    assert 400_000 < len(library) < 1_500_000
    assert len(text.CHARACTERS) == 96
