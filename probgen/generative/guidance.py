r"""What samplers with guidance share, and the exact answer against which they are measured.

Guidance makes a model of data :math:`x_0` a model of :math:`x_0` given an observation :math:`y`. Bayes' rule holds at
every time of the path,

.. math:: \nabla \log q_t(x \mid y) = \nabla \log q_t(x) + \nabla \log p(y \mid x_t = x), \qquad
          p(y \mid x_t) = \int p(y \mid x_0)\, p(x_0 \mid x_t)\, dx_0

and only the last integral is not at hand: methods differ in what they put in its place. For a mixture of Gaussians and
:math:`y = A x_0 + e` with :math:`e \sim N(0, R)` it is, since the posterior is a mixture of Gaussians too:
``observed_mixture``. No other method of this part is exact; how wrong each is, is in the guide on guidance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey
from probgen.generative.denoiser import Denoiser, GaussianMixture
from probgen.generative.path import Path, Time

__all__ = ["Known", "Linear", "block_mean", "kept", "observed_mixture", "renoise", "repeated"]

type Linear = Callable[[Array], Array]


def observed_mixture(mixture: GaussianMixture, matrix: Any, y: Any, covariance: Any) -> GaussianMixture:
    r"""The posterior of a mixture of Gaussians given :math:`y = A x_0 + e`, :math:`e \sim N(0, R)`: exact.

    Args:
        mixture: The prior.
        matrix: :math:`A`, shape ``(n, dim)``.
        y: What was observed, shape ``(n,)``.
        covariance: :math:`R`, symmetric positive definite, shape ``(n, n)``.

    Raises:
        MethodError: If the shapes do not fit, or the covariance is none.
    """
    matrix, y, covariance = (np.asarray(v, float) for v in (matrix, y, covariance))
    count, dim = y.size, mixture.shape[0]
    if matrix.shape != (count, dim) or y.shape != (count,) or covariance.shape != (count, count):
        raise MethodError(
            f"an observation of {dim} values got a matrix of shape {matrix.shape}, y of shape {y.shape} and a "
            f"covariance of shape {covariance.shape}, expected (n, {dim}), (n,) and (n, n). Reshape them."
        )
    if np.linalg.eigvalsh(covariance).min() <= 0:
        raise MethodError("the covariance of an observation must be positive definite. Give some noise, such as 1e-6.")
    prior = np.einsum("kij,kj,klj->kil", mixture.axes, mixture.variances, mixture.axes)
    spread = matrix @ prior @ matrix.T + covariance
    off = y - np.asarray(mixture.means) @ matrix.T
    solved = np.linalg.solve(spread, off[..., None])[..., 0]
    logs = np.asarray(mixture.log_weights) - 0.5 * (np.sum(off * solved, -1) + np.linalg.slogdet(spread)[1])
    weights = np.exp(logs - np.logaddexp.reduce(logs))
    if weights.min() <= 0:
        raise MethodError(
            f"the observation leaves component {weights.argmin()} no weight that a number can hold. Drop it first."
        )
    cross = prior @ matrix.T
    means = np.asarray(mixture.means) + np.einsum("kij,kj->ki", cross, solved)
    # (I - K A) C (I - K A)' + K R K', which stays positive definite in rounding.
    gain = np.linalg.solve(spread, cross.swapaxes(1, 2)).swapaxes(1, 2)
    rest = np.eye(dim) - gain @ matrix
    posterior = rest @ prior @ rest.swapaxes(1, 2) + gain @ covariance @ gain.swapaxes(1, 2)
    return GaussianMixture(weights, means, (posterior + posterior.swapaxes(1, 2)) / 2, mixture.path)


class Known(Denoiser):
    """A denoised value that is known already, for a sampler's step.

    Attributes:
        value: The posterior mean.
        path: From data to noise.
    """

    value: Array
    path: Path

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    def mean(self, x: Array, t: Time) -> Array:
        """See ``Denoiser.mean``; the value, at any point and time."""
        return self.value


def renoise(key: PRNGKey, path: Path, x: Array, s: Time, t: Time) -> Array:
    """A draw of the value at time ``t``, given ``x`` at an earlier time ``s``: the noising process."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = path(s), path(t)
    share = alpha_t / alpha_s
    spread = jnp.maximum(sigma_t**2 - (share * sigma_s) ** 2, 0.0)
    return share * x + jnp.sqrt(spread) * jax.random.normal(key, x.shape, x.dtype)


def repeated(
    key: PRNGKey,
    path: Path,
    advance: Callable[[PRNGKey, Array], Array],
    x: Array,
    t: Time,
    s: Time,
    repeats: int,
) -> Array:
    """Go from ``t`` to ``s``, and back by new noise, and again: ``repeats`` times in all."""
    if repeats == 1:
        return advance(key, x)

    def once(x: Array, key: PRNGKey) -> tuple[Array, None]:
        key_down, key_up = jax.random.split(key)
        return renoise(key_up, path, advance(key_down, x), s, t), None

    key_last, *keys = jax.random.split(key, repeats)
    x, _ = jax.lax.scan(once, x, jnp.stack(keys))
    return advance(key_last, x)


def kept(mask: Any) -> Linear:
    """The projection on the entries where ``mask`` is true: others become 0."""
    mask = np.asarray(mask, bool)
    return lambda x: jnp.where(mask, x, 0.0)


def block_mean(factor: int) -> Linear:
    """The projection on what is constant in blocks of ``factor`` entries along every axis: a low-pass filter, and what
    is left of a picture that is made smaller by ``factor`` and larger again.

    Raises:
        MethodError: If the factor is no positive int; when called, if it does not divide a length.
    """
    if not is_count(factor):
        raise MethodError(f"block_mean got factor={factor!r}, expected a positive int. Use 2 or 4.")

    def project(x: Array) -> Array:
        if any(length % factor for length in x.shape):
            raise MethodError(
                f"block_mean({factor}) got data of shape {x.shape}, expected lengths that {factor} divides. Change it."
            )
        blocks = x.reshape([n for length in x.shape for n in (length // factor, factor)])
        within = tuple(range(1, blocks.ndim, 2))
        return jnp.broadcast_to(blocks.mean(within, keepdims=True), blocks.shape).reshape(x.shape)

    return project
