"""`check_inner_task`: the promises that the engine, the environment and the frontiers rely on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from ..core.errors import TaskContractError
from .base import SPLITS, Batch, InnerTask, Params

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*((/[0-9]+)|(@[a-z0-9-]+)|(:[^/\s]+))?")
_TOLERANCE = 1e-5
_HELD_OUT_ROWS = 512  # per evaluation inside the check
_TRAIN_STEPS = 30
_RATES = (1e-3, 1e-2)


def check_inner_task(task: InnerTask) -> None:
    """Check an inner task; returns if it keeps every promise of `InnerTask`.

    Looks at its names, its splits, its initialisation, loss and gradient (alone and under
    `torch.func.vmap`), its evaluation, and whether training lowers the loss. Takes well under a
    second for a task of usual size. Call it in a test of your own task:

        def test_my_task() -> None:
            check_inner_task(MyTask())

    Raises:
        TaskContractError: The first promise broken, and how to mend it.
    """
    _check_names(task)
    _check_splits(task)
    _check_init(task)
    params = task.init(_generator(0))
    batch = _rows(task, 0)
    _check_loss(task, params, batch)
    _check_purity(task)
    _check_vmap(task)
    _check_evaluation(task)
    _check_training(task)


def _fail(task: InnerTask, message: str) -> None:
    raise TaskContractError(f"Inner task {getattr(task, 'name', type(task).__name__)!r}: {message}")


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _rows(task: InnerTask, seed: int) -> Batch:
    """A train batch, drawn with replacement as the engine does."""
    arrays = task.arrays("train")
    index = torch.randint(len(arrays[0]), (task.batch_size,), generator=_generator(seed))
    return tuple(array.index_select(0, index) for array in arrays)


def _check_names(task: InnerTask) -> None:
    for attribute, kind in (("name", str), ("family", str), ("batch_size", int)):
        if not isinstance(getattr(task, attribute, None), kind):
            _fail(task, f"has no `{attribute}`; set it to a {kind.__name__} in __init__.")
    if not _NAME.fullmatch(task.name) or not _NAME.fullmatch(task.family):
        _fail(
            task,
            f"name is {task.name!r} and family {task.family!r}; use lower-case words joined by "
            "hyphens, with '/' and the seed for a drawn task: 'digits-mlp/17'.",
        )
    if re.split("[/:@]", task.name)[0] != task.family:
        _fail(task, f"name must begin with its family, {task.family!r}; the registry splits it.")
    if task.batch_size < 1:
        _fail(task, f"batch_size is {task.batch_size}; it must be at least 1.")
    if hasattr(task, "config"):
        try:
            same = json.loads(json.dumps(task.config, allow_nan=False)) == task.config
        except (TypeError, ValueError):
            same = False
        if not same:
            _fail(
                task,
                "config does not survive JSON; keep plain numbers, strings, booleans and lists "
                "(not tuples, numpy scalars or nan): the held-out rule hashes it.",
            )


def _check_splits(task: InnerTask) -> None:
    shapes = {}
    for split in SPLITS:
        arrays = task.arrays(split)
        if not isinstance(arrays, tuple) or not arrays:
            _fail(task, f"arrays({split!r}) must be a tuple of at least one tensor.")
        if not all(isinstance(a, Tensor) and a.dim() > 0 for a in arrays):
            _fail(task, f"arrays({split!r}) must hold tensors whose first dimension counts rows.")
        if len({len(a) for a in arrays}) != 1 or len(arrays[0]) == 0:
            sizes = [len(a) for a in arrays]
            _fail(task, f"arrays({split!r}) have {sizes} rows; all must have the same, above 0.")
        if any(a.dtype == torch.float64 for a in arrays):
            _fail(task, f"arrays({split!r}) hold float64; convert them with .float().")
        if any(a.is_floating_point() and not a.isfinite().all() for a in arrays):
            _fail(task, f"arrays({split!r}) hold nan or inf; clean them when loading.")
        again = task.arrays(split)
        if not all(torch.equal(a, b) for a, b in zip(arrays, again, strict=True)):
            _fail(task, f"arrays({split!r}) differ from call to call; draw them once, in __init__.")
        shapes[split] = [(tuple(a.shape[1:]), a.dtype) for a in arrays]
    for split in SPLITS[1:]:
        if shapes[split] != shapes["train"]:
            _fail(
                task,
                f"rows of {split!r} are {shapes[split]}, of 'train' {shapes['train']}; one row "
                "must look the same in every split.",
            )
    _check_disjoint(task)


def _check_disjoint(task: InnerTask) -> None:
    """At most half of a split's rows may also stand in an earlier one; real data have twins."""
    seen: set[bytes] = set()
    for split in SPLITS:
        columns = [a.detach().cpu().reshape(len(a), -1).numpy() for a in task.arrays(split)]
        rows = [b"".join(c[i].tobytes() for c in columns) for i in range(len(columns[0]))]
        shared = sum(row in seen for row in rows) / len(rows)
        if shared > 0.5:
            _fail(
                task,
                f"{shared:.0%} of the rows of {split!r} also stand in an earlier split; deal every "
                "row to one split, or the policy is rewarded on what it trained on.",
            )
        seen.update(rows)


