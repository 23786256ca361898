r"""Learned stochastic interpolants, and Schroedinger bridges between samples.

The expectations :math:`b_0` and :math:`\eta` of an interpolant (see ``interpolant``) are learned by regression on
:math:`\alpha' x + \beta' x_b` and :math:`z`; the velocity gives the ordinary equation, both give the stochastic ones.
For the exact expectations the law at the data end is the same for every :math:`\varepsilon`; for learned ones it is
not, and some noise forgives errors of the velocity at the price of more steps.

A Schroedinger bridge is learned without alternating projections, from pairs of the entropic plan within each batch
(Tong et al. 2024): exact in the limit of large batches, and between few samples biased towards the independent coupling
by as much as the plan of a batch is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.coupling import Coupling, EntropicOT, Independent
from probgen.generative.family import Family, Now, Spec
from probgen.generative.flow_matching import Regressor, check_coupling, check_size, even_shares, paired
from probgen.generative.interpolant import Interpolant, InterpolantField, Straight, interpolant_path
from probgen.generative.learned import Exactness, Learned
from probgen.generative.ode_solver import AdaptiveSteps, HeunSteps, OdeSolver, with_divergence
from probgen.generative.path import Time
from probgen.generative.source import NormalSource, Source
from probgen.generative.standardisation import Standardisation

__all__ = ["LearnedField", "LearnedInterpolant", "StochasticInterpolant", "schroedinger_bridge"]


class LearnedField(InterpolantField):
    """The expectations that a network has learned, in standard units.

    Attributes:
        net: The network.
        condition: What the data are given; ``None`` without conditions.
        interpolant: Weights of data, start and noise.
    """

    net: Regressor
    condition: Array | None
    interpolant: Interpolant

    def expected(self, x: Array, t: Time) -> tuple[Array, Array]:
        drift, noise = self.net(x, t, self.net.given(self.condition))
        return drift, noise


class StochasticInterpolant(Family):
    """Laws between a source and real data, with noise on the way.

    Attributes:
        interpolant: Weights of data, start and noise.
        source: Where it begins: noise, other data, or near the condition.
        coupling: Which start a datum is paired with in training.
        epsilon: Noise of the equation that draws: 0 for the ordinary one, in which case there is a density.
        width: Length of the hidden layers.
        depth: Number of residual blocks.
        solver: How the ordinary equation is integrated.
        steps: Steps of the stochastic equation.
        tolerance: Of the integration of ``log_prob``, absolute and relative per step.
    """

    interpolant: Interpolant = Straight()
    source: Source = NormalSource()
    coupling: Coupling = Independent()
    epsilon: float = eqx.field(static=True, default=0.0)
    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=3)
    solver: OdeSolver = HeunSteps(32)
    steps: int = eqx.field(static=True, default=100)
    tolerance: float = eqx.field(static=True, default=1e-4)

    def check(self, spec: Spec) -> None:
        check_size(self, self.width, self.depth)
        _check_noise(self.epsilon, self.steps)
        check_coupling(self, self.coupling, self.source, spec)

    def build(self, key: PRNGKey, spec: Spec) -> Regressor:
        return Regressor(key, spec, (2,), self.width, self.depth)

    def adapt(self, key: PRNGKey, net: Regressor, x: Array, condition: Array | None) -> Regressor:
        return net.adapted(x, condition)

    def loss(self, key: PRNGKey, net: Regressor, x: Array, condition: Array | None, now: Now) -> Scalar:
        key_pair, key_time, key_noise = jax.random.split(key, 3)
        start, x, given = paired(key_pair, self.source, self.coupling, net, x, condition)
        t = even_shares(key_time, x.shape[0])
        z = jax.random.normal(key_noise, x.shape, x.dtype)

        def weigh(weights: tuple[Array, ...], *parts: Array) -> Array:
            # Of the axes of a point, so that one weight multiplies all of it.
            shaped = (w.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) for w in weights)
            return sum((w * part for w, part in zip(shaped, parts, strict=True)), jnp.zeros(()))

        noisy = weigh(jax.vmap(self.interpolant)(t), x, start, z)
        drift = weigh(jax.vmap(self.interpolant.rates)(t), x, start)
        found = jax.vmap(net)(noisy, t, given)
        return jnp.mean((found - jnp.stack([drift, z], 1)) ** 2)

    def distribution(self, net: Regressor, spec: Spec) -> LearnedInterpolant:
        return LearnedInterpolant(self, spec, net)


def _check_noise(epsilon: float, steps: int) -> None:
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise MethodError(f"epsilon is a rate of noise, got {epsilon!r}, expected >= 0. Use 0 for no noise, or 0.5.")
    if not is_count(steps):
        raise MethodError(f"steps must be an int of at least 1, got {steps!r}. Use 100.")


def schroedinger_bridge(
    epsilon: float,
    source: Source,
    *,
    width: int = 128,
    depth: int = 3,
    steps: int = 100,
    iterations: int = 50,
) -> StochasticInterpolant:
    r"""The Schroedinger bridge from a source to data: the interpolant with the entropic coupling and its noise.

    Args:
        epsilon: Variance of the Brownian motion over the whole time, in squared standard units of the data.
        source: Where it begins, for example ``Samples(x)``.
        width: Length of the hidden layers.
        depth: Number of residual blocks.
        steps: Steps of the stochastic equation.
        iterations: Of Sinkhorn, in every batch.

    Raises:
        MethodError: If settings make no sense.
    """
    coupling = EntropicOT(epsilon, iterations)
    return StochasticInterpolant(
        interpolant=Straight(math.sqrt(epsilon)),
        source=source,
        coupling=coupling,
        epsilon=epsilon / 2,
        width=width,
        depth=depth,
        steps=steps,
    )


class LearnedInterpolant(Learned):
    """The law to which a learned interpolant carries its source.

    ``log_prob`` and ``noise_map`` are those of the ordinary equation, and need ``epsilon = 0`` (see ``with_noise``) and
    a source with a density. ``velocity`` and ``score`` are in standard units (``units``) and forward time.
    """

    family: StochasticInterpolant
    net: Regressor

    @property
    def offers(self) -> Mapping[str, Exactness]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What it has depends on the source and the noise."""
        has = {"sample": Exactness.ode, "velocity": Exactness.estimate, "score": Exactness.estimate}
        if self.family.source.has_density and self.family.epsilon == 0:
            has |= {"log_prob": Exactness.ode, "noise_map": Exactness.ode}
        return has

    @property
    def units(self) -> Standardisation:
        """Between data and the standard units in which the interpolant lives."""
        return self.net.units

    @property
    def field(self) -> LearnedField:
        """The learned expectations, in standard units."""
        return LearnedField(net=self.net, condition=self.condition, interpolant=self.family.interpolant)

    def with_noise(self, epsilon: float, steps: int | None = None) -> LearnedInterpolant:
        """The same fields, followed with another amount of noise.

        Args:
            epsilon: Noise of the stochastic equation; 0 for the ordinary one.
            steps: Of the stochastic equation; as before if ``None``.

        Raises:
            MethodError: If they make no sense.
        """
        steps = self.family.steps if steps is None else steps
        _check_noise(epsilon, steps)
        family = dataclasses.replace(self.family, epsilon=epsilon, steps=steps)
        here = type(self)(family, self.spec, self.net, self.condition)
        here.history = self.history
        return here

    def draw(self, key: PRNGKey) -> Array:
        key_start, key_path = jax.random.split(key)
        start = self.family.source.draw(key_start, self.units, self.condition)
        return self._carried(key_path, start)

    def push(self, z: Array) -> Array:
        return self._carried(jax.random.key(0), self.family.source.push(z, self.units, self.condition))

    def transport(self, key: PRNGKey, start: Array) -> Array:
        """Where the equation carries starts in the units of the data, shape ``(..., *event_shape)``."""
        start = jnp.asarray(start)
        batch = jnp.broadcast_shapes(self.batch_shape, start.shape[: start.ndim - self.event_dim])
        keys = jax.random.split(key, batch)
        return self.pointwise(
            lambda here, key, x: here._carried(key, here.units.inward(x)), (keys, 0), (start, self.event_dim)
        )

    def _carried(self, key: PRNGKey, start: Array) -> Array:
        if self.family.epsilon == 0:
            reached = self.family.solver.solve(self._slope, start, math.pi / 2, 0.0)
        else:
            reached = interpolant_path(key, self.field, start, self.family.epsilon, self.family.steps)[1][-1]
        return self.units.outward(reached)

    def _slope(self, theta: Array, x: Array) -> Array:
        return self.field.slopes(x, theta)[0]

    def density(self, x: Array) -> Scalar:
        begin = (self.units.inward(x), jnp.zeros((), x.dtype))
        solver = AdaptiveSteps(self.family.tolerance)
        start, gained = solver.solve(with_divergence(self._slope), begin, 0.0, math.pi / 2)
        return self.family.source.log_density(start, self.units, self.condition) + gained + self.units.log_det()

    def velocity_at(self, x: Array, t: Time) -> Array:
        return self.field.velocity(x, t)

    def score_at(self, x: Array, t: Time) -> Array:
        return self.field.score(x, t)
