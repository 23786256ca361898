r"""Joint distributions of a few symbols by their table of probabilities, of which everything is known exactly.

Tables are to discrete models what mixtures of Gaussians are to diffusion: for any evidence that factorises over the
entries,

.. math:: p(x \mid e) \propto p(x) \prod_i \ell_i(x_i),

they give the posterior by a sum over all states. Blanks (:math:`\ell_i = 1`), corrupted symbols
(:math:`\ell_i(v) = q(x_{t,i} \mid v)`) and noisy real values are all of this kind, so one method, ``posterior``, is the
exact denoiser of every discrete noise. Samplers and bounds are tested against it without training anything.
"""

from __future__ import annotations

import abc
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp

from probgen.base.errors import DataError, MethodError
from probgen.base.part import Part
from probgen.base.typing import PRNGKey, Scalar

__all__ = ["DiscreteTarget", "Ising", "Table"]

_LARGEST = 2**22


class DiscreteTarget(Part):
    """A density of rows of symbols that is known up to a constant."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Number of entries."""

    @property
    @abc.abstractmethod
    def values(self) -> int:
        """Number of symbols."""

    @abc.abstractmethod
    def log_density(self, x: Array) -> Scalar:
        """Log density of a row, shape ``(size,)``, up to a constant."""

    def table(self) -> Table:
        """The normalised table, by enumeration of all ``values**size`` rows."""
        return Table(jax.vmap(self.log_density)(_states(self.size, self.values)), self.size, self.values)


class Ising(DiscreteTarget):
    r"""Spins :math:`s_i = 2 x_i - 1` with log density :math:`\tfrac12 s^\top J s + h^\top s` up to a constant.

    Attributes:
        couplings: :math:`J`, shape ``(size, size)``, symmetric with zero diagonal.
        fields: :math:`h`, shape ``(size,)``.
    """

    couplings: Array
    fields: Array

    @classmethod
    def lattice(cls, side: int, coupling: float, field: float = 0.0) -> Ising:
        """A square lattice of ``side * side`` spins with open borders, row by row."""
        at = np.arange(side * side).reshape(side, side)
        pairs = np.concatenate(
            [np.stack([at[:, 1:], at[:, :-1]], -1).reshape(-1, 2), np.stack([at[1:], at[:-1]], -1).reshape(-1, 2)]
        )
        couplings = np.zeros((side * side, side * side))
        couplings[pairs[:, 0], pairs[:, 1]] = couplings[pairs[:, 1], pairs[:, 0]] = coupling
        return cls(jnp.asarray(couplings), jnp.full(side * side, field))

    @property
    def size(self) -> int:
        return self.fields.shape[0]

    @property
    def values(self) -> int:
        return 2

    def log_density(self, x: Array) -> Scalar:
        spins = 2.0 * x - 1.0
        return 0.5 * spins @ self.couplings @ spins + self.fields @ spins


class Table(DiscreteTarget):
    """A joint distribution of rows of symbols, by enumeration.

    Args:
        log_weights: Log probability of every row up to a constant, the last entry running fastest; any shape of
            ``values**size`` numbers.
        size: Number of entries.
        values: Number of symbols.

    Attributes:
        log_p: Normalised, shape ``(values**size,)``.
    """

    log_p: Array
    _size: int = eqx.field(static=True)
    _values: int = eqx.field(static=True)

    def __init__(self, log_weights: Array, size: int, values: int = 2) -> None:
        flat = jnp.asarray(log_weights).reshape(-1)
        if values**size > _LARGEST:
            raise MethodError(f"a table of {values}^{size} rows is too large; at most {_LARGEST} rows are enumerated.")
        if flat.shape[0] != values**size:
            raise DataError(
                f"log_weights has {flat.shape[0]} numbers, expected one for each of {values}^{size} rows. Correct size "
                f"or values."
            )
        self.log_p, self._size, self._values = flat - logsumexp(flat), size, values

    @property
    def size(self) -> int:
        return self._size

    @property
    def values(self) -> int:
        return self._values

    @property
    def states(self) -> Array:
        """All rows, shape ``(values**size, size)``."""
        return _states(self._size, self._values)

    def index(self, x: Array) -> Array:
        """Where rows stand in ``states``: shape ``(...)`` from ``(..., size)``."""
        return x @ (self._values ** jnp.arange(self._size)[::-1])

    def log_density(self, x: Array) -> Scalar:
        """Log probability of a row."""
        return self.log_p[self.index(x)]

    def draw(self, key: PRNGKey) -> Array:
        """One row."""
        return self.states[jax.random.categorical(key, self.log_p)]

    def entropy(self) -> Scalar:
        """In nats."""
        return -jnp.sum(jnp.where(self.log_p > -jnp.inf, jnp.exp(self.log_p) * self.log_p, 0.0))

    def posterior(self, log_likelihood: Array) -> tuple[Scalar, Array]:
        """The entries given evidence on each of them.

        Args:
            log_likelihood: Log likelihood of every value of every entry, shape ``(size, values)``; may be minus infinity.

        Returns:
            The log evidence, and the log marginals of the entries, shape ``(size, values)``; these are NaN if the
            evidence is impossible.
        """
        joint = self._joint(log_likelihood)
        top = jax.lax.stop_gradient(jnp.max(joint))
        top = jnp.where(jnp.isfinite(top), top, 0.0)
        weights = jnp.exp(joint - top)
        # One sum of the table per entry.
        shares = [weights.reshape(self._values**i, self._values, -1).sum((0, 2)) for i in range(self._size)]
        log_total = _safe_log(weights.sum())
        return log_total + top, _safe_log(jnp.stack(shares)) - log_total

    def tilted(self, log_likelihood: Array) -> Table:
        """The joint posterior given evidence on each entry; see ``posterior``."""
        return Table(self._joint(log_likelihood), self._size, self._values)

    def _joint(self, log_likelihood: Array) -> Array:
        total = jnp.zeros(1, log_likelihood.dtype)
        for row in log_likelihood:
            total = (total[:, None] + row).reshape(-1)
        return self.log_p + total

    def log_marginal(self, symbols: Array) -> Scalar:
        """Log probability of the entries that are not blank (``values``), the others summed out."""
        return self.posterior(known(symbols, self._values))[0]

    def conditionals(self, symbols: Array) -> Array:
        """Log probability of every value of every entry given those that are not blank, shape ``(size, values)``."""
        return self.posterior(known(symbols, self._values))[1]


def known(symbols: Array, values: int) -> Array:
    """The evidence of symbols, shape ``(size, values)``: 0 for what may be, minus infinity for what may not."""
    symbols = symbols[:, None]
    return jnp.where((symbols == jnp.arange(values)) | (symbols == values), 0.0, -jnp.inf)


def _safe_log(p: Array) -> Array:
    """Minus infinity at 0, without a gradient there."""
    return jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1.0)), -jnp.inf)


def _states(size: int, values: int) -> Array:
    if values**size > _LARGEST:
        raise MethodError(f"{values}^{size} rows are too many to enumerate; at most {_LARGEST} are.")
    if size > 14:
        rows = np.arange(values**size)[:, None] // values ** np.arange(size)[::-1] % values
        return jnp.asarray(rows.astype(np.int32))
    return jnp.asarray(np.array(list(itertools.product(range(values), repeat=size)), np.int32))
