r"""What SVI fits, and by which bound: guides and objectives, as configuration.

The guides here are families of distributions on the unconstrained coordinates. NumPyro's automatic guides do the
work, over one site that holds the flat vector: values are found by running the program, so that supports may depend
on values. (Over the program itself they would use the supports of one earlier execution.)
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.infer import RenyiELBO, Trace_ELBO, autoguide
from numpyro.infer.elbo import ELBO as NumpyroELBO
from numpyro.infer.initialization import init_to_value
from numpyro.primitives import param, sample

from probgen.base.errors import MethodError
from probgen.generative.family import Family, Spec
from probgen.generative.learned import Learned
from probgen.nets.constant import trainable

__all__ = [
    "BNAF",
    "ELBO",
    "IAF",
    "IWAE",
    "FlatGuide",
    "FullRank",
    "LearnedGuide",
    "LowRank",
    "MeanField",
    "Objective",
    "Renyi",
]

FLAT = "u"
"""Name of the one latent site of the flat program."""
_INIT_SCALE = 0.5
"""Scale of Gaussian guides at the start, in units of the scales that a Pathfinder path found."""


def flat_site(dim: int) -> Any:
    """The one latent site: flat, so that the target is the factor beside it."""
    return sample(FLAT, dist.ImproperUniform(dist.constraints.real_vector, (), (dim,)))


class FlatGuide(eqx.Module):
    """A family of distributions on the unconstrained coordinates."""

    def check(self, dim: int) -> None:
        """Raise ``MethodError`` for settings that make no sense, or that do not fit the dimension."""

    @abc.abstractmethod
    def build(self, dim: int) -> Callable[[], Any]:
        """NumPyro's guide for a program whose one latent site is ``flat_site(dim)``."""


def _options(dim: int) -> dict[str, Any]:
    return {"prefix": "guide", "init_loc_fn": init_to_value(values={FLAT: jnp.zeros(dim)})}


class MeanField(FlatGuide):
    """Independent normals: fast; on a Gaussian posterior the variances are those given all other coordinates, too
    small."""

    def build(self, dim: int) -> Callable[[], Any]:
        """See ``FlatGuide.build``."""
        return autoguide.AutoDiagonalNormal(lambda: flat_site(dim), init_scale=_INIT_SCALE, **_options(dim))


class FullRank(FlatGuide):
    """One multivariate normal with a full covariance: dim (dim + 3) / 2 numbers."""

    def build(self, dim: int) -> Callable[[], Any]:
        """See ``FlatGuide.build``."""
        return autoguide.AutoMultivariateNormal(lambda: flat_site(dim), init_scale=_INIT_SCALE, **_options(dim))


class LowRank(FlatGuide):
    """A multivariate normal whose covariance is diagonal plus low rank.

    Attributes:
        rank: Number of directions, at most the dimension.
    """

    rank: int = eqx.field(static=True)

    def check(self, dim: int) -> None:
        """See ``FlatGuide.check``."""
        if not 1 <= self.rank <= dim:
            raise MethodError(f"rank must be from 1 to the dimension {dim}, got {self.rank}. Choose it in that range.")

    def build(self, dim: int) -> Callable[[], Any]:
        """See ``FlatGuide.build``."""
        return autoguide.AutoLowRankMultivariateNormal(
            lambda: flat_site(dim), rank=self.rank, init_scale=_INIT_SCALE, **_options(dim)
        )


def _check_flow(dim: int, layers: int, widths: tuple[int, ...]) -> None:
    if dim < 2:
        raise MethodError("the model has one coordinate, and autoregressive flows need two. Use pg.MeanField().")
    if layers < 1:
        raise MethodError(f"layers must be at least 1, got {layers}. 1 to 3 are usual.")
    if any(width < 1 for width in widths):
        raise MethodError(f"hidden widths must be positive, got {widths}. Give positive ints.")


class IAF(FlatGuide):
    """Inverse autoregressive flow (Kingma et al. 2016).

    Attributes:
        layers: Number of flow layers.
        hidden: Widths of the hidden layers; none: two layers as wide as the dimension.
    """

    layers: int = eqx.field(static=True, default=2)
    hidden: tuple[int, ...] = eqx.field(static=True, default=())

    def check(self, dim: int) -> None:
        """See ``FlatGuide.check``."""
        _check_flow(dim, self.layers, self.hidden)
        if any(width < dim for width in self.hidden):
            raise MethodError(f"hidden layers must be at least as wide as the dimension {dim}, got {self.hidden}.")

    def build(self, dim: int) -> Callable[[], Any]:
        """See ``FlatGuide.build``."""
        hidden = list(self.hidden) or None
        return autoguide.AutoIAFNormal(
            lambda: flat_site(dim), num_flows=self.layers, hidden_dims=hidden, **_options(dim)
        )


class BNAF(FlatGuide):
    """Block neural autoregressive flow (De Cao, Aziz and Titov 2019).

    Attributes:
        layers: Number of flow layers.
        factors: Widths of the hidden layers, in units of the dimension.
    """

    layers: int = eqx.field(static=True, default=1)
    factors: tuple[int, ...] = eqx.field(static=True, default=(8, 8))

    def check(self, dim: int) -> None:
        """See ``FlatGuide.check``."""
        _check_flow(dim, self.layers, self.factors)

    def build(self, dim: int) -> Callable[[], Any]:
        """See ``FlatGuide.build``."""
        return autoguide.AutoBNAFNormal(
            lambda: flat_site(dim), num_flows=self.layers, hidden_factors=list(self.factors), **_options(dim)
        )


