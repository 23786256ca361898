r"""Messages of a backward filter: what the data below a vertex say about the state there.

The state lives in a *space*; each space has one family of messages :math:`h`, closed under the three operations that a
backward filter is made of, and a guided draw for the way forward:

- *observe*: the likelihood of an observation, as a message;
- *fuse*: the product of messages that meet at a vertex (their parameters add up);
- *pull*: :math:`(Kh)(x) = \int K(x, dx')\, h(x')`, back along an edge with an auxiliary kernel :math:`K`;
- *guide*: for a kernel :math:`k` from a known state, draw :math:`x' \sim k\, h / kh` and report the number :math:`\log kh`.

On :math:`R^d` (``Continuous``), messages are :math:`\log h(x) = c + F^\top (x - a) - \frac12 (x - a)^\top H (x - a)`
around an *anchor* :math:`a`, and kernels are Gaussian, :math:`x' = m + L \epsilon`, with any matrix :math:`L`
(singular noise is allowed, and no covariance is ever inverted). With :math:`r = F - H (m - a)` and
:math:`A = (I + L^\top H L)^{-1}`,

.. math::

    \epsilon \mid h \sim N(A L^\top r, A), \qquad
    \log kh = \log h(m) - \tfrac12 \log\det(I + L^\top H L) + \tfrac12 r^\top L A L^\top r .

Auxiliary kernels are linearised at the anchors, :math:`m = a' + \beta + B (x - a)`. On a finite space (``Finite``)
messages are tables of logs, everything is exact, and kernels are rows of a transition matrix.

Reference: van der Meulen and Schauer (2020), "Automatic backward filtering forward guiding for Markov processes and
graphical models", arXiv 2010.03509.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array

from probgen.base.errors import ModelError
from probgen.base.small import cholesky, solve_lower
from probgen.base.typing import PRNGKey, Scalar

__all__ = ["Continuous", "Finite", "Gaussian", "Quadratic", "Space", "space_of"]


class Gaussian(NamedTuple):
    r"""The law of :math:`m + L \epsilon` with standard normal :math:`\epsilon`; the noise may be singular.

    Attributes:
        mean: Shape ``(dim,)``.
        scale: Shape ``(dim, noises)``.
    """

    mean: Array
    scale: Array

    def log_prob(self, x: Array) -> Scalar:
        """Log density at ``x``, shape ``(dim,)``.

        Raises:
            ModelError: If ``scale`` is not square.
        """
        dim, noises = self.scale.shape
        if dim != noises:
            raise ModelError(
                f"a transition with {noises} noises in {dim} dimensions has no density. Use what needs none (the "
                f"filter itself, smoothing by genealogy), or give every coordinate a noise."
            )
        z = jnp.linalg.solve(self.scale, x - self.mean)
        log_det = jnp.linalg.slogdet(self.scale)[1]
        return -0.5 * z @ z - log_det - 0.5 * dim * jnp.log(2 * jnp.pi)


class Quadratic(NamedTuple):
    """A message on R^d, in deviations from its anchor: see the module.

    Attributes:
        c: Value at the anchor, shape ``()``.
        F: Gradient there, shape ``(dim,)``.
        H: Negative curvature, positive semi-definite, shape ``(dim, dim)``.
    """

    c: Array
    F: Array
    H: Array


class Space(eqx.Module):
    """Where the states live, and the messages about them."""

    @abc.abstractmethod
    def law(self, law: Any, what: str) -> Any:
        """What the space understands, from a distribution.

        Args:
            law: What the user's function has returned.
            what: Its name in messages.

        Raises:
            ModelError: If it is no law on this space.
        """

    @abc.abstractmethod
    def anchor(self, initial: Any) -> Array:
        """A first anchor of the root."""

    @abc.abstractmethod
    def zero(self, dtype: Any) -> Any:
        """The message that says nothing."""

    @abc.abstractmethod
    def observe(self, log_likelihood: Callable[[Array], Scalar], anchor: Array) -> Any:
        """The message of an observation."""

    @abc.abstractmethod
    def pull(self, kernel: Callable[[Array], Any], message: Any, anchor: Array, anchor_above: Array) -> Any:
        """Pull ``message``, around ``anchor``, back along the auxiliary ``kernel``, to one around ``anchor_above``."""

    @abc.abstractmethod
    def value(self, message: Any, x: Array, anchor: Array) -> Scalar:
        """Log of the message at ``x``."""

    @abc.abstractmethod
    def evidence(self, law: Any, message: Any, anchor: Array) -> Scalar:
        """Log of the mean of the message under ``law``."""

    @abc.abstractmethod
    def draw(self, key: PRNGKey, law: Any, message: Any, anchor: Array) -> Array:
        """Draw from the product of ``law`` and the message."""

    @abc.abstractmethod
    def density(self, law: Any, x: Array) -> Scalar:
        """Log density of ``law`` at ``x``."""


class Continuous(Space):
    """R^d, with Gaussian kernels."""

    dim: int = eqx.field(static=True)

    def law(self, law: Any, what: str) -> Gaussian:
        """See ``Space.law``: a ``Gaussian``, from ``Normal``, ``MultivariateNormal`` or a ``Gaussian``."""
        found = gaussian(law, what)
        if found.mean.shape != (self.dim,):
            raise ModelError(
                f"{what} is a law on {found.mean.size} coordinates, expected {self.dim}, as the root has. Return one "
                f"mean per coordinate of the state."
            )
        return found

    def anchor(self, initial: Gaussian) -> Array:
        """See ``Space.anchor``: the mean."""
        return initial.mean

    def zero(self, dtype: Any) -> Quadratic:
        """See ``Space.zero``."""
        return Quadratic(jnp.zeros((), dtype), jnp.zeros(self.dim, dtype), jnp.zeros((self.dim, self.dim), dtype))

    def observe(self, log_likelihood: Callable[[Array], Scalar], anchor: Array) -> Quadratic:
        """See ``Space.observe``: the Taylor polynomial at the anchor, with curvature where it is concave.

        Exact where the log likelihood is quadratic and concave: for Gaussian noise around an affine function.
        """
        c, F = jax.value_and_grad(log_likelihood)(anchor)
        H = -jax.hessian(log_likelihood)(anchor)
        # What is convex is taken out. Held constant, it leaves the derivatives of the evidence unbiased, and finite.
        values, vectors = jnp.linalg.eigh(jax.lax.stop_gradient(H))
        return Quadratic(c, F, H - (vectors * jnp.minimum(values, 0)) @ vectors.T)

    def pull(
        self, kernel: Callable[[Array], Gaussian], message: Quadratic, anchor: Array, anchor_above: Array
    ) -> Quadratic:
        """See ``Space.pull``: exact for a kernel with affine mean and constant noise, else for its linearisation."""
        at = kernel(anchor_above)
        B = jax.jacobian(lambda x: kernel(x).mean)(anchor_above)
        beta, L = at.mean - anchor, at.scale
        c, F, H = message
        factor = self._factor(L, H)
        half = solve_lower(factor, L.T)
        gain = solve_lower(factor, half @ H, transposed=True)  # A L'H
        shrink = jnp.eye(self.dim, dtype=L.dtype) - L @ gain
        # Joseph's form: a sum of squares, which rounding leaves positive semi-definite.
        H = shrink.T @ H @ shrink + gain.T @ gain
        c = c - _log_det(factor) + 0.5 * jnp.sum((half @ F) ** 2)
        F = shrink.T @ F
        return Quadratic(c + F @ beta - 0.5 * beta @ H @ beta, B.T @ (F - H @ beta), B.T @ H @ B)

    def value(self, message: Quadratic, x: Array, anchor: Array) -> Scalar:
        """See ``Space.value``."""
        c, F, H = message
        return c + F @ (x - anchor) - 0.5 * (x - anchor) @ H @ (x - anchor)

    def evidence(self, law: Gaussian, message: Quadratic, anchor: Array) -> Scalar:
        """See ``Space.evidence``."""
        factor, mean = self._noise(law, message, anchor)
        square = 0.5 * jnp.sum((factor.T @ mean) ** 2)
        return self.value(message, law.mean, anchor) - _log_det(factor) + square

    def draw(self, key: PRNGKey, law: Gaussian, message: Quadratic, anchor: Array) -> Array:
        """See ``Space.draw``."""
        factor, mean = self._noise(law, message, anchor)
        z = jax.random.normal(key, mean.shape, mean.dtype)
        return law.mean + law.scale @ (mean + solve_lower(factor, z, transposed=True))

    def density(self, law: Gaussian, x: Array) -> Scalar:
        """See ``Space.density``."""
        return law.log_prob(x)

    def mode(self, law: Gaussian, message: Quadratic, anchor: Array) -> tuple[Array, Scalar]:
        """The most likely state under the product of ``law`` and message, and the log density of its noise."""
        _, mean = self._noise(law, message, anchor)
        return law.mean + law.scale @ mean, -0.5 * mean @ mean

    def _noise(self, law: Gaussian, message: Quadratic, anchor: Array) -> tuple[Array, Array]:
        """Cholesky factor of the precision of the noise given the message, and its mean."""
        _, F, H = message
        factor = self._factor(law.scale, H)
        right = law.scale.T @ (F - H @ (law.mean - anchor))
        return factor, solve_lower(factor, solve_lower(factor, right), transposed=True)

    @staticmethod
    def _factor(L: Array, H: Array) -> Array:
        return cholesky(jnp.eye(L.shape[1], dtype=L.dtype) + L.T @ H @ L)


class Finite(Space):
    """The states 0 to ``states - 1``; a law is a table of log probabilities, as is a message. Anchors mean nothing."""

    states: int = eqx.field(static=True)

    def law(self, law: Any, what: str) -> Array:
        """See ``Space.law``: log probabilities, from a ``Categorical``."""
        logits = _logits(law)
        if logits is None:
            raise ModelError(f"{what} is {_name(law)}, expected Categorical, as the root is. Return that.")
        if logits.shape != (self.states,):
            raise ModelError(
                f"{what} has probabilities of shape {logits.shape}, expected ({self.states},), as the root has. "
                f"Return one distribution over the same states."
            )
        return jax.nn.log_softmax(logits)

    def anchor(self, initial: Array) -> Array:
        """See ``Space.anchor``."""
        return jnp.zeros((), jnp.int32)

    def zero(self, dtype: Any) -> Array:
        """See ``Space.zero``."""
        return jnp.zeros(self.states, dtype)

    def observe(self, log_likelihood: Callable[[Array], Scalar], anchor: Array) -> Array:
        """See ``Space.observe``."""
        return jax.vmap(log_likelihood)(jnp.arange(self.states, dtype=jnp.int32))

    def pull(self, kernel: Callable[[Array], Array], message: Array, anchor: Array, anchor_above: Array) -> Array:
        """See ``Space.pull``."""
        rows = jax.vmap(kernel)(jnp.arange(self.states, dtype=jnp.int32))
        return jax.nn.logsumexp(rows + message, axis=1)

    def value(self, message: Array, x: Array, anchor: Array) -> Scalar:
        """See ``Space.value``."""
        return message[x]

    def evidence(self, law: Array, message: Array, anchor: Array) -> Scalar:
        """See ``Space.evidence``."""
        return jax.nn.logsumexp(law + message)

    def draw(self, key: PRNGKey, law: Array, message: Array, anchor: Array) -> Array:
        """See ``Space.draw``."""
        return jax.random.categorical(key, law + message).astype(jnp.int32)

    def density(self, law: Array, x: Array) -> Scalar:
        """See ``Space.density``."""
        return law[x]


def space_of(initial: Any) -> Space:
    """The space of a root law.

    Raises:
        ModelError: If it is neither Gaussian nor Categorical.
    """
    logits = _logits(initial)
    if logits is not None and logits.ndim:
        return Finite(logits.shape[-1])
    return Continuous(gaussian(initial, "initial").mean.size)


def gaussian(law: Any, what: str) -> Gaussian:
    """A Gaussian law from a distribution, or from a point (a law without noise).

    Raises:
        ModelError: If it is no Gaussian on a vector.
    """
    if isinstance(law, Gaussian):
        return law
    if isinstance(law, jax.Array | np.ndarray) and law.ndim == 1:
        point = jnp.asarray(law, float)
        return Gaussian(point, jnp.zeros((point.size, 1), point.dtype))
    base = _plain(law)
    shape: tuple[int, ...] = law.shape() if isinstance(law, dist.Distribution) else jnp.shape(law)
    if isinstance(base, dist.Normal | dist.MultivariateNormal) and len(shape) == 1:
        parameters: Any = base
        diagonal = isinstance(base, dist.Normal)
        scale = jnp.diag(jnp.broadcast_to(parameters.scale, shape)) if diagonal else parameters.scale_tril
        return Gaussian(jnp.broadcast_to(parameters.loc, shape), jnp.broadcast_to(scale, shape * 2))
    raise ModelError(
        f"{what} is {_name(law)} with shape {shape}, expected a Gaussian on a vector, as of Normal(loc, scale) with a loc "
        f"of shape (dim,). Return Normal, MultivariateNormal or Gaussian."
    )


def _logits(law: Any) -> Array | None:
    """Log probabilities of a categorical law, unnormalised; ``None`` for another one."""
    base: Any = _plain(law)
    if type(base) is dist.CategoricalProbs:  # its logits of impossible states are finite
        probs = jnp.asarray(base.probs)
        return jnp.where(probs > 0, jnp.log(jnp.where(probs > 0, probs, 1.0)), -jnp.inf)
    return jnp.asarray(base.logits) if type(base) is dist.CategoricalLogits else None


def _name(law: Any) -> str:
    return type(_plain(law)).__name__


def _plain(law: Any) -> Any:
    while isinstance(law, dist.Independent | dist.ExpandedDistribution):
        law = law.base_dist
    return law


def _log_det(factor: Array) -> Scalar:
    """Half of the log determinant of the matrix with this Cholesky factor."""
    return jnp.sum(jnp.log(jnp.diagonal(factor)))
