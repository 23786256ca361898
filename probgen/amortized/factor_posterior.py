r"""A Gaussian posterior as a product of learned factors, one of each row, by learned Gauss-Newton steps.

Given the parameters, rows that a program treats alike are independent: the posterior is the prior times a factor of each
row. In whitened parameters :math:`v` (mean 0 and covariance :math:`I` under the prior) a network reads each row
:math:`x_k`, with its design, at a point :math:`v` and answers with a Gaussian factor there; the mean of the product is the
next point:

.. math:: (J_k, a_k, B_k) = f_\theta(x_k, v), \quad z_k = a_k + B_k x_k, \quad \Lambda = I + \sum_k J_k^\top J_k, \quad
          v \leftarrow v + \Lambda^{-1} \Bigl( \sum_k J_k^\top z_k - v \Bigr)

With :math:`J_k` the Jacobian of the expectation of the row over its noise, and :math:`z_k` the residual over the noise,
these are Gauss-Newton steps to the mode, and :math:`N(v, \Lambda^{-1})` at the end is Laplace's approximation. No one says
so: the network is trained by the log density of the parameters, after each step, and finds what is best by that. What it
is good for: precision grows with the number of rows as it should, by construction, for any number and design of them;
Gaussian rows with linear expectation have their exact posterior in reach; and what the network has to learn, a row at a
point, is much simpler than the way back from all rows at once.

Entries outside of rows are one more factor. Series are not read: their rows are not independent.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.amortized.encoder import EncoderNet, ObservationEncoder
from probgen.amortized.reading import Reading
from probgen.amortized.reference import Reference
from probgen.amortized.whitening import Whitening
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Family, Now, Spec
from probgen.generative.learned import Exactness, Learned
from probgen.nets.constant import Constant
from probgen.nets.mlp import MLP

__all__ = ["FactorPosterior", "LearnedFactors"]

_MOST = 32
"""Parameters above which a covariance of all of them is left to the linear prediction."""
_EARLIER = 0.3
"""Weight of the log densities after the steps before the last."""
_LARGEST = 4.0
"""Parameters far outside of the prior are told to the network as their logarithm, from here on."""
_CUT = 20.0
"""Numbers of rows that are further off, in robust standard units, enter through the network alone."""


class FactorNet(eqx.Module):
    """Factors of the rows of one group.

    Attributes:
        net: From a row and a point to the factor.
        gains: Logarithms of the sizes of ``J`` and ``z``.
    """

    net: MLP
    gains: Array
    rank: int = eqx.field(static=True)

    def __init__(self, key: PRNGKey, features: int, width: int, dim: int, count: int, hidden: int, depth: int) -> None:
        # A row says something of its location and of its scale.
        self.rank = min(dim, 2 * width)
        self.net = MLP(key, features + dim, self.rank * (dim + 1 + width), hidden, depth)
        self.gains = jnp.log(jnp.asarray([1.0, 6.0], jnp.float32) * 14.0 / math.sqrt(count))

    def __call__(self, rows: Array, values: Array, point: Array) -> tuple[Array, Array]:
        """``J`` and ``z`` of each row, shapes ``(n, rank, dim)`` and ``(n, rank)``.

        Args:
            rows: What the network is told of each, shape ``(n, features)``.
            values: Numbers of each in standard units, shape ``(n, width)``.
            point: In whitened parameters, shape ``(dim,)``.
        """
        dim = point.shape[0]
        near = _LARGEST * jnp.arcsinh(point / _LARGEST)
        found = jax.vmap(lambda row: self.net(jnp.concatenate([row, near])))(rows).reshape(len(rows), self.rank, -1)
        z = found[..., dim] + jnp.einsum("nrw,nw->nr", found[..., dim + 1 :], values)
        size = jnp.exp(self.gains)
        return size[0] * found[..., :dim], size[1] * z


class FactorsNet(eqx.Module):
    """All factors, and the units in which they are.

    Attributes:
        reader: Units of the numbers of an observation.
        loc: Mean of the parameters under the prior, shape ``(dim,)``.
        root: Cholesky factor of their covariance.
        groups: Factors of the rows of each group, and last those of the entries outside of rows, if there are any.
    """

    reader: EncoderNet
    loc: Constant
    root: Constant
    groups: tuple[FactorNet, ...]

    def steps(self, condition: Array, count: int) -> Whitening:
        """The Gaussian after each of ``count`` steps, stacked, given a packed observation."""
        dtype, dim = condition.dtype, self.loc.value.shape[0]
        read, told = self.reader.reading.unpack(condition), []
        flat = self.reader.flat(read.flat, read.flat_seen)
        context = jnp.concatenate([flat, read.flat_seen.astype(flat.dtype)]) if self.reader.marks else flat
        rows = self.reader.rows_of(read)
        for i in _sets(self.reader.reading):
            shared = jnp.broadcast_to(context, (len(rows[i]), len(context)))
            values = _linear(self.reader.rows[i](read.rows[i], read.rows_seen[i]))
            told.append((jnp.concatenate([rows[i], shared], -1).astype(dtype), values.astype(dtype), read.present[i]))
        if self.reader.reading.entries:
            told.append((context[None].astype(dtype), _linear(flat)[None].astype(dtype), jnp.ones(1, bool)))

        def step(point: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
            precision, pull = jnp.eye(dim, dtype=dtype), -point
            for factor, (features, values, present) in zip(self.groups, told, strict=True):
                slope, rest = factor(features, values, point)
                slope = jnp.where(present[:, None, None], slope, 0.0)
                precision = precision + jnp.einsum("nri,nrj->ij", slope, slope)
                pull = pull + jnp.einsum("nri,nr->i", slope, rest)
            inner = jnp.linalg.cholesky(precision)
            point = point + jax.scipy.linalg.cho_solve((inner, True), pull)
            return point, (self.loc.value + self.root.value @ point, inner)

        _, (loc, inner) = jax.lax.scan(step, jnp.zeros(dim, dtype), None, length=count)
        return Whitening(loc, jnp.broadcast_to(self.root.value, (count, dim, dim)), inner)


def _linear(scaled: Array) -> Array:
    """Numbers in plain standard units, cut far out, from those of ``Units``."""
    return jnp.clip(jnp.sinh(jnp.clip(scaled, -5.0, 5.0)), -_CUT, _CUT)


def _sets(reading: Reading) -> list[int]:
    return [i for i, group in enumerate(reading.rows) if not group.ordered]


class FactorPosterior(Family):
    """A Gaussian posterior as a product of learned factors.

    Attributes:
        encoder: What hides rows and scales numbers.
        width: Length of the hidden layers.
        depth: Number of hidden layers.
        steps: Gauss-Newton steps.
    """

    validated: ClassVar[bool] = True

    encoder: ObservationEncoder
    width: int = eqx.field(static=True, default=64)
    depth: int = eqx.field(static=True, default=3)
    steps: int = eqx.field(static=True, default=3)

    @staticmethod
    def reads(reading: Reading, dim: int) -> bool:
        """Whether it is of use for a reading: there are rows that are alike, and few parameters."""
        return bool(_sets(reading)) and dim <= _MOST

    def build(self, key: PRNGKey, spec: Spec) -> FactorsNet:
        key_reader, *keys = jax.random.split(key, 2 + len(self.encoder.reading.rows))
        reader = dataclasses.replace(self.encoder.build(key_reader), nets=(), reference=Reference(0, 0))
        reading, dim, told = reader.reading, spec.shape[0], 2 if reader.marks else 1
        context, factors = told * reading.entries, []
        for i in _sets(reading):
            group = reading.rows[i]
            features = told * group.width + group.given + context
            factors.append(FactorNet(keys[i], features, group.width, dim, group.count, self.width, self.depth))
        if reading.entries:
            factors.append(FactorNet(keys[-1], context, reading.entries, dim, 1, self.width, self.depth))
        root = Constant(jnp.eye(dim, dtype=jnp.float32))
        return FactorsNet(reader, Constant(jnp.zeros(dim, jnp.float32)), root, tuple(factors))

    def adapt(self, key: PRNGKey, net: FactorsNet, x: Array, condition: Array | None) -> FactorsNet:
        assert condition is not None
        loc, root = _moments(x)
        return dataclasses.replace(
            net, reader=eqx.filter_jit(net.reader.adapted)(condition), loc=Constant(loc), root=Constant(root)
        )

    def loss(self, key: PRNGKey, net: FactorsNet, x: Array, condition: Array | None, now: Now) -> Scalar:
        assert condition is not None

        def one(key: PRNGKey, u: Array, condition: Array) -> Scalar:
            steps = net.steps(self.encoder.hide(key, condition), self.steps)
            found = jax.vmap(lambda step: step.log_density(u))(steps)
            return -found[-1] - _EARLIER * jnp.sum(found[:-1])

        return jnp.mean(jax.vmap(one)(jax.random.split(key, len(x)), x, condition))

    def distribution(self, net: FactorsNet, spec: Spec) -> LearnedFactors:
        return LearnedFactors(self, spec, net)


@jax.jit
def _moments(x: Array) -> tuple[Array, Array]:
    """Mean and Cholesky factor of the covariance."""
    x = x.astype(float)
    scale = jnp.where(x.std(0) > 0, x.std(0), 1.0)
    standard = (x - x.mean(0)) / scale
    root = jnp.linalg.cholesky(standard.T @ standard / len(x) + 1e-9 * jnp.eye(x.shape[1]))
    return x.mean(0).astype(jnp.float32), (scale[:, None] * root).astype(jnp.float32)


class LearnedFactors(Learned):
    """The Gaussian of the factors of an observation."""

    offers: ClassVar = {"log_prob": Exactness.exact, "noise_map": Exactness.exact, "sample": Exactness.exact}

    family: FactorPosterior
    net: FactorsNet

    def whitening(self, condition: Array) -> Whitening:
        """That of a packed observation."""
        return jax.tree.map(lambda a: a[-1], self.net.steps(condition, self.family.steps))

    def features(self, whitening: Whitening) -> Array:
        """What a network is told of a Gaussian: mean and logarithms of precisions, in units of the prior, shape
        ``(2 * dim,)``."""
        assert whitening.inner is not None
        prior = Whitening(self.net.loc.value, self.net.root.value)
        return jnp.concatenate([prior.inward(whitening.loc), jnp.log(jnp.diagonal(whitening.inner))])

    def draw(self, key: PRNGKey) -> Array:
        return self.push(jax.random.normal(key, self.spec.shape, jnp.result_type(float)))

    def push(self, z: Array) -> Array:
        assert self.condition is not None
        return self.whitening(self.condition).outward(z)

    def density(self, x: Array) -> Scalar:
        assert self.condition is not None
        return self.whitening(self.condition).log_density(x)
