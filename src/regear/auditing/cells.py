"""Complementary suppression: which slices to withhold so that no small one follows from those shown.

Where the slices of a dimension add up to a total that is shown, at least two are withheld and together they hold at
least `k` units; and over all dimensions and crossings at once, no withheld count is fixed by the linear equations
between totals and parts (Cox, "Suppression methodology and statistical disclosure control", 1980). Sums of outcomes
obey the same equations. The smallest slice that helps is withheld next; that this is the least loss is not claimed.
"""

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence

import numpy as np

K = 10
WITHHELD = "withheld"
Cell = frozenset[tuple[str, Hashable]]
Equation = tuple[Cell, list[Cell]]


def withheld(sizes: Mapping[Cell, int], k: int = K, last: Collection[Cell] = ()) -> set[Cell]:
    """The cells to withhold: those below `k`, and those from which they would follow; `last` only if nothing else does.

    Totals that no one registered, but that two tables share, count as shown: they can be added up.
    """
    every = {**_shared_totals(sizes), **sizes}
    system = list(equations(every))
    hidden = {cell for cell, size in every.items() if 0 < size < k}
    while hidden:
        found = (_next_in(equation, every, hidden, k, last) for equation in system)
        more = next((cell for cell in found if cell is not None), None)
        more = _next_of_all(system, every, hidden, last) if more is None else more
        if more is None:
            break
        hidden.add(more)
    return hidden & sizes.keys()


def _shared_totals(sizes: Mapping[Cell, int]) -> dict[Cell, int]:
    """Sums over the dimensions that two tables share where no table has just those."""
    tables = {frozenset(name for name, _ in cell) for cell in sizes}
    wanted = {one & other for one in tables for other in tables} - tables
    found: dict[Cell, int] = {}
    for names in wanted:
        source = min((table for table in tables if names < table), key=lambda table: (len(table), sorted(table)))
        for cell, size in sizes.items():
            if frozenset(name for name, _ in cell) == source:
                total = frozenset(pair for pair in cell if pair[0] in names)
                found[total] = found.get(total, 0) + size
    return found


def equations(sizes: Mapping[Cell, int]) -> Iterator[Equation]:
    """Every cell and its parts in every finer table: `total = sum of parts`."""
    tables: dict[frozenset[str], list[Cell]] = defaultdict(list)
    for cell in sizes:
        tables[frozenset(name for name, _ in cell)].append(cell)
    for names, cells in tables.items():
        for finer, parts in tables.items():
            if names < finer:
                inside: dict[Cell, list[Cell]] = defaultdict(list)
                for part in parts:
                    inside[frozenset(pair for pair in part if pair[0] in names)].append(part)
                yield from ((cell, sorted(inside[cell], key=in_order)) for cell in cells if inside[cell])


def in_order(cell: Cell) -> list[tuple[str, str]]:
    """A fixed order of cells, so that the same result withholds the same slices."""
    return sorted((name, str(value)) for name, value in cell)


def _next_in(
    equation: Equation, sizes: Mapping[Cell, int], hidden: set[Cell], k: int, last: Collection[Cell]
) -> Cell | None:
    """The next cell to withhold because of one equation, or None if it gives nothing away."""
    total, parts = equation
    gone = [part for part in parts if part in hidden]
    if total in hidden:
        enough = bool(gone)
    else:
        enough = not gone or (len(gone) > 1 and sum(sizes[part] for part in gone) >= k)
    if enough:
        return None
    left = [part for part in parts if part not in hidden and sizes[part]]
    return _first(left, sizes, last) if left else total if total not in hidden else None


def _first(cells: Collection[Cell], sizes: Mapping[Cell, int], last: Collection[Cell]) -> Cell:
    return min(cells, key=lambda cell: (cell in last, sizes[cell], in_order(cell)))


def _next_of_all(
    system: Sequence[Equation], sizes: Mapping[Cell, int], hidden: set[Cell], last: Collection[Cell]
) -> Cell | None:
    """The next cell to withhold because the equations together fix a withheld one."""
    fixed = _fixed(system, hidden)
    for cell in sorted(fixed, key=in_order):
        near = {other for total, parts in system if cell in (total, *parts) for other in (total, *parts)}
        left = [other for other in near - hidden if sizes[other]]
        if left:
            return _first(left, sizes, last)
    left = [cell for cell, size in sizes.items() if size and cell not in hidden]
    return _first(left, sizes, last) if fixed and left else None


def _fixed(system: Sequence[Equation], hidden: set[Cell]) -> list[Cell]:
    """Withheld cells with one possible value: those that no direction of the null space moves."""
    order = sorted(hidden, key=in_order)
    place = {cell: i for i, cell in enumerate(order)}
    rows = []
    for total, parts in system:
        row = np.zeros(len(order))
        for cell, sign in ((total, -1.0), *((part, 1.0) for part in parts)):
            if cell in place:
                row[place[cell]] = sign
        if row.any():
            rows.append(row)
    if not rows:
        return []
    matrix = np.unique(np.array(rows), axis=0)
    _, values, turned = np.linalg.svd(matrix, full_matrices=True)
    free = turned[int((values > 1e-9).sum()) :]
    return [cell for i, cell in enumerate(order) if not (np.abs(free[:, i]) > 1e-9).any()]
