r"""Diffusion models on linear multivariate paths: with momenta (PSLD, CLD), with noise that turns, with learned matrices.

The path, and :math:`A, N, \Phi_x, P, T, \hat y`, are those of ``linear_path.py``. All that a model has to know is the
posterior mean :math:`m(\hat y, T)` of the data given :math:`\hat y = x_0 + N(0, T)`; the score of the whole state is

.. math:: \nabla_z \log q_t(z) = -P^{-1} (z - \Phi_x m).

The law of :math:`z_s` given :math:`z_t` and the data is Gaussian for :math:`s < t`; ``Ancestral`` takes the data at their
mean there, which is the step of DDPM and has no trouble with stiff matrices. ``ReverseSDE`` is Euler's rule on

.. math:: dz = \beta \bigl(A z - \tfrac{1 + \kappa}{2} N \nabla \log q_t\bigr) dt + \sqrt{\kappa \beta}\, N^{1/2} dW,
          \qquad \text{backwards in time.}

**The bound.** With :math:`J = \Phi_x^T P^{-1} \Phi_x` the evidence lower bound of the reverse equation needs no analysis of
the path at hand: the rates integrate to

.. math::

    \log p(x) \ge -\operatorname{KL}(q(z_{end} \mid x) \,\|\, \pi)
      - \tfrac12 \int_{start}^{end} E\Bigl[\operatorname{tr}\, (x - m)^T \bigl(-\dot J\bigr) (x - m) \Bigr] dt
      + E\, \log N(x;\, m(\hat y_{start}),\, T_{start}).

It depends on the path through :math:`J` alone, except at the noise end. With one row of data :math:`J` is a number, and the
integral is over noise levels, the same for all paths: learning the matrices then improves the ends. With more rows it
decides which directions of the data are forgotten first.

References: as in ``linear_path.py``.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtri
from jax.scipy.stats import norm

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.part import Part
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.denoiser import GaussianMixture
from probgen.generative.family import Family, Now, Spec
from probgen.generative.learned import Exactness, Learned
from probgen.generative.linear_path import CompleteRecipe, LinearPath, phase_space
from probgen.generative.path import Time
from probgen.generative.sampler import check_kappa
from probgen.generative.standardisation import Standardisation
from probgen.nets import Conditioned, Constant, TimeFeatures

__all__ = [
    "Ancestral",
    "LearnedMultivariateDiffusion",
    "LinearDenoiser",
    "LinearStep",
    "MixtureMean",
    "MultivariateDiffusion",
    "ReverseSDE",
]


class MixtureMean(eqx.Module):
    """The exact posterior mean of a mixture of Gaussians under noise of any covariance between rows.

    Attributes:
        mixture: The law of the data, flat; its own path plays no part.
    """

    mixture: GaussianMixture

    def __call__(self, y: Array, noise: Array) -> Array:
        """The mean given ``y``, shape ``(m, n)``: data plus noise whose columns have the covariance ``noise``."""
        law, flat = self.mixture, y.reshape(-1)
        covariances = jnp.einsum("kij,kj,klj->kil", law.axes, law.variances, law.axes)
        total = covariances + jnp.kron(noise, jnp.eye(y.shape[1]))
        apart = flat - law.means
        solved = jnp.linalg.solve(total, apart[..., None])[..., 0]
        log_share = law.log_weights - 0.5 * (jnp.sum(apart * solved, -1) + jnp.linalg.slogdet(total)[1])
        means = law.means + jnp.einsum("kij,kj->ki", covariances, solved)
        return jnp.sum(jax.nn.softmax(log_share)[:, None] * means, 0).reshape(y.shape)


class LinearDenoiser(eqx.Module):
    """A posterior mean on a linear multivariate path, and what follows from it.

    Attributes:
        path: From data to noise.
        mean_of: The posterior mean of the data given data plus noise, ``mean_of(y, covariance)``.
        columns: Number of columns of the data.
    """

    path: LinearPath
    mean_of: Callable[[Array, Array], Array]
    columns: int = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the state."""
        return self.path.drift.shape[0], self.columns

    def mean(self, z: Array, t: Time) -> Array:
        """Posterior mean of the data given the state, shape ``(m, n)``."""
        phi, p = self.path.moments(t)
        noise, y = _sufficient(phi, p, z)
        return self.mean_of(y, noise)

    def score(self, z: Array, t: Time) -> Array:
        """Gradient of the log density of the state at time ``t``, the shape of ``z``."""
        phi, p = self.path.moments(t)
        noise, y = _sufficient(phi, p, z)
        return -jnp.linalg.solve(p, z - phi @ self.mean_of(y, noise))

    def noisy(self, key: PRNGKey, x: Array, t: Time) -> Array:
        """A draw of the state at time ``t`` given data, shape ``(m, n)``."""
        phi, p = self.path.moments(t)
        return phi @ x + jnp.linalg.cholesky(p) @ jax.random.normal(key, (p.shape[0], x.shape[1]), x.dtype)

    def draw_noise(self, key: PRNGKey) -> Array:
        """A draw of the state at the noise end."""
        return jnp.linalg.cholesky(self.path.end_covariance) @ jax.random.normal(key, self.shape)

    def sample(self, key: PRNGKey, step: LinearStep, times: Array) -> Array:
        """A draw of the data rows at the data end, shape ``(m, n)``, through falling times."""
        key_noise, key_path = jax.random.split(key)

        def one(z: Array, at: tuple[PRNGKey, Array, Array]) -> tuple[Array, None]:
            key, t, s = at
            return step(key, self, z, t, s), None

        keys = jax.random.split(key_path, times.shape[0] - 1)
        return jax.lax.scan(one, self.draw_noise(key_noise), (keys, times[:-1], times[1:]))[0][: self.path.rows]

    def bound(self, key: PRNGKey, x: Array, levels: int = 64) -> Scalar:
        """An unbiased estimate of the evidence lower bound at data, shape ``(m, n)``.

        Args:
            key: Randomness.
            x: The data.
            levels: Times at which the integral is evaluated, one in every equal slice of the log of the time.
        """
        path = self.path
        key_times, key_noise, key_start = jax.random.split(key, 3)
        phi, p = path.moments(path.end)
        pi = path.end_covariance
        size, columns = p.shape[0], x.shape[1]
        shift = phi @ x
        divergence = 0.5 * (
            columns * (jnp.trace(jnp.linalg.solve(pi, p)) - size + jnp.linalg.slogdet(pi)[1] - jnp.linalg.slogdet(p)[1])
            + jnp.sum(shift * jnp.linalg.solve(pi, shift))
        )

        def loss(key: PRNGKey, t: Array) -> Scalar:
            phi, p = path.moments(t)
            solved = jnp.linalg.solve(p, phi)
            falling = path.rate(t) * solved.T @ path.noise @ solved
            wrong = x - self.mean(self.noisy(key, x, t), t)
            return 0.5 * jnp.sum(wrong * (falling @ wrong))

        span = math.log(path.end / path.start)
        share = (jnp.arange(levels) + jax.random.uniform(key_times, (levels,))) / levels
        times = path.start * jnp.exp(span * share)
        losses = jax.vmap(loss)(jax.random.split(key_noise, levels), times) * times * span
        z = self.noisy(key_start, x, path.start)
        root = jnp.linalg.cholesky(jnp.linalg.inv(path.information(path.start)))
        wrong = jax.scipy.linalg.solve_triangular(root, x - self.mean(z, path.start), lower=True)
        data = jnp.sum(norm.logpdf(wrong)) - columns * jnp.sum(jnp.log(jnp.diagonal(root)))
        return data - divergence - jnp.mean(losses)


