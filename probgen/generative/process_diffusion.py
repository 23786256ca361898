r"""Diffusion models of functions: values at irregular times, noise that is a process itself.

A series :math:`x = (f(\tau_1), \dots, f(\tau_n))` is noised by draws of a Gaussian process at its own times,

.. math:: x_t = \alpha x_0 + \sigma L \varepsilon, \qquad L L^T = K(\tau, \tau),

so that a noisy function is a function: the marginals at some of the times are those of the series without the others. In
the coordinates :math:`y = L^{-1} x` this is an ordinary diffusion, whose paths, samplers, densities and corrections all
apply (``ProcessUnits`` is the map).

The network sees the times, and the values at those of them that are observed; these are drawn at random in training, none
of them in every other series. So one network gives whole functions, and imputations: what is missing given what is there.

Bilos, Rasul, Schneider, Nevmyvaka and Guennemann (2023), "Modeling temporal data as continuous functions with stochastic
process diffusion".
"""

from __future__ import annotations

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.part import Part
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.denoiser import Denoiser
from probgen.generative.diffusion import Diffusion, LearnedDiffusion, denoised
from probgen.generative.family import Now, Spec
from probgen.generative.path import Path, Time, even_log_snr
from probgen.generative.sampler import sample_path
from probgen.generative.standardisation import Standardisation
from probgen.nets import Conditioned, TimeFeatures

__all__ = ["LearnedProcessDiffusion", "OUNoise", "ProcessDiffusion", "ProcessNoise", "ProcessUnits", "SmoothNoise"]


class ProcessNoise(Part):
    """The covariance of the noise as a function of two times; 1 at equal times."""

    length: eqx.AbstractVar[float]
    """Its length scale, in the units of the times."""

    def __check_init__(self) -> None:
        if not (math.isfinite(self.length) and self.length > 0):
            raise MethodError(f"{type(self).__name__} got length={self.length}, expected a positive number.")

    @abc.abstractmethod
    def covariance(self, apart: Array) -> Array:
        """Covariance of values that are ``apart`` in time, the shape of ``apart``."""

    def root(self, times: Array) -> Array:
        """Lower Cholesky factor of the covariance at some times, shape ``(n, n)``."""
        return jnp.linalg.cholesky(self.covariance(jnp.abs(times[:, None] - times[None, :])))


class OUNoise(ProcessNoise):
    r"""An Ornstein-Uhlenbeck process: :math:`e^{-|\tau - \tau'| / \ell}`.

    Attributes:
        length: :math:`\ell`.
    """

    length: float = eqx.field(static=True, default=1.0)

    def covariance(self, apart: Array) -> Array:
        return jnp.exp(-apart / self.length)


class SmoothNoise(ProcessNoise):
    r"""A smooth Gaussian process: :math:`(1 - \nu)\, e^{-(\tau - \tau')^2 / 2\ell^2}`, and white noise of variance
    :math:`\nu`, without which times that are close cannot be told apart.

    Attributes:
        length: :math:`\ell`.
        white: :math:`\nu`, between 0 and 1.
    """

    length: float = eqx.field(static=True, default=1.0)
    white: float = eqx.field(static=True, default=0.01)

    def __check_init__(self) -> None:
        if not 0 < self.white < 1:
            raise MethodError(f"SmoothNoise got white={self.white}, expected 0 < white < 1. Use 0.01.")

    def covariance(self, apart: Array) -> Array:
        return (1 - self.white) * jnp.exp(-0.5 * (apart / self.length) ** 2) + self.white * (apart == 0)


class ProcessUnits(eqx.Module):
    """Between a series and the coordinates in which its noise is white.

    Attributes:
        units: Standard units.
        root: Cholesky factor of the covariance of the noise, shape ``(n, n)``.
    """

    units: Standardisation
    root: Array

    def inward(self, x: Array) -> Array:
        """From data to white coordinates."""
        return jax.scipy.linalg.solve_triangular(self.root, self.units.inward(x), lower=True)

    def outward(self, y: Array) -> Array:
        """From white coordinates to data."""
        return self.units.outward(self.root @ y)

    def log_det(self) -> Scalar:
        """Log determinant of ``inward``."""
        return self.units.log_det() - jnp.sum(jnp.log(jnp.diagonal(self.root)))


class _ProcessDenoiser(Denoiser):
    """A network as denoiser in white coordinates, given times, and which values are observed."""

    net: Conditioned
    path: Path
    root: Array
    given: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.net.shape

    def mean(self, x: Array, t: Time) -> Array:
        """See ``Denoiser.mean``."""
        alpha, sigma = self.path(t)
        mean = denoised(self.net, self.root @ x / alpha, sigma / alpha, self.given)
        return jax.scipy.linalg.solve_triangular(self.root, mean, lower=True)


class _Net(eqx.Module):
    units: Standardisation
    clock: Standardisation
    net: Conditioned
    ending: None = None


