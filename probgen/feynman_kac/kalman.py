r"""Linear-Gaussian chains, exactly: filter, smoother, posterior draws, evidence; in sequence or in parallel over time.

A chain is driven by standard normal noise, and seen through residuals in units of their noise:

.. math::

    u_0 = a + S \epsilon_0, \qquad u_t = F_t u_{t-1} + b_t + G_t \epsilon_t, \qquad
    \log g_t = -\tfrac12 \lVert r_t - H_t u_{t-1} - K_t \epsilon_t \rVert^2, \qquad t = 1 \dots T,

with :math:`\epsilon_t \sim N(0, I_k)`. A row that was not observed is zero in :math:`r, H, K`. The transition noise may be
singular and parts of the state may be known: no covariance of a state is ever inverted.

*Filter* (forward, Kalman): with :math:`u_{t-1} \mid y_{<t} \sim N(m, P)` and :math:`V = I + H P H^\top + K K^\top`, the
gain is :math:`L = (F P H^\top + G K^\top) V^{-1}` and the covariance is updated in Joseph's form, a sum of squares.

*Posterior* (backward, the dual): what is to come says of :math:`u_t` only :math:`-\tfrac12 u^\top \Lambda u + \eta^\top
u`. Completing the square in :math:`\epsilon_t` makes the posterior a Markov chain that is driven by the same noise,

.. math:: \epsilon_t = X_t u_{t-1} + x_t + C_t \xi_t, \qquad C_t C_t^\top = (I + K^\top K + G^\top \Lambda_t G)^{-1},

and :math:`\Lambda_{t-1}`, again a sum of squares. Means, covariances and draws of the smoother run forward through it: the
Rauch-Tung-Striebel smoother with the roles of the two directions exchanged, which inverts :math:`k \times k` matrices
:math:`\succeq I` where that one inverts predicted covariances.

*In parallel*: each step is a kernel with its likelihood, :math:`(A, b, C, \eta, J)`; steps compose associatively (Särkkä
and García-Fernández 2021, "Temporal parallelization of Bayesian smoothers", lemma 8). Products from the left give the
filter, products from the right give :math:`\Lambda_t, \eta_t`. Depth is :math:`O(\log T)`, work a few times that of the
sequence: for a GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import PRNGKey, Scalar
from probgen.feynman_kac.gaussian_kernel import GaussianKernel, compose_laws, compose_points, symmetric, then

__all__ = [
    "Chain",
    "Driven",
    "Filtered",
    "Law",
    "View",
    "driven",
    "filtered",
    "path",
    "seen",
    "smoothed",
    "state_space",
]


class Law(NamedTuple):
    """A normal law (or one per step, with a leading axis): ``mean`` (..., d), ``covariance`` (..., d, d)."""

    mean: Array
    covariance: Array


class Chain(eqx.Module):
    """A linear-Gaussian chain; the notation is that of the module.

    Attributes:
        mean: ``a``, shape (d,).
        factor: ``S``, shape (d, k_0).
        transition: ``F``, shape (T, d, d).
        offset: ``b``, shape (T, d).
        noise: ``G``, shape (T, d, k).
        of_state: ``H``, shape (T, m, d).
        of_noise: ``K``, shape (T, m, k).
        residual: ``r``, shape (T, m).
        constant: Added to the log evidence: log normalising constants of the observations.
    """

    mean: Array
    factor: Array
    transition: Array
    offset: Array
    noise: Array
    of_state: Array
    of_noise: Array
    residual: Array
    constant: Array

    @property
    def steps(self) -> tuple[Array, ...]:
        """What one step takes, with leading axis ``T``."""
        return self.transition, self.offset, self.noise, self.of_state, self.of_noise, self.residual


class View(NamedTuple):
    """Numbers that are computed at a step: ``of_state @ u[t - 1] + of_noise @ epsilon[t] + offset``; leading axis T."""

    of_state: Array
    of_noise: Array
    offset: Array


class Filtered(NamedTuple):
    """What a filter knows.

    Attributes:
        before: Law of the state before each step, given all earlier observations, leading axis T.
        after: Law of the state after each step, given the observations up to it, leading axis T.
        log_z: Log evidence of the observations up to each step, shape (T,).
    """

    before: Law
    after: Law
    log_z: Array


class Driven(NamedTuple):
    """The posterior as a chain driven by noise: ``epsilon[t] = gain @ u[t - 1] + shift + factor @ xi``.

    Attributes:
        start_shift: Mean of the first noise, shape (k_0,).
        start_factor: Factor of its covariance, shape (k_0, k_0), upper triangular.
        gain: ``X``, shape (T, k, d).
        shift: ``x``, shape (T, k).
        factor: ``C``, shape (T, k, k), upper triangular.
        log_det: Sum of the log determinants of the factors.
    """

    start_shift: Array
    start_factor: Array
    gain: Array
    shift: Array
    factor: Array
    log_det: Array


def state_space(
    mean: Array, factor: Array, transition: Array, noise: Array, observation: Array, scale: Array, y: Array, seen: Array
) -> Chain:
    r"""The textbook model :math:`u_t = F u_{t-1} + q \epsilon_t`, :math:`y_t = H u_t + R^{1/2} \nu_t`, as a chain.

    Args:
        mean: Mean of :math:`u_0`, shape (d,).
        factor: Factor of its covariance, shape (d, k_0).
        transition: ``F``, shape (d, d) or (T, d, d).
        noise: ``q``, a factor of the transition covariance, shape (d, k) or (T, d, k).
        observation: ``H``, shape (m, d) or (T, m, d).
        scale: Lower Cholesky factor of the observation covariance, shape (m, m) or (T, m, m).
        y: Observations, shape (T, m).
        seen: Which of them were made, shape (T, m).
    """
    length = y.shape[0]
    f, q, h, scale = (jnp.broadcast_to(a, (length, *a.shape[-2:])) for a in (transition, noise, observation, scale))
    # Entries that were not seen leave the joint law of the others: their rows are taken out of the covariance.
    both = seen[:, :, None] & seen[:, None, :]
    root = jnp.linalg.cholesky(jnp.where(both, scale @ scale.mT, jnp.eye(y.shape[1], dtype=scale.dtype)))
    rows = jnp.where(seen[:, :, None], h, 0.0)
    white = jax.scipy.linalg.solve_triangular(
        root, jnp.concatenate([rows @ f, rows @ q, jnp.where(seen, y, 0.0)[..., None]], -1), lower=True
    )
    d = f.shape[-1]
    log_scale = jnp.log(jnp.diagonal(root, axis1=1, axis2=2)) + 0.5 * jnp.log(2 * jnp.pi)
    return Chain(
        mean,
        factor,
        f,
        jnp.zeros((length, d), f.dtype),
        q,
        white[..., :d],
        white[..., d:-1],
        white[..., -1],
        -jnp.sum(jnp.where(seen, log_scale, 0.0)),
    )


# -- forward -----------------------------------------------------------------------------------------------------------


def filtered(chain: Chain, *, parallel: bool = False) -> Filtered:
    """The Kalman filter.

    Args:
        chain: The chain.
        parallel: Whether to use an associative scan over time.
    """
    start = Law(chain.mean, chain.factor @ chain.factor.T)
    if parallel:
        kernels = jax.vmap(_kernel)(*chain.steps)
        first = GaussianKernel(jnp.zeros_like(start.covariance), start.mean, start.covariance, *_nothing(chain.mean))
        products = jax.lax.associative_scan(jax.vmap(then), jax.tree.map(_prepended, first, kernels))
        before = Law(products.shift[:-1], products.covariance[:-1])
        after = Law(products.shift[1:], products.covariance[1:])
        log_g = jax.vmap(predictive)(before, *chain.steps[3:])
    else:

        def step(law: Law, now: tuple[Array, ...]) -> tuple[Law, tuple[Law, Law, Scalar]]:
            f, b, g, h, k, r = now
            new = updated(law, f, g, b, h, k, r)
            return new, (law, new, predictive(law, h, k, r))

        _, (before, after, log_g) = jax.lax.scan(step, start, chain.steps)
    return Filtered(before, after, chain.constant + jnp.cumsum(log_g))


def seen(chain: Chain, view: View, before: Law) -> Law:
    """Law of a view given the observations up to its step, from the filter's ``before``."""
    return jax.vmap(updated)(before, *view, *chain.steps[3:])