def _sufficient(phi: Array, p: Array, z: Array) -> tuple[Array, Array]:
    """What the state says about the data: the covariance of the noise of each column, and data plus that noise."""
    solved = jnp.linalg.solve(p, phi)
    noise = jnp.linalg.inv(phi.T @ solved)
    return (noise + noise.T) / 2, noise @ solved.T @ z


class LinearStep(Part):
    """One step of a state from time ``t`` to an earlier time ``s``."""

    @abc.abstractmethod
    def __call__(self, key: PRNGKey, denoiser: LinearDenoiser, z: Array, t: Array, s: Array) -> Array:
        """The state at time ``s``."""


class Ancestral(LinearStep):
    """The law of the earlier state given this one and the data, at their posterior mean."""

    def __call__(self, key: PRNGKey, denoiser: LinearDenoiser, z: Array, t: Array, s: Array) -> Array:
        path, mean = denoiser.path, denoiser.mean(z, t)
        (phi_s, p_s), (phi_t, p_t), kept = path.moments(s), path.moments(t), path.transition(t, s)[0]
        gain = jnp.linalg.solve(p_t, kept @ p_s).T
        covariance = p_s - gain @ kept @ p_s
        # The eigenvalues that rounding makes negative are zero.
        values, axes = jnp.linalg.eigh((covariance + covariance.T) / 2)
        noise = axes @ (jnp.sqrt(jnp.maximum(values, 0))[:, None] * jax.random.normal(key, z.shape, z.dtype))
        return phi_s @ mean + gain @ (z - phi_t @ mean) + noise


