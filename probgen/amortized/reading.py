r"""How a network reads the observations of a program.

The structure comes from the graph of the program. Observations in a plate whose rows the program treats alike are a *set*
of rows; those of a ``scan`` are a *series*; what remains is read entry by entry. With a row stand the arguments of the
program that have a value for each row (the positions or times of a design, covariates, group indices). A reading packs
all this into one vector, with marks of what is there: rows may be missing, up to all but a few, and so may entries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import equinox as eqx
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from probgen.base.errors import DataError
from probgen.base.part import Part
from probgen.program.model import Model
from probgen.program.sites import Site

__all__ = ["Field", "Reading", "Rows", "reading_of"]


class Field(Part):
    """An observed site or an argument.

    Attributes:
        name: Its name.
        shape: Shape of its value; in ``Rows``, of one row.
        axis: Where the axis of the rows is.
    """

    name: str = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    axis: int = eqx.field(static=True, default=0)

    @property
    def size(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)


class Rows(Part):
    """Observations that come row by row.

    Attributes:
        name: The plate, or the axis of time.
        count: Number of rows in training, the most that can be read.
        ordered: Whether the order of the rows says something.
        fields: Observed sites.
        designs: Arguments with a value for each row.
    """

    name: str = eqx.field(static=True)
    count: int = eqx.field(static=True)
    ordered: bool = eqx.field(static=True)
    fields: tuple[Field, ...] = eqx.field(static=True)
    designs: tuple[Field, ...] = eqx.field(static=True)

    @property
    def width(self) -> int:
        """Observed numbers per row."""
        return sum(field.size for field in self.fields)

    @property
    def given(self) -> int:
        """Design numbers per row."""
        return sum(field.size for field in self.designs)


class Read(eqx.Module):
    """An observation as a network sees it.

    Attributes:
        flat: Entries outside of rows, shape ``(n,)``.
        flat_seen: Which of them are there.
        rows: By group, shape ``(count, width)``.
        rows_seen: By group, which entries are there, shape ``(count, width)``.
        designs: By group, shape ``(count, given)``.
        present: By group, which rows are there, shape ``(count,)``.
    """

    flat: Array
    flat_seen: Array
    rows: tuple[Array, ...]
    rows_seen: tuple[Array, ...]
    designs: tuple[Array, ...]
    present: tuple[Array, ...]


class Reading(Part):
    """Which observations are read, and how.

    Attributes:
        flat: Observed sites that are read entry by entry.
        rows: Groups of observed sites that are read row by row.
        designs: Arguments that vary and belong to no rows.
    """

    flat: tuple[Field, ...] = eqx.field(static=True)
    rows: tuple[Rows, ...] = eqx.field(static=True)
    designs: tuple[Field, ...] = eqx.field(static=True, default=())

    @property
    def entries(self) -> int:
        """Numbers that are read entry by entry."""
        return sum(field.size for field in (*self.flat, *self.designs))

    @property
    def size(self) -> int:
        """Length of the packed vector."""
        return 2 * self.entries + sum(group.count * (2 * group.width + group.given + 1) for group in self.rows)

    @property
    def observed(self) -> tuple[str, ...]:
        """Names of the observed sites."""
        return tuple(field.name for field in (*self.flat, *(f for group in self.rows for f in group.fields)))

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of the arguments that are read."""
        names = [f.name for f in self.designs] + [f.name for group in self.rows for f in group.designs]
        return tuple(dict.fromkeys(names))

    def pack(self, observed: Mapping[str, ArrayLike], arguments: Mapping[str, ArrayLike]) -> Array:
        """One observation as a vector, shape ``(size,)``. NaN marks what is missing; rows may be fewer than ``count``.

        Raises:
            DataError: If there are more rows than could be read, or shapes do not fit.
        """
        flat = [self._whole(field, observed) for field in self.flat]
        flat += [self._whole(field, arguments) for field in self.designs]
        entries = jnp.concatenate([a.reshape(-1) for a in flat]) if flat else jnp.zeros(0, jnp.float32)
        parts = [*_marked(entries)]
        for group in self.rows:
            rows = self._of_rows(group, group.fields, observed)
            designs = self._of_rows(group, group.designs, arguments)
            count = rows.shape[0]
            if group.designs and designs.shape[0] != count:
                raise _unequal(group, {count, designs.shape[0]})
            present = jnp.arange(group.count) < count
            values, seen = (_padded(a, group.count) for a in _marked(rows))
            parts += [values.reshape(-1), seen.reshape(-1), _padded(designs, group.count).reshape(-1), present]
        return jnp.concatenate([part.astype(jnp.float32) for part in parts])

    def unpack(self, vector: Array) -> Read:
        """The parts of a packed vector."""
        at = 0

        def take(*shape: int) -> Array:
            nonlocal at
            first, at = at, at + math.prod(shape)
            return vector[first:at].reshape(shape)

        flat, flat_seen = take(self.entries), take(self.entries)
        groups = []
        for group in self.rows:
            shape = (group.count, group.width)
            groups.append((take(*shape), take(*shape) > 0, take(group.count, group.given), take(group.count) > 0))
        rows, seen, designs, present = zip(*groups, strict=True) if groups else ((), (), (), ())
        return Read(flat, flat_seen > 0, rows, seen, designs, present)

    def repack(self, read: Read) -> Array:
        """Inverse of ``unpack``."""
        parts = [read.flat, read.flat_seen]
        for group in zip(read.rows, read.rows_seen, read.designs, read.present, strict=True):
            parts += [part.reshape(-1) for part in group]
        return jnp.concatenate([part.astype(jnp.float32) for part in parts])

    def _whole(self, field: Field, values: Mapping[str, ArrayLike]) -> Array:
        value = jnp.asarray(values[field.name])
        if value.shape != field.shape:
            raise DataError(
                f"{field.name!r} has shape {value.shape}, and {field.shape} in the simulations. Give data of that shape, "
                f"or amortize a model of these shapes."
            )
        return value

    def _of_rows(self, group: Rows, fields: tuple[Field, ...], values: Mapping[str, ArrayLike]) -> Array:
        found = []
        for field in fields:
            value = jnp.moveaxis(jnp.asarray(values[field.name]), field.axis, 0)
            if value.shape[1:] != field.shape:
                raise DataError(
                    f"a row of {field.name!r} has shape {value.shape[1:]}, and {field.shape} in the simulations. Give rows "
                    f"of that shape."
                )
            if value.shape[0] > group.count:
                raise DataError(
                    f"{field.name!r} has {value.shape[0]} rows along {group.name!r}, and the simulations had {group.count}. "
                    f"Amortize a model with as many rows as you will ever have."
                )
            found.append(value.reshape(value.shape[0], -1))
        counts = {len(value) for value in found}
        if len(counts) > 1:
            raise _unequal(group, counts)
        return jnp.concatenate(found, -1) if found else jnp.zeros((group.count, 0), jnp.float32)


