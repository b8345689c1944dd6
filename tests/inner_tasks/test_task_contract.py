"""Every family keeps the contract, and every check of the contract can fail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from lhopt.core.errors import LhoptError, TaskContractError
from lhopt.inner_tasks import FAMILIES, InnerTask, Params, check_inner_task, get_family
from lhopt.inner_tasks.base import Batch, Split
from lhopt.inner_tasks.data import missing


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("family_name", FAMILIES)
def test_family_keeps_the_contract(family_name: str, seed: int | None) -> None:
    family = get_family(family_name)
    gone = missing(family.data_files)
    if gone:
        pytest.skip(f"missing under LHOPT_DATA: {', '.join(gone)}")
    check_inner_task(family.default() if seed is None else family.sample(seed))


class Line(InnerTask):
    """A sound task: fit y = x @ (1, 2, 3); the broken ones below change one thing each."""

    name = "line/1"
    family = "line"
    batch_size = 8

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        self.splits: dict[Split, Batch] = {}
        splits: tuple[Split, ...] = ("train", "inner_valid", "outer_valid", "test")
        for split in splits:
            x = torch.randn(32, 3, generator=generator)
            self.splits[split] = (x, x @ torch.tensor([1.0, 2.0, 3.0]))

    def init(self, generator: torch.Generator) -> Params:
        return {"weight": torch.randn(3, generator=generator)}

    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        x, y = batch
        return (x @ params["weight"] - y).square().mean() + 0.1

    def arrays(self, split: Split) -> Batch:
        return self.splits[split]


def test_a_sound_task_passes() -> None:
    check_inner_task(Line())


class BadName(Line):
    name = "Line 1"


class OtherPrefix(Line):
    name = "circle/1"


class NoBatch(Line):
    batch_size = 0


class TupleInConfig(Line):
    def __init__(self) -> None:
        super().__init__()
        self.config = {"widths": (1, 2)}


class RaggedRows(Line):
    def __init__(self) -> None:
        super().__init__()
        x, y = self.splits["train"]
        self.splits["train"] = (x, y[:-1])


class OtherRowShape(Line):
    def __init__(self) -> None:
        super().__init__()
        x, y = self.splits["test"]
        self.splits["test"] = (x[:, :2], y)


class DoubleData(Line):
    def __init__(self) -> None:
        super().__init__()
        x, y = self.splits["test"]
        self.splits["test"] = (x.double(), y)


class LeakingSplit(Line):
    def __init__(self) -> None:
        super().__init__()
        self.splits["test"] = self.splits["train"]


class ChangingArrays(Line):
    def arrays(self, split: Split) -> Batch:
        return tuple(a + torch.rand(()) for a in self.splits[split])


class MissingValues(Line):
    def __init__(self) -> None:
        super().__init__()
        self.splits["train"][0][0, 0] = torch.nan


class DoubleInit(Line):
    def init(self, generator: torch.Generator) -> Params:
        return {"weight": torch.randn(3, generator=generator, dtype=torch.float64)}


class GlobalInit(Line):
    def init(self, generator: torch.Generator) -> Params:
        return {"weight": torch.randn(3)}


class ConstantInit(Line):
    def init(self, generator: torch.Generator) -> Params:
        return {"weight": torch.ones(3)}


class LossPerExample(Line):
    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return batch[0] @ params["weight"]


class InfiniteLoss(Line):
    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return super().loss(params, batch) / 0.0


class DetachedLoss(Line):
    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return super().loss({"weight": params["weight"].detach()}, batch)


class ControlFlow(Line):
    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        value = super().loss(params, batch)
        return value if value > 1e-9 else -value


class ZeroEvaluation(Line):
    def evaluate(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return self.loss(params, batch) * 0.0


class Dice(Line):
    def evaluate(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        self.rolls = getattr(self, "rolls", 0) + 1
        return self.loss(params, batch) + float(self.rolls)


class Scribbler(Line):
    def evaluate(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        batch[0].mul_(2.0)
        return self.loss(params, batch)


class OtherUnderVmap(Line):
    def evaluate(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        value = self.loss(params, batch)
        return value * 1.01 if torch._C._functorch.is_batchedtensor(value) else value


class Uphill(Line):
    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        weight = params["weight"]
        flipped = 2.0 * weight.detach() - weight  # the same value, the gradient's sign turned
        return super().loss({"weight": flipped}, batch)


BROKEN: list[tuple[type[Any], str]] = [
    (BadName, "lower-case words"),
    (OtherPrefix, "begin with its family"),
    (NoBatch, "batch_size is 0"),
    (TupleInConfig, "does not survive JSON"),
    (RaggedRows, "all must have the same"),
    (OtherRowShape, "must look the same in every split"),
    (DoubleData, "hold float64"),
    (LeakingSplit, "also stand in an earlier split"),
    (ChangingArrays, "differ from call to call"),
    (MissingValues, "hold nan or inf"),
    (DoubleInit, "must be torch.float32"),
    (GlobalInit, "differs for the same generator"),
    (ConstantInit, "the same for every generator"),
    (LossPerExample, "must return one scalar"),
    (InfiniteLoss, "must be finite"),
    (DetachedLoss, "every gradient is 0"),
    (ControlFlow, "vmap"),
    (ZeroEvaluation, "above 0"),
    (Dice, "differs for equal inputs"),
    (OtherUnderVmap, "off by"),
    (Scribbler, "wrote into params or batch"),
    (Uphill, "did not fall"),
]


@pytest.mark.parametrize(("kind", "says"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_promise_is_named(kind: type[InnerTask], says: str) -> None:
    with pytest.raises(TaskContractError, match=says) as caught:
        check_inner_task(kind())
    assert kind.name in str(caught.value)
    assert isinstance(caught.value, LhoptError)
