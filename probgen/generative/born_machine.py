r"""Born machines: probabilities as squares of a matrix product (a tensor train), with a trained embedding of the values.

A matrix product state :math:`\Psi_{s_1 \dots s_n} = A_1^{s_1} \cdots A_n^{s_n}` of bond dimension :math:`\chi` over
physical indices :math:`s \in \{1..D\}` is measured, entry by entry, by operators of the values (a POVM; Hou, Li and Zhang
2023),

.. math:: p(x) = \frac{\langle\Psi| E_1^{x_1} \otimes \cdots \otimes E_n^{x_n} |\Psi\rangle}{\langle\Psi|\Psi\rangle},
          \qquad E_i^v = L_i^{-1} B_i^{v\top} B_i^v L_i^{-\top}, \quad
          L_i L_i^\top = \sum_v B_i^{v\top} B_i^v.

:math:`\sum_v E_i^v = I`, so an entry that is not observed is measured by the identity, and normaliser, marginals,
conditionals and draws are exact, each a sweep of :math:`\chi\times\chi` matrices along the entries. :math:`D` may be less
than the number of values: the embedding then says which values are alike.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.tractable import Tractable, check_rows
from probgen.nets import Constant

__all__ = ["BornMachine", "LearnedBornMachine"]


class _Net(eqx.Module):
    cores: Array
    embedding: Array | Constant

    def _kraus(self, dtype: Any) -> Array:
        """Square roots of the operators of the values, shape ``(n, values, rank, D)``."""
        raw = self.embedding.value if isinstance(self.embedding, Constant) else self.embedding
        raw = raw.astype(dtype)
        root = jnp.linalg.cholesky(jnp.einsum("nvrd,nvre->nde", raw, raw))
        inverse = jax.vmap(lambda a: jax.scipy.linalg.solve_triangular(a, jnp.eye(len(a), dtype=dtype), lower=True))(
            root
        )
        return jnp.einsum("nvrd,ned->nvre", raw, inverse)

    def operators(self) -> Array:
        """:math:`E_i^v`, shape ``(n, values, D, D)``; over the values they sum to the identity."""
        kraus = self._kraus(jnp.zeros(()).dtype)
        return jnp.einsum("nvrd,nvre->nvde", kraus, kraus)

    def state(self, dtype: Any) -> _State:
        """The matrices, in this precision."""
        cores = self.cores.astype(dtype)
        return _State(cores, jnp.einsum("nvrd,ndab->nvrab", self._kraus(dtype), cores))


class _State(eqx.Module):
    """Cores, ``(n, D, chi, chi)``, and the matrices of the values, ``(n, values, rank, chi, chi)``."""

    cores: Array
    matrices: Array

    def measured(self, x: Array, mask: Array) -> Array:
        """The matrices of the observed values, or all of those of the physical index, ``(n, D', chi, chi)``."""
        at = jnp.take_along_axis(self.matrices, x[:, None, None, None, None].astype(int), 1)[:, 0]
        count = max(at.shape[1], self.cores.shape[1])

        def padded(a: Array) -> Array:
            return jnp.pad(a, ((0, 0), (0, count - a.shape[1]), (0, 0), (0, 0)))

        return jnp.where(mask[:, None, None, None], padded(at), padded(self.cores))

    def rights(self, measured: Array) -> tuple[Array, Array]:
        """Environments to the right of every entry, ``(n + 1, chi, chi)``, each of trace 1, and the log of what was
        divided out in all."""
        size = self.cores.shape[2]
        end = jnp.zeros((size, size), measured.dtype).at[0, 0].set(1.0)

        def step(carried: tuple[Array, Array], m: Array) -> tuple[tuple[Array, Array], Array]:
            right, log_scale = carried
            new = jnp.einsum("dab,bc,dec->ae", m, right, m)
            scale = jnp.trace(new)
            return (new / scale, log_scale + jnp.log(scale)), right

        (first, log_scale), rights = jax.lax.scan(step, (end, jnp.zeros((), measured.dtype)), measured, reverse=True)
        return jnp.concatenate([first[None], rights]), log_scale

    def log_square(self, x: Array, mask: Array) -> Scalar:
        """Log of the unnormalised probability of the observed entries."""
        rights, log_scale = self.rights(self.measured(x, mask))
        return log_scale + jnp.log(rights[0, 0, 0])

    def log_prob(self, x: Array, mask: Array) -> Scalar:
        return self.log_square(x, mask) - self.log_square(x, jnp.zeros_like(mask))

    def draw(self, key: PRNGKey, x: Array, mask: Array) -> Array:
        """From the first entry to the last, each given those before it and the observed ones after it."""
        rights, _ = self.rights(self.measured(x, mask))
        size = self.cores.shape[2]
        start = jnp.zeros((size, size), rights.dtype).at[0, 0].set(1.0)

        def step(left: Array, at: tuple[Array, Array, Array, Array, Array]) -> tuple[Array, Array]:
            key, m, right, x, known = at
            ways = jnp.einsum("vrab,ac,vrcd->vbd", m, left, m)
            # Never negative but for rounding: a trace of a product of two positive matrices.
            square = jnp.maximum(jnp.einsum("vbd,bd->v", ways, right), 0.0)
            chosen = jax.random.categorical(key, jnp.log(square))
            v = jnp.where(known, x.astype(int), chosen)
            return ways[v] / jnp.trace(ways[v]), v

        keys = jax.random.split(key, len(x))
        return jax.lax.scan(step, start, (keys, self.matrices, rights[1:], x, mask))[1]

    def law(self, x: Array, mask: Array) -> Array:
        """Log probabilities of the values of every entry given the observed ones, ``(n, values)``."""
        measured = self.measured(x, mask)
        rights, _ = self.rights(measured)
        size = self.cores.shape[2]
        start = jnp.zeros((size, size), rights.dtype).at[0, 0].set(1.0)

        def step(left: Array, at: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            m, all_values, right = at
            found = jnp.einsum("vrab,ac,vrcd,bd->v", all_values, left, all_values, right)
            new = jnp.einsum("dab,ac,dce->be", m, left, m)
            return new / jnp.trace(new), found / found.sum()

        law = jax.lax.scan(step, start, (measured, self.matrices, rights[1:]))[1]
        known = jnp.where(x[:, None] == jnp.arange(law.shape[1]), 0.0, -jnp.inf)
        return jnp.where(mask[:, None], known, jnp.log(law))


class BornMachine(Family):
    """A matrix-product Born machine of discrete data, in the order of their entries.

    Attributes:
        bond: Bond dimension: what one half of the entries can tell the other.
        physical: Dimension of the embedding of a value; the number of values if ``None``.
        rank: Rank of the operator of a value; 1 for an embedding by vectors.
        embedded: Whether the embedding is trained; if not, values are the unit vectors, which takes ``physical=None``.
    """

    discrete: ClassVar[bool] = True
    training: ClassVar[Training] = Training(steps=2000, batch=256, learning_rate=1e-2, ema=0.99, weight_decay=0.0)

    bond: int = eqx.field(static=True, default=8)
    physical: int | None = eqx.field(static=True, default=None)
    rank: int = eqx.field(static=True, default=1)
    embedded: bool = eqx.field(static=True, default=True)

    def check(self, spec: Spec) -> None:
        check_rows(self, spec)
        for name in ("bond", "rank"):
            if getattr(self, name) < 1:
                raise MethodError(f"BornMachine got {name}={getattr(self, name)!r}, expected at least 1.")
        size = self.physical or spec.values
        if not 1 <= size <= spec.values * self.rank:
            raise MethodError(
                f"BornMachine got physical={self.physical!r}, expected 1 to {spec.values * self.rank}: operators of rank "
                f"{self.rank} of {spec.values} values do not span more. Lower physical, or raise rank."
            )
        if not self.embedded and (size != spec.values or self.rank != 1):
            raise MethodError("BornMachine(embedded=False) needs physical=None and rank=1. Drop them, or train it.")

    def build(self, key: PRNGKey, spec: Spec) -> _Net:
        key_cores, key_embedding = jax.random.split(key)
        count, size = spec.shape[0], self.physical or spec.values
        noise = jax.random.normal(key_cores, (count, size, self.bond, self.bond), jnp.float32)
        cores = (jnp.eye(self.bond) + 0.5 * noise / math.sqrt(self.bond)).astype(jnp.float32)
        if not self.embedded:
            return _Net(cores, Constant(jnp.tile(jnp.eye(size, dtype=jnp.float32)[:, None], (count, 1, 1, 1))))
        return _Net(cores, jax.random.normal(key_embedding, (count, spec.values, self.rank, size), jnp.float32))

    def loss(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None, now: Now) -> Scalar:
        state, mask = net.state(jnp.float32), jnp.ones(x.shape[1], bool)
        log_z = state.log_square(x[0], ~mask)
        return log_z - jnp.mean(jax.vmap(state.log_square, (0, None))(x, mask))

    def distribution(self, net: _Net, spec: Spec) -> LearnedBornMachine:
        return LearnedBornMachine(self, spec, net)


class LearnedBornMachine(Tractable):
    """A Born machine as a distribution: density, marginals, conditionals and draws of them are exact.

    ``conditional(x, mask)`` gives the log probabilities of the values of each entry given those where ``mask`` is true,
    shape ``(..., length, values)``.
    """

    net: _Net

    @property
    def state(self) -> _State:
        """The matrices, in the default precision of JAX."""
        return self.net.state(jnp.zeros(()).dtype)

    def marginal_at(self, x: Array, mask: Array) -> Scalar:
        return self.state.log_prob(x, mask)

    def impute_at(self, key: PRNGKey, x: Array, mask: Array) -> Array:
        return self.state.draw(key, x, mask).astype(x.dtype)

    def complete(self, x: Array, mask: Array) -> Array:
        return self.state.law(x, mask)
