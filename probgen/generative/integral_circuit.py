r"""Probabilistic integral circuits: trees of *continuous* latent variables, compiled by quadrature.

A circuit whose sums are integrals (Gala, de Campos, Peharz, Vergari and Quaeghebeur 2024),

.. math:: p(x) = \int p(z_0) \prod_{i>0} p(z_i \mid z_{\mathrm{pa}(i)}) \prod_i p(x_{v(i)} \mid z_i)\, dz,
          \qquad z_i \in [-h, h],

has few weights, those of the functions in it, and cannot be evaluated as it stands. With the :math:`n` nodes
:math:`\zeta_a` and weights :math:`w_a` of Gauss and Legendre every integral becomes a sum: a circuit of :math:`n` states
with :math:`p(z_i = b \mid z_{\mathrm{pa}} = a) \propto w_b\, p(\zeta_b \mid \zeta_a)`, normalised over :math:`b`. That
circuit is the model that is trained and evaluated, and its density, marginals and conditionals are exact; as a
quadrature of the integral it converges in :math:`n` faster than any power where the functions are smooth, and
``compiled(points)`` shows whether it has.
"""

from __future__ import annotations

import abc
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.part import Part
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.circuit import LearnedCircuit
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.latent_tree import Categories, HiddenChowLiu, LatentTree, Normals, Shape, Structure
from probgen.generative.standardisation import Standardisation
from probgen.generative.tractable import check_rows
from probgen.nets import MLP

__all__ = ["GaussianUnits", "IntegralCircuit", "IntegralUnits", "LearnedIntegralCircuit", "NeuralUnits"]


class IntegralUnits(Part):
    """What the integrands of an integral circuit are. A network has ``log_root(z)``, shape ``(n,)``, ``log_links(z)``,
    ``(nodes, n, n)``, with the child last, both of them up to constants that do not depend on the child, and
    ``leaves(z)``, at latents ``z`` of shape ``(n,)``."""

    half: float = eqx.field(static=True)

    @abc.abstractmethod
    def build(self, key: PRNGKey, nodes: int, size: int, values: int) -> Any:
        """The network, for data of ``size`` entries with ``values`` values (0: real)."""


class _NeuralNet(eqx.Module):
    root: MLP
    trunk: MLP
    links: Array
    states: MLP
    leaf: Array
    half: float = eqx.field(static=True)
    values: int = eqx.field(static=True)

    def log_root(self, z: Array) -> Array:
        return jax.vmap(self.root)(z[:, None])[:, 0]

    def log_links(self, z: Array) -> Array:
        pairs = jnp.stack(jnp.meshgrid(z, z, indexing="ij"), -1)
        # Links begin as a random walk: without preferences nothing passes along a path, and descent starts at a saddle.
        near = -2 * (z[:, None] - z) ** 2 / self.half**2
        return near + jnp.einsum("nw,abw->nab", self.links.astype(z.dtype), jax.vmap(jax.vmap(self.trunk))(pairs))

    def leaves(self, z: Array) -> Categories | Normals:
        found = jnp.einsum("svw,aw->sav", self.leaf.astype(z.dtype), jax.vmap(self.states)(z[:, None]))
        if self.values:
            return Categories(jax.nn.log_softmax(found))
        return Normals(found[:, :, 0], jnp.exp(found[:, :, 1]))


class NeuralUnits(IntegralUnits):
    """Small networks: one for all links and one for all leaves, with a linear read-out each (shared functions).

    Attributes:
        half: Half the length of the latents' interval.
        width: Of the hidden layers.
        depth: Their number.
    """

    half: float = eqx.field(static=True, default=1.0)
    width: int = eqx.field(static=True, default=64)
    depth: int = eqx.field(static=True, default=2)

    def build(self, key: PRNGKey, nodes: int, size: int, values: int) -> _NeuralNet:
        key_root, key_trunk, key_links, key_states, key_leaf = jax.random.split(key, 5)
        width = self.width
        return _NeuralNet(
            root=MLP(key_root, 1, 1, width, 1, jnp.tanh),
            trunk=MLP(key_trunk, 2, width, width, self.depth, jnp.tanh),
            links=jax.random.normal(key_links, (nodes, width), jnp.float32) / math.sqrt(width) * 3,
            states=MLP(key_states, 1, width, width, self.depth, jnp.tanh),
            leaf=jax.random.normal(key_leaf, (size, values or 2, width), jnp.float32) / math.sqrt(width),
            half=self.half,
            values=values,
        )


