r"""Symbols as points of a real space: denoisers that know which symbol each noisy point may be.

Symbol :math:`v` stands at :math:`e_v`, a row of symbols is noised along a path, :math:`x_t = \alpha e_{x} + \sigma\varepsilon`,
and the posterior of entry :math:`i` is :math:`\pi_{iv} = P(x_i = v \mid x_t)`, with mean :math:`m_i = \sum_v \pi_{iv} e_v`.

*Clamping* puts the nearest symbol in place of :math:`m_i`. *Control* is ``ClassifierGuidance`` by a property :math:`c`, whose
chance is computed from the :math:`\pi_{iv}`: it adds :math:`\frac{\sigma^2}{\alpha} \nabla_{x_t} \log P(c \mid x_t)` to
:math:`m`, and with :math:`P(c \mid x_t)` exact that is the exact mean given :math:`c`. A property of one entry has its
probability among the :math:`\pi_{iv}`; for others, products of them are an approximation, as the entries are not
independent given :math:`x_t`.

Reference: Li et al. (2022), "Diffusion-LM improves controllable text generation".
"""

from __future__ import annotations

import abc

import equinox as eqx
import jax.numpy as jnp
from jax import Array

from probgen.generative.denoiser import Denoiser
from probgen.generative.path import Path, Time
from probgen.generative.table import Table

__all__ = ["ClampedDenoiser", "EmbeddedDenoiser", "EmbeddedTable"]


class EmbeddedDenoiser(Denoiser):
    """A denoiser of embedded symbols."""

    path: eqx.AbstractVar[Path]
    embeddings: eqx.AbstractVar[Array]
    """Where the symbols stand, shape ``(values, dim)``."""

    @abc.abstractmethod
    def entries(self, x: Array, t: Time) -> Array:
        """Log probabilities of the symbols of every entry given the noisy points, shape ``(size, values)``."""

    def rounded(self, x: Array) -> Array:
        """The nearest symbol of every entry, shape ``(size,)`` from ``(size, dim)``."""
        distances = jnp.sum((x[:, None] - self.embeddings) ** 2, -1)
        return jnp.argmin(distances, -1).astype(jnp.int32)


class EmbeddedTable(EmbeddedDenoiser):
    """The exact denoiser of the embedded symbols of a table.

    Attributes:
        table: Law of the rows.
        embeddings: Shape ``(values, dim)``.
        path: From data to noise.
    """

    table: Table
    embeddings: Array
    path: Path

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.table.size, self.embeddings.shape[1])

    def entries(self, x: Array, t: Time) -> Array:
        alpha, sigma = self.path(t)
        distances = jnp.sum((x[:, None] - alpha * self.embeddings) ** 2, -1)
        return self.table.posterior(-distances / (2.0 * sigma**2))[1]

    def mean(self, x: Array, t: Time) -> Array:
        return jnp.exp(self.entries(x, t)) @ self.embeddings


class ClampedDenoiser(Denoiser):
    """A denoiser whose means are moved to the nearest symbols.

    Attributes:
        base: Whose means.
        symbols: Who knows where the symbols are.
    """

    base: Denoiser
    symbols: EmbeddedDenoiser
    path: Path

    def __init__(self, base: Denoiser, symbols: EmbeddedDenoiser) -> None:
        self.base, self.symbols, self.path = base, symbols, base.path

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def mean(self, x: Array, t: Time) -> Array:
        return self.symbols.embeddings[self.symbols.rounded(self.base.mean(x, t))]
