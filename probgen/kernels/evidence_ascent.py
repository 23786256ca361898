r"""Climbing the evidence with particles: a Feynman-Kac model whose steps are those of an optimiser.

A program has stochastic values :math:`u` and deterministic parameters :math:`\phi` (its ``param`` sites), and the
evidence :math:`Z(\phi) = \int p(u, y; \phi) \, du` is to be maximised. Its gradient is an expectation under the
posterior (Fisher's identity), which weighted particles estimate consistently:

.. math:: \nabla \log Z(\phi) = \mathbb{E}_{p(u \mid y; \phi)} \nabla_\phi \log p(u, y; \phi)
    \approx \sum_i W_i \, \nabla_\phi \log p(u_i, y; \phi).

An optimiser takes a step with it, from :math:`\phi_{t-1}` to :math:`\phi_t`, and the particles follow: they are
weighted by

.. math:: \frac{p(u, y; \phi_t)}{p(u, y; \phi_{t-1})}, \quad \text{whose mean under } p(u \mid y; \phi_{t-1})
    \text{ is } Z(\phi_t) / Z(\phi_{t-1}),

resampled where the weights have become uneven, and moved by a kernel that leaves :math:`p(u \mid y; \phi_t)` invariant.
A step that is planned is taken one step later, when the particles have moved. Taken at once, the same particles would
choose it and tell what it gains, and their noise would count as a gain at every step.

So the targets are the posteriors along the path of the parameters, as those of tempering are posteriors along a path of
temperatures; the evidence is tracked while it is climbed, and no posterior is ever replaced by a simpler family. A path
that has been found can be given to fresh particles (``ParameterPath``), which then know nothing of how it was chosen.

The idea of training as a Feynman-Kac model is that of Zhao, Mair, Schön and Sjölund (2024, arXiv:2310.19608).
They bring the data in by batches while the parameters move, and let the weights drift by a kernel that is not
invariant; here every target holds all data, so that its maximum is that of the evidence of the program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from probgen.base.typing import Position, PRNGKey, Scalar, Values
from probgen.feynman_kac.protocol import Cloud, FeynmanKac
from probgen.kernels.clouds import covariance_root
from probgen.kernels.moves import Move, Point, Target, Tuning
from probgen.program.parametrised import ParametrisedDensity

if TYPE_CHECKING:
    import optax

__all__ = ["Ascent", "EvidenceAscent", "Follower", "ParameterPath", "Waypoint", "evidence_gradient"]


class Follower(NamedTuple):
    """A particle.

    Attributes:
        point: Where it is, with its log prior and log likelihood at the parameters of the last step.
        acceptance: Mean acceptance probability of its last moves.
    """

    point: Point
    acceptance: Scalar


class Waypoint(NamedTuple):
    """Where particles are to go: the context of a step along a given path.

    Attributes:
        free: Parameters.
        power: Power of the likelihood.
        before: Its power one step before.
        tuning: Tuning of the moves.
    """

    free: Values
    power: Scalar
    before: Scalar
    tuning: Tuning


class Ascent(NamedTuple):
    """The context of a step.

    Attributes:
        free: Parameters now, :math:`\\phi_t`.
        update: By how much they change at the next step.
        optimizer: State of the optimiser.
        tuning: Tuning of the moves.
        slope: Norm of the estimated gradient that led here.
        skipped: Whether it was not finite, so that the parameters stayed.
    """

    free: Values
    update: Values
    optimizer: Any
    tuning: Tuning
    slope: Scalar
    skipped: Array


class _Following(FeynmanKac):
    """Particles that follow the posterior while the parameters move."""

    density: eqx.AbstractVar[ParametrisedDensity]
    move: eqx.AbstractVar[Move]
    moves: eqx.AbstractVar[int]

    def powers(self, context: Any) -> tuple[Scalar, Scalar]:
        """Powers of the likelihood, before a step and after it."""
        one = jnp.ones((), float)
        return one, one

    def evaluate(self, free: Values, u: Position) -> Point:
        """The density at ``u``, at given parameters."""
        log_prior, log_likelihood = self.density.at(free).parts(u)
        return Point(u, log_prior, log_likelihood[None])

    def follower(self, u: Position) -> Follower:
        """A particle at ``u``, at the first parameters."""
        return Follower(self.evaluate(self.density.free, u), jnp.ones((), u.dtype))

    def tuned(self, t: Array, cloud: Cloud, tuning: Tuning) -> Tuning:
        """Tuning of the moves for a cloud."""
        wanted = self.move.rescaled(tuning.scale, jnp.mean(cloud.x.acceptance))
        # Few moves tell little: by a quarter at most, or the scale would chase noise.
        scale = jnp.clip(wanted, 0.8 * tuning.scale, 1.25 * tuning.scale)
        root = covariance_root(cloud.x.point.u, cloud.log_w, tuning.root)
        return Tuning(root, jnp.where(t > 1, scale, tuning.scale))

    def look_ahead(self, t: Array, x: Follower, context: Any) -> Scalar:
        """See ``FeynmanKac.look_ahead``: how much likelier the particle is at the new parameters and power."""
        before, power = self.powers(context)
        old, new = x.point, self.evaluate(context.free, x.point.u)
        old, new = _level(old, before), _level(new, power)
        return jnp.where(old == -jnp.inf, -jnp.inf, new - old)

    def step(self, key: PRNGKey, t: Array, x: Follower, context: Any) -> tuple[Follower, Scalar]:
        """See ``FeynmanKac.step``: moves that leave the new target invariant."""
        target = Target(lambda u: self.evaluate(context.free, u), self.powers(context)[1][None])
        state = self.move.begin(target, target.evaluate(x.point.u))

        def once(carry: tuple[Any, Scalar], key: PRNGKey) -> tuple[tuple[Any, Scalar], None]:
            state, total = carry
            state, acceptance = self.move(key, target, state, context.tuning)
            return (state, total + acceptance), None

        zero = jnp.zeros_like(x.acceptance)
        (state, total), _ = jax.lax.scan(once, (state, zero), jax.random.split(key, self.moves))
        return Follower(self.move.point(state), total / self.moves), zero


class ParameterPath(_Following):
    """Particles from the prior, along given powers of the likelihood and given parameters.

    Where the tuning did not depend on the particles, the evidence would be exactly unbiased.

    Attributes:
        density: The posterior, at the first parameters.
        powers_along: Power of the likelihood at each step, increasing to 1, shape ``(steps,)``.
        frees: Parameters at each step; leading axis ``steps``.
        tuning: Tuning of the moves to begin with.
        move: The kernel.
        moves: Moves of each particle at each step.
    """

    density: ParametrisedDensity
    powers_along: Array
    frees: Values
    tuning: Tuning
    move: Move
    moves: int = eqx.field(static=True)

    @property
    def steps(self) -> int:
        """See ``FeynmanKac.steps``."""
        return self.powers_along.shape[0]

    def powers(self, context: Waypoint) -> tuple[Scalar, Scalar]:
        """See ``_Following.powers``."""
        return context.before, context.power

    def init(self, key: PRNGKey) -> tuple[Follower, Scalar]:
        """A draw from the prior at the first parameters."""
        x = self.follower(self.density.draw_prior(key))
        return x, jnp.where(jnp.isfinite(x.point.log_prior), 0.0, -jnp.inf)

    def start(self) -> Waypoint:
        """See ``FeynmanKac.start``."""
        zero = jnp.zeros((), self.powers_along.dtype)
        return Waypoint(self.density.free, zero, zero, self.tuning)

    def prepare(self, key: PRNGKey, t: Array, cloud: Cloud, context: Waypoint) -> Waypoint:
        """See ``FeynmanKac.prepare``: the next point of the path."""
        free = jax.tree.map(lambda leaf: leaf[t - 1], self.frees)
        return Waypoint(free, self.powers_along[t - 1], context.power, self.tuned(t, cloud, context.tuning))

    def report(self, cloud: Cloud, context: Waypoint) -> dict[str, Scalar]:
        """See ``FeynmanKac.report``."""
        return {"beta": context.power, "acceptance_rate": jnp.mean(cloud.x.acceptance)}


class EvidenceAscent(_Following):
    """Particles that follow the posterior while the parameters climb the evidence.

    Attributes:
        density: The posterior, at the parameters where the climb begins.
        cloud: Weighted particles of that posterior: coordinates, shape ``(particles, dim)``. The initial law is theirs,
            so the log evidence that a run reports is that gained since.
        tuning: Tuning of the moves to begin with.
        rate: What updates of the optimiser are multiplied with.
        move: The kernel.
        moves: Moves of each particle after each step of the optimiser.
        optimizer: From the learning rate to an optax transformation.
        learning_rate: The learning rate.
        length: Number of steps.
    """

    density: ParametrisedDensity
    cloud: Cloud
    tuning: Tuning
    rate: Scalar
    move: Move
    moves: int = eqx.field(static=True)
    optimizer: Callable[[float], optax.GradientTransformation] = eqx.field(static=True)
    learning_rate: float = eqx.field(static=True)
    length: int = eqx.field(static=True)

    @property
    def steps(self) -> int:
        """See ``FeynmanKac.steps``."""
        return self.length

    def init(self, key: PRNGKey) -> tuple[Follower, Scalar]:
        """One of the particles that the climb starts from."""
        u = self.cloud.x[jax.random.categorical(key, self.cloud.log_w)]
        return self.follower(u), jnp.zeros((), u.dtype)

    def start(self) -> Ascent:
        """See ``FeynmanKac.start``."""
        free = self.density.free
        state = self.optimizer(self.learning_rate).init(free)
        still = jax.tree.map(jnp.zeros_like, free)
        return Ascent(free, still, state, self.tuning, jnp.zeros((), float), jnp.zeros((), bool))

    def prepare(self, key: PRNGKey, t: Array, cloud: Cloud, context: Ascent) -> Ascent:
        """See ``FeynmanKac.prepare``: the step that was planned, the plan of the next, and the tuning of the moves."""
        import optax

        free, point = context.free, cloud.x.point
        gradient = evidence_gradient(self.density.at(free), point.u, cloud.log_w)
        slope = optax.tree.norm(gradient)
        descent = jax.tree.map(jnp.negative, gradient)
        update, optimizer = self.optimizer(self.learning_rate).update(descent, context.optimizer, free)
        finite = jnp.isfinite(slope)
        update = jax.tree.map(lambda new: jnp.where(finite, self.rate * new, 0.0), update)
        optimizer = jax.tree.map(lambda new, old: jnp.where(finite, new, old), optimizer, context.optimizer)
        tuning = self.tuned(t, cloud, context.tuning)
        free = jax.tree.map(jnp.add, free, context.update)
        return Ascent(free, update, optimizer, tuning, slope, ~finite)

    def finished(self, t: Array, context: Ascent) -> Array:
        """See ``FeynmanKac.finished``: a climb goes on for as long as it is asked to."""
        return jnp.zeros((), bool)

    def report(self, cloud: Cloud, context: Ascent) -> dict[str, Array]:
        """See ``FeynmanKac.report``; ``free`` are the parameters as one vector."""
        return {
            "free": ravel_pytree(context.free)[0],
            "acceptance_rate": jnp.mean(cloud.x.acceptance),
            "gradient_norm": context.slope,
            "skipped": context.skipped.astype(float),
        }


def _level(point: Point, power: Scalar) -> Scalar:
    """Log density of a point, the likelihood to a power; NaN counts as a density of zero, as in tempering."""
    level = point.log_prior + jnp.where(power > 0, power * jnp.sum(point.terms), 0.0)  # not 0 * -inf
    return jnp.where(jnp.isnan(level), -jnp.inf, level)


def evidence_gradient(density: ParametrisedDensity, u: Array, log_w: Array) -> Values:
    """Gradient of the log evidence in the parameters (free of constraints), from weighted particles.

    Args:
        density: The posterior at the parameters.
        u: Particles of it, unconstrained, shape ``(particles, dim)``.
        log_w: Their normalised log weights, shape ``(particles,)``.
    """
    w = jnp.exp(log_w)
    possible = jnp.where((w > 0)[:, None], u, u[jnp.argmax(w)])  # no gradient of a density of zero: 0 * NaN

    def expected(free: Values) -> Scalar:
        return w @ jax.vmap(density.at(free).log_density)(possible)

    return jax.grad(expected)(density.free)
