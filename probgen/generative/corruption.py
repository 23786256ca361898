r"""Ways to corrupt symbols step by step: Markov chains on the values, one per entry.

A corruption gives the transition matrices :math:`Q_t`, of which row :math:`a` is the law of :math:`x_t` given
:math:`x_{t-1} = a`, and the law that their product ends in. ``Uniform``, ``Gaussian`` and ``Neighbour`` matrices are
doubly stochastic and end in the uniform law. For two values the uniform one,

.. math:: Q_t = (1 - \beta_t) I + \beta_t \tfrac12 \mathbf 1 \mathbf 1^\top,

is the *binomial diffusion* of Sohl-Dickstein et al. (2015): :math:`x_t \sim
\mathrm{Bernoulli}(x_{t-1} (1 - \beta_t) + \tfrac12 \beta_t)`.

References: Austin et al. (2021), "Structured denoising diffusion models in discrete state-spaces"; Sohl-Dickstein et al.
(2015), "Deep unsupervised learning using nonequilibrium thermodynamics".
"""

from __future__ import annotations

import abc
import math

import equinox as eqx
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.part import Part

__all__ = ["AbsorbingCorruption", "Corruption", "GaussianCorruption", "NeighbourCorruption", "UniformCorruption"]


class Corruption(Part):
    """Transition matrices of a corruption in a number of steps."""

    def states(self, values: int) -> int:
        """Number of symbols of a corrupted row; more than ``values`` if there is a blank."""
        return values

    @abc.abstractmethod
    def matrices(self, values: int, steps: int) -> Array:
        """Transition matrices of all steps, shape ``(steps, states, states)``."""

    def end(self, values: int) -> Array:
        """The law from which sampling starts, shape ``(states,)``: uniform, unless it says otherwise."""
        return jnp.full(values, 1.0 / values)


def _cosine(steps: int) -> Array:
    """Chances of a replacement, shape ``(steps,)``: what is left falls along a squared cosine, to nothing."""
    left = jnp.cos(jnp.pi / 2 * jnp.linspace(0.0, 1.0, steps + 1)) ** 2
    return jnp.clip(1.0 - left[1:] / left[:-1], 0.0, 1.0).at[-1].set(1.0)


class UniformCorruption(Corruption):
    """Replacement by a value at random, with chances that leave the share ``cos(pi t / 2 T)^2`` untouched."""

    def matrices(self, values: int, steps: int) -> Array:
        rates = _cosine(steps)[:, None, None]
        return (1.0 - rates) * jnp.eye(values) + rates / values


class AbsorbingCorruption(Corruption):
    r"""Replacement by a blank, with chance :math:`1/(T - t + 1)`: the share :math:`1 - t/T` is left."""

    def states(self, values: int) -> int:
        return values + 1

    def matrices(self, values: int, steps: int) -> Array:
        rates = (1.0 / jnp.arange(steps, 0, -1))[:, None, None]
        blank = jnp.zeros((values + 1, values + 1)).at[:, -1].set(1.0)
        return (1.0 - rates) * jnp.eye(values + 1) + rates * blank

    def end(self, values: int) -> Array:
        return jnp.zeros(values + 1).at[-1].set(1.0)


class GaussianCorruption(Corruption):
    r"""Discretised Gaussian moves among values that have an order:
    :math:`Q_{ab} \propto \exp(-4 (a-b)^2 / ((K-1)^2 \beta))`, where the normalisation is that of all differences and the
    diagonal takes what is left. :math:`\beta_t` grows linearly.

    Attributes:
        most: Its last value: about 1 for few values, less for hundreds. How far the end is then from uniform is counted
            in the bound.
    """

    most: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        if not (math.isfinite(self.most) and self.most > 0):
            raise MethodError(f"GaussianCorruption got most={self.most}, expected a positive number. Use most=1.")

    def matrices(self, values: int, steps: int) -> Array:
        scale = (self.most * jnp.arange(1, steps + 1) / steps * (values - 1) ** 2 / 4)[:, None, None]
        at, all_at = jnp.arange(values), jnp.arange(1 - values, values)
        moves = jnp.exp(-((at[:, None] - at) ** 2) / scale)
        moves = moves / jnp.exp(-(all_at**2) / scale).sum(-1, keepdims=True) * (1.0 - jnp.eye(values))
        return moves + (1.0 - moves.sum(-1, keepdims=True)) * jnp.eye(values)


class NeighbourCorruption(Corruption):
    r"""Moves to values that are near in some space: :math:`Q_t = \exp(\alpha_t R)` with the symmetric rates
    :math:`R = (G + G^\top)/2k`, where :math:`G` joins every value to its :math:`k` nearest.

    Attributes:
        places: Where the values are, shape ``(values, dim)``.
        nearest: :math:`k`.
        total: Sum of the :math:`\alpha_t`, in units of the time in which the slowest difference falls by ``e``.
    """

    places: Array
    nearest: int = eqx.field(static=True, default=2)
    total: float = eqx.field(static=True, default=8.0)

    def __check_init__(self) -> None:
        if self.places.ndim != 2 or not 1 <= self.nearest < self.places.shape[0]:
            raise MethodError(
                f"NeighbourCorruption got places of shape {self.places.shape} and nearest={self.nearest}, expected shape "
                f"(values, dim) and 1 <= nearest < values. Correct them."
            )

    def matrices(self, values: int, steps: int) -> Array:
        if self.places.shape[0] != values:
            raise MethodError(
                f"NeighbourCorruption has places for {self.places.shape[0]} values, and the data have {values}. Give one "
                f"row per value (and values= to fit)."
            )
        distances = jnp.sum((self.places[:, None] - self.places) ** 2, -1)
        distances = jnp.where(jnp.eye(values, dtype=bool), jnp.inf, distances)
        # Ties are broken by the order of the values.
        nearest = (jnp.argsort(jnp.argsort(distances, axis=1), axis=1) < self.nearest).astype(distances.dtype)
        rates = (nearest + nearest.T) / (2.0 * self.nearest)
        powers, axes = jnp.linalg.eigh(rates - jnp.diag(rates.sum(1)))
        # The second power is 0 where the values fall into parts that no move joins; then nothing forgets.
        growing = 2.0 * jnp.arange(1, steps + 1) / (steps * (steps + 1.0))
        scale = self.total / jnp.maximum(-powers[-2], 1e-3) * growing
        return (axes * jnp.exp(scale[:, None, None] * powers)) @ axes.T
