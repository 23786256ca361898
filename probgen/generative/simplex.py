r"""Interpolants between many laws: barycentres of one draw from each.

With draws :math:`x_1, \dots, x_K` and weights :math:`a` in the simplex, :math:`x(a) = \sum_k a_k x_k` has the law
:math:`\rho_k` at vertex :math:`k`. The expectations :math:`g_k(x, a) = E[x_k \mid x(a) = x]` are a velocity for every
way through the simplex: the law of :math:`x(a(s))` is carried along by

.. math:: \frac{dx}{ds} = \sum_k \dot a_k(s)\, g_k(x, a(s)) ,

so one regression gives the transport between any two laws along any path. Its cost

.. math:: \int_0^1 E \Bigl\| \sum_k \dot a_k\, g_k(x(a(s)), a(s)) \Bigr\|^2 ds

is at least the squared Wasserstein distance of the two laws (Benamou and Brenier 2000) and depends on the path, which
is chosen to lower it (Albergo, Boffi, Lindsey and Vanden-Eijnden 2024).
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar

__all__ = ["GaussianMarginals", "SimplexField", "SimplexPath", "path_cost", "shorter_path"]


class SimplexPath(eqx.Module):
    r"""A path through the simplex from vertex :math:`i` to :math:`j`, by way of the others.

    .. math:: a(s) = \Bigl(1 - \sum_k w_k(s)\Bigr) \bigl((1 - r(s))\, e_i + r(s)\, e_j\bigr)
              + \sum_{k \ne i, j} w_k(s)\, e_k

    with :math:`w_k = 4 s (1 - s)\, e^{p_k} / (1 + \sum_l e^{p_l})` and :math:`r = s + s (1 - s) \tanh p_0`, where the
    :math:`p(s) = \sum_m c_m \cos(\pi m s)` are free.

    Attributes:
        ends: Vertices to begin and end at.
        vertices: How many there are.
        waves: :math:`c`, shape ``(vertices - 1, terms)``, that of :math:`r` first; ``None`` for the edge itself.
    """

    ends: tuple[int, int] = eqx.field(static=True)
    vertices: int = eqx.field(static=True)
    waves: Array | None = None

    def __call__(self, s: Array) -> Array:
        """The weights, shape ``(vertices,)``."""
        corners = jnp.eye(self.vertices)
        first, last = (corners[end] for end in self.ends)
        if self.waves is None:
            return (1 - s) * first + s * last
        free = self.waves @ jnp.cos(jnp.pi * jnp.arange(self.waves.shape[1]) * s)
        others = jnp.asarray([k for k in range(self.vertices) if k not in self.ends], int)
        detour = 4 * s * (1 - s) * jax.nn.softmax(jnp.concatenate([jnp.zeros(1), free[1:]]))[1:]
        share = s + s * (1 - s) * jnp.tanh(free[0])
        edge = (1 - share) * first + share * last
        return (1 - jnp.sum(detour)) * edge + detour @ corners[others]


class SimplexField(eqx.Module):
    """The expectations of the draws given their barycentre; one point at a time."""

    @property
    @abc.abstractmethod
    def vertices(self) -> int:
        """How many laws."""

    @abc.abstractmethod
    def expected(self, x: Array, weights: Array) -> Array:
        r""":math:`g_k`, shape ``(vertices, *shape of x)``."""

    def velocity(self, x: Array, s: Array, path: Callable[[Array], Array]) -> Array:
        """The velocity along a path of weights."""
        weights, rate = jax.jvp(path, (s,), (jnp.ones_like(s),))
        return jnp.tensordot(rate.astype(x.dtype), self.expected(x, weights), 1)


class GaussianMarginals(SimplexField):
    """The exact expectations where the draws are jointly Gaussian.

    Attributes:
        means: Shape ``(vertices, dim)``.
        covariances: ``covariances[k, :, l]`` is that of draws k and l, shape ``(vertices, dim, vertices, dim)``.
    """

    means: Array
    covariances: Array

    def __init__(self, means: Any, covariances: Any) -> None:
        means, covariances = np.asarray(means, float), np.asarray(covariances, float)
        if means.ndim != 2 or covariances.shape != (*means.shape, *means.shape):
            raise MethodError(
                f"got means of shape {means.shape} and covariances of shape {covariances.shape}, expected (k, dim) and (k, "
                f"dim, k, dim)."
            )
        self.means, self.covariances = jnp.asarray(means), jnp.asarray(covariances)

    @property
    def vertices(self) -> int:
        return self.means.shape[0]

    def expected(self, x: Array, weights: Array) -> Array:
        across = jnp.einsum("kalb,l->kab", self.covariances, weights)
        covariance = jnp.einsum("k,kab->ab", weights, across)
        return self.means + across @ jnp.linalg.solve(covariance, x - weights @ self.means)


def path_cost(field: SimplexField, draws: Array, path: Callable[[Array], Array], steps: int = 32) -> Scalar:
    """The cost of a path, by Monte Carlo over the draws and the midpoint rule in time.

    Args:
        field: The expectations.
        draws: Joint draws of all laws, shape ``(n, vertices, *shape)``.
        path: Weights by ``s`` from 0 to 1.
        steps: Times.
    """

    def at(s: Array) -> Scalar:
        x = jnp.tensordot(path(s).astype(draws.dtype), draws, (0, 1))
        velocity = jax.vmap(lambda x: field.velocity(x, s, path))(x)
        return jnp.mean(jnp.sum(velocity.reshape(len(x), -1) ** 2, 1))

    return jnp.mean(jax.lax.map(at, (jnp.arange(steps, dtype=draws.dtype) + 0.5) / steps))


def shorter_path(
    key: PRNGKey,
    field: SimplexField,
    draws: Array,
    ends: tuple[int, int],
    *,
    waves: int = 4,
    steps: int = 200,
    rate: float = 0.1,
    batch: int = 256,
) -> SimplexPath:
    """A path of lower cost than the edge between two vertices, by descent.

    Args:
        key: Randomness.
        field: The expectations.
        draws: Joint draws of all laws, shape ``(n, vertices, *shape)``.
        ends: Vertices to begin and end at.
        waves: Terms of the path per vertex.
        steps: Steps of Adam.
        rate: Its learning rate.
        batch: Draws per step.

    Raises:
        MethodError: If a vertex does not exist.
    """
    check_ends(ends, field.vertices)
    # Away from the edge, which may be a local minimum.
    first = jnp.zeros((field.vertices - 1, waves), draws.dtype)
    optimiser = optax.adam(rate)

    def loss(waves: Array, batch: Array) -> Scalar:
        return path_cost(field, batch, SimplexPath(ends, field.vertices, waves), 16)

    def step(state: tuple[Array, Any], key: PRNGKey) -> tuple[tuple[Array, Any], None]:
        waves, memory = state
        some = draws[jax.random.randint(key, (min(batch, len(draws)),), 0, len(draws))]
        updates, memory = optimiser.update(jax.grad(loss)(waves, some), memory)
        return (jnp.asarray(optax.apply_updates(waves, updates)), memory), None

    (found, _), _ = jax.lax.scan(step, (first, optimiser.init(first)), jax.random.split(key, steps))
    return SimplexPath(ends, field.vertices, found)


def check_ends(ends: tuple[int, int], vertices: int) -> None:
    """Refuse vertices that do not exist."""
    if len(ends) != 2 or not all(isinstance(e, int) and 0 <= e < vertices for e in ends) or ends[0] == ends[1]:
        raise MethodError(f"ends={ends!r}, expected two different vertices, 0 to {vertices - 1}.")
