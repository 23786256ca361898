r"""CFG++: classifier-free guidance of the denoised value alone.

DDIM with a guided denoiser renoises with the guided noise :math:`\hat\varepsilon^w`. Chung et al. (2024, "CFG++:
manifold-constrained classifier free guidance for diffusion models") interpolate the denoised values and renoise with the
unconditional noise:

.. math:: x_s = \alpha_s \bigl((1 - \lambda)\, m_u + \lambda\, m_c\bigr) + \sigma_s \hat\varepsilon_u, \qquad
          0 \le \lambda \le 1.

A step is the one of DDIM with the weight

.. math:: w = \frac{\lambda}{1 - e^{-h}}, \qquad
          e^{-h} = \frac{\sigma_s / \alpha_s}{\sigma_t / \alpha_t},

exactly: :math:`\lambda = 1` is classifier-free guidance with a large weight, and larger for more steps. So CFG++ is a
heuristic whose law depends on the number of steps, and has no limit as they grow; it is exact for none but
:math:`\lambda = 0`. In ``benchmarks/guidance.py`` :math:`\lambda = 0.6` is farther from the squared likelihood than draws
without any condition.

Backwards in time, from :math:`s` to :math:`t`, the step is inverted with both denoised values taken at the point it
starts from: :math:`x_t = \alpha_t m_u + \sigma_t \hat\varepsilon^\lambda`.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey
from probgen.generative.denoiser import Denoiser, Guidance
from probgen.generative.sampler import Sampler

__all__ = ["CFGPlusPlus"]


class CFGPlusPlus(Sampler):
    """CFG++ for a ``Guidance(cond, uncond, weight)``, whose weight is lambda, 0 to 1. Deterministic; order 1.

    With times that rise it inverts itself, as DDIM does: from data to the noise they came from.
    """

    def start(self, denoiser: Denoiser, x: Array, t: Array) -> None:
        if not isinstance(denoiser, Guidance):
            raise MethodError(
                f"CFGPlusPlus samples a Guidance, got a {type(denoiser).__name__}. Give Guidance(cond, uncond, 0.6)."
            )
        if isinstance(denoiser.weight, float | int) and not 0 <= denoiser.weight <= 1:
            raise MethodError(
                f"CFGPlusPlus interpolates, so the weight must be between 0 and 1, got {denoiser.weight}. A weight of "
                f"7.5 in classifier-free guidance is about 0.6 here."
            )

    def step(self, key: PRNGKey, denoiser: Denoiser, x: Array, t: Array, s: Array, memory: None) -> tuple[Array, None]:
        assert isinstance(denoiser, Guidance)  # start has looked
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.path(t), denoiser.path(s)
        uncond, cond = denoiser.uncond.mean(x, t), denoiser.cond.mean(x, t)
        guided = uncond + denoiser.weight * (cond - uncond)
        down = s < t
        mean, noisy = jnp.where(down, guided, uncond), jnp.where(down, uncond, guided)
        return alpha_s * mean + sigma_s * (x - alpha_t * noisy) / sigma_t, None