def _check_init(task: InnerTask) -> None:
    first, again, other = (task.init(_generator(seed)) for seed in (0, 0, 1))
    if not first or not all(isinstance(value, Tensor) for value in first.values()):
        _fail(task, "init must return a non-empty dict of tensors.")
    for name, value in first.items():
        if value.dtype != torch.float32:
            _fail(task, f"parameter {name!r} is {value.dtype}; it must be torch.float32.")
        if value.requires_grad:
            _fail(task, f"parameter {name!r} requires grad; return it detached.")
        if not value.isfinite().all():
            _fail(task, f"parameter {name!r} starts with nan or inf.")
    shapes = [{name: value.shape for name, value in p.items()} for p in (first, again, other)]
    if list(first) != list(again) or list(first) != list(other) or shapes[0] != shapes[2]:
        _fail(task, "init must return the same names and shapes in the same order, on every call.")
    if not all(torch.equal(first[name], again[name]) for name in first):
        _fail(
            task,
            "init differs for the same generator; draw every number with generator=generator.",
        )
    if all(torch.equal(first[name], other[name]) for name in first):
        _fail(task, "init is the same for every generator; draw from the generator it is given.")


def _check_loss(task: InnerTask, params: Params, batch: Batch) -> None:
    try:
        grads, value = grad_and_value(task.loss)(params, batch)
    except Exception as error:
        raise TaskContractError(
            f"Inner task {task.name!r}: torch.func.grad of its loss failed with "
            f"{type(error).__name__}: {error}. The loss must return one scalar and use no "
            ".item(), no .backward() and no in-place write."
        ) from error
    if value.dim() != 0 or value.dtype != torch.float32:
        _fail(task, f"loss is {value.dtype} of shape {tuple(value.shape)}; want a float32 scalar.")
    if not value.isfinite():
        _fail(task, f"loss is {float(value)} at initialisation; it must be finite.")
    for name, grad in grads.items():
        if not grad.isfinite().all():
            _fail(task, f"the gradient of {name!r} is not finite at initialisation.")
    if not any(grad.abs().sum() > 0 for grad in grads.values()):
        _fail(task, "every gradient is 0 at initialisation; is the loss detached from params?")


