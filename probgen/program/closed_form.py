"""Which programs have a posterior in closed form, told from their structure.

The latent sites fall into blocks that share no term of the joint density. A block is solved when all its sites are
discrete and finite, when it is linear and Gaussian, when it is Gaussian with one common scale, or when its priors are
conjugate. Structure (types of distributions, degrees of their parameters in the latent sites) proves the first two; for
the other two it is necessary, and the numerical check of the block decides. A finite or a Gaussian block that is a Markov
chain along a ``scan`` is solved as one, in time linear in its length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import Values
from probgen.program.conjugate import Conjugate, family_of
from probgen.program.degree import Degree, Dependence, dependences
from probgen.program.finite import Finite, supports
from probgen.program.forward_backward import forward_backward_of
from probgen.program.gaussian_scale import GaussianScale
from probgen.program.gaussian_step import GAUSSIAN, gaussian_parts
from probgen.program.joint import Block, Joint
from probgen.program.kalman import kalman_of
from probgen.program.linear_gaussian import LinearGaussian
from probgen.program.model import Model
from probgen.program.sites import Kind, Site
from probgen.program.steps import NotAChain, all_of

__all__ = ["Limits", "Recognised", "recognise"]

# Log probabilities that are analytic in the parameters, on supports that do not move with them.
_ANALYTIC = """
    BernoulliProbs BinomialProbs GeometricProbs NegativeBinomialProbs NegativeBinomial2 Poisson CategoricalProbs
    MultinomialProbs Exponential Gamma InverseGamma Chi2 Weibull Beta Normal HalfNormal LogNormal Laplace
    MultivariateNormal Rayleigh
