r"""What reads an observation: entries as they are, sets and series of rows by attention.

Numbers are standardised robustly, :math:`\operatorname{arcsinh}((x - \operatorname{median}) / s)` with :math:`s` the
interquartile range over 1.349: nearly linear where most of the data are, logarithmic in the tails, and invertible, so
nothing is lost. Entries and rows that are missing are zero with a mark; training hides some at random where asked to.
"""

from __future__ import annotations

from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.amortized.question import Question
from probgen.amortized.reading import Read, Reading
from probgen.amortized.reference import Reference
from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.part import Part
from probgen.base.typing import PRNGKey
from probgen.nets.constant import Constant
from probgen.nets.row_encoder import RowEncoder

__all__ = ["EncoderNet", "ObservationEncoder"]

_LINEAR = 5.0
"""Robust units up to which the linear prediction takes an entry as it is."""


class Units(eqx.Module):
    """Robust standard units of the columns of an array."""

    loc: Constant
    scale: Constant

    def __init__(self, size: int) -> None:
        self.loc, self.scale = Constant(jnp.zeros(size, jnp.float32)), Constant(jnp.ones(size, jnp.float32))

    def adapted(self, x: Array, seen: Array) -> Units:
        """Those of the seen entries of ``x``, shape ``(n, size)``."""
        x = jnp.where(seen, x, jnp.nan)
        low, loc, high = (jnp.nanquantile(x, q, axis=0) for q in (0.25, 0.5, 0.75))
        spread = (high - low) / 1.349
        # Where more than half of the values are equal (counts, indicators) the quartiles say nothing.
        scale = jnp.where(spread > 1e-6 * jnp.abs(loc), spread, jnp.nanstd(x, axis=0))
        scale = jnp.where(scale > 1e-6 * jnp.abs(loc), scale, 1.0)
        loc, scale = (jnp.where(jnp.isfinite(a), a, b) for a, b in ((loc, 0.0), (scale, 1.0)))
        return eqx.tree_at(lambda u: (u.loc.value, u.scale.value), self, (loc, scale))

    def __call__(self, x: Array, seen: Array | bool = True) -> Array:
        """In standard units; zero where not seen."""
        return jnp.where(seen, jnp.arcsinh((x - self.loc.value) / self.scale.value), 0.0)

    def straight(self, x: Array, seen: Array | bool = True) -> Array:
        """In standard units up to ``_LINEAR`` of them, logarithmic beyond; zero where not seen."""
        z = (x - self.loc.value) / self.scale.value
        ratio = jnp.maximum(jnp.abs(z) / _LINEAR, 1.0)
        return jnp.where(seen, z / ratio * (1 + jnp.log(ratio)), 0.0)


class EncoderNet(eqx.Module):
    """See ``ObservationEncoder``."""

    reading: Reading = eqx.field(static=True)
    marks: bool = eqx.field(static=True)
    flat: Units
    rows: tuple[Units, ...]
    designs: tuple[Units, ...]
    nets: tuple[RowEncoder, ...]
    reference: Reference

    def adapted(self, condition: Array) -> EncoderNet:
        """With the units of packed observations, shape ``(n, reading.size)``."""
        read = jax.vmap(self.reading.unpack)(condition)

        def of_rows(units: Units, values: Array, seen: Array) -> Units:
            # Not -1: rows may have no columns, as those of designs often do.
            shape = (values.shape[0] * values.shape[1], values.shape[2])
            return units.adapted(values.reshape(shape), seen.reshape(shape))

        rows = tuple(of_rows(*parts) for parts in zip(self.rows, read.rows, read.rows_seen, strict=True))
        there = [jnp.broadcast_to(p[..., None], d.shape) for p, d in zip(read.present, read.designs, strict=True)]
        designs = tuple(of_rows(*parts) for parts in zip(self.designs, read.designs, there, strict=True))
        units = self.flat.adapted(read.flat, read.flat_seen), rows, designs
        return eqx.tree_at(lambda net: (net.flat, net.rows, net.designs), self, units)

    def __call__(self, condition: Array) -> Array:
        """The embedding of a packed observation."""
        read = self.reading.unpack(condition)
        parts = [self.flat(read.flat, read.flat_seen)]
        if self.marks:
            parts.append(read.flat_seen.astype(condition.dtype))
        for rows, present, net in zip(self.rows_of(read), read.present, self.nets, strict=True):
            parts.append(net(rows, present))
        return jnp.concatenate([part.astype(condition.dtype) for part in parts])

    def numbers(self, condition: Array) -> Array:
        """What the linear prediction is made from: entries, straight (a law that is linear in them is then found as it is)
        and bent, and of rows the mean and mean square of each column."""
        read = self.reading.unpack(condition)
        parts = [self.flat.straight(read.flat, read.flat_seen), self.flat(read.flat, read.flat_seen)]
        for units, values, seen in zip(self.rows, read.rows, read.rows_seen, strict=True):
            scaled, count = units(values, seen), jnp.maximum(seen.sum(0), 1)
            parts += [scaled.sum(0) / count, (scaled**2).sum(0) / count]
        return jnp.concatenate([part.astype(condition.dtype) for part in parts])

    def usual(self, condition: Array) -> Array:
        """What an observation is compared in with simulations (see ``Reference``): entries, and of rows how many there are,
        and the mean, the logarithm of the standard deviation and the largest size of each column."""
        read = self.reading.unpack(condition)
        parts = [self.flat(read.flat, read.flat_seen)]
        for units, values, seen, present in zip(self.rows, read.rows, read.rows_seen, read.present, strict=True):
            scaled, count = units(values, seen), jnp.maximum(seen.sum(0), 1)
            mean = scaled.sum(0) / count
            spread = jnp.sqrt(jnp.where(seen, (scaled - mean) ** 2, 0.0).sum(0) / count)
            parts += [jnp.log1p(present.sum())[None], mean, jnp.log(0.01 + spread), jnp.abs(scaled).max(0, initial=0.0)]
        return jnp.concatenate([part.astype(condition.dtype) for part in parts])

    def p_value(self, condition: Array) -> float:
        """How usual an observation is among the simulations, if there is a reference of them."""
        return self.reference.p_value(self.usual(condition))

    def rows_of(self, read: Read) -> list[Array]:
        """By group, what a network is told of each row: numbers and designs in standard units, with marks if there are any."""
        found = []
        for i in range(len(read.rows)):
            values, seen, designs = read.rows[i], read.rows_seen[i], read.designs[i]
            parts = [self.rows[i](values, seen), self.designs[i](designs)]
            found.append(jnp.concatenate([*parts, seen] if self.marks else parts, -1))
        return found