def updated(law: Law, f: Array, g: Array, b: Array, h: Array, k: Array, r: Array) -> Law:
    """Law of ``f u + b + g epsilon`` given ``r``, for ``u`` with the given law."""
    m, p = law
    gain = jax.scipy.linalg.cho_solve(_innovation(p, h, k), (f @ p @ h.T + g @ k.T).T).T
    by_u, by_noise = f - gain @ h, g - gain @ k
    covariance = by_u @ p @ by_u.T + by_noise @ by_noise.T + gain @ gain.T
    return Law(f @ m + b + gain @ (r - h @ m), symmetric(covariance))


def _innovation(p: Array, h: Array, k: Array) -> tuple[Array, bool]:
    v = jnp.eye(h.shape[0], dtype=h.dtype) + h @ p @ h.T + k @ k.T
    return jnp.linalg.cholesky(v), True


def predictive(law: Law, h: Array, k: Array, r: Array) -> Scalar:
    """Log density of the residuals of a step given a law of the state before it, up to their normalising constants."""
    root, _ = _innovation(law.covariance, h, k)
    white = jax.scipy.linalg.solve_triangular(root, r - h @ law.mean, lower=True)
    return -0.5 * jnp.sum(white**2) - jnp.sum(jnp.log(jnp.diagonal(root)))