def _unequal(group: Rows, counts: set[int]) -> DataError:
    return DataError(
        f"the observations and arguments along {group.name!r} have {sorted(counts)} rows. Give each as many."
    )


def _marked(values: Array) -> tuple[Array, Array]:
    """Numbers with zeros where there are none, and marks of where there are."""
    seen = ~jnp.isnan(values.astype(jnp.float32))
    return jnp.where(seen, values, 0), seen


def _padded(rows: Array, count: int) -> Array:
    return jnp.pad(rows, ((0, count - rows.shape[0]), *((0, 0) for _ in rows.shape[1:])))


def reading_of(model: Model, observed: tuple[str, ...], alike: frozenset[str], varied: tuple[str, ...]) -> Reading:
    """How the observations of a model are read.

    Args:
        model: The model.
        observed: Names of the observed sites.
        alike: Plates whose rows are exchangeable.
        varied: Arguments that vary between simulations.
    """
    sites = [model.sites[name] for name in observed]
    groups: dict[str, list[Field]] = {}
    counts: dict[str, tuple[int, bool]] = {}
    flat = []
    axes = _axes(sites, alike)
    for site in sites:
        if site.name not in axes:
            flat.append(Field(site.name, site.shape))
            continue
        axis, ordered = axes[site.name]
        name = site.dims[axis]
        shape = (*site.shape[:axis], *site.shape[axis + 1 :])
        groups.setdefault(name, []).append(Field(site.name, shape, axis))
        counts[name] = (site.shape[axis], ordered)
    sources = {site.source for site in sites}
    arguments = {
        name: leaf.shape
        for name, leaf in model.leaves.items()
        if ("data", name) not in sources and hasattr(leaf, "shape")
    }
    rows = tuple(
        Rows(name, count, ordered, tuple(groups[name]), _along(arguments, count))
        for name, (count, ordered) in counts.items()
    )
    in_rows = {field.name for group in rows for field in group.designs}
    rest = tuple(Field(name, arguments[name]) for name in varied if name not in in_rows)
    return Reading(tuple(flat), rows, rest)


def _along(arguments: Mapping[str, tuple[int, ...]], count: int) -> tuple[Field, ...]:
    return tuple(Field(name, shape[1:]) for name, shape in arguments.items() if shape and shape[0] == count)


def _axes(sites: list[Site], alike: frozenset[str]) -> dict[str, tuple[int, bool]]:
    """By site, the axis of its rows, and whether they are ordered.

    A plate is read as a set only if all its sites are: where one is read otherwise, which row of it belongs to which of
    the others would be lost.
    """
    axes = {site.name: (0, True) for site in sites if site.scanned and site.shape}
    counts = {dim: size for site in sites for dim, size in zip(site.dims, site.shape, strict=True) if dim in alike}
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        members = [site for site in sites if name in site.dims]
        if not any(site.name in axes for site in members):
            axes |= {site.name: (site.dims.index(name), False) for site in members}
    return axes
