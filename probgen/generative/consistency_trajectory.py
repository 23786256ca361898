r"""Consistency trajectory models: one network that jumps anywhere along the probability flow, and knows the score.

In standard units, with :math:`x_t = x_0 + t\varepsilon`, the flow takes :math:`x_t` to

.. math:: G(x_t, t, s) = \frac{s}{t}\, x_t + \left(1 - \frac{s}{t}\right) g(x_t, t, s)

at a level :math:`s \le t`. In this form :math:`G(x, t, t) = x`, and :math:`g(x, t, t)` is the mean of the data given
:math:`x`, so the score is :math:`(g(x, t, t) - x) / t^2`. Trained are two losses. Soft consistency compares a jump
:math:`t \to s` with a solver's way :math:`t \to u` followed by a jump :math:`u \to s`, for :math:`s \le u < t`, both
carried on to the data end by the network as it is:

.. math:: E\,\lVert \bar G(G(x_t, t, s), s, s_{\min}) - \bar G(\bar G(\mathrm{solver}(x_t, t, u), u, s), s, s_{\min})\rVert^2

and denoising, :math:`E\,(1 + t^{-2})\lVert g(x_t, t, t) - x_0\rVert^2`. The solver follows a teacher, or without one
the average of the network at :math:`s = t`.

Sampling goes through levels :math:`T = t_0 > t_1 > \dots`, at each
:math:`x_{n+1} = G(x_n, t_n, \sqrt{1 - \gamma^2}\, t_{n+1}) + \gamma\, t_{n+1} \varepsilon`: :math:`\gamma = 0` jumps along
one trajectory, :math:`\gamma = 1` goes to the data end and back as a consistency model does.

Reference: Kim, Lai et al. (2024), "Consistency trajectory models: learning probability flow ODE trajectory of
diffusion"; the adversarial loss that they add for images is left out.
"""

from __future__ import annotations

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtri

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.consistency import FEATURES, Net, check_levels, features, level
from probgen.generative.diffusion import LearnedDenoiser
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.learned import Exactness, Learned
from probgen.generative.path import VE, Time
from probgen.generative.sampler import flow_log_density
from probgen.generative.standardisation import Standardisation
from probgen.nets import Conditioned

__all__ = ["ConsistencyTrajectory", "LearnedTrajectory", "TrajectoryDenoiser"]


class ConsistencyTrajectory(Family):
    """A consistency trajectory model of real data.

    Attributes:
        width: Length of the hidden layers.
        depth: Number of residual blocks.
        levels: Least and largest noise level, in standard deviations of the data.
        grid: Intervals of the grid from which the levels of a jump are drawn.
        reach: Intervals from ``t`` to ``u``, at most: a step of Heun's rule each.
        noise: Mean and standard deviation of the log of the noise level in the denoising loss.
        consistency: Weight of the soft consistency loss; that of the denoising loss is 1.
        jumps: How many jumps make a draw.
        gamma: 0 for a deterministic draw, 1 for new noise after every jump.
        tolerance: Of the integration of ``log_prob``, absolute and relative per step.
    """

    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=3)
    levels: tuple[float, float] = eqx.field(static=True, default=(0.002, 80.0))
    grid: int = eqx.field(static=True, default=20)
    reach: int = eqx.field(static=True, default=1)
    noise: tuple[float, float] = eqx.field(static=True, default=(-0.8, 1.4))
    consistency: float = eqx.field(static=True, default=10.0)
    jumps: int = eqx.field(static=True, default=2)
    gamma: float = eqx.field(static=True, default=0.0)
    tolerance: float = eqx.field(static=True, default=1e-4)

    training: ClassVar[Training] = Training(steps=10_000, validation=0.0)
    validated: ClassVar[bool] = False

    def __check_init__(self) -> None:
        check_levels(self.levels)
        for name in ("grid", "reach", "jumps"):
            value = getattr(self, name)
            if not is_count(value):
                raise MethodError(
                    f"ConsistencyTrajectory got {name}={value!r}, expected an int of at least 1. Change {name}."
                )
        if not 0.0 <= self.gamma <= 1.0:
            raise MethodError(f"gamma is a share of the noise, got {self.gamma}, expected 0 to 1. Use gamma=0.")

    def build(self, key: PRNGKey, spec: Spec) -> Net:
        given = 2 * FEATURES.size + math.prod(spec.condition or (0,))
        return Net(Standardisation(spec.shape), Conditioned(key, spec.shape, given, self.width, self.depth))

    def adapt(self, key: PRNGKey, net: Net, x: Array, condition: Array | None) -> Net:
        return eqx.tree_at(lambda n: n.units, net, net.units.adapted(x))

    def loss(self, key: PRNGKey, net: Net, x: Array, condition: Array | None, now: Now) -> Scalar:
        key_share, key_noise, key_indices = jax.random.split(key, 3)
        x = jax.vmap(net.units.inward)(x)
        noise = jax.random.normal(key_noise, x.shape, x.dtype)
        share = (jnp.arange(len(x)) + jax.random.uniform(key_share, (len(x),), x.dtype)) / len(x)
        keys = jax.random.split(key_indices, len(x))
        each = jax.vmap(self._losses, (0, None, None, 0, 0, 0, 0))
        return jnp.mean(each(keys, net.net, now.average.net, x, noise, share, condition))

    def _losses(
        self,
        key: PRNGKey,
        net: Conditioned,
        average: Conditioned,
        x: Array,
        noise: Array,
        share: Array,
        c: Array | None,
    ) -> Scalar:
        """Both losses of one datum, per entry."""
        key_t, key_s, key_u = jax.random.split(key, 3)
        t = jnp.clip(jnp.exp(self.noise[0] + self.noise[1] * ndtri(share)), *self.levels)
        denoising = jnp.mean((1 + t**-2) * (ends(net, x + t * noise, t, t, c) - x) ** 2)

        i = jax.random.randint(key_t, (), 1, self.grid + 1)
        j = jax.random.randint(key_s, (), 0, i)
        k = jax.random.randint(key_u, (), jnp.maximum(j, i - self.reach), i)
        t, s, *way = (self._level(n, x) for n in (i, j, *(jnp.maximum(i - n, k) for n in range(1, self.reach + 1))))
        noisy = x + t * noise
        stopped = jax.lax.stop_gradient(net)
        ahead = self._solved(average, noisy, t, way, c)
        low = self.levels[0]
        target = jump(stopped, jump(stopped, ahead, way[-1], s, c), s, low, c)
        here = jump(stopped, jump(net, noisy, t, s, c), s, low, c)
        return denoising + self.consistency * jnp.mean((here - jax.lax.stop_gradient(target)) ** 2)

    def _level(self, n: Array, x: Array) -> Array:
        return level(self.levels, (n / self.grid).astype(x.dtype))

    def _solved(self, net: Conditioned, x: Array, t: Array, way: list[Array], c: Array | None) -> Array:
        """Heun's rule from ``t`` through falling levels; some steps may have no length."""

        def slope(x: Array, t: Array) -> Array:
            return (x - ends(net, x, t, t, c)) / t

        for u in way:
            first = slope(x, t)
            x = x + (u - t) * (first + slope(x + (u - t) * first, u)) / 2
            t = u
        return x

    def distribution(self, net: Net, spec: Spec) -> LearnedTrajectory:
        return LearnedTrajectory(self, spec, net)