# -- backward ----------------------------------------------------------------------------------------------------------


def driven(chain: Chain, *, parallel: bool = False) -> Driven:
    """The posterior as a chain that is driven by noise.

    Args:
        chain: The chain.
        parallel: Whether to use an associative scan over time.
    """
    nothing = _nothing(chain.mean)
    if parallel:
        kernels = jax.vmap(_kernel)(*chain.steps)
        products = jax.lax.associative_scan(jax.vmap(lambda late, early: then(early, late)), kernels, reverse=True)
        ahead = jax.tree.map(lambda a, z: jnp.concatenate([a, z[None]]), (products.eta, products.precision), nothing)
        first = jax.tree.map(lambda a: a[0], ahead)
        gain, shift, factor, _ = jax.vmap(_completed)(jax.tree.map(lambda a: a[1:], ahead), *chain.steps)
    else:

        def step(ahead: tuple[Array, Array], now: tuple[Array, ...]) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
            *kept, new = _completed(ahead, *now)
            return new, tuple(kept)

        first, (gain, shift, factor) = jax.lax.scan(step, nothing, chain.steps, reverse=True)
    eta, precision = first
    root = _root(_inner(chain.factor, precision))
    start = jax.scipy.linalg.cho_solve((root, True), chain.factor.T @ (eta - precision @ chain.mean))
    inverse = _inverse_transpose(root)
    log_det = _log_diagonal(inverse) + jnp.sum(jax.vmap(_log_diagonal)(factor))
    return Driven(start, inverse, gain, shift, factor, log_det)


def _completed(
    ahead: tuple[Array, Array], f: Array, b: Array, g: Array, h: Array, k: Array, r: Array
) -> tuple[Array, Array, Array, tuple[Array, Array]]:
    """Complete the square in the noise of one step: gain, shift, factor, and what the step says of the state before."""
    eta, precision = ahead
    root = _root(_inner(g, precision) + k.T @ k)
    pull = eta - precision @ b
    gain = -jax.scipy.linalg.cho_solve((root, True), k.T @ h + g.T @ precision @ f)
    shift = jax.scipy.linalg.cho_solve((root, True), k.T @ r + g.T @ pull)
    closed, rows = f + g @ gain, h + k @ gain
    before = rows.T @ rows + closed.T @ precision @ closed + gain.T @ gain
    slope = h.T @ (r - k @ shift) + f.T @ (pull - precision @ (g @ shift))
    return gain, shift, _inverse_transpose(root), (slope, symmetric(before))


def smoothed(chain: Chain, posterior: Driven, view: View, *, parallel: bool = False) -> tuple[Law, Law, Law]:
    """Laws given all observations: of the first noise, of the states after each step, and of a view at each step."""
    noise = Law(posterior.start_shift, posterior.start_factor @ posterior.start_factor.T)
    start = Law(chain.mean + chain.factor @ noise.mean, chain.factor @ noise.covariance @ chain.factor.T)
    maps = _closed(posterior, View(chain.transition, chain.noise, chain.offset))
    if parallel:
        kernels = (maps[0], maps[2], maps[1] @ maps[1].mT)
        first = (jnp.zeros_like(start.covariance), start.mean, start.covariance)
        _, mean, covariance = jax.lax.associative_scan(compose_laws, jax.tree.map(_prepended, first, kernels))
        states = Law(mean, covariance)
        before, after = (jax.tree.map(lambda a, s=s: a[s], states) for s in (slice(-1), slice(1, None)))
    else:

        def step(law: Law, now: View) -> tuple[Law, tuple[Law, Law]]:
            new = _pushed(law, now)
            return new, (law, new)

        _, (before, after) = jax.lax.scan(step, start, maps)
    return noise, after, jax.vmap(_pushed)(before, _closed(posterior, view))


