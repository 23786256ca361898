r"""Training-free guidance: a diffusion model, a likelihood of clean data, and gradients.

:math:`L(x_0) = \log p(y \mid x_0)` is known for clean data alone. A step from :math:`t` to :math:`s` denoises to
:math:`m = E[x_0 \mid x_t]` and takes the likelihood there, or smoothed, :math:`\tilde L(x) = \log E\, e^{L(x + \gamma
\sigma_t \delta)}` with standard normal :math:`\delta`. It adds to a step of DDIM

.. math::

    x_s = \mathrm{DDIM}_\eta(x_t, m) + c\, \frac{\sigma_t^2}{\alpha_t}\, \rho\, \nabla_{x_t} \tilde L(m(x_t))
        + \alpha_s \Delta, \qquad \Delta \leftarrow \Delta + \mu\, \nabla \tilde L(m + \Delta), \ n \text{ times},

where :math:`c` is the coefficient of :math:`m` in that step; then it may add noise to come back to :math:`t`, and
repeat. :math:`\rho = 1` is Bayes' rule if :math:`\tilde L(m(x))` were :math:`\log p(y \mid x_t = x)`, which it is not:
the average over :math:`p(x_0 \mid x_t)` is put at its mean, or in a Gaussian of the wrong covariance. So everything here
is an approximation: in ``benchmarks/guidance.py`` DPS leaves about a third of what the observation moves, in the weights of
components, the mean and the covariance alike. It comes out too confident of directions in which
:math:`p(x_0 \mid x_t)` is wide, and steps that are long against the likelihood overshoot: as for any explicit rule,
:math:`c\,\rho\,\sigma_t^2 / \alpha_t` times the curvature of :math:`L(m(x))` must stay below 2.

What has been published is a choice of settings (Ye et al. 2024, "TFG: unified training-free guidance for diffusion
models", who write :math:`\rho_t \alpha_s / \alpha_t` for :math:`c \rho\, \sigma_t^2 / \alpha_t`; ``published_strength``
takes theirs):

=========================================== ===================================================
DPS (Chung et al. 2023)                     :math:`\rho` alone; :math:`L(x) = -\lVert y - Ax \rVert` for their step length
LGD (Song et al. 2023)                      :math:`\rho` with ``smoothing`` and ``probes``
MPGD (He et al. 2024)                       :math:`\mu` with one iteration, :math:`\rho = 0`
FreeDoM (Yu et al. 2023)                    :math:`\rho` with ``repeats``
UGD (Bansal et al. 2023)                    :math:`\rho` and :math:`\mu` with ``iterations`` and ``repeats``
=========================================== ===================================================

The observation self-guidance of TSDiff (Kollovieh et al. 2023) is :math:`\rho` with the normal likelihood of what was
seen of a series, or with an asymmetric Laplace one for a quantile.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.denoiser import Denoiser
from probgen.generative.guidance import Known, repeated
from probgen.generative.path import Path, Time
from probgen.generative.sampler import DDIM, Sampler

__all__ = ["Strength", "TrainingFree", "published_strength"]

type Strength = float | Callable[[Path, Time, Time], Array]


class TrainingFree(Sampler):
    r"""DDIM with training-free guidance, for a ``log_likelihood`` of clean data.

    Attributes:
        log_likelihood: :math:`L`, a differentiable function of one clean value.
        rho: Strength of the gradient through the denoiser: a number, or a function of the path, :math:`t` and
            :math:`s`; 1 for what Bayes' rule would add, 0 for none.
        mu: Length of steps in the denoised value, in units of the data squared; likewise.
        iterations: Number of those steps.
        smoothing: :math:`\gamma`, the noise in :math:`\tilde L` in units of :math:`\sigma_t`; 0 for none.
        probes: Number of values of :math:`\delta`.
        repeats: How often each step is taken, with new noise in between.
        eta: Noise of a step of DDIM; 1 for the ancestral one.
    """

    log_likelihood: Callable[[Array], Scalar] = eqx.field(static=True)
    rho: Strength = eqx.field(static=True, default=1.0, kw_only=True)
    mu: Strength = eqx.field(static=True, default=0.0, kw_only=True)
    iterations: int = eqx.field(static=True, default=1, kw_only=True)
    smoothing: float = eqx.field(static=True, default=0.0, kw_only=True)
    probes: int = eqx.field(static=True, default=1, kw_only=True)
    repeats: int = eqx.field(static=True, default=1, kw_only=True)
    eta: float = eqx.field(static=True, default=1.0, kw_only=True)

    def __check_init__(self) -> None:
        if not callable(self.log_likelihood):
            raise MethodError(
                f"TrainingFree got log_likelihood={self.log_likelihood!r}, expected a function of one clean value."
            )
        for name in ("iterations", "probes", "repeats"):
            value = getattr(self, name)
            if not is_count(value):
                raise MethodError(f"TrainingFree got {name}={value!r}, expected an int of at least 1. Change {name}.")
        for name in ("rho", "mu", "smoothing"):
            value = getattr(self, name)
            if not callable(value) and not (math.isfinite(value) and value >= 0):
                raise MethodError(f"TrainingFree got {name}={value!r}, expected a number >= 0. Change {name}.")
        DDIM(self.eta)

    @property
    def random(self) -> bool:
        return self.eta > 0 or self.repeats > 1 or self.smoothing > 0

    def step(self, key: PRNGKey, denoiser: Denoiser, x: Array, t: Array, s: Array, memory: None) -> tuple[Array, None]:
        path, rule = denoiser.path, DDIM(self.eta)
        (alpha, sigma), alpha_s = path(t), path(s)[0]

        def advance(key: PRNGKey, x: Array) -> Array:
            key_move, key_probe = jax.random.split(key)
            mean, pull = jax.vjp(lambda x: denoiser.mean(x, t), x)
            gradient = jax.grad(self._smoothed(key_probe, sigma, mean))
            moved, _ = rule.step(key_move, Known(value=mean, path=path), x, t, s, None)
            if self.rho != 0.0:
                gain = gain_of_mean(denoiser, t, s, self.eta) * sigma**2 / alpha
                moved = moved + gain * _at(self.rho, path, t, s) * pull(gradient(mean))[0]
            if self.mu != 0.0:
                length = _at(self.mu, path, t, s)
                shift = jax.lax.fori_loop(
                    0, self.iterations, lambda _, d: d + length * gradient(mean + d), jnp.zeros_like(mean)
                )
                moved = moved + alpha_s * shift
            return moved

        return repeated(key, path, advance, x, t, s, self.repeats), None

    def _smoothed(self, key: PRNGKey, sigma: Array, like: Array) -> Callable[[Array], Scalar]:
        """The log likelihood, averaged over noise."""
        if self.smoothing == 0.0:
            return self.log_likelihood
        noise = self.smoothing * sigma * jax.random.normal(key, (self.probes, *like.shape), like.dtype)

        def smoothed(x: Array) -> Scalar:
            return jax.nn.logsumexp(jax.vmap(self.log_likelihood)(x + noise)) - math.log(self.probes)

        return smoothed


def _at(strength: Strength, path: Path, t: Array, s: Array) -> Array | float:
    return strength(path, t, s) if callable(strength) else strength


def gain_of_mean(denoiser: Denoiser, t: Time, s: Time, eta: float) -> Array:
    r"""The coefficient :math:`c` of the denoised value in a step of DDIM."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.path(t), denoiser.path(s)
    spread = eta**2 * denoiser.ancestral(t, s)[2]
    return alpha_s - alpha_t * jnp.sqrt(sigma_s**2 - spread) / sigma_t


def published_strength(rho: float | Callable[[Time], Array], eta: float = 1.0) -> Strength:
    r"""The strength as it is written in the literature: the step gains :math:`\rho\,(\alpha_s / \alpha_t)\, \nabla`.

    Args:
        rho: The published number, or a function of time.
        eta: That of the sampler.
    """

    def strength(path: Path, t: Time, s: Time) -> Array:
        sigma, alpha_s = path(t)[1], path(s)[0]
        gain = gain_of_mean(Known(value=jnp.zeros(()), path=path), t, s, eta)
        return (rho(t) if callable(rho) else rho) * alpha_s / (gain * sigma**2)

    return strength
