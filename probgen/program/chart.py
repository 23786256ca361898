r"""Charts: how one latent site is laid out on :math:`R^n`.

A sampler moves in unconstrained coordinates ``u``; the program speaks of values ``x`` in the support of their
distribution. A chart is the map :math:`x = T(u)` with :math:`\log |\det dT/du|`. It is made from the distribution *at
run time*, never stored: a support may depend on the value of another site, and a map remembered from another execution
of the program would be silently wrong.

Angles are the one support that no bijection from R covers without a cut: a chain would stick to the cut. They get two
coordinates, :math:`x = \operatorname{atan2}(u_2, u_1)`, whose radius follows a standard normal pair independent of the
angle; the auxiliary density integrates to one, so evidence is unchanged.

A learned distribution may come with the map that makes its draws of standard normal noise (``noise_space``,
``noise_shape``, ``noise_map`` of the distribution). Then the noise itself is the coordinate, :math:`x = T(z)`, and the
log prior is that of the noise: neither the density of the distribution nor a Jacobian is needed.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.transforms import biject_to

from probgen.base.errors import ModelError
from probgen.program.handlers import base_of

__all__ = ["Chart", "NoiseChart", "chart_of", "in_noise_space"]


def _base(support: constraints.Constraint) -> constraints.Constraint:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


class Chart:
    """The map from unconstrained coordinates to the support of one site."""

    def __init__(self, fn: Distribution, name: str) -> None:
        support = fn.support
        assert support is not None
        self._circular = _base(support) is constraints.circular
        self._event_dim = fn.event_dim
        if self._circular:
            return
        try:
            self._bijection = biject_to(support)
        except NotImplementedError as error:
            raise ModelError(
                f"site {name!r} has the support {support!r}, which no bijection maps to unconstrained coordinates. "
                f"Write it as a transform of a site that has one, or observe it."
            ) from error

    def coordinates(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of ``u`` for a value of the given shape."""
        return (*shape, 2) if self._circular else tuple(self._bijection.inverse_shape(shape))

    def forward(self, u: Array) -> Array:
        """Map coordinates to the support."""
        return jnp.arctan2(u[..., 1], u[..., 0]) if self._circular else self._bijection(u)

    def inverse(self, x: Array) -> Array:
        """Coordinates of a value; for an angle, those of unit radius."""
        return jnp.stack([jnp.cos(x), jnp.sin(x)], -1) if self._circular else self._bijection.inv(x)

    def log_det(self, u: Array, x: Array) -> Array:
        """Log absolute Jacobian determinant, one number per independent draw of the distribution."""
        if self._circular:
            # p(u) = p(angle) * 2 pi * N(u; 0, I) makes the angle keep its law and the radius a proper one.
            per_value = math.log(2 * math.pi) + jnp.sum(jax.scipy.stats.norm.logpdf(u), -1)
        else:
            per_value = self._bijection.log_abs_det_jacobian(u, x)
        extra = jnp.ndim(per_value) - (jnp.ndim(x) - self._event_dim)
        return jnp.sum(per_value, axis=tuple(range(-extra, 0))) if extra > 0 else per_value


class NoiseChart:
    """The map from standard normal noise to draws of a learned distribution."""

    def __init__(self, fn: Distribution, name: str) -> None:
        self._base: Any = base_of(fn)
        self._name, self._event_dim = name, fn.event_dim

    def coordinates(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the noise for a value of the given shape."""
        return (*shape[: len(shape) - self._base.event_dim], *self._base.noise_shape)

    def forward(self, u: Array) -> Array:
        """Map noise to values."""
        return self._base.noise_map(u)

    def inverse(self, x: Array) -> Array:
        """The noise of a value.

        Raises:
            ModelError: If the distribution has no inverse of its map.
        """
        inverse = getattr(self._base, "noise_of", None)
        if inverse is None:
            raise ModelError(
                f"site {self._name!r} is sampled in the noise space of a {type(self._base).__name__}, whose noise cannot "
                f"be found from a value. Start elsewhere, or use another method."
            )
        return inverse(x)

    def log_prior(self, u: Array) -> Array:
        """Log density of the noise, one number per independent draw of the distribution."""
        extra = len(self._base.noise_shape) + self._event_dim - self._base.event_dim
        return jnp.sum(jax.scipy.stats.norm.logpdf(u), axis=tuple(range(-extra, 0)))

    def log_det(self, u: Array, x: Array) -> Array:
        """Log absolute Jacobian determinant, from the density of the distribution."""
        return self.log_prior(u) - self._base.to_event(self._event_dim - self._base.event_dim).log_prob(x)


def in_noise_space(fn: Distribution) -> bool:
    """Whether a distribution asks for its noise to be the coordinate."""
    return bool(getattr(base_of(fn), "noise_space", False))


def chart_of(fn: Distribution, name: str, *, noise: bool = False) -> Chart | NoiseChart:
    """Chart of the site called ``name``, whose distribution in this execution is ``fn``.

    Args:
        fn: The distribution.
        name: Its site.
        noise: Whether noise is the coordinate of distributions that ask for it.

    Raises:
        ModelError: If no bijection to its support is known.
    """
    return NoiseChart(fn, name) if noise and in_noise_space(fn) else Chart(fn, name)