def _check_vmap(task: InnerTask) -> None:
    """Three runs with their own parameters and batches: mapped equals one at a time."""
    runs = [task.init(_generator(seed)) for seed in range(3)]
    batches = [_rows(task, seed) for seed in range(3)]
    params = {name: torch.stack([run[name] for run in runs]) for name in runs[0]}
    batch = tuple(torch.stack(parts) for parts in zip(*batches, strict=True))
    try:
        grads, losses = vmap(grad_and_value(task.loss))(params, batch)
        # Held-out rows are the same for every run, so the engine does not map over them.
        values = vmap(task.evaluate, in_dims=(0, None))(params, batches[0])
    except Exception as error:
        raise TaskContractError(
            f"Inner task {task.name!r}: torch.func.vmap of its loss or evaluate failed with "
            f"{type(error).__name__}: {error}. Avoid .item(), control flow that reads tensors, "
            "random numbers and in-place writes."
        ) from error
    for k, (run, rows) in enumerate(zip(runs, batches, strict=True)):
        alone, value = grad_and_value(task.loss)(run, rows)
        pairs = {
            "loss": (losses[k], value),
            "evaluate": (values[k], task.evaluate(run, batches[0])),
        }
        pairs |= {f"the gradient of {name!r}": (grads[name][k], alone[name]) for name in alone}
        for what, (mapped, single) in pairs.items():
            size = max(1.0, float(single.abs().max()))
            gap = float((mapped - single).abs().max()) / size
            if not gap <= _TOLERANCE:
                _fail(
                    task,
                    f"under vmap {what} of run {k} is off by {gap:.1e} of its size (allowed "
                    f"{_TOLERANCE:.0e}); does it mix runs, or read state outside params and batch?",
                )


def _check_evaluation(task: InnerTask) -> None:
    params = task.init(_generator(0))
    for split in SPLITS[1:]:
        rows = tuple(a[:_HELD_OUT_ROWS] for a in task.arrays(split))
        value = task.evaluate(params, rows)
        if value.dim() != 0:
            _fail(task, f"evaluate has shape {tuple(value.shape)} on {split!r}; want a scalar.")
        if not value.isfinite() or not value > 0:
            _fail(
                task,
                f"evaluate is {float(value):g} on {split!r}; it must be finite and above 0, "
                "because rewards are its logarithm. Add a constant if it can reach 0.",
            )


def _check_purity(task: InnerTask) -> None:
    params, batch = task.init(_generator(0)), _rows(task, 0)
    kept = [value.clone() for value in (*params.values(), *batch)]
    values = [float(task.loss(params, batch)) for _ in range(2)]
    held = [float(task.evaluate(params, batch)) for _ in range(2)]
    for now, before in zip((*params.values(), *batch), kept, strict=True):
        if not torch.equal(now, before):
            _fail(task, "loss or evaluate wrote into params or batch; work on new tensors.")
    if values[0] != values[1] or held[0] != held[1]:
        _fail(task, "loss or evaluate differs for equal inputs; draw nothing inside them.")


def _check_training(task: InnerTask) -> None:
    """Adam on one batch must lower that batch's loss; over all rows parity stays flat for long."""
    start, batch = task.init(_generator(0)), _rows(task, 0)
    before = float(task.loss(start, batch))
    if any(float(task.loss(_trained(task, start, batch, lr), batch)) < before for lr in _RATES):
        return
    _fail(
        task,
        f"the loss of one train batch did not fall from {before:g} in {_TRAIN_STEPS} steps of Adam "
        "on that batch at 1e-3 or 1e-2; is the gradient's sign right?",
    )


def _trained(
    task: InnerTask, start: Mapping[str, Tensor], batch: Batch, learning_rate: float
) -> Params:
    params = dict(start)
    first = {name: torch.zeros_like(value) for name, value in params.items()}
    second = {name: torch.zeros_like(value) for name, value in params.items()}
    step = grad_and_value(task.loss)
    for t in range(1, _TRAIN_STEPS + 1):
        grads, _ = step(params, batch)
        for name, grad in grads.items():
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.99 * second[name] + 0.01 * grad.square()
            mean, square = first[name] / (1 - 0.9**t), second[name] / (1 - 0.99**t)
            params[name] = params[name] - learning_rate * mean / (square.sqrt() + 1e-8)
    return params
