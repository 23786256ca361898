"""What moves the particles of a corrector (``correctors.py``, where the mathematics stands), and divergences."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.part import Part
from probgen.base.typing import PRNGKey, Scalar

if TYPE_CHECKING:
    from probgen.feynman_kac.correctors import Corrector

__all__ = [
    "Divergence",
    "ExactDivergence",
    "Hutchinson",
    "Look",
    "ScoreTransport",
    "Transport",
    "VelocityTransport",
    "each",
]


class Look(NamedTuple):
    """What is found at one point and time.

    Attributes:
        v: Transport, the shape of ``x``.
        rate: Rate of the log weight, without the part of changing powers.
        score: :math:`S`.
        scores: :math:`s_i`, with a leading axis over the parts.
        change: :math:`\\partial_t \\log q_i`, shape ``(parts,)``; ``None`` where no divergence was taken.
        guessed: Divergences of the velocities where they were estimated, shape ``(parts,)``; else ``None``.
    """

    v: Array
    rate: Scalar
    score: Array
    scores: Array
    change: Array | None
    guessed: Array | None = None


# -- divergence ------------------------------------------------------------------------------------------------------


class Divergence(Part):
    """The divergence of fields whose derivative is at hand."""

    random: ClassVar[bool] = False
    """Whether it is an unbiased estimate, of which two at different points have independent errors."""

    @abc.abstractmethod
    def __call__(self, key: PRNGKey, push: Callable[[Array], Array], like: Array) -> Array:
        """Divergences of several fields.

        Args:
            key: Randomness of probes.
            push: Derivative of the fields along a direction, shape ``(parts, *like.shape)``.
            like: The point.
        """

    @abc.abstractmethod
    def directions(self, key: PRNGKey, like: Array) -> Array:
        """Directions :math:`e`, shape ``(count, *like.shape)``, with a mean of :math:`e e^T` that is the identity (in
        expectation, if they are random): the divergence is the mean of :math:`e^T J e`, and that of :math:`|J e|^2` is
        the squared Frobenius norm."""


class ExactDivergence(Divergence):
    """The trace of the derivative: one pass per dimension."""

    def __call__(self, key: PRNGKey, push: Callable[[Array], Array], like: Array) -> Array:
        basis = jnp.eye(like.size, dtype=like.dtype)
        pushed = jax.vmap(push)(basis.reshape(like.size, *like.shape))
        return jnp.einsum("jij->i", pushed.reshape(like.size, -1, like.size))

    def directions(self, key: PRNGKey, like: Array) -> Array:
        return (like.size**0.5 * jnp.eye(like.size, dtype=like.dtype)).reshape(like.size, *like.shape)


class Hutchinson(Divergence):
    """Hutchinson's estimate with random signs: unbiased, new probes at every look. Schemes take off what its noise adds
    to the mean weight (``correctors.py``); the weights vary more than with the exact divergence, the less the more steps
    or probes there are.

    Attributes:
        probes: Number of probes, each one pass.
    """

    random: ClassVar[bool] = True
    probes: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        if self.probes < 1:
            raise MethodError(f"Hutchinson's estimate got probes={self.probes}, expected at least 1. Use probes=1.")

    def __call__(self, key: PRNGKey, push: Callable[[Array], Array], like: Array) -> Array:
        signs = self.directions(key, like)
        pushed = jax.vmap(push)(signs)
        return jnp.sum(pushed * signs[:, None], tuple(range(2, pushed.ndim))).mean(0)

    def directions(self, key: PRNGKey, like: Array) -> Array:
        return jax.random.rademacher(key, (self.probes, *like.shape), like.dtype)


# -- transport -------------------------------------------------------------------------------------------------------


class Transport(eqx.Module):
    """The field that moves the particles."""

    @abc.abstractmethod
    def look(self, key: PRNGKey, corrector: Corrector, x: Array, t: Array) -> Look:
        """Transport, rate of the log weight, and scores at a point."""


class VelocityTransport(Transport):
    r""":math:`v = \sum_i \beta_i u_i / \sum_i \beta_i`.

    Attributes:
        divergence: How to take the divergence.
    """

    divergence: Divergence = ExactDivergence()

    def look(self, key: PRNGKey, corrector: Corrector, x: Array, t: Array) -> Look:
        beta = corrector.powers(t)

        def stacked(x: Array) -> tuple[Array, Array]:
            scores, velocities = zip(*(part.fields(x, t) for part in corrector.parts), strict=True)
            return jnp.stack(velocities), jnp.stack(scores)

        divergences = None
        if corrector.balanced and not corrector.tracks:
            velocities, scores = stacked(x)
        else:
            velocities, push, scores = jax.linearize(stacked, x, has_aux=True)
            divergences = self.divergence(key, push, x)
        v = jnp.tensordot(beta, velocities, 1) / jnp.sum(beta)
        score = jnp.tensordot(beta, scores, 1)
        flows = each(velocities, scores)
        rate = -beta @ flows + jnp.vdot(v, score)
        if divergences is not None and not corrector.balanced:
            rate = rate + (1 / jnp.sum(beta) - 1) * (beta @ divergences)
        change = None if divergences is None else -divergences - flows
        guessed = divergences if self.divergence.random else None
        return corrector.tilted(x, t, Look(v, rate, score, scores, change, guessed))


class ScoreTransport(Transport):
    r""":math:`v = f x - \tfrac12 g^2 \sum_i \beta_i s_i`: no divergence of a learned function, and far noisier weights.

    All parts must share one noising process.
    """

    def look(self, key: PRNGKey, corrector: Corrector, x: Array, t: Array) -> Look:
        beta, f, g2 = corrector.powers(t), corrector.noise.f(t), corrector.noise.g2(t)
        scores = jnp.stack([part.fields(x, t)[0] for part in corrector.parts])
        score = jnp.tensordot(beta, scores, 1)
        rate = x.size * f * (1 - jnp.sum(beta)) + 0.5 * g2 * (beta @ each(scores, scores) - jnp.vdot(score, score))
        return corrector.tilted(x, t, Look(f * x - 0.5 * g2 * score, rate, score, scores, None))


def each(a: Array, b: Array) -> Array:
    """Inner products part by part."""
    return jnp.sum((a * b).reshape(a.shape[0], -1), -1)
