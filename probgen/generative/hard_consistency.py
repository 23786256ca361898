r"""Hard data consistency: the denoised value is fitted to the observation, and the sample redrawn around it.

ReSample (Song et al. 2024, "Solving inverse problems with latent diffusion models via hard data consistency"). After a
step of DDIM from :math:`t` to :math:`s`, the denoised value :math:`m` is moved to

.. math:: \hat x = \arg\max_x\ \log p(y \mid x) - \frac{\lVert x - m \rVert^2}{2 \tau_t}, \qquad
          \tau_t = \frac{v \sigma_t^2}{v \alpha_t^2 + \sigma_t^2},

by descent from :math:`m`, and the sample :math:`x_s` is drawn anew from the product of :math:`N(\alpha_s \hat x, \sigma_s^2
I)` with a Gaussian about the unconditional :math:`x_s` (stochastic resampling),

.. math:: N\!\left(\frac{r\, \alpha_s \hat x + \sigma_s^2 x_s}{r + \sigma_s^2},\ \frac{r \sigma_s^2}{r + \sigma_s^2} I
          \right), \qquad r = \gamma\, \frac{\sigma_s^2}{\alpha_t^2} \Bigl(\sigma_t^2 - \frac{\alpha_t^2}{\alpha_s^2}
          \sigma_s^2\Bigr).

The published method has no proximal term (:math:`v = \infty`; the nearest point that explains the data is found since
descent begins at :math:`m`, and noise is left to early stopping). With it, for data of which a priori nothing is known
but the variance :math:`v` of every entry, :math:`\hat x` *is* :math:`E[x_0 \mid x_t, y]`. Around a decoder :math:`D`, the
likelihood is that of :math:`D(x)`, and the model one of latent values.

What it gets right: with :math:`\gamma = \infty` and standard normal latent values the posterior mean is exact, at every
number of steps. What it gets wrong: the spread. The draws are those of posterior *means* given noisy values; on such
values, of the posterior's variance 0.36 was left in 12 steps and 0.48 in 50, and with the default :math:`\gamma` 0.39 and
0.52. Modes are chosen by where the noise began.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.denoiser import Denoiser
from probgen.generative.guidance import Known
from probgen.generative.sampler import DDIM, Sampler

__all__ = ["HardConsistency"]


class HardConsistency(Sampler):
    r"""ReSample, for a ``log_likelihood`` of clean data (or latent values).

    Attributes:
        log_likelihood: A differentiable function of one clean value.
        variance: :math:`v`, the prior variance of an entry; infinite for the published method.
        gamma: How much of the sample is redrawn, >= 0; infinite to redraw it all.
        every: Steps between two that look at the data; the last step always does.
        iterations: Of descent (L-BFGS).
        eta: Noise of a step of DDIM.
    """

    log_likelihood: Callable[[Array], Scalar] = eqx.field(static=True)
    variance: float = eqx.field(static=True, default=math.inf, kw_only=True)
    gamma: float = eqx.field(static=True, default=40.0, kw_only=True)
    every: int = eqx.field(static=True, default=1, kw_only=True)
    iterations: int = eqx.field(static=True, default=10, kw_only=True)
    eta: float = eqx.field(static=True, default=0.0, kw_only=True)

    def __check_init__(self) -> None:
        for name in ("variance", "gamma"):
            if not getattr(self, name) > 0:
                raise MethodError(
                    f"HardConsistency got {name}={getattr(self, name)!r}, expected a positive number or math.inf."
                )
        for name in ("every", "iterations"):
            value = getattr(self, name)
            if not is_count(value):
                raise MethodError(f"HardConsistency got {name}={value!r}, expected an int of at least 1.")
        DDIM(self.eta)

    @property
    def random(self) -> bool:
        return True

    def start(self, denoiser: Denoiser, x: Array, t: Array) -> Array:
        """The number of steps taken."""
        return jnp.zeros((), int)

    def step(
        self, key: PRNGKey, denoiser: Denoiser, x: Array, t: Array, s: Array, memory: Array
    ) -> tuple[Array, Array]:
        key_move, key_redraw = jax.random.split(key)
        path = denoiser.path
        mean = denoiser.mean(x, t)
        moved, _ = DDIM(self.eta).step(key_move, Known(value=mean, path=path), x, t, s, None)

        def redrawn() -> Array:
            fitted = self.fitted(mean, *path(t))
            (alpha_t, sigma_t), (alpha_s, sigma_s) = path(t), path(s)
            share = jnp.ones(())
            if math.isfinite(self.gamma):
                r = self.gamma / alpha_t**2 * (sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2)  # over sigma_s^2
                share = r / (r + 1)
            noise = jnp.sqrt(share) * sigma_s * jax.random.normal(key_redraw, x.shape, x.dtype)
            return share * alpha_s * fitted + (1 - share) * moved + noise

        if self.every == 1:
            return redrawn(), memory + 1
        looks = (memory % self.every == self.every - 1) | (s <= path.start)
        return jax.lax.cond(looks, redrawn, lambda: moved), memory + 1

    def fitted(self, mean: Array, alpha: Array, sigma: Array) -> Array:
        r""":math:`\hat x`, from the denoised value ``mean`` at a time with scales ``alpha`` and ``sigma``."""
        width = self.variance * sigma**2 / (self.variance * alpha**2 + sigma**2) if self.variance < math.inf else None

        def loss(x: Array) -> Scalar:
            near = 0.0 if width is None else jnp.sum((x - mean) ** 2) / (2 * width)
            return near - self.log_likelihood(x)

        descent = optax.lbfgs()
        value_and_grad = optax.value_and_grad_from_state(loss)

        def improve(carry: tuple[Array, optax.OptState], _: None) -> tuple[tuple[Array, optax.OptState], None]:
            x, state = carry
            value, gradient = value_and_grad(x, state=state)
            updates, state = descent.update(gradient, state, x, value=value, grad=gradient, value_fn=loss)
            return (optax.apply_updates(x, updates), state), None  # pyright: ignore[reportReturnType]

        (x, _), _ = jax.lax.scan(improve, (mean, descent.init(mean)), None, self.iterations)
        return x
