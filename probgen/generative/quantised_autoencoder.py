r"""Residual quantisation: codes of a few symbols, each a correction of those before it.

The encoder gives vectors :math:`z`, and each is written with symbols of one codebook :math:`e_1 \dots e_K`, greedily:

.. math:: r_0 = z, \qquad c_d = \arg\min_k \lVert r_{d-1} - e_k \rVert, \qquad r_d = r_{d-1} - e_{c_d},
          \qquad \hat z^{(d)} = \sum_{i \le d} e_{c_i}

A stack of :math:`D` symbols tells :math:`K^D` vectors apart with :math:`K` entries in the book; :math:`D = 1` is vector
quantisation. Minimised is

.. math:: \tfrac12 \lVert x - D(\hat z^{(D)}) \rVert^2 + \sum_d \lVert \operatorname{stop} r_{d-1} - e_{c_d} \rVert^2
          + \beta \sum_d \lVert z - \operatorname{stop} \hat z^{(d)} \rVert^2,

where the gradient of the first term passes to the encoder as if :math:`\hat z = z`. (The authors move the codebook by
averages instead of its gradient.) A prior over the codes makes it a generative model:
``LatentModel(encoder, CodePrior())``, whose likelihood of codes is exact.

Reference: Lee et al. (2022), "Autoregressive image generation using residual quantization"; van den Oord, Vinyals and
Kavukcuoglu (2017), "Neural discrete representation learning".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.autoencoder import check_without_condition
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.learned import Exactness
from probgen.generative.learned_encoder import LearnedEncoder
from probgen.generative.standardisation import Standardisation
from probgen.nets import MLP

__all__ = ["LearnedQuantised", "QuantisedAutoencoder"]


class Net(eqx.Module):
    """Units, the networks from data to vectors and back, and the codebook, shape ``(values, size)``."""

    units: Standardisation
    encoder: MLP
    decoder: MLP
    book: Array

    def inward(self, x: Array) -> Array:
        """The vectors of one datum, shape ``(slots, size)``."""
        return self.encoder(self.units.inward(x).reshape(-1)).reshape(-1, self.book.shape[1])


class QuantisedAutoencoder(Family):
    """An autoencoder of real data whose codes are rows of symbols.

    Attributes:
        values: Entries of the codebook.
        stack: Symbols per vector; 1 for vector quantisation.
        slots: Vectors per datum.
        size: Length of a vector.
        commitment: Weight that holds the encoder to its codes.
        width: Length of the hidden layers.
        depth: Number of hidden layers.
    """

    values: int = eqx.field(static=True, default=16)
    stack: int = eqx.field(static=True, default=4)
    slots: int = eqx.field(static=True, default=1)
    size: int = eqx.field(static=True, default=2)
    commitment: float = eqx.field(static=True, default=0.25)
    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=2)

    training: ClassVar[Training] = Training(weight_decay=0.0)

    def check(self, spec: Spec) -> None:
        for name, least in (("values", 2), ("stack", 1), ("slots", 1), ("size", 1)):
            value = getattr(self, name)
            if not is_count(value, least):
                raise MethodError(f"QuantisedAutoencoder got {name}={value!r}, expected an int of at least {least}.")
        check_without_condition(self, spec)

    def build(self, key: PRNGKey, spec: Spec) -> Net:
        key_encoder, key_decoder = jax.random.split(key)
        dim, inner = math.prod(spec.shape), self.slots * self.size
        return Net(
            Standardisation(spec.shape),
            MLP(key_encoder, dim, inner, self.width, self.depth),
            MLP(key_decoder, inner, dim, self.width, self.depth),
            jnp.zeros((self.values, self.size), jnp.float32),
        )

    def adapt(self, key: PRNGKey, net: Net, x: Array, condition: Array | None) -> Net:
        """The book begins with vectors of data, some of them shortened, as residuals are."""
        net = eqx.tree_at(lambda n: n.units, net, net.units.adapted(x))
        vectors = jax.vmap(net.inward)(x).reshape(-1, self.size)
        taken = jax.random.choice(key, vectors, (self.values,))
        lengths = jnp.linspace(1.0, 1.0 / self.stack, self.values, dtype=vectors.dtype)
        return eqx.tree_at(lambda n: n.book, net, lengths[:, None] * taken)

    def quantised(self, book: Array, z: Array) -> tuple[Array, Array]:
        """Symbols of vectors, shape ``(slots, stack)``, and the entries of the book, ``(stack, slots, size)``."""

        def one(rest: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
            symbols = jnp.argmin(jnp.sum((rest[:, None] - book) ** 2, -1), -1)
            return rest - book[symbols], (symbols, book[symbols])

        _, (symbols, entries) = jax.lax.scan(one, z, length=self.stack)
        return symbols.T.astype(jnp.int32), entries

    def loss(self, key: PRNGKey, net: Net, x: Array, condition: Array | None, now: Now) -> Scalar:
        return jnp.mean(jax.vmap(self._loss, (None, 0))(net, x))

    def _loss(self, net: Net, x: Array) -> Scalar:
        z = net.inward(x)
        _, entries = self.quantised(net.book.astype(z.dtype), z)
        sums = jnp.cumsum(entries, 0)
        stop = jax.lax.stop_gradient
        rests = stop(z - (sums - entries))
        straight = z + stop(sums[-1] - z)
        error = jnp.sum((net.units.inward(x).reshape(-1) - net.decoder(straight.reshape(-1))) ** 2)
        return error / 2 + jnp.sum((rests - entries) ** 2) + self.commitment * jnp.sum((z - stop(sums)) ** 2)

    def distribution(self, net: Net, spec: Spec) -> LearnedQuantised:
        return LearnedQuantised(self, spec, net)


class LearnedQuantised(LearnedEncoder):
    """A learned autoencoder with residual quantisation: it encodes and decodes. A code is a row of ``slots * stack``
    symbols, the stack of the first vector first."""

    offers: ClassVar[Mapping[str, Exactness]] = {}

    family: QuantisedAutoencoder
    net: Net

    @property
    def code(self) -> Spec:
        return Spec((self.family.slots * self.family.stack,), values=self.family.values)

    def encode_at(self, x: Array) -> Array:
        z = self.net.inward(x)
        return self.family.quantised(self.net.book.astype(z.dtype), z)[0].reshape(-1)

    def decode_at(self, code: Array, noise: Array) -> Array:
        return self._of(code.reshape(self.family.slots, self.family.stack))

    def _of(self, stacks: Array) -> Array:
        vectors = jnp.sum(self.net.book[stacks], 1).reshape(-1).astype(jnp.result_type(float))
        return self.net.units.outward(self.net.decoder(vectors).reshape(self.event_shape))

    def decode_part(self, code: Array, stack: int) -> Array:
        """The datum that the first ``stack`` symbols of every vector of one code make, without the finer ones."""
        return self._of(code.reshape(self.family.slots, self.family.stack)[:, :stack])