class ProcessDiffusion(Diffusion):
    """A diffusion model of functions, from series of one length at irregular times.

    The data have shape ``(series, n)`` and the conditions are their times, of the same shape; times of one series are
    all different. Settings are those of ``Diffusion``, and

    Attributes:
        process: The process that the noise is.
    """

    process: ProcessNoise = eqx.field(static=True, default=OUNoise())

    def check(self, spec: Spec) -> None:
        super().check(spec)
        if len(spec.shape) != 1 or spec.condition != spec.shape:
            raise MethodError(
                f"ProcessDiffusion got data of shape {spec.shape} and conditions of shape {spec.condition}, expected (n,) "
                f"for both. Give fit(family, values, condition=times)."
            )
        if not isinstance(self.process, ProcessNoise):
            raise MethodError(f"ProcessDiffusion got process={self.process!r}, expected a process. Use OUNoise(1.0).")
        if self.ending is not None:
            raise MethodError("ProcessDiffusion ends in noise. Leave ending out.")

    def build(self, key: PRNGKey, spec: Spec) -> _Net:
        given = TimeFeatures().size + 3 * spec.shape[0]
        net = Conditioned(key, spec.shape, given, self.width, self.depth)
        return _Net(Standardisation(spec.shape), Standardisation(spec.shape), net)

    def adapt(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None) -> _Net:
        def common(units: Standardisation, x: Array) -> Standardisation:
            # One scale for all: which entry of a series a value is says nothing.
            return units.adapted(jnp.broadcast_to(x.reshape(-1, 1), (x.size, *x.shape[1:])))

        assert condition is not None
        net = eqx.tree_at(lambda n: n.clock, net, common(net.clock, condition))
        return eqx.tree_at(lambda n: n.units, net, common(net.units, x)) if self.standardise else net

    def given(self, net: _Net, times: Array, x: Array, seen: Array) -> Array:
        """What the network is given: times, which values are observed, and these, in standard units."""
        return jnp.concatenate([net.clock.inward(times), seen.astype(x.dtype), jnp.where(seen, x, 0.0)])

    def loss(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None, now: Now) -> Scalar:
        assert condition is not None
        key_some, key_share, key_seen, key_loss = jax.random.split(key, 4)
        count = x.shape[0]
        some = jax.random.bernoulli(key_some, 0.5, (count, 1))
        share = jax.random.uniform(key_share, (count, 1))
        seen = some & (jax.random.uniform(key_seen, x.shape) < share)
        given = jax.vmap(self.given, (None, 0, 0, 0))(net, condition, jax.vmap(net.units.inward)(x), seen)
        return self.matching(key_loss, net, x, given, lambda noise: jax.vmap(self._coloured)(condition, noise))

    def _coloured(self, times: Array, noise: Array) -> Array:
        return self.process.root(times) @ noise

    def distribution(self, net: _Net, spec: Spec) -> LearnedProcessDiffusion:
        return LearnedProcessDiffusion(self, spec, net)


class LearnedProcessDiffusion(LearnedDiffusion):
    """The law of a learned diffusion model of functions, given times; see ``LearnedDiffusion`` for what it offers.

    ``score`` and ``velocity`` are in white coordinates (``units``).
    """

    family: ProcessDiffusion
    net: _Net

    @property
    def units(self) -> ProcessUnits:
        """Between a series and the coordinates in which its noise is white, given its times."""
        return ProcessUnits(self.net.units, self.family.process.root(self._times))

    @property
    def _times(self) -> Array:
        if self.condition is None:
            raise MethodError("this ProcessDiffusion was given no times. Write model.given(times).")
        return self.condition

    @property
    def denoiser(self) -> Denoiser:
        """The denoiser in white coordinates, given times."""
        return self._denoiser(jnp.zeros(self.event_shape), jnp.zeros(self.event_shape, bool))

    def _denoiser(self, x: Array, seen: Array) -> Denoiser:
        given = self.family.given(self.net, self._times, self.net.units.inward(x), seen)
        return _ProcessDenoiser(net=self.net.net, path=self.family.path, root=self.units.root, given=given)

    def impute(self, key: PRNGKey, value: Array, mask: Array) -> Array:
        """Draw what is missing, given what is observed.

        Args:
            key: Randomness.
            value: Series at the times that it was given, shape ``(..., n)``; entries that are not observed are ignored.
            mask: Which entries are observed, of a shape that broadcasts with it.

        Returns:
            Series with the missing entries filled in, shape ``(..., n)``: approximate draws, as the network knows them.
        """
        self._ready("sample")
        value, mask = jnp.broadcast_arrays(jnp.asarray(value, float), jnp.asarray(mask, bool))
        batch = jnp.broadcast_shapes(self.batch_shape, value.shape[:-1])
        keys = jax.random.split(key, batch)
        parts = (keys, 0), (jnp.where(mask, value, 0.0), 1), (mask, 1)
        return self.pointwise(lambda here, key, x, m: here._imputed(key, x, m), *parts)

    def _imputed(self, key: PRNGKey, x: Array, seen: Array) -> Array:
        key_noise, key_path = jax.random.split(key)
        denoiser, times = self._denoiser(x, seen), even_log_snr(self.family.path, self.family.sampling_steps)
        y = sample_path(key_path, self.family.sampler, denoiser, denoiser.draw_noise(key_noise), times)
        return jnp.where(seen, x, self.units.outward(y))
