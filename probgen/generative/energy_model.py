r"""Energies fitted with the help of a noise density :math:`q` that is known.

**Noise contrast** (Gutmann and Hyvarinen 2012): tell data from :math:`\nu` times as many draws of noise, by the logistic
loss of :math:`G(x) = -E(x) - c - \log q(x) - \log\nu`. The constant :math:`c` is a parameter, and estimates
:math:`\log Z`. Consistent whatever the noise, and far from efficient where it is far from the data.

**Compositional optimisation** (Jiang, Qin, Wang and Yang 2023): maximum likelihood itself,

.. math:: \min_\theta\ \mathbb{E}_{\mathrm{data}} E_\theta(x) + \log g(\theta), \qquad
          g(\theta) = \mathbb{E}_q\bigl[e^{-E_\theta(x)} / q(x)\bigr] = Z_\theta.

The log of a mean has no unbiased estimate from a batch, so the mean is tracked, :math:`u \leftarrow (1 - \gamma) u +
\gamma\,\hat g(\theta)`, and a step follows :math:`\nabla\hat g(\theta) / u`. The tracked :math:`\log u` estimates
:math:`\log Z` at the end. Its bias vanishes with :math:`\gamma` and the step; where :math:`p/q` has infinite variance it
does not work, and a batch says little about it: choose the noise wider than the data.
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.scipy.special import logsumexp

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.energy import Energy, LearnedEnergy, NeuralEnergy, langevin
from probgen.generative.family import Family, Now, Solved, Spec, Training
from probgen.generative.standardisation import Standardisation
from probgen.nets import Constant

__all__ = ["Compositional", "LearnedEnergyModel", "NoiseContrast"]


class EnergyNet(eqx.Module):
    """An energy in standard units, its log normaliser there, and normal noise.

    Attributes:
        units: Between data and standard units.
        energy: The energy.
        log_z: Estimate of its log normaliser.
        root: Square root of the covariance of the noise in standard units, lower triangular; its mean is 0.
    """

    units: Standardisation
    energy: Any
    log_z: Array
    root: Constant

    def log_noise(self, x: Array) -> Scalar:
        """Log density of the noise."""
        root = self.root.value.astype(x.dtype)
        z = jax.scipy.linalg.solve_triangular(root, x.reshape(-1), lower=True)
        return -0.5 * z @ z - jnp.sum(jnp.log(jnp.diag(root))) - 0.5 * z.size * jnp.log(2 * jnp.pi)

    def draw_noise(self, key: PRNGKey, dtype: Any) -> Array:
        """A draw of it."""
        root = self.root.value.astype(dtype)
        return (root @ jax.random.normal(key, root.shape[:1], dtype)).reshape(self.units.loc.value.shape)

    def batch(self, key: PRNGKey, x: Array, count: int) -> tuple[Array, Array]:
        """Data in standard units, and ``count`` draws of noise."""
        noise = jax.vmap(lambda k: self.draw_noise(k, x.dtype))(jax.random.split(key, count))
        return jax.vmap(self.units.inward)(x), noise


def _build(family: Any, key: PRNGKey, spec: Spec) -> EnergyNet:
    size = Standardisation(spec.shape).loc.value.size
    root = family.spread * jnp.eye(size, dtype=jnp.float32)
    zero = jnp.zeros((), jnp.float32)
    return EnergyNet(Standardisation(spec.shape), family.energy.build(key, spec), zero, Constant(root))


def _adapt(family: Any, net: EnergyNet, x: Array) -> EnergyNet:
    units = net.units.adapted(x)
    z = jax.vmap(units.inward)(x).reshape(len(x), -1)
    cov = z.T @ z / len(z)
    # Entries that depend on one another exactly leave no room for noise.
    root = family.spread * jnp.linalg.cholesky(cov + 1e-4 * jnp.eye(len(cov), dtype=cov.dtype))
    start = jnp.sum(jnp.log(jnp.diag(root))) + 0.5 * len(root) * jnp.log(2 * jnp.pi)
    return eqx.tree_at(lambda n: (n.units, n.root, n.log_z), net, (units, Constant(root), start.astype(jnp.float32)))


def _check(family: Any, spec: Spec) -> None:
    name = type(family).__name__
    if not family.spread > 0:
        raise MethodError(f"{name} got spread={family.spread!r}, expected a positive number. Change spread.")
    if family.sampling_steps < 1:
        raise MethodError(f"{name} got sampling_steps={family.sampling_steps!r}, expected at least 1.")


class NoiseContrast(Family):
    """An energy fitted by noise-contrastive estimation, with normal noise of the mean and covariance of the data.

    Attributes:
        energy: What function it is.
        ratio: Draws of noise per datum.
        spread: Factor on the deviation of the noise.
        sampling_steps: Length of the chain that draws.
        sampling_scale: Step of the chain, in deviations of the noise.
    """

    training: ClassVar[Training] = Training(steps=3000, learning_rate=3e-3, ema=0.99, weight_decay=0.0)

    energy: Energy = eqx.field(static=True, default=NeuralEnergy())
    ratio: int = eqx.field(static=True, default=4)
    spread: float = eqx.field(static=True, default=1.0)
    sampling_steps: int = eqx.field(static=True, default=500)
    sampling_scale: float = eqx.field(static=True, default=0.3)

    def check(self, spec: Spec) -> None:
        _check(self, spec)
        if self.ratio < 1:
            raise MethodError(f"NoiseContrast got ratio={self.ratio!r}, expected at least 1 draw of noise per datum.")
        if spec.condition is not None:
            raise MethodError(
                "noise contrast estimates one normaliser, and with conditions there is one for each. Put the condition's "
                "entries into the data: E(x, c) is then an energy of x given c too."
            )

    def build(self, key: PRNGKey, spec: Spec) -> EnergyNet:
        return _build(self, key, spec)

    def adapt(self, key: PRNGKey, net: EnergyNet, x: Array, condition: Array | None) -> EnergyNet:
        return _adapt(self, net, x)

    def loss(self, key: PRNGKey, net: EnergyNet, x: Array, condition: Array | None, now: Now) -> Scalar:
        data, noise = net.batch(key, x, self.ratio * len(x))

        def logit(x: Array) -> Scalar:
            return -net.energy(x, None) - net.log_z - net.log_noise(x) - jnp.log(self.ratio)

        mistaken = jnp.mean(jax.nn.softplus(-jax.vmap(logit)(data)))
        return mistaken + self.ratio * jnp.mean(jax.nn.softplus(jax.vmap(logit)(noise)))

    def distribution(self, net: EnergyNet, spec: Spec) -> LearnedEnergyModel:
        return LearnedEnergyModel(self, spec, net)


class Compositional(Solved):
    """An energy fitted by maximum likelihood as a compositional problem, with normal noise as in ``NoiseContrast``.

    Attributes:
        energy: What function it is.
        spread: Factor on the deviation of the noise.
        steps: Steps of Adam, whose rate falls along a cosine.
        batch: Data, and draws of noise, per step.
        learning_rate: The first rate.
        tracking: :math:`\\gamma`, the weight of a new batch in the normaliser.
        sampling_steps: Length of the chain that draws.
        sampling_scale: Step of the chain, in deviations of the noise.
    """

    energy: Energy = eqx.field(static=True, default=NeuralEnergy())
    spread: float = eqx.field(static=True, default=1.5)
    steps: int = eqx.field(static=True, default=3000)
    batch: int = eqx.field(static=True, default=256)
    learning_rate: float = eqx.field(static=True, default=3e-3)
    tracking: float = eqx.field(static=True, default=0.1)
    sampling_steps: int = eqx.field(static=True, default=500)
    sampling_scale: float = eqx.field(static=True, default=0.3)

    def check(self, spec: Spec) -> None:
        _check(self, spec)
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise MethodError(f"Compositional got {name}={getattr(self, name)!r}, expected at least 1.")
        if not 0 < self.tracking <= 1:
            raise MethodError(f"Compositional got tracking={self.tracking!r}, expected 0 < tracking <= 1.")
        if spec.condition is not None:
            raise MethodError(
                "Compositional tracks one normaliser, and with conditions there is one for each. Drop them."
            )

    def build(self, key: PRNGKey, spec: Spec) -> EnergyNet:
        return _build(self, key, spec)

    def adapt(self, key: PRNGKey, net: EnergyNet, x: Array, condition: Array | None) -> EnergyNet:
        return _adapt(self, net, x)

    def solve(self, key: PRNGKey, net: EnergyNet, x: Array, condition: Array | None) -> EnergyNet:
        return _compositional(self, key, net, x)

    def distribution(self, net: EnergyNet, spec: Spec) -> LearnedEnergyModel:
        return LearnedEnergyModel(self, spec, net)


@eqx.filter_jit
def _compositional(family: Compositional, key: PRNGKey, net: EnergyNet, x: Array) -> EnergyNet:
    optimiser = optax.adam(optax.cosine_decay_schedule(family.learning_rate, family.steps))
    weights, fixed = eqx.partition(net.energy, eqx.is_inexact_array)

    def surrogate(weights: Any, log_u: Scalar, data: Array, noise: Array) -> tuple[Scalar, Scalar]:
        energy = eqx.combine(weights, fixed)
        ratios = jax.vmap(lambda z: -energy(z, None) - net.log_noise(z))(noise)
        log_g = logsumexp(ratios) - jnp.log(len(noise))
        grown = jnp.logaddexp(jnp.log1p(-family.tracking) + log_u, jnp.log(family.tracking) + log_g)
        log_u = jax.lax.stop_gradient(grown)
        # The gradient of this is that of g over the tracked mean.
        inner = jnp.exp(log_g - log_u)
        return jnp.mean(jax.vmap(lambda z: energy(z, None))(data)) + inner, log_u

    def step(carried: tuple[Any, Any, Scalar], key: PRNGKey) -> tuple[tuple[Any, Any, Scalar], None]:
        weights, memory, log_u = carried
        key_rows, key_noise = jax.random.split(key)
        rows = jax.random.randint(key_rows, (family.batch,), 0, len(x))
        data, noise = net.batch(key_noise, x[rows], family.batch)
        gradient, log_u = jax.grad(surrogate, has_aux=True)(weights, log_u, data, noise)
        updates, memory = optimiser.update(gradient, memory, weights)
        return (optax.apply_updates(weights, updates), memory, log_u), None

    (weights, _, log_u), _ = jax.lax.scan(
        step, (weights, optimiser.init(weights), net.log_z), jax.random.split(key, family.steps)
    )
    return eqx.tree_at(lambda n: (n.energy, n.log_z), net, (eqx.combine(weights, fixed), log_u))


class LearnedEnergyModel(LearnedEnergy):
    """An energy that was fitted with noise."""

    family: NoiseContrast | Compositional
    net: EnergyNet

    @property
    def log_normaliser(self) -> Scalar:
        """An *estimate* of the log normaliser of ``energy``, a by-product of the fit; its error is not known."""
        return self.net.log_z - self.net.units.log_det()

    def energy_at(self, x: Array) -> Scalar:
        return self.net.energy(self.net.units.inward(x), None)

    def draw(self, key: PRNGKey) -> Array:
        key_start, key_chain = jax.random.split(key)
        start = self.net.draw_noise(key_start, jnp.zeros(()).dtype)
        scale = jnp.asarray(self.family.sampling_scale * jnp.linalg.norm(self.net.root.value, axis=1), start.dtype)
        scale = scale.reshape(start.shape)
        z, _ = langevin(key_chain, lambda z: -self.net.energy(z, None), start, scale, self.family.sampling_steps)
        return self.net.units.outward(z)