class _GaussianNet(eqx.Module):
    slope: Array
    load: Array
    loc: Array
    log_noise: Array

    def log_root(self, z: Array) -> Array:
        return -(z**2) / 2

    def log_links(self, z: Array) -> Array:
        slope = jnp.tanh(self.slope.astype(z.dtype))[:, None, None]
        return -((z - slope * z[:, None]) ** 2) / (2 * (1 - slope**2))

    def leaves(self, z: Array) -> Normals:
        load, loc, log_noise = (a.astype(z.dtype)[:, None] for a in (self.load, self.loc, self.log_noise))
        return Normals(loc + load * z, jnp.broadcast_to(jnp.exp(log_noise), (len(self.loc), len(z))))


class GaussianUnits(IntegralUnits):
    """Linear and Gaussian, :math:`z_i = a_i z_{\\mathrm{pa}(i)} + \\sqrt{1 - a_i^2}\\,\\epsilon` and :math:`x_i = m_i +
    l_i z_i + s_i\\epsilon`: a Gaussian latent tree, whose integral is known. For real data.

    Attributes:
        half: Half the length of the interval to which the standard normal latents are cut.
    """

    half: float = eqx.field(static=True, default=6.0)

    def build(self, key: PRNGKey, nodes: int, size: int, values: int) -> _GaussianNet:
        if values:
            raise MethodError("GaussianUnits are for real data, got discrete ones. Use NeuralUnits().")
        slope = jnp.full(nodes, 0.5, jnp.float32)
        one, zero = jnp.ones(size, jnp.float32), jnp.zeros(size, jnp.float32)
        return _GaussianNet(slope, 0.7 * one + 0.1 * jax.random.normal(key, (size,), jnp.float32), zero, zero - 0.5)


class _Net(eqx.Module):
    shape: Shape
    units: Standardisation
    functions: Any
    points: int = eqx.field(static=True)
    half: float = eqx.field(static=True)

    def tree(self, dtype: Any) -> LatentTree:
        """The circuit of the quadrature, in this precision."""
        at, weight = np.polynomial.legendre.leggauss(self.points)
        z, log_w = jnp.asarray(self.half * at, dtype), jnp.asarray(np.log(weight), dtype)
        root = jax.nn.log_softmax(self.functions.log_root(z) + log_w)
        links = jax.nn.log_softmax(self.functions.log_links(z) + log_w)
        return LatentTree(self.shape, root, links, self.functions.leaves(z))


class IntegralCircuit(Family):
    """A probabilistic integral circuit, trained by descent on the likelihood of its quadrature.

    Attributes:
        points: Points of the quadrature.
        units: The integrands.
        structure: How the tree is chosen.
        real: Whether the data are real, rather than 0, 1, ....
    """

    training: ClassVar[Training] = Training(steps=2000, batch=256, learning_rate=5e-3, ema=0.99)

    points: int = eqx.field(static=True, default=32)
    units: IntegralUnits = eqx.field(static=True, default=NeuralUnits())
    structure: Structure = eqx.field(static=True, default=HiddenChowLiu())
    real: bool = eqx.field(static=True, default=False)

    @property
    def discrete(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the data are integers."""
        return not self.real

    def check(self, spec: Spec) -> None:
        check_rows(self, spec)
        if self.points < 2:
            raise MethodError(f"IntegralCircuit got points={self.points!r}, expected at least 2. Change points.")

    def build(self, key: PRNGKey, spec: Spec) -> _Net:
        size = spec.shape[0]
        functions = self.units.build(key, self.structure.nodes(size), size, spec.values)
        return _Net(self.structure.empty(size), Standardisation((size,)), functions, self.points, self.units.half)

    def adapt(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None) -> _Net:
        net = eqx.tree_at(lambda n: n.shape, net, self.structure.adapted(key, x, 0 if self.real else int(x.max()) + 1))
        return eqx.tree_at(lambda n: n.units, net, net.units.adapted(x)) if self.real else net

    def loss(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None, now: Now) -> Scalar:
        x = net.units.inward(x) if self.real else x
        tree, mask = net.tree(jnp.float32), jnp.ones(x.shape[1], bool)
        return -jnp.mean(jax.vmap(tree.log_prob, (0, None))(x, mask))

    def distribution(self, net: _Net, spec: Spec) -> LearnedIntegralCircuit:
        return LearnedIntegralCircuit(self, spec, net)


class LearnedIntegralCircuit(LearnedCircuit):
    """An integral circuit at its number of quadrature points, as a distribution (see ``LearnedCircuit``)."""

    family: IntegralCircuit
    net: _Net

    def compiled(self, points: int) -> LearnedIntegralCircuit:
        """The same functions at another number of quadrature points."""
        now = self.family
        family = IntegralCircuit(points=points, units=now.units, structure=now.structure, real=now.real)
        net = _Net(self.net.shape, self.net.units, self.net.functions, points, self.net.half)
        return LearnedIntegralCircuit(family, self.spec, net)