def path(
    chain: Chain, posterior: Driven, xi_start: Array, xi: Array, *, parallel: bool = False
) -> tuple[Array, Array, Array]:
    """The path that standard normal numbers drive: a posterior draw; zeros give the posterior mean.

    Args:
        chain: The chain.
        posterior: Its posterior.
        xi_start: Shape (k_0,).
        xi: Shape (T, k).
        parallel: Whether to use an associative scan over time.

    Returns:
        The first noise (k_0,), states ``u[0] ... u[T]`` (T + 1, d), and the noise of each step (T, k).
    """
    first = posterior.start_shift + posterior.start_factor @ xi_start
    start = chain.mean + chain.factor @ first
    closed, factor, offset = _closed(posterior, View(chain.transition, chain.noise, chain.offset))
    if parallel:
        kicks = offset + jnp.einsum("tij,tj->ti", factor, xi)
        maps = jax.tree.map(_prepended, (jnp.zeros_like(closed[0]), start), (closed, kicks))
        states = jax.lax.associative_scan(compose_points, maps)[1]
    else:

        def step(u: Array, now: tuple[Array, ...]) -> tuple[Array, Array]:
            a, root, c, z = now
            new = a @ u + c + root @ z
            return new, new

        _, states = jax.lax.scan(step, start, (closed, factor, offset, xi))
        states = jnp.concatenate([start[None], states])
    noise = jnp.einsum("tij,tj->ti", posterior.gain, states[:-1]) + posterior.shift
    return first, states, noise + jnp.einsum("tij,tj->ti", posterior.factor, xi)


def log_evidence(chain: Chain, posterior: Driven) -> Scalar:
    """Log evidence from the posterior: the height of its peak times its volume. Equals the last of the filter's."""
    first, states, noise = path(
        chain, posterior, jnp.zeros_like(posterior.start_shift), jnp.zeros_like(posterior.shift)
    )
    misfit = chain.residual - jnp.einsum("tij,tj->ti", chain.of_state, states[:-1])
    misfit = misfit - jnp.einsum("tij,tj->ti", chain.of_noise, noise)
    squares = jnp.sum(first**2) + jnp.sum(noise**2) + jnp.sum(misfit**2)
    return chain.constant - 0.5 * squares + posterior.log_det


def draw(key: PRNGKey, chain: Chain, posterior: Driven, *, parallel: bool = False) -> tuple[Array, Array, Array]:
    """One posterior draw; see ``path``."""
    key_start, key_steps = jax.random.split(key)
    xi_start = jax.random.normal(key_start, posterior.start_shift.shape, posterior.shift.dtype)
    xi = jax.random.normal(key_steps, posterior.shift.shape, posterior.shift.dtype)
    return path(chain, posterior, xi_start, xi, parallel=parallel)


def _closed(posterior: Driven, view: View) -> View:
    """A view in terms of the state and of the posterior's own noise."""
    gain, shift, factor = posterior.gain, posterior.shift, posterior.factor
    offset = view.offset + jnp.einsum("tij,tj->ti", view.of_noise, shift)
    return View(view.of_state + view.of_noise @ gain, view.of_noise @ factor, offset)


def _pushed(law: Law, view: View) -> Law:
    a, root, c = view
    return Law(a @ law.mean + c, symmetric(a @ law.covariance @ a.T + root @ root.T))


# -- steps as kernels --------------------------------------------------------------------------------------------------


def _kernel(f: Array, b: Array, g: Array, h: Array, k: Array, r: Array) -> GaussianKernel:
    """One step alone, with the likelihood of its own observations."""
    gain, shift, factor, (eta, precision) = _completed(_nothing(b), f, b, g, h, k, r)
    root = g @ factor
    return GaussianKernel(f + g @ gain, b + g @ shift, root @ root.T, eta, precision)


# -- matrices ------------------------------------------------------------------------------------------------------------


def _nothing(mean: Array) -> tuple[Array, Array]:
    """No information about a state: ``eta`` and ``precision``."""
    return jnp.zeros_like(mean), jnp.zeros((mean.shape[0], mean.shape[0]), mean.dtype)


def _inner(g: Array, precision: Array) -> Array:
    return g.T @ precision @ g


def _root(more: Array) -> Array:
    """Lower Cholesky factor of the identity plus a positive semi-definite matrix."""
    return jnp.linalg.cholesky(jnp.eye(more.shape[0], dtype=more.dtype) + symmetric(more))


def _inverse_transpose(root: Array) -> Array:
    return jax.scipy.linalg.solve_triangular(root, jnp.eye(root.shape[0], dtype=root.dtype), lower=True).T


def _log_diagonal(triangle: Array) -> Scalar:
    return jnp.sum(jnp.log(jnp.diagonal(triangle)))


def _prepended(first: Array, rest: Array) -> Array:
    return jnp.concatenate([first[None], rest])
