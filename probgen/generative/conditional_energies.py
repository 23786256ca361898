r"""Energies by scale: products of conditional densities of wavelet coefficients.

An image :math:`x_0` is split by an orthonormal Haar transform into a coarser one and its details, :math:`x_{j-1}
\leftrightarrow (x_j, \bar x_j)`, again and again, and

.. math:: p(x_0) = p(x_J) \prod_{j=1}^{J} p(\bar x_j \mid x_j), \qquad
          p(\bar x_j \mid x_j) \propto e^{-\theta_j^\top \Phi(x_{j-1})}.

Fields with long-range order have densities far from log-concave that no chain explores, and conditional densities of
details given the coarser image that are strongly log-concave (Guth, Lempereur, Bruna and Mallat 2023): then a short
Langevin chain draws them, and score matching (Hyvarinen 2005), which is blind to the weights of modes, fits them well.
:math:`\Phi` has products of neighbours and functions of single pixels, summed over all positions, so score matching in the
details is a linear system,

.. math:: \mathbb{E}\bigl[\nabla_{\bar x}\Phi\, \nabla_{\bar x}\Phi^\top\bigr]\, \theta
          = \mathbb{E}\bigl[\Delta_{\bar x} \Phi\bigr].

The last, single coefficient has an exponential family in one dimension, fitted by maximum likelihood. The normalisers of
the conditional densities depend on :math:`x_j` and are not known: there is no energy of the whole image.
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.energy import langevin
from probgen.generative.family import Solved, Spec
from probgen.generative.learned import Exactness, Learned
from probgen.nets import Constant

__all__ = ["ConditionalEnergies", "LearnedConditionalEnergies", "haar", "inverse_haar"]

_SHIFTS = (((0, 0),), ((0, 1), (1, 0)), ((1, 1), (1, -1)), ((0, 2), (2, 0)))
"""Neighbours whose products have one coefficient: by distance."""
_GRID = 2001


def haar(x: Array) -> tuple[Array, Array]:
    """The coarser image and the details, shapes ``(n/2, n/2)`` and ``(3, n/2, n/2)``, of an image ``(n, n)``."""
    a, b, c, d = x[::2, ::2], x[::2, 1::2], x[1::2, ::2], x[1::2, 1::2]
    return (a + b + c + d) / 2, jnp.stack([a - b + c - d, a + b - c - d, a - b - c + d]) / 2


def inverse_haar(coarse: Array, details: Array) -> Array:
    """The image of which these are coarser image and details."""
    h, v, d = details
    quads = jnp.stack([coarse + h + v + d, coarse - h + v - d, coarse + h - v - d, coarse - h - v + d]) / 2
    size = coarse.shape[0]
    return quads.reshape(2, 2, size, size).transpose(2, 0, 3, 1).reshape(2 * size, 2 * size)


class Scale(eqx.Module):
    """One scale.

    Attributes:
        unit: Deviation of the pixels of the finer image.
        spread: Deviations of the details in this unit, shape ``(3, 1, 1)``.
        theta: Coefficients of the energy.
    """

    unit: Constant
    spread: Constant
    theta: Array


class _Net(eqx.Module):
    scales: tuple[Scale, ...]
    unit: Constant
    theta: Array


class ConditionalEnergies(Solved):
    """A model of periodic square images, as fields on lattices, by conditional energies of wavelet coefficients.

    Attributes:
        bumps: Number of Gaussian bumps among the functions of single pixels, besides the powers two and four.
        reach: They lie evenly between minus and plus so many deviations.
        ridge: Added to the diagonal of the linear system, in units of its mean.
        sampling_steps: Length of the Langevin chain at each scale.
        sampling_scale: Its step, in deviations of the details.
    """

    bumps: int = eqx.field(static=True, default=6)
    reach: float = eqx.field(static=True, default=2.5)
    ridge: float = eqx.field(static=True, default=1e-5)
    sampling_steps: int = eqx.field(static=True, default=100)
    sampling_scale: float = eqx.field(static=True, default=0.3)

    def check(self, spec: Spec) -> None:
        shape = spec.shape
        if (
            spec.condition is not None
            or len(shape) != 2
            or shape[0] != shape[1]
            or shape[0] < 2
            or shape[0] & (shape[0] - 1)
        ):
            raise MethodError(
                f"ConditionalEnergies models square images whose side is a power of 2, without conditions; one datum has "
                f"shape {shape}. Crop or pad."
            )
        if (
            self.bumps < 0
            or self.sampling_steps < 1
            or not (self.reach > 0 and self.ridge >= 0 and self.sampling_scale > 0)
        ):
            raise MethodError(
                f"ConditionalEnergies got bumps={self.bumps}, reach={self.reach}, ridge={self.ridge}, "
                f"sampling_steps={self.sampling_steps}, sampling_scale={self.sampling_scale}, which make no sense."
            )

    def build(self, key: PRNGKey, spec: Spec) -> _Net:
        one = Constant(jnp.ones((), jnp.float32))
        count = spec.shape[0].bit_length() - 1
        theta = jnp.zeros(len(_SHIFTS) + 1 + self.bumps, jnp.float32)
        scales = [Scale(one, Constant(jnp.ones((3, 1, 1), jnp.float32)), theta) for _ in range(count)]
        return _Net(tuple(scales), one, jnp.zeros(2 + self.bumps, jnp.float32))

    def pixel(self, x: Array) -> Array:
        """The functions of single pixels, shape ``(1 + bumps,)`` before the axes of ``x``: power four, bumps."""
        at = jnp.linspace(-self.reach, self.reach, self.bumps).reshape(-1, *[1] * x.ndim).astype(x.dtype)
        width = 2 * self.reach / max(self.bumps - 1, 1)
        return jnp.concatenate([x[None] ** 4 / 12, jnp.exp(-0.5 * ((x[None] - at) / width) ** 2)])

    def features(self, x: Array) -> Array:
        r""":math:`\Phi` of an image in its unit."""
        products = [sum(jnp.sum(x * jnp.roll(x, shift, (0, 1))) for shift in group) / 2 for group in _SHIFTS]
        return jnp.concatenate([jnp.stack(products), self.pixel(x).sum((1, 2))])

    def solve(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None) -> _Net:
        scales = []
        for _ in net.scales:
            unit = jnp.std(x)
            coarse, details = jax.vmap(haar)(x / unit)
            theta = _matched(self, coarse, details)
            spread = jnp.sqrt(jnp.mean(details**2, (0, 2, 3)))[:, None, None]
            scales.append(Scale(Constant(unit), Constant(spread), theta))
            x = coarse * unit
        unit = jnp.std(x)
        theta = _most_likely(self, x.reshape(-1) / unit)
        return _Net(tuple(scales), Constant(unit), theta)

    def distribution(self, net: _Net, spec: Spec) -> LearnedConditionalEnergies:
        return LearnedConditionalEnergies(self, spec, net)


@eqx.filter_jit
def _matched(family: ConditionalEnergies, coarse: Array, details: Array) -> Array:
    """Score matching of the details."""

    def one(at: tuple[Array, Array]) -> tuple[Array, Array]:
        coarse, details = at

        def features(details: Array) -> Array:
            return family.features(inverse_haar(coarse, details.reshape(3, *coarse.shape)))

        flat = details.reshape(-1)
        slopes = jax.jacrev(features)(flat)

        def curved(direction: Array) -> Array:
            return jax.jvp(lambda d: jax.jvp(features, (d,), (direction,))[1], (flat,), (direction,))[1]

        return slopes @ slopes.T, jax.vmap(curved)(jnp.eye(flat.size, dtype=flat.dtype)).sum(0)

    matrix, vector = (a.mean(0) for a in jax.lax.map(one, (coarse, details), batch_size=64))
    size = jnp.sqrt(jnp.diag(matrix))
    scaled = matrix / jnp.outer(size, size) + family.ridge * jnp.eye(len(size), dtype=matrix.dtype)
    return jnp.linalg.solve(scaled, vector / size) / size


def _single(family: ConditionalEnergies, x: Array) -> Array:
    """Functions of the last coefficient."""
    return jnp.concatenate([x[None] ** 2 / 2, family.pixel(x)])


def _grid(family: ConditionalEnergies, dtype: jnp.dtype) -> Array:
    return jnp.linspace(-2 * family.reach, 2 * family.reach, _GRID, dtype=dtype)


@eqx.filter_jit
def _most_likely(family: ConditionalEnergies, x: Array) -> Array:
    """Newton's method for a density on a grid."""
    grid = _single(family, _grid(family, x.dtype))
    mean = _single(family, x).mean(1)

    def loss(theta: Array) -> Scalar:
        return theta @ mean + logsumexp(-theta @ grid) + 1e-3 * jnp.sum(theta**2) / 2

    def step(_: int, theta: Array) -> Array:
        move = jnp.linalg.solve(jax.hessian(loss)(theta), jax.grad(loss)(theta))
        sizes = 0.5 ** jnp.arange(12, dtype=theta.dtype)
        ways = theta - sizes[:, None] * move
        return ways[jnp.argmin(jax.vmap(loss)(ways))]

    start = jnp.zeros(len(mean), x.dtype).at[0].set(1.0)
    return jax.lax.fori_loop(0, 30, step, start)


