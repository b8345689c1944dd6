"""Loaders of images and tables, each read once per process."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigurationError, MissingExtraError
from .data import Dataset, from_rows, generator, require

FASHION = "fashion-mnist/fashion_mnist.npz"
MNIST = "mnist/mnist.npz"
CIFAR = ("cifar10-jpeg/cifar10_jpeg_train25k.npz", "cifar10-jpeg/cifar10_jpeg_test10k.npz")
CALIFORNIA = "california-housing/housing.npz"
ADULT = "adult/adult.npz"
COVERTYPE = "covertype-10k/covertype_10k.npz"

# 30,000 images of 28x28 are 94 MB per process as float32; all 60,000 change a short run little.
MAX_IMAGES = 30_000


def _bundled(name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        from sklearn import datasets  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "tasks") from error
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return x, y


@cache
def digits() -> Dataset:
    """1,797 images of 8x8 from scikit-learn, flattened to 64; ten classes."""
    x, y = _bundled("digits")
    return from_rows("digits", x, y, 10, per_column=False)


@cache
def small_table(name: str) -> Dataset:
    """scikit-learn's "breast_cancer" (2 classes), "wine" (3 classes) or "diabetes" (a value)."""
    x, y = _bundled(name)
    if name == "diabetes":
        return from_rows(name, x, y[:, None], 1, kind="values")
    return from_rows(name, x, y, int(y.max()) + 1)


def _pool(images: NDArray[Any], factor: int) -> NDArray[Any]:
    """Mean over factor x factor squares; images are (N, H, W) or (N, C, H, W)."""
    if factor == 1:
        return images
    *lead, height, width = images.shape
    if height % factor or width % factor:
        raise ConfigurationError(f"pool is {factor}; it must divide {height} and {width}.")
    cut = images.reshape(*lead, height // factor, factor, width // factor, factor)
    return np.asarray(cut.mean((-3, -1), dtype=np.float32))


@cache
def grey_images(file: str, pool: int) -> Dataset:
    """MNIST or Fashion-MNIST, flattened; `pool` 1 keeps 28x28, 2 averages to 14x14.

    30,000 images of the official training split are used, and 2,048 of the official test split.
    """
    with np.load(require(file)) as stored:
        keep = generator("image rows", file).permutation(len(stored["x_train"]))[:MAX_IMAGES]
        x, y = _pool(stored["x_train"][keep], pool), stored["y_train"][keep]
        x_test, y_test = _pool(stored["x_test"], pool), stored["y_test"]
    flat = x.reshape(len(x), -1)
    test = x_test.reshape(len(x_test), -1), y_test
    return from_rows(file, flat, y, 10, test=test, per_column=False)


@cache
def cifar(pool: int) -> Dataset:
    """A JPEG copy of CIFAR-10, flattened (channel, row, column); `pool` 2 averages to 16x16."""
    parts = []
    for file in CIFAR:
        with np.load(require(file)) as stored:
            # The file stores G, R-G and B-G, differenced along width and height (its README).
            green, red, blue = np.moveaxis(_undo_differences(stored["z"]), 1, 0)
            x = np.stack([red + green, green, blue + green], 1)
            parts.append((_pool(x, pool).reshape(len(x), -1), stored["y"]))
    (x, y), test = parts
    return from_rows("cifar", x, y, 10, test=test, per_column=False)


def _undo_differences(z: NDArray[np.uint8]) -> NDArray[np.uint8]:
    down = np.cumsum(z, axis=-2, dtype=np.uint8)
    return np.asarray(np.cumsum(down, axis=-1, dtype=np.uint8))


@cache
def california() -> Dataset:
    """20,640 districts, 8 numbers and one category; the target is the log of the median price."""
    with np.load(require(CALIFORNIA)) as stored:
        x, held = stored["x"], stored["is_test"]
        # Counts of rooms and people span four decades: their logs are what a net can use.
        x[:, 3:8] = np.log(x[:, 3:8])
        x = np.where(np.isnan(x), np.nanmedian(x[~held], 0), x)
        x = np.concatenate([x, np.eye(5, dtype=np.float32)[stored["ocean"]]], 1)
        y = np.log(stored["y"])[:, None]
    return from_rows("california", x[~held], y[~held], 1, kind="values", test=(x[held], y[held]))


@cache
def adult() -> Dataset:
    """32,561 people, 6 numbers and 8 categories one-hot; the class is an income above 50,000."""
    with np.load(require(ADULT)) as stored:
        levels = np.maximum(stored["cat_train"].max(0), stored["cat_test"].max(0)) + 1
        tables = {}
        for split in ("train", "test"):
            numbers = stored[f"num_{split}"].astype(np.float32)
            # capital gain and loss have heavy tails; in float64, because processors disagree on the
            # last bit of a float32 logarithm, and a frontier names its data by their digest
            numbers[:, 3:5] = np.log1p(numbers[:, 3:5].astype(np.float64))
            codes = stored[f"cat_{split}"].T
            hot = [np.eye(n, dtype=np.float32)[c] for n, c in zip(levels, codes, strict=True)]
            tables[split] = np.concatenate([numbers, *hot], 1), stored[f"y_{split}"]
    return from_rows("adult", *tables["train"], 2, test=tables["test"])


@cache
def covertype() -> Dataset:
    """10,000 forest cells, 54 columns, seven classes of very unequal size."""
    with np.load(require(COVERTYPE)) as stored:
        x, y, held = stored["x"].astype(np.float32), stored["y"] - 1, stored["is_test"]
    return from_rows("covertype", x[~held], y[~held], 7, test=(x[held], y[held]))