class ReverseSDE(LinearStep):
    """Euler's rule on the reverse equation; weak order 1.

    Attributes:
        kappa: Langevin rate, >= 0; 0 for the probability flow.
    """

    kappa: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        check_kappa(self.kappa)

    def __call__(self, key: PRNGKey, denoiser: LinearDenoiser, z: Array, t: Array, s: Array) -> Array:
        path = denoiser.path
        drift = path.drift @ z - (1 + self.kappa) / 2 * path.noise @ denoiser.score(z, t)
        passed = path.rate(t) * (t - s)
        values, axes = jnp.linalg.eigh(path.noise)
        noise = axes @ (jnp.sqrt(jnp.maximum(values, 0))[:, None] * jax.random.normal(key, z.shape, z.dtype))
        return z - passed * drift + jnp.sqrt(self.kappa * passed) * noise


# -- learned ---------------------------------------------------------------------------------------------------------


class _Net(eqx.Module):
    units: Standardisation
    net: Conditioned
    root: Any
    skew: Any


class _Mean(eqx.Module):
    """A network as posterior mean: preconditioned as in ``diffusion.py``, with matrices in the place of variances."""

    net: Conditioned
    condition: Array | None

    def __call__(self, y: Array, noise: Array) -> Array:
        values, axes = jnp.linalg.eigh(noise)
        total = 1 + values

        def scaled(by: Array, v: Array) -> Array:
            return axes @ (by[:, None] * (axes.T @ v))

        features = TimeFeatures()(jnp.mean(jnp.log(values)) / 8)
        given = features if self.condition is None else jnp.concatenate([features, self.condition.reshape(-1)])
        seen = scaled(total**-0.5, y).reshape(self.net.shape)
        found = self.net(seen, given.astype(y.dtype)).reshape(y.shape)
        return scaled(1 / total, y) + scaled(jnp.sqrt(values / total), found)


