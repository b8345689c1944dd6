"""The demo's training job: a network, a torch optimizer, a loop. Two lines of it are lhopt's.

    python -m lhopt.benchmarks.demo_job --url http://127.0.0.1:8000 --out steered.jsonl

`demo_rivals.py` trains with the same loop without a Tuner, at other rates and with a cosine.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..client import Tuner
from ..optimizers.steerable_adamw import SteerableAdamW

#: Small on the 1,100 digits: at 64 a run of a few hundred steps overfits, tuned or not.
BATCH_SIZES = {"digits": 16, "fashion-mnist": 64}
WARMUP = 0.05
#: Validation losses along a run.
CURVE_POINTS = 30

Splits = dict[str, tuple[Tensor, Tensor]]


class Net(nn.Module):
    """Two strided convolutions and a linear layer, for square grey images."""

    def __init__(self, side: int) -> None:
        super().__init__()
        rest = math.ceil(side / 4)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * rest * rest, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits of (N, 1, side, side)."""
        logits: Tensor = self.layers(images)
        return logits


def load_data(name: str) -> Splits:
    """Images (N, 1, side, side) and labels of "digits" or "fashion-mnist"."""
    from ..inner_tasks.tables import FASHION, digits, grey_images

    data = digits() if name == "digits" else grey_images(FASHION, 1)
    side = math.isqrt(data.n_inputs)
    names = {"train": "train", "valid": "outer_valid", "test": "test"}
    out: Splits = {}
    for ours, theirs in names.items():
        images, labels = data.splits[theirs]  # type: ignore[index]
        out[ours] = (images.view(-1, 1, side, side), labels)
    return out


def train(
    splits: Splits,
    run: str,
    *,
    optimizer_name: str,
    steps: int,
    lr: float | None,
    schedule: str,
    batch_size: int,
    seed: int,
    url: str | None,
    curve: bool,
    out: TextIO,
) -> None:
    """One run; losses, hyperparameters and the outcome go to `out` as JSON lines.

    Args:
        splits: The data.
        run: What the lines call this run.
        optimizer_name: "AdamW" or "SteerableAdamW".
        steps: Optimizer steps.
        lr: Starting rate; the optimizer's own default for None.
        schedule: "constant" or "cosine".
        batch_size: Images in one step.
        seed: Of weights and data order.
        url: The server that steers; nobody does for None.
        curve: Whether to measure the validation loss along the run.
        out: Where lines go.
    """

    def write(kind: str, **values: Any) -> None:
        out.write(json.dumps({"run": run, "kind": kind, **values}) + "\n")
        out.flush()

    images, labels = splits["train"]
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    model = Net(images.shape[-1])
    optimizer: torch.optim.Optimizer
    rate: dict[str, Any] = {} if lr is None else {"lr": lr}
    if optimizer_name == "SteerableAdamW":
        optimizer = SteerableAdamW(model.parameters(), **rate)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), **rate)
    scheduler = None
    if schedule == "cosine":
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: cosine(t, steps))
    write("begin", steps=steps, lr=lr or optimizer.defaults["lr"])
    tuner = Tuner(optimizer, steps, url=url, name=f"demo {optimizer_name}") if url else None

    began, training, told = time.monotonic(), 0.0, 0
    for step in range(steps):
        if curve and step % max(1, steps // CURVE_POINTS) == 0:
            write("curve", step=step, **evaluate(model, optimizer, splits["valid"]))
        clock = time.monotonic()
        rows = torch.randint(len(images), (batch_size,), generator=order)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images[rows]), labels[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if scheduler:
            scheduler.step()
        if tuner:
            tuner.report(loss)
        training += time.monotonic() - clock
        if tuner and len(tuner.history) > told:
            for record in tuner.history[told:]:
                write("decision", step=record.step, values=dict(record.values), by=record.source)
            told = len(tuner.history)
        if step % 20 == 0:
            write("step", step=step)
        if not math.isfinite(loss.item()):
            break
    if tuner:
        tuner.close()
    final = evaluate(model, optimizer, splits["valid"])
    if curve:
        write("curve", step=steps, **final)
    write(
        "end",
        steps=steps,
        lr=lr,
        seconds=training,
        wall=time.monotonic() - began,
        valid=final,
        test=evaluate(model, optimizer, splits["test"]),
    )


def cosine(step: int, steps: int) -> float:
    """Linear warm-up, then cosine to 0, as a share of the peak."""
    warmup = max(1.0, math.ceil(WARMUP * steps))
    return min((step + 1) / warmup, 1.0) * 0.5 * (1.0 + math.cos(math.pi * min(step / steps, 1.0)))


@torch.no_grad()
def evaluate(
    model: nn.Module, optimizer: torch.optim.Optimizer, split: tuple[Tensor, Tensor]
) -> dict[str, float | None]:
    """Mean loss (None if it is not finite) and accuracy; SteerableAdamW's averaged weights."""
    images, labels = split
    with optimizer.averaged_weights() if isinstance(optimizer, SteerableAdamW) else nullcontext():
        logits = torch.cat([model(part) for part in torch.split(images, 256)])
    loss = F.cross_entropy(logits, labels).item()
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    return {"loss": loss if math.isfinite(loss) else None, "accuracy": accuracy}


def main() -> None:
    """Train one run at the optimizer's own default rate, steered if there is a URL."""
    parser = argparse.ArgumentParser(description="The training job of `lhopt demo`.")
    parser.add_argument("--data", choices=("digits", "fashion-mnist"), default="digits")
    parser.add_argument("--optimizer", choices=("AdamW", "SteerableAdamW"), default="AdamW")
    parser.add_argument("--url", help="the server that steers")
    parser.add_argument("--lr", type=float, help="default: the optimizer's own")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with args.out.open("a") as out:
        train(
            load_data(args.data), "steered", optimizer_name=args.optimizer, steps=args.steps,
            lr=args.lr, schedule="constant", seed=args.seed, url=args.url, curve=True, out=out,
            batch_size=BATCH_SIZES[args.data],
        )  # fmt: skip


if __name__ == "__main__":
    main()
