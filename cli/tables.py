"""Tables on a terminal."""

from __future__ import annotations

from collections.abc import Collection


def print_table(table: list[tuple[str, ...]], *, right: Collection[int] = ()) -> None:
    """Print rows, the header first, their columns aligned.

    Args:
        table: Rows of equally many cells.
        right: Columns that are aligned to the right: those of numbers.
    """
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
