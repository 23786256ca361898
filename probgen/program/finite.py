r"""Discrete latent sites with finitely many values: every joint state is visited.

With states :math:`s = 1 \dots S` and the program's own joint probabilities :math:`p(s, y)`, the evidence is
:math:`\sum_s p(s, y)` and the posterior :math:`p(s, y) / \sum_{s'} p(s', y)`. A state is a number in mixed radix, one
digit per entry of each site.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import PRNGKey, Values
from probgen.program.joint import Block, Joint, Posterior, Variables
from probgen.program.model import Model

__all__ = ["Finite", "supports"]

_AT_ONCE = 1024
"""States evaluated side by side."""


def supports(joint: Joint, names: tuple[str, ...]) -> dict[str, Array]:
    """Values of each discrete site: shape ``(values, *event)``, the same for all entries of the site."""
    traced = joint.run({})
    found = {}
    for name in names:
        fn = traced[name]["fn"]
        values = fn.enumerate_support(expand=False)
        found[name] = values.reshape(values.shape[0], *fn.event_shape)
    return found


@dataclasses.dataclass(frozen=True)
class Finite(Block):
    """Enumeration of all joint states.

    Attributes:
        counts: Number of values, by site.
        entries: Number of entries, by site.
    """

    sites: tuple[str, ...]
    terms: tuple[str, ...]
    counts: tuple[int, ...]
    entries: tuple[int, ...]
    rule: ClassVar = "finite: all joint states enumerated"

    @property
    def radix(self) -> tuple[int, ...]:
        """Number of values of each entry of each site, in order."""
        return tuple(c for c, n in zip(self.counts, self.entries, strict=True) for _ in range(n))

    @property
    def states(self) -> int:
        """Number of joint states."""
        return math.prod(self.radix)

    def _digits(self, state: Array) -> Array:
        """Digits of state numbers, in a new last axis."""
        places = [math.prod(self.radix[i + 1 :]) for i in range(len(self.radix))]
        return state[..., None] // jnp.asarray(places) % jnp.asarray(self.radix)

    def _values(self, model: Model, support: dict[str, Array], state: Array) -> Values:
        digits, values, start = self._digits(state), {}, 0
        for name, n in zip(self.sites, self.entries, strict=True):
            chosen = support[name][digits[..., start : start + n]]
            values[name] = chosen.reshape(*state.shape, *model.sites[name].shape)
            start += n
        return values

    def solve(self, joint: Joint) -> Posterior:
        """See ``Block.solve``.

        ``parameters``: ``cumulative`` (states,), and by site ``SITE_support`` and ``SITE_probability`` (entries,
        values).
        """
        support = supports(joint, self.sites)
        states = jnp.arange(self.states)
        log_p = jax.lax.map(
            lambda state: joint(self._values(joint.model, support, state), self.terms)[0],
            states,
            batch_size=min(_AT_ONCE, self.states),
        )
        log_z = jax.scipy.special.logsumexp(log_p)
        p = jnp.exp(log_p - log_z)
        parameters, start = {"cumulative": jnp.cumsum(p)}, 0
        for name, count, n in zip(self.sites, self.counts, self.entries, strict=True):
            marginal = jax.lax.map(
                lambda i, count=count: jax.ops.segment_sum(p, self._digits(states)[:, i], count), start + jnp.arange(n)
            )
            parameters |= {f"{name}_support": support[name], f"{name}_probability": marginal}
            start += n
        zero = jnp.zeros((), log_z.dtype)
        return Posterior(parameters, log_z, zero, jnp.isfinite(log_z))

    def draw(self, key: PRNGKey, model: Model, parameters: dict[str, Array], count: int) -> Values:
        """See ``Block.draw``; by inversion of the distribution function over states."""
        cumulative = parameters["cumulative"]
        uniform = jax.random.uniform(key, (count,), cumulative.dtype) * cumulative[-1]
        # The product may round up to the total; the last state with positive probability is the first that reaches it.
        last = jnp.searchsorted(cumulative, cumulative[-1])
        state = jnp.minimum(jnp.searchsorted(cumulative, uniform, side="right"), last)
        support = {name: parameters[f"{name}_support"] for name in self.sites}
        return self._values(model, support, state)

    def summary(self, model: Model, parameters: dict[str, Array]) -> Variables:
        """See ``Block.summary``: the values and the marginal probabilities of each site."""
        variables: Variables = {}
        for name in self.sites:
            support, probability = parameters[f"{name}_support"], parameters[f"{name}_probability"]
            site, event = model.sites[name], support.ndim - 1
            batch = site.shape[: len(site.shape) - event]
            dims = site.dims[: len(batch)]
            variables[f"{name}_value"] = ((f"{name}_state", *site.dims[len(batch) :]), support)
            variables[f"{name}_probability"] = ((*dims, f"{name}_state"), probability.reshape(*batch, -1))
        return variables