class ObservationEncoder(Part):
    """How observations become the condition of a network.

    Attributes:
        question: What is observed, and what of it may be missing.
        width: Features of a row inside of the network.
        depth: Blocks of attention.
    """

    question: Question
    width: int = eqx.field(static=True, default=64)
    depth: int = eqx.field(static=True, default=2)

    def check(self) -> None:
        """Refuse what makes no sense."""
        for name in ("width", "depth"):
            if not is_count(getattr(self, name)):
                raise MethodError(
                    f"the encoder got {name}={getattr(self, name)!r}, expected an int of at least 1. Change {name}."
                )

    @property
    def reading(self) -> Reading:
        """How observations are read."""
        return self.question.reading

    @property
    def marks(self) -> bool:
        """Whether the network is told which entries are there."""
        return self.question.missing > 0

    @property
    def size(self) -> int:
        """Length of the embedding."""
        return (2 if self.marks else 1) * self.reading.entries + len(self.reading.rows) * (2 * self.width + 1)

    @property
    def numbers(self) -> int:
        """How many numbers the linear prediction is made from."""
        return 2 * self.reading.entries + sum(2 * group.width for group in self.reading.rows)

    def build(self, key: PRNGKey) -> EncoderNet:
        """An untrained network."""
        groups = self.reading.rows
        keys = jax.random.split(key, max(len(groups), 1))
        nets = tuple(
            RowEncoder(
                k,
                group.width * (2 if self.marks else 1) + group.given,
                self.width,
                self.depth,
                ordered=group.ordered,
            )
            for k, group in zip(keys, groups, strict=False)
        )
        rows = tuple(Units(group.width) for group in groups)
        designs = tuple(Units(group.given) for group in groups)
        compared = self.reading.entries + sum(1 + 3 * group.width for group in groups)
        reference = Reference(compared, self.question.simulations)
        return EncoderNet(self.reading, self.marks, Units(self.reading.entries), rows, designs, nets, reference)

    def referenced(self, key: PRNGKey, net: EncoderNet, condition: Array) -> EncoderNet:
        """A network in its units, with a reference of simulations, hidden in part as observations may be."""
        hidden = jax.vmap(self.hide)(jax.random.split(key, len(condition)), condition)
        reference = net.reference.adapted(jax.vmap(net.usual)(hidden))
        return eqx.tree_at(lambda net: net.reference, net, reference)

    def hide(self, key: PRNGKey, condition: Array) -> Array:
        """A packed observation with some rows and entries hidden, as they may be in an observation.

        A series is cut at its end; of a set any rows may be missing.
        """
        if not self.question.missing and not self.question.fewest:
            return condition
        read = self.reading.unpack(condition)
        least: Mapping[str, int] = dict(self.question.fewest)
        key_flat, key_share, *keys = jax.random.split(key, 2 + len(self.reading.rows))
        # The share differs from one observation to the next, so that complete ones are common.
        share = self.question.missing * jax.random.uniform(key_share)
        flat_seen = read.flat_seen & ~jax.random.bernoulli(key_flat, share, read.flat_seen.shape)
        rows, rows_seen, designs, present = [], [], [], []
        for i, (group, key_group) in enumerate(zip(self.reading.rows, keys, strict=True)):
            key_count, key_rows, key_entries = jax.random.split(key_group, 3)
            here = read.present[i]
            if group.name in least:
                count = jax.random.randint(key_count, (), least[group.name], group.count + 1)
                order = jnp.arange(group.count)
                if not group.ordered:
                    order = jax.random.permutation(key_rows, order)
                here = here & (order < count)
            seen = read.rows_seen[i] & ~jax.random.bernoulli(key_entries, share, read.rows_seen[i].shape)
            seen = seen & here[:, None]
            rows.append(jnp.where(seen, read.rows[i], 0))
            rows_seen.append(seen)
            designs.append(jnp.where(here[:, None], read.designs[i], 0))
            present.append(here)
        flat = jnp.where(flat_seen, read.flat, 0)
        parts = (tuple(part) for part in (rows, rows_seen, designs, present))
        return self.reading.repack(Read(flat, flat_seen, *parts))