class MultivariateDiffusion(Family):
    """A diffusion model of real data on a linear multivariate path.

    Attributes:
        recipe: The path: ``phase_space()``, ``spatial(...)``, or any ``CompleteRecipe``. With one row of data every
            entry of a datum is a column; otherwise the entries are the rows.
        learn: Whether its matrices are learned too, by the bound.
        width: Length of the hidden layers.
        depth: Number of residual blocks.
        noise: Mean and standard deviation of the log of the noise level in training.
        step: How to draw.
        sampling_steps: Steps from noise to data.
        bound_levels: Times at which the integral of ``bound`` is evaluated.
    """

    recipe: CompleteRecipe = eqx.field(static=True, default=phase_space())
    learn: bool = eqx.field(static=True, default=False)
    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=3)
    noise: tuple[float, float] = eqx.field(static=True, default=(-0.8, 1.4))
    step: LinearStep = eqx.field(static=True, default=Ancestral())
    sampling_steps: int = eqx.field(static=True, default=100)
    bound_levels: int = eqx.field(static=True, default=64)

    def check(self, spec: Spec) -> None:
        for what in ("width", "depth", "sampling_steps", "bound_levels"):
            value = getattr(self, what)
            if not is_count(value):
                raise MethodError(f"MultivariateDiffusion got {what}={value!r}, expected an int of at least 1.")
        if not isinstance(self.recipe, CompleteRecipe) or not isinstance(self.step, LinearStep):
            raise MethodError(
                f"MultivariateDiffusion got recipe={self.recipe!r}, step={self.step!r}, expected a CompleteRecipe and a "
                f"step. Use recipe=phase_space(), step=Ancestral()."
            )
        if self.recipe.rows not in (1, math.prod(spec.shape)):
            raise MethodError(
                f"the recipe has {self.recipe.rows} rows of data, and a datum has {math.prod(spec.shape)} entries. Use a "
                f"recipe with one row, or with one for each entry."
            )

    def build(self, key: PRNGKey, spec: Spec) -> _Net:
        features = TimeFeatures().size + math.prod(spec.condition or (0,))
        matrices = [jnp.asarray(m, jnp.float32) for m in (self.recipe.root, self.recipe.skew)]
        root, skew = matrices if self.learn else map(Constant, matrices)
        net = Conditioned(key, spec.shape, features, self.width, self.depth)
        return _Net(Standardisation(spec.shape), net, root, skew)

    def adapt(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None) -> _Net:
        return eqx.tree_at(lambda n: n.units, net, net.units.adapted(x))

    def denoiser(self, net: _Net, condition: Array | None) -> LinearDenoiser:
        """The denoiser in standard units, given one condition."""
        root, skew = (m.value if isinstance(m, Constant) else m for m in (net.root, net.skew))
        columns = math.prod(net.net.shape) // self.recipe.rows
        return LinearDenoiser(self.recipe.path(root, skew), _Mean(net.net, condition), columns)

    def loss(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None, now: Now) -> Scalar:
        key_level, key_noise, key_bound = jax.random.split(key, 3)
        x = jax.vmap(net.units.inward)(x)
        rows, count = self.recipe.rows, x.shape[0]
        z = x.reshape(count, rows, -1)
        path = jax.lax.stop_gradient(self.denoiser(net, None).path)
        dense = jnp.geomspace(path.start, path.end, 65)
        levels = jax.vmap(path.log_level)(dense)
        share = (jnp.arange(count) + jax.random.uniform(key_level, (count,), x.dtype)) / count
        times = jnp.exp(jnp.interp(self.noise[0] + self.noise[1] * ndtri(share), levels, jnp.log(dense)))

        def one(key: PRNGKey, x: Array, t: Array, condition: Array | None) -> Scalar:
            phi, p = path.moments(t)
            noise = jnp.linalg.inv(phi.T @ jnp.linalg.solve(p, phi))
            noise = (noise + noise.T) / 2
            y = x + jnp.linalg.cholesky(noise) @ jax.random.normal(key, x.shape, x.dtype)
            wrong = _Mean(net.net, condition)(y, noise) - x
            return jnp.mean(wrong**2 + wrong * jnp.linalg.solve(noise, wrong))

        keys = jax.random.split(key_noise, count)
        loss = jnp.mean(jax.vmap(one)(keys, z, times.astype(x.dtype), condition))
        if not self.learn:
            return loss
        # The matrices are judged by the bound, the network by the loss above.
        still = eqx.tree_at(lambda n: n.net, net, jax.lax.stop_gradient(net.net))

        def bound(key: PRNGKey, x: Array, condition: Array | None) -> Scalar:
            return self.denoiser(still, condition).bound(key, x, 4)

        bounds = jax.vmap(bound)(jax.random.split(key_bound, count), z, condition)
        return loss - jnp.mean(bounds) / x[0].size

    def distribution(self, net: _Net, spec: Spec) -> LearnedMultivariateDiffusion:
        return LearnedMultivariateDiffusion(self, spec, net)


class LearnedMultivariateDiffusion(Learned):
    """The law of a learned diffusion model on a linear multivariate path.

    Draws are those of the steps that the family names. There is no density of the data, only of the state with its
    auxiliary rows; ``bound`` is the evidence lower bound.
    """

    offers: ClassVar = {"bound": Exactness.bound, "sample": Exactness.ode}

    family: MultivariateDiffusion
    net: _Net

    @property
    def units(self) -> Standardisation:
        """Between data and the standard units in which the path lives."""
        return self.net.units

    @property
    def denoiser(self) -> LinearDenoiser:
        """The denoiser in standard units, given one condition."""
        return self.family.denoiser(self.net, self.condition)

    def draw(self, key: PRNGKey) -> Array:
        denoiser = self.denoiser
        x = denoiser.sample(key, self.family.step, denoiser.path.times(self.family.sampling_steps))
        return self.units.outward(x.reshape(self.event_shape))

    def bound_at(self, key: PRNGKey, x: Array) -> Scalar:
        inward = self.units.inward(x).reshape(self.family.recipe.rows, -1)
        return self.denoiser.bound(key, inward, self.family.bound_levels) + self.units.log_det()