class LearnedConditionalEnergies(Learned):
    """A field by conditional energies. Draws come from coarse to fine, a Metropolis-adjusted Langevin chain of finite
    length at each scale, from details of zero: an approximation, whose error falls fast in the length where the conditional
    densities are strongly log-concave (see ``least_curvature``)."""

    offers: ClassVar = {"sample": Exactness.estimate}

    family: ConditionalEnergies
    net: _Net

    def conditional_energy(self, scale: int, coarse: Array, details: Array) -> Scalar:
        """Minus the log density of details given the coarser image, up to a function of the latter.

        Args:
            scale: 1 for the finest details.
            coarse: The coarser image, shape ``(n, n)``.
            details: Shape ``(3, n, n)``.
        """
        here = self.net.scales[scale - 1]
        unit = here.unit.value.astype(coarse.dtype)
        return here.theta.astype(coarse.dtype) @ self.family.features(inverse_haar(coarse, details) / unit)

    def least_curvature(self, x: Array) -> Array:
        """Least eigenvalue of the Hessian of each conditional energy at an image, shape ``(scales,)``, times the variance of
        the details: positive where the conditional density is log-concave there."""
        found = []
        for j, here in enumerate(self.net.scales):
            coarse, details = haar(x)
            flat = details.reshape(-1)
            hessian = jax.hessian(lambda d, c=coarse, j=j: self.conditional_energy(j + 1, c, d.reshape(3, *c.shape)))(
                flat
            )
            variance = jnp.mean((here.spread.value * here.unit.value) ** 2)
            found.append(jnp.linalg.eigvalsh(hessian)[0] * variance)
            x = coarse
        return jnp.stack(found)

    def draw(self, key: PRNGKey) -> Array:
        key_coarsest, key_jitter, key_scales = jax.random.split(key, 3)
        keys = jax.random.split(key_scales, len(self.net.scales))
        grid = _grid(self.family, jnp.zeros(()).dtype)
        x = grid[jax.random.categorical(key_coarsest, -self.net.theta @ _single(self.family, grid))]
        # Within a cell of the grid the density is nearly flat.
        jitter = jax.random.uniform(key_jitter, minval=-0.5, maxval=0.5)
        x = ((x + jitter * (grid[1] - grid[0])) * self.net.unit.value).reshape(1, 1)
        for j in reversed(range(len(self.net.scales))):
            here = self.net.scales[j]
            scale = self.family.sampling_scale * here.spread.value * here.unit.value

            def log_density(details: Array, coarse: Array = x, j: int = j) -> Scalar:
                return -self.conditional_energy(j + 1, coarse, details)

            start = jnp.zeros((3, *x.shape), x.dtype)
            details, _ = langevin(keys[j], log_density, start, scale, self.family.sampling_steps)
            x = inverse_haar(x, details)
        return x
