r"""Energies: densities known up to a constant, :math:`p(x) = e^{-E(x)} / Z`.

The constant :math:`Z` is what makes them hard to fit and what they lack afterwards: there is a score and an energy,
never a ``log_prob``. In a program an energy is a factor, ``numpyro.factor("prior", -model.energy(x))`` on a site ``x``
with an improper uniform law, and constants do not matter for the posterior.
"""

from __future__ import annotations

import abc
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.part import Part
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Spec
from probgen.generative.learned import Exactness, Learned
from probgen.nets import MLP

__all__ = ["Energy", "GaussianEnergy", "LearnedEnergy", "NeuralEnergy", "langevin"]


class Energy(Part):
    """What function an energy is. It lives in standard units of the data."""

    @abc.abstractmethod
    def build(self, key: PRNGKey, spec: Spec) -> Any:
        """A function of a point in standard units, shape ``spec.shape``, and of a condition or ``None``."""


class _Confined(eqx.Module):
    net: MLP

    def __call__(self, x: Array, condition: Array | None) -> Scalar:
        flat = x.reshape(-1)
        given = flat if condition is None else jnp.concatenate([flat, condition.reshape(-1)])
        return 0.25 * jnp.sum(flat**2) + self.net(given)[0]


class NeuralEnergy(Energy):
    r"""A network with bounded output plus :math:`|x|^2 / 4`: the integral of :math:`e^{-E}` is finite.

    Attributes:
        width: Of the hidden layers.
        depth: Their number.
    """

    width: int = eqx.field(static=True, default=64)
    depth: int = eqx.field(static=True, default=2)

    def build(self, key: PRNGKey, spec: Spec) -> _Confined:
        size = sum(math.prod(s) for s in (spec.shape, spec.condition) if s is not None)
        return _Confined(MLP(key, size, 1, self.width, self.depth, jnp.tanh))


class _Quadratic(eqx.Module):
    loc: Array
    log_scale: Array | None

    def __call__(self, x: Array, condition: Array | None) -> Scalar:
        z = x - self.loc
        return 0.5 * jnp.sum((z if self.log_scale is None else z * jnp.exp(-self.log_scale)) ** 2)


class GaussianEnergy(Energy):
    """That of a normal density with unknown means, and deviations if ``scaled``.

    Attributes:
        scaled: Whether deviations are fitted; otherwise they are 1 in standard units.
    """

    scaled: bool = eqx.field(static=True, default=True)

    def build(self, key: PRNGKey, spec: Spec) -> _Quadratic:
        zero = jnp.zeros(spec.shape, jnp.float32)
        return _Quadratic(zero, zero if self.scaled else None)


class LearnedEnergy(Learned):
    """A learned density up to a constant.

    Draws are those of a Metropolis-adjusted Langevin chain of finite length, an approximation: it can be trusted where
    twice the length gives the same.
    """

    offers: ClassVar = {
        "energy": Exactness.exact,
        "score": Exactness.exact,
        "sample": Exactness.estimate,
    }

    def energy(self, value: Array) -> Array:
        """Minus the log density up to a constant, which is the same for all points *given one condition*; shape that of
        ``value`` without the event."""
        self._ready("energy")
        return self.pointwise(lambda here, x: here.energy_at(x), (jnp.asarray(value), self.event_dim))

    def score(self, x: Array, t: Array | float = 0.0) -> Array:
        """Gradient of the log density, the shape of ``x``; there is no noise, and ``t`` must be 0."""
        if not (isinstance(t, float | int) and t == 0):
            raise MethodError(f"an energy has the score of its own law alone, at t=0, got t={t!r}. Leave t out.")
        return super().score(x, t)

    def energy_at(self, x: Array) -> Scalar:
        """See ``energy``; for one point and one condition."""
        raise NotImplementedError

    def score_at(self, x: Array, t: Array | float) -> Array:
        return -jax.grad(self.energy_at)(x)


def langevin(key: PRNGKey, log_density: Any, x: Array, scale: Array | float, steps: int) -> tuple[Array, Scalar]:
    r"""A Metropolis-adjusted Langevin chain (Roberts and Tweedie 1996), which leaves the density unchanged.

    .. math:: x' = x + \tfrac{s^2}{2} \nabla\log p(x) + s\varepsilon.

    Args:
        key: Randomness.
        log_density: Up to a constant, of one point.
        x: Where it starts.
        scale: :math:`s`, broadcastable to ``x``.
        steps: Length.

    Returns:
        Where it ends, and the share of accepted steps.
    """
    value_and_grad = jax.value_and_grad(log_density)

    def log_proposal(to: Array, at: Array, slope: Array) -> Scalar:
        return -0.5 * jnp.sum(((to - at - scale**2 / 2 * slope) / scale) ** 2)

    def step(carried: tuple[Array, Scalar, Array], key: PRNGKey) -> tuple[tuple[Array, Scalar, Array], Scalar]:
        x, value, slope = carried
        key_move, key_accept = jax.random.split(key)
        new = x + scale**2 / 2 * slope + scale * jax.random.normal(key_move, x.shape, x.dtype)
        new_value, new_slope = value_and_grad(new)
        log_ratio = new_value - value + log_proposal(x, new, new_slope) - log_proposal(new, x, slope)
        taken = jnp.log(jax.random.uniform(key_accept, dtype=x.dtype)) < log_ratio
        moved = jax.tree.map(lambda a, b: jnp.where(taken, a, b), (new, new_value, new_slope), (x, value, slope))
        return moved, taken.astype(x.dtype)

    (x, _, _), taken = jax.lax.scan(step, (x, *value_and_grad(x)), jax.random.split(key, steps))
    return x, taken.mean()
