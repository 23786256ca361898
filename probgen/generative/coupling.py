r"""Couplings: which start each datum of a batch is paired with while a flow is learned.

Starts and data are drawn independently; a coupling pairs them within the batch. ``OptimalTransport`` takes the pairs of
least total squared distance (Pooladian et al. 2023; Tong et al. 2024), for which paths are straighter and sampling
takes fewer steps.

With conditions that pairing is wrong: data of one condition then get the starts that happen to lie near them, while at
sampling time all conditions begin in the whole source. ``ConditionalOT`` (C2OT; Cheng and Schwing 2025) gives every
start :math:`i` the condition of datum :math:`i`, of which it is independent, and adds the distance of conditions to the
cost,

.. math:: c_{ij} = \|x_b^i - x^j\|^2 + w\, \|c^i - c^j\|^2 ,

so that starts stay (nearly) independent of the condition: exactly so for :math:`w = \infty`, when only equal conditions
are exchanged. For continuous conditions :math:`w` is found in every batch such that a share ``share`` of the pairs
costs no more than the independent pairing, :math:`\operatorname{mean}_{ij} [c_{ij} \le c_{ii}]`.

``EntropicOT`` draws the pairs from the plan :math:`\pi_{ij} \propto e^{f_i + g_j - \|x_b^i - x^j\|^2 / 2\varepsilon}`
of entropic transport, that of a Schroedinger bridge (Sinkhorn's iterations).

All of them solve the problem of the batch: the plan between the laws is what it tends to for large batches. Pairs from
larger batches than those of training are made ahead, see ``paired_flow``.
"""

from __future__ import annotations

import abc
import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

from probgen.base.errors import MethodError
from probgen.base.part import Part
from probgen.base.typing import PRNGKey
from probgen.generative.assignment import assign

__all__ = ["ConditionalOT", "Coupling", "EntropicOT", "GivenPairs", "Independent", "OptimalTransport", "sinkhorn"]


class Coupling(Part):
    """Pairs the starts with the data of a batch."""

    needs_condition: ClassVar[bool] = False
    """Whether it is meant for data with conditions."""
    skews: ClassVar[bool] = False
    """Whether starts come to depend on the conditions, which it leaves out of account."""

    @abc.abstractmethod
    def pair(self, key: PRNGKey, start: Array, x: Array, condition: Array | None) -> Array:
        """The start of each datum.

        Args:
            key: Randomness.
            start: Starts, flat, shape ``(n, dim)``.
            x: Data, shape ``(n, dim)``.
            condition: Their conditions, flat and as they were given, shape ``(n, length)``.

        Returns:
            Rows of ``start``, shape ``(n,)``.
        """


class Independent(Coupling):
    """As they were drawn."""

    def pair(self, key: PRNGKey, start: Array, x: Array, condition: Array | None) -> Array:
        return jnp.arange(x.shape[0])


class GivenPairs(Coupling):
    """The pairs that came with the data: the coupling of flows that were fitted as ``PairedFlow``."""

    def pair(self, key: PRNGKey, start: Array, x: Array, condition: Array | None) -> Array:
        return jnp.arange(x.shape[0])


class OptimalTransport(Coupling):
    """The exact optimal transport within the batch, conditions left out of account."""

    skews: ClassVar[bool] = True

    def pair(self, key: PRNGKey, start: Array, x: Array, condition: Array | None) -> Array:
        return assign(_squared(x, start))


class ConditionalOT(Coupling):
    """Optimal transport that leaves starts (nearly) independent of the condition.

    Attributes:
        share: For continuous conditions, whose entries count in units of their standard deviation, the share of pairs
            that are as cheap as the independent ones: smaller is less biased and less straight. 0 to exchange starts of
            equal conditions only, for discrete conditions.
    """

    needs_condition: ClassVar[bool] = True

    share: float = eqx.field(static=True, default=0.05)

    def __check_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise MethodError(f"ConditionalOT got share={self.share!r}, expected 0 <= share <= 1. Use 0.05.")

    def pair(self, key: PRNGKey, start: Array, x: Array, condition: Array | None) -> Array:
        assert condition is not None
        cost = _squared(x, start)
        if self.share == 0.0:
            # Compared as they came: after arithmetic, equal conditions may differ by rounding.
            other = jnp.any(condition[:, None] != condition, -1)
            # More than any exchange within conditions can save.
            return assign(cost + cost.shape[0] * jnp.max(cost) * other)
        spread = condition.std(0)
        scaled = condition / jnp.where(spread > 0, spread, 1.0)
        apart = _squared(scaled, scaled)
        return assign(cost + self.weight(cost, apart) * apart)

    def weight(self, cost: Array, apart: Array) -> Array:
        """The weight of the condition in the cost.

        Args:
            cost: Squared distances, shape ``(n, n)``.
            apart: Squared distances of the conditions.
        """
        own = jnp.diagonal(cost)[:, None]

        def share(weight: Array) -> Array:
            return jnp.mean(cost + weight * apart <= own)

        def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bounds
            middle = (low + high) / 2
            more = share(jnp.exp(middle)) > self.share
            return jnp.where(more, middle, low), jnp.where(more, high, middle)

        # Between weights that leave the condition out, and those that look at nothing else.
        unit = jnp.log(jnp.mean(cost) / jnp.mean(apart))
        low, high = jax.lax.fori_loop(0, 24, halve, (unit - 12.0, unit + 12.0))
        found = jnp.exp((low + high) / 2)
        return jnp.where(share(jnp.zeros(())) <= self.share, 0.0, found)


class EntropicOT(Coupling):
    r"""Pairs drawn from the entropic plan within the batch.

    Attributes:
        epsilon: :math:`\varepsilon`, in squared standard units.
        iterations: Of Sinkhorn.
    """

    skews: ClassVar[bool] = True

    epsilon: float = eqx.field(static=True, default=0.1)
    iterations: int = eqx.field(static=True, default=50)

    def __check_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise MethodError(f"EntropicOT got epsilon={self.epsilon!r}, expected a positive number. Use 0.1.")
        if self.iterations < 1:
            raise MethodError(f"EntropicOT got iterations={self.iterations!r}, expected at least 1. Use 50.")

    def pair(self, key: PRNGKey, start: Array, x: Array, condition: Array | None) -> Array:
        affinity = -_squared(x, start) / (2 * self.epsilon)
        return jax.random.categorical(key, affinity + sinkhorn(affinity, self.iterations)[1], -1)


def sinkhorn(affinity: Array, iterations: int) -> tuple[Array, Array]:
    r"""Log scalings of the plan :math:`\pi_{ij} = e^{f_i + a_{ij} + g_j} / n m` whose marginals are uniform.

    Args:
        affinity: :math:`a`, minus the cost over the regularisation, shape ``(n, m)``.
        iterations: How many; the rows are normalised last, so the columns are nearly so.

    Returns:
        :math:`f`, shape ``(n,)``, and :math:`g`, shape ``(m,)``.
    """
    n, m = affinity.shape

    def columns(f: Array) -> Array:
        return math.log(n) - logsumexp(affinity + f[:, None], 0)

    def rows(g: Array) -> Array:
        return math.log(m) - logsumexp(affinity + g, 1)

    f = jax.lax.fori_loop(0, iterations, lambda _, f: rows(columns(f)), jnp.zeros(n, affinity.dtype))
    g = columns(f)
    return rows(g), g


def _squared(a: Array, b: Array) -> Array:
    return jnp.sum((a[:, None] - b) ** 2, -1)
