r"""Classifier guidance: Bayes' rule in the score.

With a classifier of *noisy* values, :math:`p(y \mid x_t)`, the score given the label is

.. math:: \nabla \log q_t(x) + s\, \nabla \log p(y \mid x_t = x)
          \quad\Longleftrightarrow\quad m + s\, \frac{\sigma^2}{\alpha} \nabla \log p(y \mid x_t = x)

for the denoised value. For :math:`s = 1` and the exact classifier this is the denoiser given the label, at every time:
nothing is approximated. For :math:`s \ne 1` it is the score of :math:`q_t(x)\, p(y \mid x_t)^s`, which is *not* the law
of noisy draws from :math:`q(x)\, p(y \mid x)^s`; the draws follow neither exactly (``Tilted`` does).

A likelihood of clean data is not a classifier of noisy values. That of the denoised value, ``lambda x, t:
log_likelihood(denoiser.mean(x, t))``, is the approximation of diffusion posterior sampling, for which see
``TrainingFree``.

Reference: Dhariwal and Nichol (2021), "Diffusion models beat GANs on image synthesis"; Song et al. (2021).
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.denoiser import Denoiser
from probgen.generative.path import Path, Time

__all__ = ["ClassifierGuidance"]


class ClassifierGuidance(Denoiser):
    """A denoiser guided by a classifier of noisy values.

    Attributes:
        denoiser: The denoiser without the label.
        log_classifier: Log probability of the label given the noisy value and its time, up to a constant; one
            differentiable function of ``(x, t)``.
        scale: Factor of its gradient; 1 for Bayes' rule.
        path: From data to noise.
    """

    denoiser: Denoiser
    log_classifier: Callable[[Array, Time], Scalar] = eqx.field(static=True)
    scale: float | Array
    path: Path

    def __init__(
        self, denoiser: Denoiser, log_classifier: Callable[[Array, Time], Scalar], scale: float | Array = 1.0
    ) -> None:
        if not isinstance(denoiser, Denoiser) or not callable(log_classifier):
            raise MethodError(
                f"ClassifierGuidance got a {type(denoiser).__name__} and a {type(log_classifier).__name__}, expected a "
                f"denoiser and a function of (x, t)."
            )
        self.denoiser, self.log_classifier, self.scale, self.path = denoiser, log_classifier, scale, denoiser.path

    @property
    def shape(self) -> tuple[int, ...]:
        return self.denoiser.shape

    def mean(self, x: Array, t: Time) -> Array:
        """See ``Denoiser.mean``."""
        alpha, sigma = self.path(t)
        gain = jax.grad(lambda x: self.log_classifier(x, t))(x)
        return self.denoiser.mean(x, t) + self.scale * sigma**2 / alpha * gain

    def draw_noise(self, key: PRNGKey) -> Array:
        """A draw at the noise end, where the label is forgotten: from the denoiser without it."""
        return self.denoiser.draw_noise(key)

    def log_noise(self, x: Array) -> Scalar:
        """Log density at the noise end, of the denoiser without the label."""
        return self.denoiser.log_noise(x)