"""
_LIKELIHOODS = frozenset(_ANALYTIC.split())


@dataclasses.dataclass(frozen=True)
class Limits:
    """How large a block may be.

    Attributes:
        states: Joint states of a finite block.
        dim: Coordinates of a Gaussian block.
        lanes: Whether the rows of a plate over a whole chain may be solved one by one.
    """

    states: int
    dim: int
    lanes: bool = True


@dataclasses.dataclass(frozen=True)
class Recognised:
    """A program cut into blocks.

    Attributes:
        blocks: The blocks, which hold every latent site once.
        constants: Sites and factors whose log probability depends on no latent site.
    """

    blocks: tuple[Block, ...]
    constants: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Term:
    """A sample statement: its site, and how location, the other parameters and the value depend on the latent sites."""

    site: Site
    location: Dependence
    others: Dependence
    value: Dependence

    @property
    def sites(self) -> frozenset[str]:
        own = frozenset({self.site.name}) if self.site.latent else frozenset()
        return own | self.location.sites | self.others.sites | self.value.sites

    @property
    def parameters(self) -> Dependence:
        return self.location | self.others


def recognise(model: Model, limits: Limits) -> Recognised:
    """Cut a program into blocks, each with the rule that solves it.

    Nothing is compiled; a program with a site that fits no rule is refused by the names of its distributions, before it
    is traced.

    Raises:
        MethodError: If a block fits no rule; the message names the first site that does not.
    """
    _check_names(model)
    terms = _terms(model)
    blocks = tuple(_block(model, members, limits) for members in _components(terms))
    constants = tuple(term.site.name for term in terms if not term.sites)
    return Recognised(blocks, constants)


def _refuse(
    site: Site | str, why: str, advice: str = "Use pg.NUTS(), or another method of pg.methods()."
) -> MethodError:
    name = site if isinstance(site, str) else site.name
    return MethodError(f"no closed form: site {name!r} {why}. {advice}")


def _check_names(model: Model) -> None:
    latent = model.of_kind(Kind.continuous, Kind.discrete)
    discrete = all(site.kind is Kind.discrete for site in latent)
    if not latent:
        raise MethodError("no closed form: the model has no latent site. Leave something unobserved.")
    if model.own_keys:
        raise MethodError(
            "no closed form: the program calls numpyro.prng_key(). Write what it draws as numpyro.sample sites."
        )
    for site in model.sites:
        if site.kind is Kind.param:
            raise _refuse(site, "is a numpyro.param", "Give it a prior.")
        if any(plate.subsample < plate.size for plate in site.plates):
            raise _refuse(site, "stands in a plate that sees only part of its rows", "Drop subsample_size.")
        if site.kind is Kind.discrete and (not site.finite or site.auxiliary):
            why = "marks missing discrete data" if site.finite else f"({site.distribution}) has infinitely many values"
            raise _refuse(site, why)
        if site.kind is Kind.continuous and site.distribution not in GAUSSIAN and family_of(site.distribution) is None:
            raise _refuse(
                site, f"has the prior {site.distribution}, which is neither Gaussian nor conjugate to anything"
            )
        if site.kind is Kind.factor and not discrete:
            raise _refuse(site, "is a factor, whose form is not known")
        if site.kind is Kind.observed and site.distribution not in _LIKELIHOODS | GAUSSIAN and not discrete:
            raise _refuse(site, f"has the likelihood {site.distribution}, which is neither Gaussian nor conjugate")


def _terms(model: Model) -> list[_Term]:
    """Trace the program abstractly and find how its distributions depend on its latent sites."""
    arrays, static = eqx.partition(model, eqx.is_array)
    names = [site.name for site in model.of_kind(Kind.continuous, Kind.discrete, Kind.observed, Kind.factor)]

    def parts(values: Values, arrays: Any) -> dict[str, tuple[list[Array], list[Array], Any]]:
        traced = Joint(eqx.combine(arrays, static)).run(values)
        found = {}
        for name in names:
            found[name] = gaussian_parts(traced[name])
        return jax.tree.map(jnp.asarray, found)

    latent = {
        site.name: jax.ShapeDtypeStruct(site.shape, site.dtype)
        for site in model.of_kind(Kind.continuous, Kind.discrete)
    }
    found = dependences(parts, latent, arrays)
    return [_Term(model.sites[name], *(all_of(part) for part in found[name])) for name in names]


def _components(terms: list[_Term]) -> list[list[_Term]]:
    """Group terms that share a latent site, directly or through others."""
    groups: list[tuple[frozenset[str], list[_Term]]] = []
    for term in terms:
        if not term.sites:
            continue
        touched = [group for group in groups if group[0] & term.sites]
        groups = [group for group in groups if not group[0] & term.sites]
        sites = term.sites.union(*(group[0] for group in touched))
        groups.append((sites, [*(t for group in touched for t in group[1]), term]))
    order = {id(term): i for i, term in enumerate(terms)}
    return [sorted(members, key=lambda t: order[id(t)]) for _, members in groups]


def _block(model: Model, members: list[_Term], limits: Limits) -> Block:
    """The rule for one block.

    Raises:
        MethodError: If there is none.
    """
    latent = [term for term in members if term.site.latent]
    sites, terms = tuple(term.site.name for term in latent), tuple(term.site.name for term in members)
    discrete = [term for term in latent if term.site.kind is Kind.discrete]
    if len(discrete) == len(latent):
        return _finite(model, members, latent, terms, limits)
    if discrete:
        others = ", ".join(term.site.name for term in latent if term not in discrete)
        raise _refuse(discrete[0].site, f"is discrete and depends on continuous sites, or they on it ({others})")
    scales = [term for term in latent if term.site.distribution not in GAUSSIAN]
    if not scales:
        _check_gaussian(members, frozenset())
        return _gaussian(model, members, latent, sites, terms, limits)
    if len(scales) < len(latent):
        return _gaussian_scale(members, latent, scales, sites, terms, limits)
    for term in members:
        _check_observed(term)
        if term.site.latent and term.parameters.sites:
            raise _refuse(
                term.site, f"has a prior that depends on {_names(term.parameters.sites)}; a conjugate prior is constant"
            )
        if term.parameters.degree > Degree.SMOOTH:
            raise _refuse(term.site, f"depends on {_names(term.parameters.sites)} through {term.parameters.why!r}")
        if term.site.auxiliary:
            raise _refuse(term.site, "marks missing data of a distribution that is not Gaussian")
        if not term.site.latent and term.site.distribution not in _LIKELIHOODS:
            raise _refuse(
                term.site, f"has the likelihood {term.site.distribution}, which is not conjugate to {_names(sites)}"
            )
    return Conjugate(sites, terms, tuple(term.site.distribution for term in latent))


def _gaussian(
    model: Model,
    members: list[_Term],
    latent: list[_Term],
    sites: tuple[str, ...],
    terms: tuple[str, ...],
    limits: Limits,
) -> Block:
    try:
        return kalman_of(
            model, sites, {term.site.name: term.sites for term in members}, gaussian_parts, limits.dim, limits.lanes
        )
    except NotAChain as error:
        size = sum(_size(term.site) for term in latent)
        if size > limits.dim:
            raise _refuse(
                latent[0].site,
                f"stands in a Gaussian block of {size} coordinates, more than max_dim={limits.dim}, and no Kalman filter "
                f"solves it ({error})",
            ) from error
        return LinearGaussian(sites, terms)


def _finite(model: Model, members: list[_Term], latent: list[_Term], terms: tuple[str, ...], limits: Limits) -> Block:
    sites = tuple(term.site.name for term in latent)
    counts, entries = [], []
    for term in latent:
        name, fn = term.site.name, term.site.distribution
        try:
            support = eqx.filter_eval_shape(lambda m, name=name: supports(Joint(m), (name,))[name], model)
        except (NotImplementedError, jax.errors.JAXTypeError) as error:
            why = f"({fn}) has a number of values that depends on an array"
            raise _refuse(name, why, "Give it a Python int, which is static.") from error
        counts.append(support.shape[0])
        event = support.ndim - 1
        shape = term.site.shape
        entries.append(_product(shape[: len(shape) - event]))
    try:
        dependent = {term.site.name: term.sites for term in members}
        return forward_backward_of(model, sites, tuple(counts), dependent, gaussian_parts, limits.states, limits.lanes)
    except NotAChain as error:
        block = Finite(sites, terms, tuple(counts), tuple(entries))
        if block.states > limits.states:
            raise _refuse(
                sites[0],
                f"stands in a block of {block.states} joint states, more than max_states={limits.states}, and it is no "
                f"hidden Markov chain that can be solved step by step ({error})",
            ) from error
        return block


def _gaussian_scale(
    members: list[_Term],
    latent: list[_Term],
    scales: list[_Term],
    sites: tuple[str, ...],
    terms: tuple[str, ...],
    limits: Limits,
) -> GaussianScale:
    first = scales[0].site
    if family_of(first.distribution) is None or first.distribution in ("Beta", "Uniform", "Dirichlet"):
        raise _refuse(
            first,
            f"({first.distribution}) and Gaussian sites depend on one another, and it is no gamma or inverse gamma",
        )
    if len(scales) > 1:
        raise _refuse(scales[1].site, f"is a second scale of the same Gaussian sites, beside {first.name!r}")
    if _size(first) != 1:
        raise _refuse(first, f"has {_size(first)} entries; Gaussian sites may share one scale")
    if scales[0].parameters.sites:
        raise _refuse(first, f"has a prior that depends on {_names(scales[0].parameters.sites)}")
    _check_gaussian([term for term in members if term is not scales[0]], frozenset({first.name}))
    size = sum(_size(term.site) for term in latent) - 1
    if size > limits.dim:
        raise _refuse(sites[0], f"stands in a Gaussian block of {size} coordinates, more than max_dim={limits.dim}")
    return GaussianScale(sites, terms, first.name, first.distribution)


def _check_gaussian(members: Iterable[_Term], scales: frozenset[str]) -> None:
    for term in members:
        site = term.site
        if site.distribution not in GAUSSIAN:
            raise _refuse(
                site, f"({site.distribution}) is not Gaussian, and depends on {_names(term.sites - {site.name})}"
            )
        mean = term.location | term.value
        if mean.degree > Degree.AFFINE or mean.sites & scales:
            through = f" (through {mean.why!r})" if mean.why else ""
            raise _refuse(site, f"has a location that is not affine in {_names(mean.sites)}{through}")
        if not term.others.sites <= scales:
            raise _refuse(site, f"has a scale that depends on {_names(term.others.sites - scales)}")
        if term.others.degree > Degree.SMOOTH:
            raise _refuse(site, f"has a scale that depends on {_names(term.others.sites)} through {term.others.why!r}")


def _check_observed(term: _Term) -> None:
    if term.value.sites:
        raise _refuse(term.site, f"observes a value that depends on {_names(term.value.sites)}")


def _size(site: Site) -> int:
    return _product(site.shape)


def _product(shape: Iterable[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _names(sites: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(sites))
