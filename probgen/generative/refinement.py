r"""Refinement: data brought closer to a diffusion model without sampling it anew.

A prediction :math:`\tilde x` from elsewhere is refined by Langevin steps for

.. math:: \pi(x) \propto q_t(x)\, e^{r(x)},

where :math:`q_t` is the model's implicit density at a small noise level and :math:`r` holds the sample to the
prediction: minus the squared distance, or the quantile loss (Kollovieh et al. 2023, "Predict, refine, synthesize").
They take the gradient of the denoising error at one representative noise level; its expectation is that of
:math:`-\log q_t` where the denoiser is exact, so the score is used here.

The steps are not corrected by acceptance: on a Gaussian of variance :math:`v` the variance comes out as :math:`v / (1 -
h / 4v)` for steps of length :math:`h`, and with few of them the prediction is not forgotten, which is the point.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.denoiser import Denoiser
from probgen.generative.path import Time

__all__ = ["refine"]


def refine(
    key: PRNGKey,
    denoiser: Denoiser,
    x: Array,
    reward: Callable[[Array], Scalar],
    *,
    t: Time,
    steps: int = 100,
    length: float = 1e-2,
    temperature: float = 1.0,
) -> Array:
    r"""Langevin steps from ``x`` for :math:`q_t\, e^r` (to a power, one over the temperature).

    Args:
        key: Randomness.
        denoiser: The model.
        x: What is refined, one value.
        reward: :math:`r`, a differentiable function of one value.
        t: Time of the noise level; that of a level below the details that count.
        steps: Number of steps.
        length: Of a step, in units of the data squared: :math:`h` in :math:`x + \tfrac h2 \nabla \log \pi + \sqrt h\, z`.
        temperature: Factor of the variance of the noise; 0 to climb to a mode.

    Raises:
        MethodError: If a setting makes no sense.
    """
    if not is_count(steps):
        raise MethodError(f"refine got steps={steps!r}, expected an int of at least 1. Use 100.")
    if not (math.isfinite(length) and length > 0) or not (math.isfinite(temperature) and temperature >= 0):
        raise MethodError(
            f"refine got length={length!r} and temperature={temperature!r}, expected a positive number and one >= 0."
        )
    alpha = denoiser.path(t)[0]

    def step(x: Array, key: PRNGKey) -> tuple[Array, None]:
        gain = alpha * denoiser.score(alpha * x, t) + jax.grad(reward)(x)
        noise = jnp.sqrt(temperature * length) * jax.random.normal(key, x.shape, x.dtype)
        return x + 0.5 * length * gain + noise, None

    return jax.lax.scan(step, x, jax.random.split(key, steps))[0]
