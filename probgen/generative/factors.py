r"""The factors of a corrected density, :math:`\prod_i q_i(x)^{\beta_i(t)} e^{r(x)}`: powers that may change with time.

A power is that of the data end, and schedules that lead to it from the noise end. Whatever is tempered, multiplied or
tilted again has the same factors with other powers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import Scalar
from probgen.generative.denoiser import Denoiser
from probgen.generative.standardisation import Standardisation

__all__ = ["Final", "Power", "Powers", "Reward", "Schedule", "Term", "Tilt", "one"]

type Schedule = Callable[[Array], Array]


class Power(eqx.Module):
    """A power, and the schedules that lead to it."""

    value: Array
    schedules: tuple[Schedule, ...] = eqx.field(static=True, default=())

    def __call__(self, t: Array) -> Array:
        value = self.value
        for schedule in self.schedules:
            value = value * schedule(t)
        return value

    def times(self, factor: float, schedule: Schedule | None) -> Power:
        """The power multiplied by a number, or by a schedule that ends at it."""
        if schedule is not None:
            return Power(self.value, (*self.schedules, schedule))
        with jax.ensure_compile_time_eval():  # a distribution may be written inside a program
            return Power(self.value * factor, self.schedules)


def one() -> Power:
    """The power of what is taken as it is."""
    with jax.ensure_compile_time_eval():
        return Power(jnp.ones(()))


class Term(NamedTuple):
    """One factor of the density: a denoiser to a power."""

    denoiser: Denoiser
    power: Power


class Reward(eqx.Module):
    """One factor of the density: the exponential of a reward."""

    reward: Callable[[Array], Scalar] = eqx.field(static=True)
    power: Power


class Powers(eqx.Module):
    """The powers of all factors at a time."""

    each: tuple[Power, ...]

    def __call__(self, t: Array) -> Array:
        return jnp.stack([power(t) for power in self.each])


class Tilt(eqx.Module):
    """The rewards at the denoised value."""

    terms: tuple[Term, ...]
    rewards: tuple[Reward, ...]
    units: Standardisation | None

    def __call__(self, x: Array, t: Array) -> Scalar:
        powers = jnp.stack([term.power(t) for term in self.terms])
        means = jnp.stack([term.denoiser.mean(x, t) for term in self.terms])
        denoised = _outward(self.units, jnp.tensordot(powers / jnp.sum(powers), means, 1))
        return jnp.sum(jnp.stack([r.power(t) * r.reward(denoised) for r in self.rewards]))


class Final(eqx.Module):
    """The rewards at the data end."""

    rewards: tuple[Reward, ...]
    units: Standardisation | None
    end: float = eqx.field(static=True)

    def __call__(self, x: Array) -> Scalar:
        x = _outward(self.units, x)
        return jnp.sum(jnp.stack([r.power(jnp.asarray(self.end)) * r.reward(x) for r in self.rewards]))


def _outward(units: Standardisation | None, x: Array) -> Array:
    """From the units of the denoisers to those of the data."""
    return x if units is None else units.outward(x)
