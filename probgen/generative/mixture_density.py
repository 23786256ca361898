r"""Mixture density networks (Bishop 1994): a mixture of Gaussians with full covariances, whose parameters a network makes
of the condition.

With :math:`z` the data in robust units, :math:`c` the condition and :math:`A c + b` the linear prediction of :math:`z`
(ridge regression on the data, made before training; :math:`W` whitens what it leaves),

.. math:: p(z \mid c) = |W| \sum_k \pi_k(c) \, |R_k(c)| \, N\big( R_k(c) (W (z - A c - b) - m_k(c)); 0, I \big)

where :math:`R_k = e^{D_k} (I + T_k)` is an inverse Cholesky factor: positive diagonal, :math:`T_k` strictly lower
triangular, so that densities need no decomposition. The last layer of the network begins at zero: before training the law
is the linear-Gaussian one, up to the distances between the components that tell them apart (a tenth of a standard
deviation, which leaves mean and variances as they are).

Units are median and interquartile range; beyond five units an entry is taken logarithmically, a map with a density of its
own, so that heavy tails neither dominate the training nor are cut off. Where data lie on a surface or at atoms they have
no density; components are never narrower than :math:`e^{-12}` units, which keeps the answer finite and not right.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import solve_triangular

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.learned import Exactness, Learned, as_points
from probgen.generative.standardisation import Standardisation
from probgen.nets.constant import Constant
from probgen.nets.mlp import MLP

__all__ = ["LearnedMixtureDensity", "MixtureDensity"]

_LINEAR = 5.0
"""Robust units up to which entries enter as they are."""
_SPREAD = 0.1
"""Distance of the components from their mean before training, in standard deviations of what is not predicted."""
_NARROWEST = 12.0
_SQUASH = 0.8144
r"""With it ``tanh(_SQUASH * c)`` of a logistic :math:`c` in robust units is uniform: coordinates of a bounded parameter
with a uniform prior become the parameter."""


def _robust(units: Standardisation, x: Array) -> Standardisation:
    """Median and interquartile range over 1.349, of data of shape ``(n, ...)``."""
    low, loc, high = jnp.quantile(x, jnp.asarray([0.25, 0.5, 0.75], x.dtype), axis=0)
    scale = (high - low) / 1.349
    # Where more than half of the values are equal the quartiles say nothing.
    scale = jnp.where(scale > 1e-6 * jnp.abs(loc), scale, x.std(0))
    scale = jnp.where(scale > 1e-6 * jnp.abs(loc), scale, 1.0)
    return eqx.tree_at(lambda u: (u.loc.value, u.scale.value), units, (loc, scale))


class Components(NamedTuple):
    """A mixture in whitened units.

    Attributes:
        log_shares: Shape ``(components,)``; they sum to one.
        centres: Shape ``(components, size)``.
        stretch: :math:`D`, shape ``(components, size)``.
        lower: :math:`T`, shape ``(components, size, size)``, strictly lower triangular.
        predicted: Of the data in robust units, shape ``(size,)``.
    """

    log_shares: Array
    centres: Array
    stretch: Array
    lower: Array
    predicted: Array


class MixtureNet(eqx.Module):
    """See ``MixtureDensity``; data are flat here.

    Attributes:
        units: Of the data.
        given: Of the conditions; ``None`` without.
        slope: ``A``, shape ``(size, features)``.
        offset: ``b``, shape ``(size,)``.
        root: A Cholesky factor of the covariance of what is not predicted, for draws.
        whitening: ``W``, its inverse, for densities.
        centres: Centres of the components but for what the network adds.
        body: The network.
    """

    units: Standardisation
    given: Standardisation | None
    slope: Constant
    offset: Constant
    root: Constant
    whitening: Constant
    centres: Array
    body: MLP

    @property
    def size(self) -> int:
        """Numbers of a datum."""
        return self.offset.value.shape[0]

    def features(self, condition: Array | None, dtype: Any) -> Array:
        """What is predicted from: the condition in robust units, as it is and bounded."""
        if self.given is None or condition is None:
            return jnp.zeros(0, dtype)
        c = self.given.inward(condition.astype(dtype)).reshape(-1)
        return jnp.concatenate([c, jnp.tanh(_SQUASH * c)])

    def components(self, condition: Array | None, dtype: Any) -> Components:
        """The mixture given a condition."""
        size, features = self.size, self.features(condition, dtype)
        half = features.shape[0] // 2
        read = jnp.concatenate([jnp.arcsinh(features[:half]), features[half:]])
        out = self.body(read).reshape(self.centres.shape[0], -1)
        shares, centres, stretch, lower = jnp.split(out, [1, 1 + size, 1 + 2 * size], -1)
        rows, columns = np.tril_indices(size, -1)
        matrix = jnp.zeros((out.shape[0], size, size), out.dtype).at[:, rows, columns].set(lower)
        predicted = self.slope.value @ features + self.offset.value
        stretch = _NARROWEST * jnp.tanh(stretch / _NARROWEST)
        return Components(jax.nn.log_softmax(shares[:, 0]), self.centres + centres, stretch, matrix, predicted)

    def log_density(self, mixture: Components, x: Array) -> Scalar:
        """Of a datum, in its own units."""
        dtype = mixture.predicted.dtype
        z, gained = _bent(self.units.inward(x.astype(dtype)).reshape(-1))
        whitening = self.whitening.value.astype(dtype)
        rest = whitening @ (z - mixture.predicted) - mixture.centres
        # Small products, at many points: sums fuse, products of matrices do not.
        rest = jnp.exp(mixture.stretch) * (rest + jnp.sum(mixture.lower * rest[:, None, :], -1))
        each = mixture.log_shares + mixture.stretch.sum(-1) - 0.5 * jnp.sum(rest**2, -1)
        constant = 0.5 * self.size * math.log(2 * math.pi) - jnp.sum(jnp.log(jnp.diagonal(whitening)))
        return jax.nn.logsumexp(each) - constant + gained + self.units.log_det()

    def draw(self, key: PRNGKey, mixture: Components) -> Array:
        """A datum, flat."""
        key_which, key_noise = jax.random.split(key)
        which = jax.random.categorical(key_which, mixture.log_shares)
        noise = jax.random.normal(key_noise, (self.size,), mixture.predicted.dtype)
        unit = jnp.eye(self.size, dtype=noise.dtype) + mixture.lower[which]
        rest = solve_triangular(unit, jnp.exp(-mixture.stretch[which]) * noise, lower=True)
        z = self.root.value.astype(noise.dtype) @ (mixture.centres[which] + rest) + mixture.predicted
        return self.units.outward(_unbent(z).reshape(self.units.loc.value.shape))


def _bent(z: Array) -> tuple[Array, Scalar]:
    """Logarithmic beyond ``_LINEAR``, and the log determinant of that."""
    beyond = jnp.abs(z) > _LINEAR
    ratio = jnp.where(beyond, jnp.abs(z) / _LINEAR, 1.0)
    return jnp.where(beyond, jnp.sign(z) * _LINEAR * (1 + jnp.log(ratio)), z), -jnp.sum(jnp.log(ratio))


def _unbent(z: Array) -> Array:
    """Inverse of ``_bent``."""
    beyond = jnp.abs(z) > _LINEAR
    power = jnp.where(beyond, jnp.abs(z) / _LINEAR - 1, 0.0)
    return jnp.where(beyond, jnp.sign(z) * _LINEAR * jnp.exp(power), z)


class MixtureDensity(Family):
    """A conditional mixture of Gaussians with full covariances. The network has
    ``components * (1 + size * (size + 3) / 2)`` outputs for data of ``size`` numbers: for tens of them, not hundreds.

    Attributes:
        components: How many Gaussians.
        width: Length of the hidden layers.
        depth: Number of hidden layers.
    """

    training: ClassVar[Training] = Training(steps=6000, learning_rate=2e-3, weight_decay=1e-2, validation=0.05)

    components: int = eqx.field(static=True, default=8)
    width: int = eqx.field(static=True, default=96)
    depth: int = eqx.field(static=True, default=3)

    def check(self, spec: Spec) -> None:
        for name in ("components", "width", "depth"):
            if not is_count(getattr(self, name)):
                raise MethodError(
                    f"MixtureDensity got {name}={getattr(self, name)!r}, expected an int of at least 1. Change {name}."
                )
        if math.prod(spec.shape) < 1:
            raise MethodError(
                f"MixtureDensity got data of shape {spec.shape}, which have no entries. Give data with entries."
            )

    def build(self, key: PRNGKey, spec: Spec) -> MixtureNet:
        key_body, key_centres = jax.random.split(key)
        size = math.prod(spec.shape)
        features = 0 if spec.condition is None else 2 * math.prod(spec.condition)
        outputs = self.components * (1 + 2 * size + size * (size - 1) // 2)
        centres = jax.random.normal(key_centres, (self.components, size), jnp.float32)
        if self.components > 1:
            centres = centres - centres.mean(0)
            centres = _SPREAD * centres / jnp.sqrt(jnp.mean(centres**2, 0) + 1e-12)
        else:
            centres = jnp.zeros_like(centres)
        return MixtureNet(
            Standardisation(spec.shape),
            None if spec.condition is None else Standardisation(spec.condition),
            Constant(jnp.zeros((size, features), jnp.float32)),
            Constant(jnp.zeros(size, jnp.float32)),
            Constant(jnp.eye(size, dtype=jnp.float32)),
            Constant(jnp.eye(size, dtype=jnp.float32)),
            centres,
            MLP(key_body, features, outputs, self.width, self.depth, zero=True),
        )

    def adapt(self, key: PRNGKey, net: MixtureNet, x: Array, condition: Array | None) -> MixtureNet:
        given = net.given if net.given is None or condition is None else _robust(net.given, condition)
        net = eqx.tree_at(lambda n: (n.units, n.given), net, (_robust(net.units, x), given))
        count = x.shape[0]

        def read(x: Array, condition: Array | None) -> tuple[Array, Array]:
            return _bent(net.units.inward(x).reshape(-1))[0], net.features(condition, x.dtype)

        z, features = jax.vmap(read)(x, condition)
        # In 64 bits where there are any: the normal equations square the condition number.
        z, features = z.astype(float), features.astype(float)
        loc, centre = z.mean(0), features.mean(0)
        design, target = features - centre, z - loc
        gram = design.T @ design + jnp.eye(design.shape[1])
        slope = jnp.linalg.solve(gram, design.T @ target).T
        rest = target - design @ slope.T
        covariance = rest.T @ rest / count + 1e-9 * jnp.eye(net.size)
        # The components lie apart by as much as they are narrower.
        narrower = 1 - _SPREAD**2 if self.components > 1 else 1.0
        root = math.sqrt(narrower) * jnp.linalg.cholesky(covariance)
        new = (slope, loc - slope @ centre, root, solve_triangular(root, jnp.eye(net.size), lower=True))
        return eqx.tree_at(
            lambda n: (n.slope.value, n.offset.value, n.root.value, n.whitening.value),
            net,
            tuple(a.astype(jnp.float32) for a in new),
        )

    def loss(self, key: PRNGKey, net: MixtureNet, x: Array, condition: Array | None, now: Now) -> Scalar:
        def one(x: Array, condition: Array | None) -> Scalar:
            return net.log_density(net.components(condition, x.dtype), x)

        return -jnp.mean(jax.vmap(one)(x, condition))

    def distribution(self, net: MixtureNet, spec: Spec) -> LearnedMixtureDensity:
        return LearnedMixtureDensity(self, spec, net)


class LearnedMixtureDensity(Learned):
    """The mixture given a condition: draws and density are exact, and the density is differentiable in the condition."""

    offers: ClassVar = {"log_prob": Exactness.exact, "sample": Exactness.exact}

    family: MixtureDensity
    net: MixtureNet

    def mixture(self) -> Components:
        """The components, given one condition if there are any."""
        dtype = jnp.result_type(float) if self.condition is None else jnp.result_type(self.condition, jnp.float32)
        return self.net.components(self.condition, dtype)

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """See ``Learned.log_prob``."""
        self._ready("log_prob")
        if self.batch_shape or self._stacked():
            return super().log_prob(value)
        # The condition is read once for all points.
        value, mixture = as_points(value, self.event_shape, "value"), self.mixture()
        flat = value.reshape(-1, *self.event_shape)
        head = value.shape[: value.ndim - self.event_dim]
        return jax.vmap(lambda x: self.net.log_density(mixture, x))(flat).reshape(head)

    def density(self, x: Array) -> Scalar:
        return self.net.log_density(self.mixture(), x)

    def draw(self, key: PRNGKey) -> Array:
        return self.net.draw(key, self.mixture())
