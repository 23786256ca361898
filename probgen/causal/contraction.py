"""Sums of products of labelled arrays.

A factor is an array with one label per axis. ``contract`` multiplies factors and sums labels out one at a time, the
cheapest first, so that nothing larger than needed is made. Labels are any hashable values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

__all__ = ["LARGEST", "Factor", "TooLarge", "contract"]

LARGEST = 2**23
"""The most cells that an array may have."""


class TooLarge(Exception):
    """A sum of products needs an array that is too large; ``cells`` says how large."""

    def __init__(self, cells: int):
        super().__init__(f"{cells} cells")
        self.cells = cells


@dataclasses.dataclass(frozen=True)
class Factor:
    """An array with labelled axes.

    Attributes:
        axes: One label per axis, all different.
        array: The numbers.
    """

    axes: tuple[Hashable, ...]
    array: np.ndarray

    @property
    def sizes(self) -> dict[Hashable, int]:
        """The length of each axis."""
        return dict(zip(self.axes, self.array.shape, strict=True))

    def aligned(self, axes: Sequence[Hashable]) -> np.ndarray:
        """The array with its axes in the order of ``axes``, and axes of length one where it lacks a label."""
        order = [self.axes.index(axis) for axis in axes if axis in self.axes]
        shape = [self.sizes.get(axis, 1) for axis in axes]
        return self.array.transpose(order).reshape(shape)


def contract(factors: Iterable[Factor], keep: Iterable[Hashable], largest: int = LARGEST) -> Factor:
    """The product of the factors, summed over all labels that are not kept.

    Args:
        factors: Factors; a label has the same length wherever it occurs.
        keep: Labels that stay, in the order of the axes of the result; those that no factor has are left out.
        largest: The most cells that any array on the way may have.

    Returns:
        The sum.

    Raises:
        TooLarge: Before anything large is made.
    """
    keep = tuple(keep)
    pool = list(factors)
    sizes: dict[Hashable, int] = {}
    for factor in pool:
        sizes |= factor.sizes
    waiting = [axis for axis in sizes if axis not in keep]

    def union(some: Iterable[Factor]) -> tuple[Hashable, ...]:
        return tuple(dict.fromkeys(axis for factor in some for axis in factor.axes))

    def cost(axis: Hashable) -> int:
        return math.prod(sizes[a] for a in union(f for f in pool if axis in f.axes))

    while waiting:
        axis = min(waiting, key=cost)
        waiting.remove(axis)
        with_it = [factor for factor in pool if axis in factor.axes]
        without = [factor for factor in pool if axis not in factor.axes]
        left = tuple(a for a in union(with_it) if a != axis)
        pool = [*without, _product(with_it, left, sizes, largest)]
    return _product(pool, tuple(axis for axis in keep if axis in sizes), sizes, largest)


def _product(factors: list[Factor], axes: tuple[Hashable, ...], sizes: dict[Hashable, int], largest: int) -> Factor:
    """The product, summed over what is not in ``axes``; pairwise, smallest first."""
    if not factors:
        return Factor(axes, np.ones([sizes[axis] for axis in axes]))
    pool = sorted(factors, key=lambda factor: factor.array.size)
    total = pool.pop(0)
    while True:
        rest = {axis for factor in pool[1:] for axis in factor.axes}
        other = pool.pop(0) if pool else Factor((), np.ones(()))
        both = tuple(dict.fromkeys((*total.axes, *other.axes)))
        left = axes if not pool else tuple(axis for axis in both if axis in axes or axis in rest)
        cells = math.prod(sizes[axis] for axis in left)
        if cells > largest:
            raise TooLarge(cells)
        place = {axis: n for n, axis in enumerate(both)}
        array = np.einsum(
            total.array,
            [place[axis] for axis in total.axes],
            other.array,
            [place[axis] for axis in other.axes],
            [place[axis] for axis in left],
        )
        total = Factor(left, np.asarray(array))
        if not pool:
            return total
