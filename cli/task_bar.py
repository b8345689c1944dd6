"""A progress bar over tasks, or whatever a measurement counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def task_bar(unit: str = "task") -> Iterator[Callable[[int, int, str], None]]:
    """Gives what measurements call with done, total and a task's name; one bar for all of them.

    Args:
        unit: What is counted.
    """
    from tqdm import tqdm

    with tqdm(unit=unit, leave=False) as bar:

        def progress(done: int, total: int, name: str) -> None:
            bar.total = total
            bar.set_postfix_str(name, refresh=False)
            bar.update(done - bar.n)

        yield progress
