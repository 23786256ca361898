r"""Self-supervised variational autoencoders (Gatopoulos and Tomczak 2021): a coarser version of the datum, which is
known in training, stands between the datum and the latent variables.

With a deterministic map :math:`d` to discrete summaries :math:`y = d(x)`, whose guide is the point mass there,

.. math:: \log p(x) = \log \sum_y p(y)\, p(x \mid y) \ge \log p(d(x)) + \log p(x \mid d(x)),

and each term has a bound of its own: the first is that of a variational autoencoder of the summaries, the second that
of one of data given their summary. The inequality is one for discrete data only (for real ones the point mass has no
density). Where the model of data given a summary puts no mass on data with another one it is an equality.

Summaries may be summarised again, level upon level. Draws are made from the coarsest level down; a datum given its
summary is a draw of the last step alone.
"""

from __future__ import annotations

import abc
import itertools
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from numpyro.distributions import constraints

from probgen.base.errors import DataError, MethodError
from probgen.base.part import Part
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.learned import Exactness, Learned
from probgen.generative.vae import VAE, LearnedVAE
from probgen.generative.vae_net import VAENet

__all__ = ["Downscaled", "LearnedSelfSupervisedVAE", "SelfSupervisedVAE", "Summary"]


class Summary(Part):
    """A deterministic map of discrete data to coarser discrete data."""

    @abc.abstractmethod
    def spec(self, spec: Spec) -> Spec:
        """Shapes and values of the summaries.

        Raises:
            DataError: If data of that shape have none.
        """

    @abc.abstractmethod
    def __call__(self, x: Array, spec: Spec) -> Array:
        """The summary of one datum."""


