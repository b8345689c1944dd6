"""A progress bar over tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def task_bar() -> Iterator[Callable[[int, int, str], None]]:
    """Gives what measurements call with done, total and a task's name; one bar for all of them."""
    from tqdm import tqdm

    with tqdm(unit="task", leave=False) as bar:

        def progress(done: int, total: int, name: str) -> None:
            bar.total = total
            bar.set_postfix_str(name, refresh=False)
            bar.update(done - bar.n)

        yield progress
