r"""Moves of particles: Metropolis kernels that leave a tempered posterior invariant, tuned on a cloud.

A particle at :math:`u` is moved at the *level* :math:`\ell(u) = \log p(u) + \sum_k \beta_k \, \ell_k(u)`, where the
terms :math:`\ell_k` of the log likelihood are kept with the particle: at another temperature nothing is computed again.
Moves run in coordinates whitened by :math:`L`, with :math:`L L^\top` the covariance of the cloud, and have the scale
:math:`h`. On targets of independent coordinates in high dimension the acceptance rate is

.. math:: a(h) = 2 \, \Phi(-c \, h^p / 2)

with :math:`p = 1` for the random walk (Roberts, Gelman and Gilks 1997), 3 for the Langevin proposal (Roberts and
Rosenthal 1998) and 2 for Hamiltonian trajectories of fixed length (Beskos, Pillai, Roberts, Sanz-Serna and Stuart
2013); a measured rate gives :math:`c`, hence the scale with the rate that is wanted.

Where a posterior has modes, or is bent, its covariance says little of it. Differential evolution (ter Braak 2006) takes
its proposals from the cloud itself, :math:`u + \gamma (a - b) + \epsilon` with two of its members: they have its shape at
every distance, and with :math:`\gamma = 1` lead from one mode to another. The members come from a *bank* that is made of
the cloud before it moves and stays as it is: given the bank the proposal is symmetric, so the moves are Metropolis steps.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import log_ndtr, ndtr, ndtri

from probgen.base.errors import MethodError
from probgen.base.typing import Position, PRNGKey, Scalar

__all__ = ["DifferentialEvolution", "Hamiltonian", "Langevin", "Move", "Point", "RandomStep", "Target", "Tuning"]

_QUARTER = np.pi / 2
"""Length of the trajectory that makes start and end independent on a standard normal: a quarter of a period."""

_JITTER = 0.05
"""Noise of a differential-evolution step, as a share of the scale, in deviations of the cloud."""


class Point(NamedTuple):
    """A place and what the density says of it.

    Attributes:
        u: Unconstrained coordinates, shape ``(dim,)``.
        log_prior: Log prior density, Jacobian included.
        terms: Terms of the log likelihood, shape ``(terms,)``.
    """

    u: Position
    log_prior: Scalar
    terms: Array


class Target(NamedTuple):
    """A tempered posterior.

    Attributes:
        evaluate: From coordinates to a point; one execution of the program.
        powers: :math:`\\beta_k`, the power of each term, shape ``(terms,)``.
    """

    evaluate: Callable[[Position], Point]
    powers: Array

    def level(self, point: Point) -> Scalar:
        """Log density of a point, up to a constant; a density that is not a number counts as zero."""
        terms = jnp.where(self.powers > 0, self.powers * point.terms, 0.0)  # not 0 * -inf
        level = point.log_prior + jnp.sum(terms)
        return jnp.where(jnp.isnan(level), -jnp.inf, level)

    def slope(self, u: Position) -> tuple[Point, Array]:
        """The point at ``u``, and the gradient of the level there."""

        def value(u: Position) -> tuple[Scalar, Point]:
            point = self.evaluate(u)
            return self.level(point), point

        (_, point), gradient = jax.value_and_grad(value, has_aux=True)(u)
        return point, gradient


class Tuning(NamedTuple):
    """What all particles share at a step.

    Attributes:
        root: :math:`L`, a Cholesky factor of the covariance, shape ``(dim, dim)``; or standard deviations, ``(dim,)``.
        scale: :math:`h`.
        bank: Members of the cloud, equally weighted, shape ``(move.bank, dim)``; ``None`` for moves without.
    """

    root: Array
    scale: Scalar
    bank: Array | None = None

    def push(self, z: Array) -> Array:
        """:math:`L z`."""
        return self.root @ z if self.root.ndim == 2 else self.root * z

    def pull(self, g: Array) -> Array:
        r""":math:`L^\top g`: a gradient in whitened coordinates."""
        return self.root.T @ g if self.root.ndim == 2 else self.root * g


class Move(eqx.Module):
    """A Metropolis kernel for one particle.

    Attributes:
        target_accept: Acceptance rate that the scale aims at.
    """

    target_accept: eqx.AbstractVar[float]
    order: ClassVar[int]
    """:math:`p` above."""
    bank: ClassVar[int] = 0
    """How many members of the cloud it asks for."""

    @abc.abstractmethod
    def first_scale(self, dim: int) -> float:
        """The scale at the first temperature."""

    @abc.abstractmethod
    def first_moves(self, dim: int) -> int:
        """About how many moves make the end independent of the start, on a normal that has been whitened."""

    @abc.abstractmethod
    def begin(self, target: Target, point: Point) -> Any:
        """State of a particle that starts to move."""

    @abc.abstractmethod
    def point(self, state: Any) -> Point:
        """Where a moving particle is."""

    @abc.abstractmethod
    def __call__(self, key: PRNGKey, target: Target, state: Any, tuning: Tuning) -> tuple[Any, Scalar]:
        """One move: the new state, and the probability with which it was accepted."""

    def rescaled(self, scale: Scalar, acceptance: Scalar) -> Scalar:
        """The scale with the acceptance rate that is wanted, where ``scale`` had the rate ``acceptance``."""
        measured = -ndtri(jnp.clip(acceptance, 1e-3, 1 - 1e-3) / 2)
        wanted = -ndtri(self.target_accept / 2)
        return scale * (wanted / measured) ** (1 / self.order)


def _chosen(key_noise: Array, log_ratio: Scalar, new: Any, old: Any) -> tuple[Any, Scalar]:
    """Metropolis: ``new`` with probability ``exp(log_ratio)``. ``key_noise`` is standard normal."""
    log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
    accepted = log_ndtr(key_noise) < log_ratio
    chosen = jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new, old)
    return chosen, jnp.exp(jnp.minimum(log_ratio, 0.0))


class _Walk(Move):
    """Metropolis steps with a symmetric proposal. A subclass says where they lead."""

    order: ClassVar = 1
    spare: ClassVar[int] = 0
    """Normal numbers that a step takes beside one per coordinate."""

    @abc.abstractmethod
    def step(self, noise: Array, tuning: Tuning) -> Position:
        """A step, of standard normal noise, shape ``(dim + spare,)``."""

    def first_moves(self, dim: int) -> int:
        """See ``Move.first_moves``."""
        return 4 * dim + 4

    def begin(self, target: Target, point: Point) -> tuple[Point, Scalar]:
        """See ``Move.begin``."""
        return point, target.level(point)

    def point(self, state: tuple[Point, Scalar]) -> Point:
        """See ``Move.point``."""
        return state[0]

    def __call__(
        self, key: PRNGKey, target: Target, state: tuple[Point, Scalar], tuning: Tuning
    ) -> tuple[tuple[Point, Scalar], Scalar]:
        """See ``Move.__call__``."""
        point, level = state
        noise = jax.random.normal(key, (point.u.shape[0] + self.spare + 1,), point.u.dtype)
        new = target.evaluate(point.u + self.step(noise[:-1], tuning))
        new_level = target.level(new)
        return _chosen(noise[-1], new_level - level, (new, new_level), state)


class RandomStep(_Walk):
    """Random walk with the covariance of the cloud."""

    target_accept: float = eqx.field(static=True, default=0.234)

    def first_scale(self, dim: int) -> float:
        """See ``Move.first_scale``."""
        return 2.38 / np.sqrt(dim)

    def step(self, noise: Array, tuning: Tuning) -> Position:
        """See ``_Walk.step``."""
        return tuning.scale * tuning.push(noise)


class DifferentialEvolution(_Walk):
    """Differential evolution: steps along the difference of two members of the cloud (ter Braak 2006).

    For posteriors of a few coordinates, up to ten or so, with several modes or a bent shape; no gradient.

    Attributes:
        target_accept: Acceptance rate that the scale aims at.
        jumps: Share of the moves by a whole difference, which lead between modes.
    """

    target_accept: float = eqx.field(static=True, default=0.234)
    jumps: float = eqx.field(static=True, default=0.15)
    bank: ClassVar = 1024
    spare: ClassVar = 3

    def check(self) -> None:
        """Raise ``MethodError`` for settings that make no sense."""
        for name, usual in (("target_accept", 0.234), ("jumps", 0.15)):
            if not 0 < getattr(self, name) < 1:
                raise MethodError(f"{name} must lie between 0 and 1, got {getattr(self, name)!r}. {usual:g} is usual.")

    def first_scale(self, dim: int) -> float:
        """See ``Move.first_scale``."""
        return 2.38 / np.sqrt(2 * dim)

    def step(self, noise: Array, tuning: Tuning) -> Position:
        """See ``_Walk.step``."""
        assert tuning.bank is not None
        count = tuning.bank.shape[0]
        first, apart, jump = ndtr(noise[-3:])
        first = jnp.minimum((count * first).astype(int), count - 1)
        second = (first + 1 + jnp.minimum(((count - 1) * apart).astype(int), count - 2)) % count
        gamma = jnp.where(jump < self.jumps, 1.0, tuning.scale)
        # The noise lets the chain reach what lies between the differences.
        step = gamma * (tuning.bank[first] - tuning.bank[second])
        return step + _JITTER * tuning.scale * tuning.push(noise[:-3])


class _Sloped(NamedTuple):
    """A point with its level, and the gradient in coordinates that are not whitened."""

    point: Point
    level: Scalar
    gradient: Array


def _sloped(target: Target, u: Position) -> _Sloped:
    point, gradient = target.slope(u)
    return _Sloped(point, target.level(point), gradient)


class Langevin(Move):
    """The Langevin proposal: half a squared step along the gradient, and noise."""

    target_accept: float = eqx.field(static=True, default=0.574)
    order: ClassVar = 3

    def first_scale(self, dim: int) -> float:
        """See ``Move.first_scale``."""
        return 1.3 / dim ** (1 / 6)

    def first_moves(self, dim: int) -> int:
        """See ``Move.first_moves``."""
        return round(4 * dim ** (1 / 3)) + 2

    def begin(self, target: Target, point: Point) -> _Sloped:
        """See ``Move.begin``."""
        return _sloped(target, point.u)

    def point(self, state: _Sloped) -> Point:
        """See ``Move.point``."""
        return state.point

    def __call__(self, key: PRNGKey, target: Target, state: _Sloped, tuning: Tuning) -> tuple[_Sloped, Scalar]:
        """See ``Move.__call__``."""
        u, h = state.point.u, tuning.scale
        noise = jax.random.normal(key, (u.shape[0] + 1,), u.dtype)
        z = noise[:-1]
        drift = h / 2 * tuning.pull(state.gradient)
        new = _sloped(target, u + h * tuning.push(drift + z))
        back = z + drift + h / 2 * tuning.pull(new.gradient)  # the noise of the way back, but for its sign
        log_ratio = new.level - state.level + (jnp.sum(z**2) - jnp.sum(back**2)) / 2
        return _chosen(noise[-1], log_ratio, new, state)


class Hamiltonian(Move):
    """Leapfrog trajectories of about a quarter of a period, each with a step size up to a fifth off.

    Attributes:
        steps: The most leapfrog steps.
    """

    steps: int = eqx.field(static=True, default=8)
    target_accept: float = eqx.field(static=True, default=0.8)
    order: ClassVar = 2

    def first_scale(self, dim: int) -> float:
        """See ``Move.first_scale``."""
        return 1.0 / dim**0.25

    def first_moves(self, dim: int) -> int:
        """See ``Move.first_moves``."""
        return 3

    def begin(self, target: Target, point: Point) -> _Sloped:
        """See ``Move.begin``."""
        return _sloped(target, point.u)

    def point(self, state: _Sloped) -> Point:
        """See ``Move.point``."""
        return state.point

    def __call__(self, key: PRNGKey, target: Target, state: _Sloped, tuning: Tuning) -> tuple[_Sloped, Scalar]:
        """See ``Move.__call__``."""
        dim, dtype = state.point.u.shape[0], state.point.u.dtype
        noise = jax.random.normal(key, (dim + 2,), dtype)
        h = tuning.scale * (0.8 + 0.4 * ndtr(noise[-2]))
        # One number for all particles: where each had its own, all would take as many steps as the slowest.
        steps = jnp.clip(jnp.round(_QUARTER / tuning.scale), 1, self.steps).astype(int)

        def leap(_: Any, carry: tuple[_Sloped, Array]) -> tuple[_Sloped, Array]:
            at, momentum = carry
            momentum = momentum + h / 2 * tuning.pull(at.gradient)
            at = _sloped(target, at.point.u + h * tuning.push(momentum))
            return at, momentum + h / 2 * tuning.pull(at.gradient)

        momentum = noise[:dim]
        new, last = jax.lax.fori_loop(0, steps, leap, (state, momentum))
        log_ratio = new.level - state.level + (jnp.sum(momentum**2) - jnp.sum(last**2)) / 2
        return _chosen(noise[-1], log_ratio, new, state)
