r"""Consistency models: one step from noise to data, trained without a teacher.

In standard units a noisy value is :math:`x_\sigma = x_0 + \sigma\varepsilon`, and the probability flow takes it back to
where its trajectory began, at the level :math:`\sigma_{\min}`. The consistency map :math:`f(x, \sigma)` is that end;
it is the same along a trajectory, and the identity at :math:`\sigma_{\min}`, which the form

.. math:: f(x, \sigma) = \frac{x}{1 + (\sigma - \sigma_{\min})^2} + \frac{\sigma - \sigma_{\min}}{\sqrt{1 + \sigma^2}}\,
          F\!\left(\frac{x}{\sqrt{1 + \sigma^2}},\ \tfrac14 \log\sigma\right)

has built in. Trained is

.. math:: E\ \frac{d\bigl(f(x_0 + \sigma_{i+1}\varepsilon, \sigma_{i+1}),\
          \operatorname{stop} f(x_0 + \sigma_i\varepsilon, \sigma_i)\bigr)}{\sigma_{i+1} - \sigma_i},
          \qquad d(a, b) = \sqrt{\lVert a - b\rVert^2 + c^2} - c,\quad c = 0.00054\sqrt{\dim},

on a grid of levels, even in :math:`\sigma^{1/7}`, whose number doubles in the course of training; the interval
:math:`i` is that of a log-normal level. The target has the weights of the student, not their average. As the grid
becomes fine the minimum is the map of the probability flow; :math:`d` takes the median, not the mean, of the noise in
the target where that is larger than :math:`c`, which shifts the map where the data given a noisy value are skew.

Reference: Song and Dhariwal (2024), "Improved techniques for training consistency models"; Song, Dhariwal, Chen and
Sutskever (2023).
"""

from __future__ import annotations

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtr, ndtri

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.learned import Exactness, Learned
from probgen.generative.standardisation import Standardisation
from probgen.nets import Conditioned, TimeFeatures

__all__ = ["Consistency", "LearnedConsistency"]

# Slow waves: a map that is to agree at neighbouring levels must not change fast with them.
FEATURES = TimeFeatures(size=16, most=2.0)
RHO = 7.0


class Net(eqx.Module):
    """Units, and the network that works in them."""

    units: Standardisation
    net: Conditioned


class Consistency(Family):
    """A consistency model of real data.

    Attributes:
        width: Length of the hidden layers.
        depth: Number of residual blocks.
        levels: Least and largest noise level, in standard deviations of the data.
        grid: Intervals between levels at the beginning and at the end of training; the number doubles in between.
        noise: Mean and standard deviation of the log of the noise level in training.
        huber: The constant ``c`` of the distance, over the square root of the dimension.
        refine: Noise levels, falling: a draw is noised to each in turn and mapped back. ``()`` for one step of sampling,
            ``(0.8,)`` for two.
    """

    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=3)
    levels: tuple[float, float] = eqx.field(static=True, default=(0.002, 80.0))
    grid: tuple[int, int] = eqx.field(static=True, default=(10, 1280))
    noise: tuple[float, float] = eqx.field(static=True, default=(-1.1, 2.0))
    huber: float = eqx.field(static=True, default=0.00054)
    refine: tuple[float, ...] = eqx.field(static=True, default=())

    training: ClassVar[Training] = Training(steps=20_000, learning_rate=5e-4, validation=0.0)
    validated: ClassVar[bool] = False

    def __check_init__(self) -> None:
        check_levels(self.levels)
        low, high = self.grid
        if not (isinstance(low, int) and isinstance(high, int) and 1 <= low <= high):
            raise MethodError(
                f"Consistency got grid={self.grid}, expected two ints that rise from 1 on. Use (10, 1280)."
            )
        if not self.huber > 0:
            raise MethodError(f"Consistency got huber={self.huber}, expected a positive number. Use 0.00054.")
        before = (self.levels[1], *self.refine)
        if not all(self.levels[0] < s < b for s, b in zip(self.refine, before, strict=False)):
            raise MethodError(
                f"Consistency got refine={self.refine}, expected levels that fall, between {self.levels[0]} and "
                f"{self.levels[1]}. Use (0.8,)."
            )

    def build(self, key: PRNGKey, spec: Spec) -> Net:
        given = FEATURES.size + math.prod(spec.condition or (0,))
        return Net(Standardisation(spec.shape), Conditioned(key, spec.shape, given, self.width, self.depth))

    def adapt(self, key: PRNGKey, net: Net, x: Array, condition: Array | None) -> Net:
        return eqx.tree_at(lambda n: n.units, net, net.units.adapted(x))

    def intervals(self, progress: Array) -> Array:
        """How many intervals the grid has at this share of training."""
        low, high = self.grid
        doublings = math.floor(math.log2(high / low)) + 1
        return jnp.minimum(low * 2.0 ** jnp.floor(doublings * progress), high)

    def loss(self, key: PRNGKey, net: Net, x: Array, condition: Array | None, now: Now) -> Scalar:
        key_level, key_noise = jax.random.split(key)
        x = jax.vmap(net.units.inward)(x)
        n = self.intervals(now.progress).astype(x.dtype)
        # One level in every equal slice of its law: the same expectation, less noise.
        count = x.shape[0]
        share = (jnp.arange(count) + jax.random.uniform(key_level, (count,), x.dtype)) / count
        mean, deviation = self.noise
        low, high = (ndtr((jnp.log(jnp.asarray(s, x.dtype)) - mean) / deviation) for s in self.levels)
        drawn = jnp.exp(mean + deviation * ndtri(low + share * (high - low)))
        i = jnp.clip(jnp.floor(n * place(self.levels, drawn)), 0, n - 1)
        lower, upper = level(self.levels, i / n), level(self.levels, (i + 1) / n)
        noise = jax.random.normal(key_noise, x.shape, x.dtype)
        wide = (-1, *[1] * (x.ndim - 1))
        ends = jax.vmap(self.origin, (None, 0, 0, 0))
        here = ends(net.net, x + upper.reshape(wide) * noise, upper, condition)
        target = jax.lax.stop_gradient(ends(net.net, x + lower.reshape(wide) * noise, lower, condition))
        apart = jnp.sum((here - target).reshape(count, -1) ** 2, 1)
        c = self.huber * math.sqrt(x[0].size)
        return jnp.mean((jnp.sqrt(apart + c**2) - c) / (upper - lower))

    def origin(self, net: Conditioned, x: Array, level: Array | float, condition: Array | None) -> Array:
        """The consistency map, in standard units."""
        above = level - self.levels[0]
        size = jnp.sqrt(1 + jnp.asarray(level) ** 2)
        return x / (1 + above**2) + above / size * net(x / size, features(x, condition, level))

    def distribution(self, net: Net, spec: Spec) -> LearnedConsistency:
        return LearnedConsistency(self, spec, net)


