r"""Guidance-free training: a network that *is* the guided model.

Classifier-free guidance with weight :math:`w = 1/\beta` has the denoised value :math:`m_g = m_u + (m_c - m_u)/\beta`, so
that :math:`\beta\, m_g + (1 - \beta)\, m_u = m_c`. Chen et al. (2025, "Visual generation without guidance") make the
network :math:`m(x_t, c, \beta)` the guided one, and fit the left side where a conditional model is usually fitted,

.. math:: E\, \bigl\lVert \beta\, m(x_t, c, \beta) + (1 - \beta)\, \operatorname{sg} m(x_t, \varnothing, 1) - x_0
          \bigr\rVert^2

with the condition left out (and :math:`\beta = 1`) for a share of the data, and no gradient through the second term. At
the minimum over all functions a draw costs one network a step, and follows the law that guidance with the same weight
would: which is *not* the geometric average of the two laws (see ``Guidance``), and is itself only as good as the fit.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtri

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.condition_dropout import flagged
from probgen.generative.diffusion import Diffusion, LearnedDiffusion, denoised
from probgen.generative.family import Family, Now, Spec
from probgen.generative.learned import Learned

__all__ = ["GuidanceFree", "LearnedGuidanceFree"]


class GuidanceFree(Family):
    """A diffusion model whose weight of guidance is an input.

    Attributes:
        family: The diffusion model; it is given conditions of shape ``(size + 2,)``.
        dropout: Share of the data without their condition.
        most: Largest weight of guidance that is trained, > 1.
    """

    family: Diffusion = dataclasses.field(default_factory=Diffusion)
    dropout: float = eqx.field(static=True, default=0.1)
    most: float = eqx.field(static=True, default=5.0)

    def extended(self, spec: Spec) -> Spec:
        """The shapes that the diffusion model sees."""
        return Spec(spec.shape, (math.prod(spec.condition or ()) + 2,), spec.values, spec.columns)

    def check(self, spec: Spec) -> None:
        if spec.condition is None:
            raise MethodError("GuidanceFree needs conditions to exaggerate. Write fit(family, data, condition=...).")
        if not 0 < self.dropout < 1:
            raise MethodError(f"GuidanceFree got dropout={self.dropout!r}, expected 0 < dropout < 1. Use 0.1.")
        if not (math.isfinite(self.most) and self.most > 1):
            raise MethodError(f"GuidanceFree got most={self.most!r}, expected a weight above 1. Use 5.")
        if self.family.ending is not None:
            raise MethodError("GuidanceFree trains the whole path. Use Diffusion(ending=None).")
        self.family.check(self.extended(spec))

    def build(self, key: PRNGKey, spec: Spec) -> Any:
        return self.family.build(key, self.extended(spec))

    def adapt(self, key: PRNGKey, net: Any, x: Array, condition: Array | None) -> Any:
        return self.family.adapt(key, net, x, None)

    def loss(self, key: PRNGKey, net: Any, x: Array, condition: Array | None, now: Now) -> Scalar:
        assert condition is not None  # check has looked
        key_level, key_noise, key_drop, key_beta = jax.random.split(key, 4)
        count = x.shape[0]
        x = jax.vmap(net.units.inward)(x)
        path, (loc, scale) = self.family.path, self.family.noise
        share = (jnp.arange(count) + jax.random.uniform(key_level, (count,), x.dtype)) / count
        low, high = (-path.log_snr(t) / 2 for t in (path.start, path.end))
        level = jnp.exp(jnp.clip(loc + scale * ndtri(share), low, high))
        wide = level.reshape(-1, *[1] * (x.ndim - 1))
        noisy = x + wide * self.family.noise_for(key_noise, x)
        seen = jax.random.bernoulli(key_drop, 1 - self.dropout, (count,))
        beta = jnp.where(seen, jax.random.uniform(key_beta, (count,), x.dtype, 1 / self.most, 1.0), 1.0)
        shown = condition * seen.reshape(-1, *[1] * (condition.ndim - 1))
        guided = jax.vmap(self.denoised, (None, 0, 0, 0))(net, noisy, level, flagged(shown, seen, beta))
        without = flagged(0 * shown, 0 * beta, 1 + 0 * beta)
        uncond = jax.lax.stop_gradient(jax.vmap(self.denoised, (None, 0, 0, 0))(net, noisy, level, without))
        share = beta.reshape(wide.shape)
        return jnp.mean((1 + wide**-2) * (share * guided + (1 - share) * uncond - x) ** 2)

    def denoised(self, net: Any, x: Array, level: Scalar, condition: Array) -> Array:
        """The denoised value of data plus noise, in standard units, for an extended condition."""
        return denoised(net.net, x, level, condition)

    def distribution(self, net: Any, spec: Spec) -> LearnedGuidanceFree:
        return LearnedGuidanceFree(self, spec, net)


class LearnedGuidanceFree(Learned):
    """A model whose weight of guidance is chosen with the condition: ``given(condition, weight)`` and
    ``unconditional()`` are learned diffusion models."""

    offers: ClassVar = {}

    family: GuidanceFree

    def given(self, condition: Any, weight: float | Array = 1.0) -> LearnedDiffusion:
        """The guided model given a condition, or a batch of them.

        Args:
            condition: See ``Learned.given``.
            weight: Of guidance, from 1 for the condition as it is to ``most`` of the family.

        Raises:
            MethodError: If the weight is a number that was not trained.
        """
        checked = super().given(condition)
        assert checked.condition is not None
        if isinstance(weight, float | int) and not 1 <= weight <= self.family.most:
            raise MethodError(
                f"the weight of guidance was trained from 1 to {self.family.most:g}, got {weight}. Fit with "
                f"GuidanceFree(most={weight}), or use Guidance."
            )
        ones = jnp.ones(checked.batch_shape)
        return self._inner(flagged(checked.condition, ones, ones / weight))

    def unconditional(self) -> LearnedDiffusion:
        """The model without a condition."""
        return self._inner(flagged(jnp.zeros(self.spec.condition or ()), jnp.zeros(()), jnp.ones(())))

    def _inner(self, condition: Array) -> LearnedDiffusion:
        here = self.family.family.distribution(self.net, self.family.extended(self.spec)).given(condition)
        here.history = self.history
        return here  # pyright: ignore[reportReturnType]
