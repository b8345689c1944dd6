"""Where the data of the inner tasks comes from: finding files, dealing splits, standardising.

Some sets travel with scikit-learn or Python itself; the others are files under the folder that
the environment variable `LHOPT_DATA` names. Nothing is ever downloaded.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.errors import MissingDataError
from .base import Batch, Split

DATA_VARIABLE = "LHOPT_DATA"

# Held-out splits are evaluated for every run of a batch at once, so they stay small. `inner_valid`
# is evaluated at every decision: 256 rows of a small CNN cost as much as 5 to 10 training steps.
MAX_INNER_VALID = 256
MAX_HELD_OUT = 2048
MAX_TRAIN = 60_000

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Four splits of (inputs, targets), ready for training.

    Attributes:
        splits: Tensors per split; the first dimension counts rows.
        n_outputs: Classes, size of the vocabulary, or width of a regression target.
        kind: What the targets are: "classes" (int64) or "values" (float32).
    """

    splits: Mapping[Split, Batch]
    n_outputs: int
    kind: str = "classes"

    @property
    def n_inputs(self) -> int:
        """Size of the inputs' last dimension."""
        return self.splits["train"][0].shape[-1]


def data_root() -> Path | None:
    """The folder that `LHOPT_DATA` names; None where it is not set."""
    value = os.environ.get(DATA_VARIABLE, "")
    return Path(value) if value else None


def available(files: Iterable[str]) -> bool:
    """Whether every one of these paths exists under `LHOPT_DATA`; true for no paths at all."""
    root, names = data_root(), tuple(files)
    return not names or (root is not None and all((root / name).is_file() for name in names))


def missing(files: Iterable[str]) -> tuple[str, ...]:
    """Those of these paths that do not exist under `LHOPT_DATA`."""
    return tuple(name for name in files if not available((name,)))


def require(file: str) -> Path:
    """The full path of a data file.

    Raises:
        MissingDataError: It is not there, or `LHOPT_DATA` is not set.
    """
    root = data_root()
    if root is not None and (root / file).is_file():
        return root / file
    where = f"{DATA_VARIABLE} is {root}" if root is not None else f"{DATA_VARIABLE} is not set"
    raise MissingDataError(
        f"{Path(file).name} is missing: put it at ${DATA_VARIABLE}/{file}; {where}."
    )


def generator(*key: str | int) -> np.random.Generator:
    """PCG64 seeded from words and numbers, the same on every machine."""
    return np.random.default_rng([zlib.crc32(k.encode()) if isinstance(k, str) else k for k in key])


def deal(n: int, name: str, *, test: bool = True) -> dict[Split, IntArray]:
    """Row numbers 0..n-1 dealt to the splits by a generator that only `name` seeds.

    15% each to `inner_valid` and `outer_valid`, 20% to `test`, all capped, the rest to `train`.

    Args:
        n: Rows to deal.
        name: The data set's name.
        test: False where an official test split exists: none is dealt then.
    """
    order = generator("splits", name).permutation(n)
    n_test = min(MAX_HELD_OUT, n // 5) if test else 0
    n_inner, n_outer = min(MAX_INNER_VALID, n * 3 // 20), min(MAX_HELD_OUT, n * 3 // 20)
    parts = np.split(order, np.cumsum([n_test, n_inner, n_outer]))
    rows: dict[Split, IntArray] = {
        "train": parts[3][:MAX_TRAIN],
        "inner_valid": parts[1],
        "outer_valid": parts[2],
    }
    if test:
        rows["test"] = parts[0]
    return rows


def standardise(
    arrays: Mapping[Split, NDArray[Any]], *, per_column: bool = True
) -> dict[Split, FloatArray]:
    """Zero mean and unit variance by the statistics of `train`, per column or over all of them.

    Images take one mean and one variance: by column, border pixels that are almost always blank
    would be blown up. A column that is constant on `train` becomes zero; the rest is clipped to
    +-10, because a rare column can put a held-out row a hundred standard deviations out.
    """
    train = arrays["train"].astype(np.float64)
    axis = 0 if per_column else None
    mean, std = train.mean(axis), train.std(axis)
    scale = np.where(std > 1e-6, 1.0 / np.maximum(std, 1e-6), 0.0)
    return {
        split: ((x - mean) * scale).clip(-10.0, 10.0).astype(np.float32)
        for split, x in arrays.items()
    }


def dataset(
    inputs: Mapping[Split, NDArray[Any]],
    targets: Mapping[Split, NDArray[Any]],
    n_outputs: int,
    kind: str = "classes",
) -> Dataset:
    """Numpy splits as a `Dataset`; integer arrays become int64, the others float32."""
    return Dataset(
        splits={split: (_tensor(inputs[split]), _tensor(targets[split])) for split in inputs},
        n_outputs=n_outputs,
        kind=kind,
    )


def from_rows(
    name: str,
    x: NDArray[Any],
    y: NDArray[Any],
    n_outputs: int,
    *,
    kind: str = "classes",
    test: tuple[NDArray[Any], NDArray[Any]] | None = None,
    per_column: bool = True,
) -> Dataset:
    """Deal, standardise (targets too where they are values) and convert one table.

    Args:
        name: Seeds the deal.
        x: Inputs, (N, ...).
        y: Targets, (N,) classes or (N, d) values.
        n_outputs: Classes, or d.
        kind: "classes" or "values".
        test: The official test split; its first 2,048 rows in a fixed random order are used.
        per_column: False standardises all inputs by one mean and variance, as for images.
    """
    rows = deal(len(x), name, test=test is None)
    inputs = {split: x[index] for split, index in rows.items()}
    targets = {split: y[index] for split, index in rows.items()}
    if test is not None:
        keep = generator("test rows", name).permutation(len(test[0]))[:MAX_HELD_OUT]
        inputs["test"], targets["test"] = test[0][keep], test[1][keep]
    final: Mapping[Split, NDArray[Any]] = standardise(targets) if kind == "values" else targets
    return dataset(standardise(inputs, per_column=per_column), final, n_outputs, kind)


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    dtype = np.int64 if np.issubdtype(array.dtype, np.integer) else np.float32
    return torch.from_numpy(np.ascontiguousarray(array, dtype=dtype))
