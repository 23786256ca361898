r"""The variational bound of the denoising chain, as of DDPM.

The ancestral sampler (``DDIM(eta=1)``) through times :math:`t_T > \dots > t_1 > t_0`, from the noise end to the data end,
is a Markov chain with Gaussian steps :math:`p(x_{t_{k-1}} \mid x_{t_k}) = N(a x_{t_k} + b\, m(x_{t_k}), v)`. With the
noising process :math:`q` that begins at the value :math:`x` at :math:`t_0`, the log density of what the chain returns is

.. math::

    \log p(x) \ge
      \underbrace{-\operatorname{KL}(q(x_{t_T} \mid x) \,\|\, p(x_{t_T}))}_{\text{end}}
      \underbrace{- \sum_{k=2}^{T} E\, \operatorname{KL}(q(x_{t_{k-1}} \mid x_{t_k}, x) \,\|\, p(x_{t_{k-1}} \mid x_{t_k}))}_{\text{steps}}
      \underbrace{+ E \log p(x \mid x_{t_1})}_{\text{data}}.

The divergences of the steps are in closed form; expectations are over one draw of :math:`x_{t_k}` for each step, so the
estimate is unbiased. As the steps get shorter the bound tends to the log density, if the denoiser is exact and the law at
the noise end is :math:`q`'s. Its gap is what is wrong with these two: with a path that ends early the first
part is large, unless the end has a law of its own (``Ended``).

References: Sohl-Dickstein et al. (2015), "Deep unsupervised learning using nonequilibrium thermodynamics"; Ho, Jain and
Abbeel (2020), "Denoising diffusion probabilistic models"; Franzese et al. (2023), "How much is enough? A study on
diffusion times in score-based generative models".
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.stats import norm

from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.denoiser import Denoiser

__all__ = ["ChainBound", "chain_bound"]


class ChainBound(NamedTuple):
    """An unbiased estimate of the variational bound, in nats and in its parts.

    Attributes:
        end: Of the noise end: how well its law is met.
        steps: Of the steps between: how well the denoiser foresees, shape ``(steps - 1,)``, from the noise end.
        data: Of the last step, to the data end.
    """

    end: Scalar
    steps: Array
    data: Scalar

    @property
    def total(self) -> Scalar:
        """The bound of the log density; divided by ``-dim * log(2)``, in bits per entry."""
        return self.end + jnp.sum(self.steps, -1) + self.data


def chain_bound(key: PRNGKey, denoiser: Denoiser, x: Array, times: Array) -> ChainBound:
    """Bound the log density of the ancestral sampler at one value.

    Args:
        key: Randomness.
        denoiser: Posterior mean and path.
        x: A value at the data end.
        times: Falling times from the noise end to the data end, shape ``(steps + 1,)``; see ``even_log_snr``.
    """
    path = denoiser.path
    alpha_0, sigma_0 = path(times[-1])
    key_end, key_steps = jax.random.split(key)

    def law(t: Array) -> tuple[Array, Array]:
        """Scale and variance of the noising process at ``t``, given the value at the data end."""
        alpha, sigma = path(t)
        scale = alpha / alpha_0
        return scale, sigma**2 - scale**2 * sigma_0**2

    def noised(key: PRNGKey, t: Array) -> Array:
        scale, variance = law(t)
        return scale * x + jnp.sqrt(variance) * jax.random.normal(key, x.shape, x.dtype)

    scale, variance = law(times[0])
    end = noised(key_end, times[0])
    at_end = denoiser.log_noise(end) - jnp.sum(norm.logpdf(end, scale * x, jnp.sqrt(variance)))

    def backwards(key: PRNGKey, t: Array, s: Array) -> tuple[Array, Array, Array]:
        """A noisy value at ``t``, and mean and variance of the chain's step from there."""
        noisy = noised(key, t)
        a, b, v = denoiser.ancestral(t, s)
        return noisy, a * noisy + b * denoiser.mean(noisy, t), v

    def step(key: PRNGKey, t: Array, s: Array) -> Scalar:
        noisy, mean, v = backwards(key, t, s)
        (scale_s, variance_s), (scale_t, variance_t) = law(s), law(t)
        kept = scale_t / scale_s
        true_v = variance_s * (1 - kept**2 * variance_s / variance_t)
        true = scale_s * x + kept * variance_s / variance_t * (noisy - scale_t * x)
        return -0.5 * jnp.sum((true - mean) ** 2 / v + true_v / v - 1 - jnp.log(true_v / v))

    keys = jax.random.split(key_steps, times.shape[0] - 1)
    steps = jax.vmap(step)(keys[:-1], times[:-2], times[1:-1])
    _, mean, v = backwards(keys[-1], times[-2], times[-1])
    return ChainBound(at_end, steps, jnp.sum(norm.logpdf(x, mean, jnp.sqrt(v))))