def ends(net: Conditioned, x: Array, t: Array | float, s: Array | float, condition: Array | None) -> Array:
    """The function ``g``: at ``s = t`` the mean of the data."""
    size = jnp.sqrt(1 + jnp.asarray(t) ** 2)
    return x / size**2 + t / size * net(x / size, features(x, condition, t, s))


def jump(net: Conditioned, x: Array, t: Array | float, s: Array | float, condition: Array | None) -> Array:
    """The function ``G``: from level ``t`` to level ``s``."""
    return s / t * x + (1 - s / t) * ends(net, x, t, s, condition)


class TrajectoryDenoiser(LearnedDenoiser):
    """A consistency trajectory model as denoiser, in standard units; its attributes are those of ``LearnedDenoiser``."""

    def mean(self, x: Array, t: Time) -> Array:
        """See ``Denoiser.mean``."""
        alpha, sigma = self.path(t)
        return ends(self.net, x / alpha, sigma / alpha, sigma / alpha, self.condition)


class LearnedTrajectory(Learned):
    """The law of a learned consistency trajectory model.

    Draws and ``noise_map`` are those of the jumps. ``log_prob`` integrates the probability flow of the learned score,
    which the jumps follow up to what training has left of their error: compare draws with more jumps. ``score`` and
    ``velocity`` are in standard units (``units``), at time ``t`` of ``denoiser.path``.
    """

    offers: ClassVar = {
        "log_prob": Exactness.ode,
        "noise_map": Exactness.exact,
        "score": Exactness.estimate,
        "velocity": Exactness.estimate,
        "sample": Exactness.exact,
    }

    family: ConsistencyTrajectory
    net: Net

    @property
    def units(self) -> Standardisation:
        """Between data and the standard units in which the noise levels are."""
        return self.net.units

    @property
    def denoiser(self) -> TrajectoryDenoiser:
        """The denoiser, in standard units, on a path whose noise grows geometrically between the levels."""
        low, high = self.family.levels
        path = VE(low, high, start=1e-6)
        return TrajectoryDenoiser(net=self.net.net, path=path, condition=self.condition)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """One datum; with ``gamma > 0``, one per jump, along a first axis."""
        many = self.family.gamma > 0 and self.family.jumps > 1
        return (self.family.jumps, *self.event_shape) if many else self.event_shape

    def jump(self, x: Array, t: Array | float, s: Array | float) -> Array:
        """Where the trajectory through ``x`` at level ``t`` is at level ``s``, in standard units.

        Args:
            x: One noisy value.
            t: Its level.
            s: The level to reach, at most ``t``.
        """
        return jump(self.net.net, x, t, s, self.condition)

    def draw(self, key: PRNGKey) -> Array:
        return self.push(jax.random.normal(key, self.noise_shape))

    def push(self, z: Array) -> Array:
        gamma, jumps = self.family.gamma, self.family.jumps
        noises = z if len(self.noise_shape) > len(self.event_shape) else z[None]
        at = level(self.family.levels, jnp.linspace(1.0, 0.0, jumps + 1, dtype=z.dtype))
        x = at[0] * noises[0]
        for n in range(jumps - 1):
            # With gamma = 1 to the data end, which is the least level rather than 0.
            s = jnp.maximum(math.sqrt(1 - gamma**2) * at[n + 1], at[jumps])
            x = self.jump(x, at[n], s)
            if gamma > 0:
                x = x + jnp.sqrt(at[n + 1] ** 2 - s**2) * noises[n + 1]
        return self.units.outward(self.jump(x, at[jumps - 1], at[jumps]))

    def density(self, x: Array) -> Scalar:
        inward = flow_log_density(self.denoiser, self.units.inward(x), self.family.tolerance)
        return inward + self.units.log_det()

    def score_at(self, x: Array, t: Time) -> Array:
        return self.denoiser.score(x, t)

    def velocity_at(self, x: Array, t: Time) -> Array:
        return self.denoiser.velocity(x, t)