class LearnedGuide(FlatGuide):
    """A generative family on the coordinates: its weights are fitted to the bound instead of to data. ``pg.SVI`` and
    ``pg.NeuTra`` make it of a family that they are given.

    Attributes:
        family: With a density and a map from noise, such as ``pg.generative.Flow()``.
    """

    family: Family = eqx.field(static=True)

    def check(self, dim: int) -> None:
        """See ``FlatGuide.check``."""
        spec = Spec((dim,))
        self.family.check(spec)
        found = eqx.filter_eval_shape(lambda: self.family.distribution(self._start(dim), spec))
        missing = [name for name in ("log_prob", "noise_map") if name not in found.offers]
        if missing:
            raise MethodError(
                f"a guide needs a density and a map from noise, and a {type(self.family).__name__} has no {missing[0]}. "
                f"Use pg.generative.Flow()."
            )

    def build(self, dim: int) -> Callable[[], Any]:
        """See ``FlatGuide.build``."""
        weights, rest = self._parts(dim)

        def guide() -> Any:
            values = {name: jnp.asarray(param(name, weight)) for name, weight in weights.items()}
            return sample(FLAT, self._filled(rest, values, dim))

        return guide

    def distribution(self, weights: Mapping[str, Array], dim: int) -> Learned:
        """The distribution with given weights, by name of their ``param`` sites."""
        return self._filled(self._parts(dim)[1], weights, dim)

    def _filled(self, rest: Any, weights: Mapping[str, Array], dim: int) -> Learned:
        leaves, treedef = jax.tree.flatten(rest, is_leaf=lambda leaf: isinstance(leaf, str))
        net = jax.tree.unflatten(treedef, [weights[leaf] if isinstance(leaf, str) else leaf for leaf in leaves])
        return self.family.distribution(net, Spec((dim,)))

    def _start(self, dim: int) -> Any:
        return self.family.build(jax.random.key(0), Spec((dim,)))

    def _parts(self, dim: int) -> tuple[dict[str, Array], Any]:
        """Weights at the start by name, and the network with these names in their place."""
        net = self._start(dim)
        weights: dict[str, Array] = {}

        def named(leaf: Any, trained: bool) -> Any:
            if not trained:
                return leaf
            name = f"guide_weights_{len(weights)}"
            weights[name] = leaf.astype(float)
            return name

        return weights, jax.tree.map(named, net, trainable(net))


class Objective(eqx.Module):
    """A lower bound of the log evidence."""

    @abc.abstractmethod
    def check(self) -> None:
        """Raise ``MethodError`` for settings that make no sense."""

    @abc.abstractmethod
    def build(self) -> NumpyroELBO:
        """NumPyro's estimator."""


def _check_samples(samples: int) -> None:
    if not isinstance(samples, int) or samples < 1:
        raise MethodError(f"samples must be an int of at least 1, got {samples!r}. 8 is usual.")


class ELBO(Objective):
    r"""The evidence lower bound :math:`E_q[\log p(u, y) - \log q(u)]`.

    Attributes:
        samples: Draws per step.
    """

    samples: int = eqx.field(static=True, default=8)

    def check(self) -> None:
        """See ``Objective.check``."""
        _check_samples(self.samples)

    def build(self) -> NumpyroELBO:
        """See ``Objective.build``."""
        return Trace_ELBO(num_particles=self.samples)


class Renyi(Objective):
    r"""The Renyi bound :math:`\frac{1}{1-\alpha} \log \frac1K \sum_k w_k^{1-\alpha}` in expectation (Li and Turner
    2016).

    Attributes:
        alpha: Order, at least 0 and not 1; 0 covers the posterior's mass, 1 (the ELBO) seeks its mode.
        samples: :math:`K`.
    """

    alpha: float = eqx.field(static=True, default=0.5)
    samples: int = eqx.field(static=True, default=8)

    def check(self) -> None:
        """See ``Objective.check``."""
        _check_samples(self.samples)
        if self.alpha < 0 or self.alpha == 1:
            raise MethodError(f"alpha must be at least 0 and not 1, got {self.alpha}. For 1 use pg.ELBO().")

    def build(self) -> NumpyroELBO:
        """See ``Objective.build``."""
        return RenyiELBO(alpha=self.alpha, num_particles=self.samples)


class IWAE(Objective):
    r"""The importance-weighted bound :math:`E[\log \frac1K \sum_k w_k]` (Burda, Grosse and Salakhutdinov 2016);
    tighter with :math:`K`.

    A tighter bound has noisier gradients for the guide (Rainforth et al. 2018): more is not always better.

    Attributes:
        samples: :math:`K`.
    """

    samples: int = eqx.field(static=True, default=8)

    def check(self) -> None:
        """See ``Objective.check``."""
        _check_samples(self.samples)

    def build(self) -> NumpyroELBO:
        """See ``Objective.build``."""
        return RenyiELBO(alpha=0, num_particles=self.samples)