def check_levels(levels: tuple[float, float]) -> None:
    """Refuse levels that are not positive and rising."""
    if not 0 < levels[0] < levels[1]:
        raise MethodError(f"noise levels are {levels}, expected 0 < least < largest. Use (0.002, 80.0).")


def level(levels: tuple[float, float], share: Array) -> Array:
    """The noise level at a share of the grid, from 0 to 1: even in its seventh root."""
    low, high = (s ** (1 / RHO) for s in levels)
    return (low + share * (high - low)) ** RHO


def place(levels: tuple[float, float], level: Array) -> Array:
    """The share of the grid below a noise level: the inverse of ``level``."""
    low, high = (s ** (1 / RHO) for s in levels)
    return (level ** (1 / RHO) - low) / (high - low)


def features(x: Array, condition: Array | None, *levels: Array | float) -> Array:
    """What a network is given: waves of the log of each level, and the condition."""
    parts = [FEATURES(jnp.log(jnp.asarray(s, x.dtype)) / 4) for s in levels]
    return jnp.concatenate([*parts, *([] if condition is None else [condition.reshape(-1)])]).astype(x.dtype)


class LearnedConsistency(Learned):
    """The law of a learned consistency model: the map of its noise.

    It has draws and a noise map, exact for what it is, and no density.
    """

    offers: ClassVar = {"noise_map": Exactness.exact, "sample": Exactness.exact}

    family: Consistency
    net: Net

    @property
    def units(self) -> Standardisation:
        """Between data and the standard units in which the noise levels are."""
        return self.net.units

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """One datum; with ``refine``, one more for each of its levels, along a first axis."""
        return (1 + len(self.family.refine), *self.event_shape) if self.family.refine else self.event_shape

    def origin(self, x: Array, level: Array | float) -> Array:
        """Where the trajectory through one noisy value began: the consistency map, in standard units.

        Args:
            x: Noisy value, the shape of one datum.
            level: Its noise level.
        """
        return self.family.origin(self.net.net, x, level, self.condition)

    def draw(self, key: PRNGKey) -> Array:
        return self.push(jax.random.normal(key, self.noise_shape))

    def push(self, z: Array) -> Array:
        low, high = self.family.levels
        first, *rest = z if self.family.refine else [z]
        x = self.origin(high * first, high)
        for s, noise in zip(self.family.refine, rest, strict=True):
            x = self.origin(x + math.sqrt(s**2 - low**2) * noise, s)
        return self.units.outward(x)
