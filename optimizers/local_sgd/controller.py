"""`LocalSGD`: workers step alone and meet when a schedule says so."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from ...core.errors import ConfigurationError
from ..saving import loading, saving
from .checks import whole
from .clock import Clock
from .measurement import meet
from .outer import GlobalPoint, OuterFactory
from .protocol import Schedule, SyncState
from .transports import InProcess, Transport, gather_rows, refuse_whole_tensors, spread_row

StateRule = Literal["local", "average", "reset"]
_STATE_RULES = ("local", "average", "reset")


class LocalSGD(torch.optim.Optimizer):
    """Local SGD around any optimizer: H local steps, then the workers average their parameters.

        optimizer = LocalSGD(SGD(model.parameters(), 0.1), ConstantInterval(8), ProcessGroup())
        for x, y in my_share_of_the_data:
            optimizer.zero_grad()
            loss_fn(model(x), y).backward()
            optimizer.step()         # meets the others after every 8th step
        optimizer.finalize()         # before evaluating or saving, or workers are not averaged
        torch.save(model.state_dict(), "model.pt")

    To evaluate on the way, do so where `pending` is 0, or call `synchronize` first: between
    synchronisations each worker has parameters of its own.

    A checkpoint that one process saves for all must be saved where `pending` is 0 too. To save
    between synchronisations, let each process write a file of its own, model included, and load
    the one of its own rank; that of another is refused.

    Parameter groups and state are the inner optimizer's own, under both names. All workers must
    start at the same point (seed alike, or call `broadcast` first; the first step checks), take
    the same number of steps, synchronise in the same steps, and have the same `state_rule`,
    `measure_cosine` and outer settings then (each meeting checks).

    What happens to what at a synchronisation:

    - parameters, frozen ones too, become their mean over workers, taken in float32 at least;
      with `outer`, they become what its step on x_global - mean x_k makes of x_global;
    - the inner optimizer's state, momentum say, follows `state_rule`, and so does that of
      optimizers inside it (`Graft`, `Together`): "local" (each worker keeps its own; Lin et al.),
      "average" (floating-point tensors of the parameter's shape become their mean; step counters
      and all else stay), or "reset" (forgotten: the next step starts with none, Adam's bias
      correction anew; the weight average of `SteerableAdamW` goes on);
    - of `buffers`, floating-point ones (BatchNorm's running statistics) become their mean;
      integer ones (its counter) stay, as every worker counts alike. Without, all stay local.
      That they start alike is not checked: the forward pass before the first step moves them.

    With plain SGD and equal batches, H = 1 is large-batch SGD. With a momentum too, under "local"
    and "average", as the mean of momenta is the momentum of the mean; with Adam it is not.

    Args:
        optimizer: The inner optimizer, over this worker's parameters, or over the stacked
            parameters of all workers for `InProcess`.
        schedule: Says how many local steps lie between synchronisations.
        transport: `InProcess(n)`, `ProcessGroup()`, or another `Transport`.
        outer: Makes an optimizer of the global parameters, see `nesterov`; `None` for the average.
        state_rule: What becomes of the inner optimizer's state.
        buffers: A model whose buffers are averaged, or the buffers.
        measure_cosine: Whether `cosine` is measured. It doubles what a synchronisation sends.
        local_batch: Kept for the job's loader to read, and in checkpoints; unused here.

    Raises:
        ConfigurationError: A value is not allowed, or a parameter has no worker dimension.

    Source: Stich, 2019 (arXiv:1805.09767); post-local SGD (a schedule): Lin et al., 2020
    (arXiv:1808.07217); outer step: Douillard et al., 2023 (arXiv:2311.08105).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        transport: Transport,
        *,
        outer: OuterFactory | None = None,
        state_rule: StateRule = "local",
        buffers: nn.Module | Iterable[Tensor] | None = None,
        measure_cosine: bool = True,
        local_batch: int | None = None,
    ) -> None:
        if state_rule not in _STATE_RULES:
            raise ConfigurationError(
                f"state_rule is {state_rule!r}; it must be one of {', '.join(_STATE_RULES)}."
            )
        if isinstance(transport, type) or not hasattr(transport, "n_workers"):
            raise ConfigurationError(
                f"transport is {transport!r}; InProcess(4) or ProcessGroup() is wanted."
            )
        if isinstance(transport, InProcess):
            refuse_whole_tensors(optimizer)
        self.optimizer = optimizer
        # not Optimizer.__init__, which would make groups and a state of its own
        self.__setstate__({"defaults": optimizer.defaults})
        self.transport = transport
        self._clock = Clock(schedule, transport.n_workers)
        self.state_rule = state_rule
        self.measure_cosine = measure_cosine
        self.local_batch = local_batch
        self._buffers = buffers if isinstance(buffers, nn.Module) else list(buffers or ())
        self._params: list[Tensor] = []  # in the order in which they came; grows in `_extend`
        self._global = GlobalPoint(outer)
        self._common = 0  # parameters that all workers are known to have started alike
        for buffer in self._floating_buffers():
            transport.local(buffer)
        self._extend()

    def __getstate__(self) -> dict[str, Any]:
        dropped = ("_optimizer_", "_zero_grad_", "step")  # hooks, and a scheduler's wrapped step
        return {key: v for key, v in vars(self).items() if not key.startswith(dropped)}

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The inner optimizer's."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The inner optimizer's."""
        return self.optimizer.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the inner optimizer; like the others, they must start alike."""
        given = param_group["params"]
        if not isinstance(given, Tensor | set):  # torch refuses a set
            given = list(given)
        for p in (given,) if isinstance(given, Tensor) else given:
            self._check(p[1] if isinstance(p, tuple) else p)
        self.optimizer.add_param_group({**param_group, "params": given})
        self._extend()

    # -- controls and what a policy sees -------------------------------------------------------

    @property
    def sync_interval(self) -> int:
        """Local steps between synchronisations, now: what was set, or what the schedule says.

        It may be set at any time, to the same value on every worker. A number holds until `None`
        gives the interval back to the schedule, which is asked in every round meanwhile too. A
        value that the steps since the last synchronisation have reached already takes effect at
        the end of the next step.
        """
        return self._clock.interval(self._rate())

    @sync_interval.setter
    def sync_interval(self, value: int | None) -> None:
        self._clock.fixed = None if value is None else whole("sync_interval", value, " or None")

    @property
    def local_batch(self) -> int | None:
        """Samples per local step and worker, for the job's loader to read; `None` if unset."""
        return self._local_batch

    @local_batch.setter
    def local_batch(self, value: int | None) -> None:
        self._local_batch = None if value is None else whole("local_batch", value, " or None")

    @property
    def outer_learning_rate(self) -> float | None:
        """Of the outer optimizer, all groups; `None` without one."""
        return self._global.value("lr")

    @outer_learning_rate.setter
    def outer_learning_rate(self, value: float) -> None:
        self._global.set_value("lr", value)

    @property
    def outer_momentum(self) -> float | None:
        """Of the outer optimizer, all groups; `None` without one that has a momentum."""
        return self._global.value("momentum")

    @outer_momentum.setter
    def outer_momentum(self, value: float) -> None:
        self._global.set_value("momentum", value)

    @property
    def sync_state(self) -> SyncState:
        """The run as the schedule sees it."""
        return self._clock.state(self._rate())

    @property
    def drift(self) -> float:
        """Mean over workers of ||x_k - mean|| / ||mean||, before the last averaging."""
        return self._clock.drift

    @property
    def cosine(self) -> float:
        """Mean pairwise cosine between what the workers moved, before the last averaging.

        A worker that did not move counts as orthogonal to all; nan with one worker.
        """
        return self._clock.cosine

    @property
    def rounds(self) -> int:
        """Synchronisations done."""
        return self._clock.rounds

    @property
    def pending(self) -> int:
        """Local steps since the last synchronisation; 0: the workers hold the same parameters."""
        return self._clock.pending

    # -- stepping and meeting -------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one local step, and synchronise if the interval is over.

        Args:
            closure: Computes this worker's loss and its gradients again; its result is returned.

        Raises:
            ConfigurationError: A gradient is sparse; workers start apart, or are out of step.
            WorkerLostError: A process is gone or silent.
        """
        self._begin()
        self._clock.plan(self._rate())
        if closure is None:
            self._refuse_sparse()
            loss = self.optimizer.step()
        else:

            def checked() -> float:
                value = closure()
                self._refuse_sparse()
                return value

            loss = self.optimizer.step(checked)
        if self._clock.tick(self._rate()):
            self.synchronize()
        return loss

    @torch.no_grad()
    def synchronize(self) -> None:
        """Meet the other workers now, whatever the interval says; all workers must call it.

        Raises:
            ConfigurationError: Workers start apart, or are out of step.
            WorkerLostError: A process is gone or silent; nothing was averaged.
        """
        self._begin()
        params = self._params
        rest = [*self._averaged_state(), *self._floating_buffers()]
        rows = gather_rows(self.transport, [*params, *rest])
        self._agree(rows)
        left = self._global.left(params)
        start = torch.cat([t.reshape(-1).to(rows) for t in left])
        meeting = meet(self.transport, rows, start, self.measure_cosine)
        mean, others = torch.split(meeting.mean, [len(start), len(meeting.mean) - len(start)])
        self._global.move(left, mean)
        for p, value in zip(params, self._global.tensors, strict=True):
            self.transport.local(p.detach()).copy_(value)
        spread_row(self.transport, rest, others)
        if self.state_rule == "reset":
            _reset(_family(self.optimizer))
        self._clock.met(meeting.drift, meeting.cosine)

    def finalize(self) -> None:
        """Synchronise once more if local steps are pending; all workers must call it.

        Call it before evaluating or saving a model. With `outer`, this takes an outer step on
        however few local steps there were.
        """
        if self.pending:
            self.synchronize()

    @torch.no_grad()
    def broadcast(self) -> None:
        """Put every worker where the first one is, floating-point `buffers` included.

        For a start from different seeds; all workers must call it, before the first forward pass.
        """
        tensors = [*self._params, *self._floating_buffers()]
        rows = gather_rows(self.transport, tensors)
        self._agree(rows)
        spread_row(self.transport, tensors, self.transport.first(rows))
        self._leave_from(0)
        self._clock.pending = 0

    # -- checkpoints ----------------------------------------------------------------------------

    @saving
    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's, and under "local_sgd" counters, global point, schedule, outer.

        It may be taken at any step. Between synchronisations each process has its own; after one,
        under "average", "reset" or an inner optimizer without state, all are alike.
        """
        own = {
            "clock": self._clock.state_dict(),
            "global": self._global.state_dict(),
            "common": self._common,
            "order": self._order(),
            "local_batch": self.local_batch,
            "workers_here": self._workers_here(),
            "n_workers": self.transport.n_workers,
            "first_worker": self.transport.first_worker,
        }
        return {**self.optimizer.state_dict(), "local_sgd": own}

    @loading
    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a `state_dict()`, to the bit; the model's parameters are loaded apart.

        With `ProcessGroup` the number of processes may be another one; each then loads the
        checkpoint of one that was taken just after a synchronisation.

        Raises:
            ConfigurationError: The state is of another optimizer, model, kind of transport, outer
                step or schedule, or between synchronisations, of another number of workers or
                another rank. Nothing was loaded.
        """
        inner = dict(state_dict)
        own = inner.pop("local_sgd", None)
        if own is None:
            raise ConfigurationError(
                "The saved state has no 'local_sgd'; it is of another optimizer. To take over the "
                "state of an inner optimizer, load it into LocalSGD's attribute `optimizer`."
            )
        if own["workers_here"] != self._workers_here():
            raise ConfigurationError(
                f"The saved state is of {own['workers_here']} workers per process, this one is of "
                f"{self._workers_here()}. Make LocalSGD with the transport that it was saved with."
            )
        saved, here = own["n_workers"], self.transport.n_workers
        pending = own["clock"]["pending"]
        if saved != here and pending:
            raise ConfigurationError(
                f"The saved state is of one of {saved} workers, {pending} local "
                f"steps after they met; there are {here} workers here. Load a state that was saved "
                "where `pending` is 0 (after synchronize()), or go on with as many workers."
            )
        if pending and own["first_worker"] != self.transport.first_worker:
            raise ConfigurationError(
                f"The saved state is that of rank {own['first_worker']}, {pending} local steps "
                f"after the workers met; this is rank {self.transport.first_worker}, whose own "
                "steps would be lost. Save where `pending` is 0 (after synchronize()), or one file "
                "per rank, and load each on its own."
            )
        self._extend()
        self._global.check(own["global"])
        if own.get("order", self._order()) != self._order():  # none in checkpoints of before
            raise ConfigurationError(
                f"The saved state has parameters in the order {own['order']}, counted through the "
                f"groups; here they came in the order {self._order()}. Add groups as they were "
                "added in the run that was saved."
            )
        self._clock.check(own["clock"])
        self.optimizer.load_state_dict(inner)  # refuses other groups before it changes anything
        self._global.load_state_dict(own["global"])
        self._clock.load_state_dict(own["clock"])
        self._common, self.local_batch = own["common"], own["local_batch"]

    # -- inside ---------------------------------------------------------------------------------

    def _extend(self) -> None:
        """Take in parameters that are new; they may stand anywhere among the groups."""
        known = set(self._params)
        params = [p for group in self.param_groups for p in group["params"] if p not in known]
        for p in params:
            self._check(p)
        self._global.extend([self.transport.local(p.detach())[0] for p in params])
        self._params += params

    def _check(self, param: Tensor) -> None:
        """Refuse a parameter that cannot be averaged."""
        self.transport.local(param.detach())
        if not param.is_floating_point():
            raise ConfigurationError(
                f"A parameter of shape {tuple(param.shape)} is {param.dtype}; LocalSGD averages "
                "real floating-point ones. Pass torch.view_as_real of a complex one."
            )

    def _order(self) -> list[int]:
        """Where our parameters stand among those of all groups."""
        grouped = [p for group in self.param_groups for p in group["params"]]
        places = {p: i for i, p in enumerate(grouped)}
        return [places[p] for p in self._params]

    @torch.no_grad()
    def _begin(self) -> None:
        """See that new parameters start alike on all workers."""
        self._extend()
        if self._common == len(self._global.tensors):
            return
        params = self._params[self._common :]
        rows = gather_rows(self.transport, params)
        self._agree(rows)
        first = self.transport.first(rows)
        # as in unstack_workers, all nan is alike: it is no difference between workers
        alike = torch.isclose(rows, first, rtol=0.0, atol=0.0, equal_nan=True)
        apart = (~alike).any(1, keepdim=True).to(rows.dtype)
        if float(self.transport.mean(apart)) > 0.0:
            raise ConfigurationError(
                "The workers start from different parameters. Seed all alike before making the "
                "model, or call broadcast() before the first forward pass."
            )
        self._leave_from(self._common)

    def _leave_from(self, index: int) -> None:
        """Note where all workers stand, for parameters from an index on."""
        for t, p in zip(self._global.tensors[index:], self._params[index:], strict=True):
            t.copy_(self.transport.local(p.detach())[0])
        self._common = len(self._global.tensors)

    def _agree(self, rows: Tensor) -> None:
        """See that all workers are at the same exchange, before any of them sends values."""
        alike = (self.state_rule, self.measure_cosine, self._global.settings())
        self.transport.agree(
            self.rounds,
            self._clock.steps,
            rows.shape[1] * rows.element_size(),
            zlib.crc32(repr(alike).encode()),
        )

    def _rate(self) -> float:
        return float(self.param_groups[0].get("lr", math.nan))

    def _averaged_state(self) -> list[Tensor]:
        """Tensors of the inner optimizer's state that are averaged, in an order that all share."""
        if self.state_rule != "average":
            return []
        states = [
            (p, optimizer.state[p])
            for optimizer in _family(self.optimizer)
            for p in self._params
            if p in optimizer.state
        ]
        found = [
            value
            for p, state in states
            for _, value in sorted(state.items())
            if isinstance(value, Tensor) and value.is_floating_point() and value.shape == p.shape
        ]
        # an optimizer and its children may show the same tensor
        return list({id(value): value for value in found}.values())

    def _floating_buffers(self) -> list[Tensor]:
        held = self._buffers
        buffers = held.buffers() if isinstance(held, nn.Module) else held
        return [b for b in buffers if b.is_floating_point()]

    def _workers_here(self) -> int:
        return int(self.transport.local(self._params[0]).shape[0])

    def _refuse_sparse(self) -> None:
        for p in self._params:
            if p.grad is not None and p.grad.is_sparse:
                raise ConfigurationError(
                    f"A gradient of shape {tuple(p.grad.shape)} is sparse; LocalSGD takes dense "
                    "ones. Build the embedding with sparse=False."
                )


def _reset(family: list[torch.optim.Optimizer]) -> None:
    """Forget the states of optimizers; those that know how to spare what is no moment do so."""
    sparing = [optimizer for optimizer in family if hasattr(optimizer, "reset_moments")]
    spared = [optimizer.state for optimizer in sparing]
    for optimizer in family:
        # one that goes around another may show the other's state as its own
        if not any(optimizer.state is state for state in spared):
            optimizer.state.clear()
    for optimizer in sparing:
        optimizer.reset_moments()


def _family(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """An optimizer and all that it steps, which have states of their own (`Graft`, `Together`)."""
    found = [optimizer]
    for value in vars(optimizer).values():
        for child in value if isinstance(value, list | tuple) else (value,):
            if isinstance(child, torch.optim.Optimizer):
                found += _family(child)
    return found
