r"""The part of a program with a ``scan`` that is linear and Gaussian given the rest: found, integrated out, and drawn.

With :math:`s` the linear sites and :math:`z` all others, :math:`\log p(z, y) = \log \int p(s, z, y)\, ds` comes from the
Kalman recursions along the path of :math:`z`, and is differentiable in :math:`z` and in the data. The sites are found by
following the operations of the program: locations affine in :math:`s` for every :math:`z`, covariances free of :math:`s`,
observations that depend on :math:`s` Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from probgen.base.errors import MethodError, suggestion
from probgen.base.typing import PRNGKey, Scalar, Values
from probgen.feynman_kac.kalman import Driven, driven
from probgen.program.degree import Degree, Dependence, dependences
from probgen.program.gaussian_step import GAUSSIAN, gaussian_parts, is_normalised
from probgen.program.joint import Joint
from probgen.program.kalman import GaussianChains, Reference, chains_of, noise_for, points_of
from probgen.program.linear_step import Sizes
from probgen.program.model import Model
from probgen.program.scanned import before_scan
from probgen.program.sites import Kind
from probgen.program.steps import (
    Layout,
    NotAChain,
    all_of,
    carry_source,
    grown,
    layout_of,
    leaves_of,
    opened,
    step_dependences,
)

__all__ = ["draw_linear", "linear_layout", "linear_sites", "log_marginal"]


def log_marginal(model: Model, layout: Layout, held: Values) -> Scalar:
    """Log density of the data and of given sites, the linear sites integrated out. Differentiable in the given sites.

    Args:
        model: The program.
        layout: How the linear sites are a chain, from ``linear_layout``.
        held: Values of all other latent sites, constrained space.
    """
    found, posterior, zero = _solved(model, layout, held)
    still = jnp.zeros_like(posterior.start_shift), jnp.zeros_like(posterior.shift)
    peak = _values(model, layout, points_of(found, posterior, zero, *still))
    terms = tuple(s.name for s in model.of_kind(Kind.continuous, Kind.discrete, Kind.observed, Kind.factor))
    height, _ = Joint(model)({**held, **peak}, terms)
    free = posterior.start_shift.size + posterior.shift.size
    return height + 0.5 * free * math.log(2 * math.pi) + found.log_scale + jnp.sum(posterior.log_det)


def draw_linear(key: PRNGKey, model: Model, layout: Layout, held: Values) -> Values:
    """The linear sites, drawn given all others and the data; arguments as for ``log_marginal``."""
    found, posterior, zero = _solved(model, layout, held)
    return _values(model, layout, points_of(found, posterior, zero, *noise_for(key, posterior, ())))


def _solved(model: Model, layout: Layout, held: Values) -> tuple[GaussianChains, Driven, Reference]:
    sizes = Sizes(model, layout)
    statics = jnp.zeros((1, sizes.of(layout.statics)))
    zero = Reference(statics, jnp.zeros((layout.length, 1, sizes.of(layout.latent))))
    found = chains_of(Joint(model), layout, zero, held)
    return found, jax.vmap(driven)(found.chain), zero


def _values(model: Model, layout: Layout, point: Reference) -> Values:
    sizes = Sizes(model, layout)
    rows = jnp.flip(point.latent, 0) if layout.reverse else point.latent
    return sizes.values(layout.statics, point.statics) | sizes.values(layout.latent, rows)


# -- which sites are linear ------------------------------------------------------------------------------------------------


def linear_sites(model: Model) -> tuple[str, ...]:
    """The latent sites that are linear and Gaussian given the others, as many as are found by leaving out offenders.

    Starts from all Gaussian sites. Where a term offends (it is not affine in some of them, or their scale moves it, or it
    belongs to a site that is drawn), the first site is left out without which it does not, sites before the scan first;
    where no single one helps, all that it depends on. Until nothing offends.
    """
    order = [s.name for s in model.of_kind(Kind.continuous) if s.distribution in GAUSSIAN and s.proper]
    order.sort(key=lambda name: model.sites[name].scanned)
    linear = frozenset(order)
    while linear and (offences := _offences(model, linear)):
        term, (blamed, _) = next(iter(offences.items()))
        alone = (name for name in order if name in blamed and term not in _offences(model, linear - {name}))
        one = next(alone, None) if len(blamed) > 1 else None
        linear = linear - (blamed if one is None else {one})
    return tuple(s.name for s in model.sites if s.name in linear)


def linear_layout(model: Model, linear: tuple[str, ...] | None) -> Layout:
    """How the linear sites are a Markov chain given the others.

    Args:
        model: The program.
        linear: Their names; ``None`` finds as many as it can.

    Raises:
        MethodError: If no site of the scan is linear and Gaussian given the others, or a named one is not.
    """
    latent = {s.name: s for s in model.of_kind(Kind.continuous, Kind.discrete)}
    if linear is None:
        chosen = linear_sites(model)
    else:
        for name in linear:
            if name not in latent:
                raise MethodError(f"linear names {name!r}, which is no latent site. {suggestion(name, latent)}")
        chosen = tuple(name for name in latent if name in linear)
        for name in chosen:
            if latent[name].distribution not in GAUSSIAN:
                raise MethodError(
                    f"site {name!r} is {latent[name].distribution}, not Gaussian. Leave it out of linear."
                )
        for blamed, why in _offences(model, frozenset(chosen)).values():
            name = min(blamed)
            raise MethodError(
                f"site {name!r} is not linear and Gaussian given the others: {why}. Leave it out of linear."
            )
    if not any(latent[name].scanned for name in chosen):
        raise MethodError(
            "no latent site of the scan is linear and Gaussian given the others, so there is nothing to integrate out. "
            "Use another proposal, pg.Bootstrap() say."
        )
    step = step_dependences(model, frozenset(), _parts_of, frozenset(chosen))
    terms = {name: frozenset(chosen) for name in step.terms} | {
        n: frozenset(s) for n, s in _outer(model, chosen).items()
    }
    moving = frozenset(chosen)
    everything = _followed(model, moving)
    # Only what depends on the linear sites is a term of theirs.
    inside = {
        n: frozenset({n} | all_of(d).sites) for n, d in everything.terms.items() if n in moving or all_of(d).sites
    }
    outside = {name: sites for name, sites in terms.items() if name not in everything.terms}
    try:
        layout, _ = layout_of(model, chosen, outside | inside, _parts_of, lanes=False, moving=moving)
    except NotAChain as error:
        raise MethodError(
            f"the linear sites are no Markov chain along the scan: {error}. Use pg.Bootstrap()."
        ) from error
    return layout


def _parts_of(name: str, site: Mapping[str, Any]) -> Any:
    return gaussian_parts(site)


def _followed(model: Model, moving: frozenset[str]) -> Any:
    """The dependences of a step on the linear sites and on the leaves of the carry that they reach."""
    count = len(eqx.filter_eval_shape(lambda m: leaves_of(opened(m, {})), model))
    everything = step_dependences(model, frozenset(range(count)), _parts_of, moving)
    live = grown({i for i, d in enumerate(everything.init) if d.sites}, everything.carry, set(moving))
    return step_dependences(model, frozenset(live), _parts_of, moving)


def _offences(model: Model, linear: frozenset[str]) -> dict[str, tuple[frozenset[str], str]]:
    """What is wrong with a choice of linear sites: by term, the sites among them that are to blame, and why."""
    step = _followed(model, linear)
    found: dict[str, tuple[frozenset[str], str]] = {}

    def blame(term: str, sources: frozenset[str], why: str) -> None:
        roots = frozenset(_roots(step, sources)) & linear
        if roots:
            found.setdefault(term, (roots, why))

    for name, parts in (step.terms | _outer_parts(model, linear)).items():
        place, others, value = (all_of(part) for part in parts)
        mean, site = place | value, model.sites[name]
        if site.latent and name not in linear:
            blame(name, all_of(parts).sites, f"{name!r}, which is drawn, depends on it")
        elif site.distribution not in GAUSSIAN:
            blame(name, all_of(parts).sites, f"{name!r} ({site.distribution}) depends on it")
        elif others.sites:
            blame(name, others.sites, f"the scale of {name!r} depends on it")
        elif mean.degree > Degree.AFFINE:
            blame(name, mean.sites, f"the location of {name!r} is not affine in it (through {mean.why!r})")
    for i in _needed(step):
        leaf: Dependence = step.carry[i] | step.init[i]
        if leaf.degree > Degree.AFFINE:
            blame(carry_source(i), leaf.sites, f"the carry is not affine in it (through {leaf.why!r})")
    for name in linear:
        if not _free(model, name):
            blame(name, frozenset({name}), "it is masked or scaled")
    return found


def _needed(step: Any) -> set[int]:
    """Leaves of the carry that reach a term."""
    reached = frozenset().union(*(all_of(parts).sites for parts in step.terms.values()))
    while True:
        leaves = {i for i in range(len(step.carry)) if carry_source(i) in reached}
        more = reached.union(*(step.carry[i].sites for i in leaves))
        if more == reached:
            return leaves
        reached = more


def _roots(step: Any, sources: frozenset[str]) -> set[str]:
    """Sites behind sources, through the carry."""
    seen: frozenset[str] = sources
    while True:
        leaves = [i for i in range(len(step.carry)) if carry_source(i) in seen]
        more = seen.union(*(step.carry[i].sites | step.init[i].sites for i in leaves))
        if more == seen:
            return set(seen)
        seen = more


def _outer_parts(model: Model, linear: frozenset[str]) -> dict[str, Any]:
    """How the sites before the scan depend on the linear ones among them."""
    arrays, static = eqx.partition(model, eqx.is_array)
    outside = {s.name: s for s in model.of_kind(Kind.continuous, Kind.discrete) if not s.scanned}
    shapes = {n: jax.ShapeDtypeStruct(s.shape, s.dtype) for n, s in outside.items()}
    moving = {n: shapes.pop(n) for n in list(shapes) if n in linear}

    def run(values: Values, still: Values, arrays: Any) -> Any:
        trace, _ = before_scan(eqx.combine(arrays, static), {**still, **values})
        sites = {name: site for name, site in trace.items() if site["type"] == "sample"}
        return jax.tree.map(jnp.asarray, {name: gaussian_parts(site) for name, site in sites.items()})

    return dependences(run, moving, shapes, arrays)


def _outer(model: Model, linear: tuple[str, ...]) -> dict[str, frozenset[str]]:
    """Terms before the scan that depend on linear sites, and on which."""
    parts = _outer_parts(model, frozenset(linear))
    sites = {name: all_of(part).sites | ({name} & frozenset(linear)) for name, part in parts.items()}
    return {name: frozenset(found) for name, found in sites.items() if found}


def _free(model: Model, name: str) -> bool:
    """Whether a linear site is under no mask and no scale."""
    site = model.sites[name]
    if site.auxiliary:
        return True
    free = True

    def look(model: Model) -> None:
        nonlocal free
        traced = Joint(model).run({})[name]
        free = traced["scale"] is None and is_normalised(traced["fn"])

    eqx.filter_eval_shape(look, model)
    return free
