r"""Mixtures of multivariate t laws fitted to draws: a proposal with a density where the law that was drawn from has none.

Components begin at draws that lie far apart (k-means++, Arthur and Vassilvitskii 2007) and are fitted by expectation
maximisation as Gaussians; the proposal has the same centres and covariances with the tails of a t law, and a share of one
broad component, so that importance weights stay bounded where the draws were too narrow.
"""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import gammaln, logsumexp

from probgen.base.typing import PRNGKey

__all__ = ["DRAWS_TO_FIT", "MIXTURE", "Mixture", "fitted_mixture", "mixture_of"]

DRAWS_TO_FIT = 8000
"""Draws of a law that a mixture is fitted to."""
_COMPONENTS = 40
MIXTURE = f"a mixture of {_COMPONENTS} components fitted to the draws"
_DEGREES = 7.0
_BROAD = 0.05
_ROUNDS = 60


class Mixture(eqx.Module):
    """A mixture of multivariate t laws with a density.

    Attributes:
        log_shares: Shape ``(components,)``.
        locs: Centres, shape ``(components, dim)``.
        roots: Cholesky factors of the scale matrices, shape ``(components, dim, dim)``.
    """

    log_shares: Array
    locs: Array
    roots: Array

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws, shape ``(*sample_shape, dim)``."""
        key_which, key_normal, key_tail = jax.random.split(key, 3)
        which = jax.random.categorical(key_which, self.log_shares, shape=sample_shape)
        z = jax.random.normal(key_normal, (*sample_shape, self.locs.shape[1]))
        tail = jax.random.gamma(key_tail, _DEGREES / 2, sample_shape) / (_DEGREES / 2)
        return self.locs[which] + jnp.einsum("...ij,...j->...i", self.roots[which], z) / jnp.sqrt(tail)[..., None]

    def log_prob(self, u: Array) -> Array:
        """Log density, shape that of ``u`` without the last axis."""

        def one(u: Array) -> Array:
            dim = u.shape[0]
            z = jax.vmap(lambda m, r: jax.scipy.linalg.solve_triangular(r, u - m, lower=True))(self.locs, self.roots)
            squares = jnp.sum(z**2, -1)
            constant = gammaln((_DEGREES + dim) / 2) - gammaln(_DEGREES / 2) - dim / 2 * math.log(_DEGREES * math.pi)
            log_det = jnp.sum(jnp.log(jnp.diagonal(self.roots, axis1=1, axis2=2)), -1)
            each = constant - log_det - (_DEGREES + dim) / 2 * jnp.log1p(squares / _DEGREES)
            return logsumexp(self.log_shares + each)

        flat = u.reshape(-1, u.shape[-1])
        return jax.vmap(one)(flat).reshape(u.shape[:-1])


def _separate(key: PRNGKey, u: Array, count: int) -> Array:
    """Draws that lie far apart."""
    key_first, key_next = jax.random.split(key)
    first = u[jax.random.randint(key_first, (), 0, len(u))]

    def step(nearest: Array, key: PRNGKey) -> tuple[Array, Array]:
        chosen = u[jax.random.categorical(key, jnp.log(nearest + 1e-300))]
        return jnp.minimum(nearest, jnp.sum((u - chosen) ** 2, -1)), chosen

    _, rest = jax.lax.scan(step, jnp.sum((u - first) ** 2, -1), jax.random.split(key_next, count - 1))
    return jnp.concatenate([first[None], rest])


def fitted_mixture(key: PRNGKey, u: Array, components: int) -> Mixture:
    """A mixture fitted to draws.

    Args:
        key: Randomness.
        u: Draws, shape ``(n, dim)``.
        components: Number of components, beside the broad one.
    """
    n, dim = u.shape
    loc = u.mean(0)
    scale = jnp.where(u.std(0) > 0, u.std(0), 1.0)
    standard = (u - loc) / scale
    # The ridge is one of correlations: parameters may have any scale.
    ridge = 1e-10 if u.dtype == jnp.float64 else 1e-6
    root = scale[:, None] * jnp.linalg.cholesky(standard.T @ standard / n + ridge * jnp.eye(dim))
    x = jax.scipy.linalg.solve_triangular(root, (u - loc).T, lower=True).T
    floor = 1e-5 * jnp.eye(dim)

    def log_normal(locs: Array, roots: Array) -> Array:
        def each(m: Array, r: Array) -> Array:
            z = jax.scipy.linalg.solve_triangular(r, (x - m).T, lower=True)
            return -0.5 * jnp.sum(z**2, 0) - jnp.sum(jnp.log(jnp.diagonal(r)))

        return jax.vmap(each, out_axes=1)(locs, roots)

    def step(state: tuple[Array, Array, Array], _: Any) -> tuple[tuple[Array, Array, Array], None]:
        log_shares, locs, roots = state
        shares = jax.nn.softmax(log_shares + log_normal(locs, roots), -1)
        total = shares.sum(0) + 1e-6
        locs = shares.T @ x / total[:, None]
        centred = x[None] - locs[:, None]
        # A few rows of the whole shape keep a component of few draws from collapsing.
        prior = dim + 1.0
        width = components ** (-2.0 / dim)
        cov = jnp.einsum("nk,kni,knj->kij", shares, centred, centred) + prior * width * jnp.eye(dim)
        cov = cov / (total + prior)[:, None, None] + floor
        return (jnp.log(total / n), locs, jnp.linalg.cholesky(cov)), None

    start = jnp.eye(dim) * components ** (-1.0 / dim)
    begin = (
        jnp.full(components, -math.log(components)),
        _separate(key, x, components),
        jnp.tile(start, (components, 1, 1)),
    )
    (log_shares, locs, roots), _ = jax.lax.scan(step, begin, None, length=_ROUNDS)
    shares = jnp.append(math.log1p(-_BROAD) + log_shares - logsumexp(log_shares), math.log(_BROAD))
    locs = jnp.concatenate([locs, jnp.zeros((1, dim))])
    roots = jnp.concatenate([roots, 1.5 * jnp.eye(dim)[None]])
    return Mixture(shares, loc + locs @ root.T, jnp.einsum("ij,kjl->kil", root, roots))


def mixture_of(u: Array) -> Mixture:
    """A mixture fitted to draws, shape ``(n, dim)``; the same for the same draws."""
    return _fitted(jax.random.key(0), u, _COMPONENTS)


_fitted = jax.jit(fitted_mixture, static_argnums=2)
