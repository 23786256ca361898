r"""Monotone deep Boltzmann machines: fully connected, with a mean field that is unique and can always be found.

Variables :math:`x_1 \dots x_n`, seen and hidden, one-hot over :math:`K` values, with :math:`p(x) \propto \exp(\tfrac12
x^\top\Phi x + b^\top x)`. The mean field is a fixed point :math:`q = \mathrm{softmax}(\Phi q + b)`, of which there may be
many, and iterating may cycle. With (Feng, Winston and Kolter 2023)

.. math:: \Phi = \mathrm{blockdiag}(\hat A^\top\hat A) - \hat A^\top\hat A, \qquad
          \hat A_i = A_i \min\bigl(1, \sqrt{1 - m} / \|A_i\|_2\bigr)

a variable does not act on itself, and :math:`I - \Phi \succeq m I`: the fixed point solves a strongly monotone inclusion
:math:`0 \in (I - \Phi) q - b + \partial f(q)`, :math:`f(q) = \sum q\log q - \tfrac12\|q\|^2` on simplices, so it is
unique. Its resolvent in :math:`f` is the softmax itself, and Douglas-Rachford splitting,

.. math:: u = (2I - \Phi)^{-1}(z + b), \qquad z \leftarrow z + \mathrm{softmax}(2u - z) - u,

converges from every start, observed entries held fixed. Gradients go through the fixed point by the implicit function
theorem. Matrices are small blocks less one of the rank of :math:`A`, and so are inverted. The model is trained to
complete data of which random parts are hidden: an entry that is a label is then classified like any other is completed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.discrete_family import DiscreteFamily, LearnedDiscrete
from probgen.generative.family import Now, Spec, Training
from probgen.generative.learned import Exactness

__all__ = ["LearnedMonotoneBoltzmann", "MeanField", "MonotoneBoltzmann"]

_LARGEST = 2**12


class MeanField(NamedTuple):
    """A solution for the mean field.

    Attributes:
        q: Probabilities of the values of every variable, shape ``(variables, values)``.
        steps: Steps of the solver.
        residual: Largest difference between ``q`` and the softmax of its fields.
    """

    q: Array
    steps: Array
    residual: Array


class Couplings(eqx.Module):
    """Weights of a monotone Boltzmann machine.

    Attributes:
        a: Shape ``(rank, variables, values)``.
        b: Shape ``(variables, values)``.
        monotonicity: :math:`m`.
    """

    a: Array
    b: Array
    monotonicity: float = eqx.field(static=True)

    def normalised(self) -> Array:
        r""":math:`\hat A`, the shape of ``a``."""
        gram = jnp.einsum("rik,ril->ikl", self.a, self.a)
        largest = jnp.linalg.eigvalsh(gram)[:, -1]
        most = 1 - self.monotonicity
        return (
            self.a * jnp.where(largest > most, jnp.sqrt(most / jnp.where(largest > most, largest, 1.0)), 1.0)[:, None]
        )

    def phi(self) -> Array:
        r""":math:`\Phi`, shape ``(variables * values, variables * values)``."""
        rank, count, values = self.a.shape
        flat = self.normalised().reshape(rank, -1)
        block = jnp.kron(jnp.eye(count, dtype=flat.dtype), jnp.ones((values, values), flat.dtype))
        return -(1 - block) * (flat.T @ flat)

    def solve(self, x: Array, mask: Array, start: Array, tolerance: float, most: int) -> MeanField:
        """The mean field of the variables where ``mask`` is false, the others being one-hot in ``x``.

        Args:
            x: One-hot where known, shape ``(variables, values)``.
            mask: What is known, shape ``(variables,)``.
            start: Where the solver starts, the shape of ``x``.
            tolerance: Residual at which it stops.
            most: Steps after which it stops.
        """
        free, still = ~mask[:, None], jax.lax.stop_gradient(self)
        hat = still.normalised()
        known = jnp.where(free, 0.0, x)
        field = jnp.where(free, _coupled(hat, known) + still.b, 0.0)
        # Among the free variables, Phi is small blocks less a matrix of low rank.
        live = jnp.where(free, hat, 0.0)
        blocks, eye = jnp.einsum("rik,ril->ikl", live, live), jnp.eye(x.shape[1], dtype=hat.dtype)
        resolvent = _inverse(2 * eye - blocks, jnp.moveaxis(live, 0, -1), live)

        def softmax(z: Array) -> Array:
            return jnp.where(free, jax.nn.softmax(z), 0.0)

        def step(at: tuple[Array, Array, Array, Scalar]) -> tuple[Array, Array, Array, Scalar]:
            count, z, _, _ = at
            u = resolvent(z + field)
            q = softmax(2 * u - z)
            return count + 1, z + q - u, q, jnp.max(jnp.abs(q - softmax(_coupled(live, q) + field)))

        def unfinished(at: tuple[Array, Array, Array, Scalar]) -> Array:
            return (at[3] > tolerance) & (at[0] < most)

        z = jnp.where(free, start, 0.0)
        count, _, q, error = jax.lax.while_loop(unfinished, step, (jnp.asarray(0), z, z, jnp.asarray(jnp.inf, z.dtype)))
        q = jax.lax.stop_gradient(q)
        # The implicit function theorem: one step with live weights, then the inverse of what it leaves out.
        new = softmax(_coupled(self.normalised(), q + known) + self.b)
        slope = q[:, :, None] * eye - q[:, :, None] * q[:, None, :]
        left_out = _inverse(eye - slope @ blocks, jnp.einsum("ikl,ril->ikr", slope, live), live)
        return MeanField(q + left_out(new - jax.lax.stop_gradient(new)) + known, count, error)

    def energy(self, x: Array) -> Scalar:
        """That of a joint state, one-hot, shape ``(variables, values)``."""
        flat = x.reshape(-1)
        return -0.5 * flat @ self.phi() @ flat - flat @ self.b.reshape(-1)


def _coupled(hat: Array, x: Array) -> Array:
    r""":math:`\Phi x` for :math:`\hat A` of shape ``(rank, variables, values)``, without the matrix :math:`\Phi`."""
    own = jnp.einsum("ril,il->ri", hat, x)
    return jnp.einsum("rik,ri->ik", hat, own - own.sum(1, keepdims=True))


def _inverse(blocks: Array, columns: Array, rows: Array) -> Callable[[Array], Array]:
    """The inverse of a block diagonal matrix plus one of low rank (Woodbury 1950), as a function.

    Args:
        blocks: Shape ``(variables, values, values)``.
        columns: Shape ``(variables, values, rank)``.
        rows: Shape ``(rank, variables, values)``.
    """
    small = jnp.linalg.inv(blocks)
    left = small @ columns
    inner = jnp.linalg.inv(jnp.eye(len(rows), dtype=rows.dtype) + jnp.einsum("ril,ils->rs", rows, left))

    def apply(x: Array) -> Array:
        own = jnp.einsum("ikl,il->ik", small, x)
        return own - left @ (inner @ jnp.einsum("ril,il->r", rows, own))

    return apply


class MonotoneBoltzmann(DiscreteFamily):
    """A monotone deep Boltzmann machine, which completes data of which any part is known.

    Attributes:
        hidden: Number of hidden variables, with as many values as the data have.
        rank: Number of rows of :math:`A`.
        monotonicity: :math:`m` in (0, 1): larger values make a faster solver and weaker links.
        tolerance: Residual of the mean field.
        longest: Steps after which the solver stops.
        wanted: Entries that are often wanted from all the others, such as a label: in half of the rows of a batch these
            are hidden and the others seen; in the other half, and everywhere if empty, random ones are hidden.
    """

    training: ClassVar[Training] = Training(steps=800, batch=64, learning_rate=1e-2, ema=0.99, weight_decay=0.0)

    hidden: int = eqx.field(static=True, default=8)
    rank: int = eqx.field(static=True, default=32)
    monotonicity: float = eqx.field(static=True, default=0.1)
    tolerance: float = eqx.field(static=True, default=1e-5)
    longest: int = eqx.field(static=True, default=500)
    wanted: tuple[int, ...] = eqx.field(static=True, default=())

    def check(self, spec: Spec) -> None:
        super().check(spec)
        if spec.condition is not None:
            raise MethodError("MonotoneBoltzmann has no conditions. Append them to the data, and complete the rest.")
        if self.hidden < 0 or self.rank < 1 or self.longest < 1 or not 0 < self.monotonicity < 1:
            raise MethodError(
                f"MonotoneBoltzmann got hidden={self.hidden}, rank={self.rank}, longest={self.longest}, "
                f"monotonicity={self.monotonicity}, expected hidden >= 0, rank >= 1, longest >= 1, 0 < monotonicity < 1."
            )

        if not all(type(at) is int and 0 <= at < spec.shape[0] for at in self.wanted):
            raise MethodError(
                f"MonotoneBoltzmann got wanted={self.wanted!r}, expected positions of entries, ints from 0 to "
                f"{spec.shape[0] - 1}."
            )

    def build(self, key: PRNGKey, spec: Spec) -> Couplings:
        count = spec.shape[0] + self.hidden
        # Norms begin below the largest, where they can still move.
        a = 0.5 / self.rank**0.5 * jax.random.normal(key, (self.rank, count, spec.values), jnp.float32)
        return Couplings(a, jnp.zeros((count, spec.values), jnp.float32), self.monotonicity)

    def adapt(self, key: PRNGKey, net: Couplings, x: Array, condition: Array | None) -> Couplings:
        counts = (x[:, :, None] == jnp.arange(net.b.shape[1])).sum(0).astype(jnp.float32) + 0.5
        return eqx.tree_at(
            lambda n: n.b, net, net.b.at[: x.shape[1]].set(jnp.log(counts / counts.sum(1, keepdims=True)))
        )

    def loss(self, key: PRNGKey, net: Couplings, x: Array, condition: Array | None, now: Now) -> Scalar:
        key_share, key_mask = jax.random.split(key)
        share = jax.random.uniform(key_share, (len(x), 1))
        mask = jax.random.uniform(key_mask, x.shape) < share
        if self.wanted:
            others = jnp.ones(x.shape[1], bool).at[np.array(self.wanted)].set(False)
            mask = jnp.where(jnp.arange(len(x))[:, None] % 2 == 0, others, mask)

        def one(x: Array, mask: Array) -> Scalar:
            q = mean_field(self, net, x, mask).q[: len(x)]
            right = jnp.take_along_axis(q, x[:, None], 1)[:, 0]
            return -jnp.sum(jnp.where(mask, 0.0, jnp.log(right))) / jnp.maximum(1, jnp.sum(~mask))

        return jnp.mean(jax.vmap(one)(x, mask))

    def distribution(self, net: Couplings, spec: Spec) -> LearnedMonotoneBoltzmann:
        return LearnedMonotoneBoltzmann(self, spec, net)


def mean_field(family: MonotoneBoltzmann, net: Couplings, x: Array, mask: Array) -> MeanField:
    """The mean field given the entries of a row where ``mask`` is true."""
    count, values = net.b.shape
    hot = jnp.zeros((count, values), net.b.dtype).at[: len(x)].set(jax.nn.one_hot(x, values, dtype=net.b.dtype))
    known = jnp.zeros(count, bool).at[: len(x)].set(mask)
    start = jnp.full((count, values), 1 / values, net.b.dtype)
    return net.solve(hot, known, start, family.tolerance, family.longest)


class LearnedMonotoneBoltzmann(LearnedDiscrete):
    """A monotone Boltzmann machine.

    ``conditional(x, mask)`` gives log probabilities of the values of each entry given those where ``mask`` is true, shape
    ``(..., length, values)``, by the mean field: as far as it was trained, a good predictor; as the marginals of the
    density with this energy, an approximation of unknown error.
    """

    offers: ClassVar = {"conditional": Exactness.estimate, "energy": Exactness.exact}

    family: MonotoneBoltzmann
    net: Couplings

    @property
    def couplings(self) -> Couplings:
        """The weights, in the default precision of JAX."""
        return jax.tree.map(lambda a: a.astype(jnp.result_type(float)), self.net)

    def mean_field(self, x: Array, mask: Array) -> MeanField:
        """The mean field of one row, shape ``(length,)``, with the steps and the residual of the solver."""
        return mean_field(self.family, self.couplings, jnp.asarray(x), jnp.asarray(mask, bool))

    def complete(self, x: Array, mask: Array) -> Array:
        return jnp.log(self.mean_field(x, mask).q[: x.shape[0]])

    def energy(self, value: Array) -> Array:
        """Minus the log density of rows up to a constant, the hidden variables summed out by enumeration; shape that of
        ``value`` without the event.

        Raises:
            MethodError: If the hidden variables have more than 4096 states.
        """
        self._ready("energy")
        count, values = self.family.hidden, self.spec.values
        if values**count > _LARGEST:
            raise MethodError(
                f"summing out {count} hidden variables takes {values}^{count} states, at most {_LARGEST} are summed. Use "
                f"couplings.energy for the energy of a joint state."
            )
        hidden = jnp.eye(values)[
            np.array(list(itertools.product(range(values), repeat=count)), int).reshape(values**count, count)
        ]

        def one(here: LearnedMonotoneBoltzmann, x: Array) -> Scalar:
            net, seen = here.couplings, jnp.eye(values)[x]
            return -logsumexp(jax.vmap(lambda h: -net.energy(jnp.concatenate([seen, h])))(hidden))

        return self.pointwise(one, (jnp.asarray(value), 1))