class Downscaled(Summary):
    """The rounded mean of square blocks of an image of shape ``(rows, columns)``; halves are rounded up.

    Attributes:
        factor: Length of the side of a block.
    """

    factor: int = eqx.field(static=True, default=2)

    def spec(self, spec: Spec) -> Spec:
        if self.factor < 2 or len(spec.shape) != 2 or any(size % self.factor for size in spec.shape):
            raise DataError(
                f"data of shape {spec.shape} cannot be downscaled by {self.factor}. Give images (rows, columns) whose "
                f"sides are multiples of a factor of at least 2."
            )
        return Spec(tuple(size // self.factor for size in spec.shape), None, spec.values)

    def __call__(self, x: Array, spec: Spec) -> Array:
        rows, columns = spec.shape
        blocks = x.reshape(rows // self.factor, self.factor, columns // self.factor, self.factor)
        cells = self.factor**2
        return (2 * blocks.sum((1, 3)) + cells) // (2 * cells)


class SelfSupervisedVAE(Family):
    """Variational autoencoders from coarse to fine.

    Attributes:
        parts: One variational autoencoder per level, the coarsest first: of the coarsest summaries, then of each finer
            level given the one before, last of the data. At least two.
        summary: From a level to the coarser one.
    """

    parts: tuple[VAE, ...] = eqx.field(default=())
    summary: Summary = eqx.field(static=True, default=Downscaled())

    discrete: ClassVar = True
    training: ClassVar = Training(weight_decay=0.0)

    def _specs(self, spec: Spec) -> tuple[Spec, ...]:
        """Of the levels, the coarsest first, each with the one before as its condition."""
        specs = [Spec(spec.shape, None, spec.values)]
        for _ in self.parts[1:]:
            specs.append(self.summary.spec(specs[-1]))
        specs.reverse()
        finer = (Spec(s.shape, above.shape, s.values) for above, s in itertools.pairwise(specs))
        return (specs[0], *finer)

    def check(self, spec: Spec) -> None:
        if len(self.parts) < 2 or not all(isinstance(part, VAE) and part.discrete for part in self.parts):
            raise MethodError(
                f"SelfSupervisedVAE got parts={self.parts!r}, expected at least two VAE with discrete likelihoods, the "
                f"coarsest first. Write SelfSupervisedVAE((VAE(BernoulliLikelihood()), VAE(BernoulliLikelihood())))."
            )
        if spec.condition is not None:
            raise MethodError("SelfSupervisedVAE takes no conditions. Leave out condition=, or fit a VAE.")
        for part, own in zip(self.parts, self._specs(spec), strict=True):
            part.check(own)

    def build(self, key: PRNGKey, spec: Spec) -> tuple[VAENet, ...]:
        keys = jax.random.split(key, len(self.parts))
        return tuple(p.build(k, s) for p, k, s in zip(self.parts, keys, self._specs(spec), strict=True))

    def levels(self, x: Array, spec: Spec) -> tuple[Array, ...]:
        """A datum and its summaries, the coarsest first."""
        found = [x]
        for own in reversed(self._specs(spec)[1:]):
            found.append(self.summary(found[-1], Spec(own.shape, None, own.values)))
        return tuple(reversed(found))

    def adapt(self, key: PRNGKey, net: tuple[VAENet, ...], x: Array, condition: Array | None) -> tuple[VAENet, ...]:
        parts = self._paired(net, x)
        return tuple(p.adapt(key, n, own, c) for p, (n, own, c) in zip(self.parts, parts, strict=True))

    def _paired(self, net: tuple[VAENet, ...], x: Array) -> list[tuple[VAENet, Array, Array | None]]:
        """For each level its net, data and conditions; ``x`` has shape ``(n, ...)``."""
        spec = Spec(x.shape[1:], None, net[-1].spec.values)
        levels = jax.vmap(lambda x: self.levels(x, spec))(x)
        above = (None, *(level.astype(jnp.float32) for level in levels[:-1]))
        return list(zip(net, levels, above, strict=True))

    def loss(self, key: PRNGKey, net: tuple[VAENet, ...], x: Array, condition: Array | None, now: Now) -> Scalar:
        parts = zip(self.parts, jax.random.split(key, len(net)), self._paired(net, x), strict=True)
        return sum((p.loss(k, *part, now) for p, k, part in parts), jnp.zeros(()))

    def distribution(self, net: tuple[VAENet, ...], spec: Spec) -> LearnedSelfSupervisedVAE:
        return LearnedSelfSupervisedVAE(self, spec, net)


class LearnedSelfSupervisedVAE(Learned):
    """The law from coarse to fine. ``parts`` are its levels, which are laws themselves."""

    offers: ClassVar = {"sample": Exactness.exact, "bound": Exactness.bound}

    family: SelfSupervisedVAE
    net: tuple[VAENet, ...]

    @property
    def support(self) -> constraints.Constraint:
        return self.parts[-1].support

    @property
    def parts(self) -> tuple[LearnedVAE, ...]:
        """The law of the coarsest summary, then that of each level given the one before, the data last."""
        specs = self.family._specs(self.spec)
        return tuple(p.distribution(n, s) for p, n, s in zip(self.family.parts, self.net, specs, strict=True))

    def draw(self, key: PRNGKey) -> Array:
        first, *rest = self.parts
        key_first, *keys = jax.random.split(key, len(self.net))
        x = first.draw(key_first)
        for part, key_part in zip(rest, keys, strict=True):
            x = part.given(x).draw(key_part)
        return x

    def summaries(self, value: Array) -> tuple[Array, ...]:
        """Data and their summaries, the coarsest first."""
        value = jnp.asarray(value)
        return self.pointwise(lambda here, x: here.family.levels(x, here.spec), (value, self.event_dim))

    def refine(self, key: PRNGKey, summary: Array) -> Array:
        """Draws of data given summaries of the level just above, shape ``(..., *event_shape)``."""
        return self.parts[-1].given(jnp.asarray(summary)).sample(key)

    def bound(self, key: PRNGKey, value: Array, draws: int = 1) -> Array:
        """As that of a ``LearnedVAE``: the sum over levels, each with so many draws."""
        self._ready("bound")
        value = jnp.asarray(value)
        keys = jax.random.split(key, value.shape[: value.ndim - self.event_dim])
        parts = (keys, 0), (value, self.event_dim)
        return self.pointwise(lambda here, key, x: here.bound_at(key, x, draws), *parts)

    def bound_at(self, key: PRNGKey, x: Array, draws: int = 1) -> Scalar:
        levels = self.family.levels(x, self.spec)
        total: Any = jnp.zeros(())
        for i, (part, key_part) in enumerate(zip(self.parts, jax.random.split(key, len(levels)), strict=True)):
            law: Any = part if i == 0 else part.given(levels[i - 1])
            total = total + law.bound_at(key_part, levels[i], draws)
        return total
