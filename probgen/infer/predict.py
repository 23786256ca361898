"""Prediction: the program run forward, from the prior or from posterior draws, and the pointwise log likelihood.

Each draw of the posterior is one execution of the program in which the latent sites stand at that draw and the observed
sites are drawn. Draws have keys of their own, so results depend on the seed alone, not on how many are run at once.

Weighted draws (``sample_stats/log_weight``: importance sampling, particles) are first made unweighted, chain by chain,
by systematic resampling; the coordinate ``ancestor`` says which posterior draw each prediction belongs to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import Array

from probgen.base.errors import MethodError, ModelError, suggestion
from probgen.base.keys import as_key
from probgen.base.typing import Values
from probgen.infer.batched import in_batches
from probgen.infer.replayed import Posterior, Replayed, check_drawable, reported, unknown, with_new_data
from probgen.infer.results import constant_data, dataset, labelled, observed_data
from probgen.program.density import Density
from probgen.program.enumerated import density_of
from probgen.program.model import Model
from probgen.program.simulate import forward, halves, memory, outcomes, pointwise
from probgen.program.sites import Kind, variable_name

if TYPE_CHECKING:
    import xarray

__all__ = ["log_likelihood", "predict", "simulate"]


def simulate(
    model: Model, draws: int = 500, *, seed: int | jax.Array = 0, progress: bool | None = None
) -> xarray.DataTree:
    """Draw from the prior, and data from the model at these draws.

    Observed sites are drawn, those that ``condition`` observes too; to hold a site at a value use ``model.do``. A site
    whose argument was left out (``y=None``) counts as observed. Plates with ``subsample_size`` run whole.

    Args:
        model: The model; observations may be missing from its data.
        draws: Number of independent executions of the program.
        seed: An int or a typed JAX key.
        progress: Show a progress bar. ``None``: at a terminal only.

    Returns:
        Groups ``prior`` (latent and deterministic sites) and ``prior_predictive`` (observed sites), with dims ``(chain,
        draw, ...)`` and one chain; ``constant_data``, and ``observed_data`` where given.

    Raises:
        MethodError: If a site cannot be drawn (an improper prior, a ``numpyro.param``), or ``draws`` is not positive.
        ModelError: If a subsampled plate cannot be run whole.
    """
    import xarray

    _check_model(model)
    if not isinstance(draws, int | np.integer) or isinstance(draws, bool) or draws < 1:
        raise MethodError(f"draws must be an int of at least 1, got {draws!r}. Correct draws.")
    key = as_key(seed)
    for site in model.sites:
        check_drawable(site, "pg.simulate")
    observed = outcomes(model)
    names = reported(model)
    values = in_batches(
        forward, (model.unlabelled(), key), draws, {}, (frozenset(), tuple(names)), memory(model), progress
    )
    values = {name: value[None] for name, value in values.items()}
    groups = {
        "prior": labelled(model, {name: values[name] for name in names if name not in observed}),
        "prior_predictive": labelled(model, {name: values[name] for name in names if name in observed}),
        "observed_data": observed_data(model),
        "constant_data": constant_data(model),
    }
    tree = xarray.DataTree.from_dict({name: group for name, group in groups.items() if group.data_vars})
    for group in ("prior", "prior_predictive"):
        if group in tree:
            coords = {"chain": [0], "draw": np.arange(draws)}
            tree[group] = xarray.DataTree(tree[group].to_dataset().assign_coords(coords))
            tree[group].attrs.update({"inference_library": "probgen", "seed": _seed(seed)})
    return tree


def predict(
    model: Model,
    tree: xarray.DataTree,
    data: Mapping[str, Any] | None = None,
    *,
    seed: int | jax.Array = 0,
    sites: Iterable[str] | None = None,
    resample: Iterable[str] = (),
    coords: Mapping[str, Any] | None = None,
    group: str | None = None,
    progress: bool | None = None,
) -> xarray.DataTree:
    """Draw data from the posterior predictive distribution: for the data that were fitted, or for new data.

    The program runs once per posterior draw. Latent sites stand at the draw (discrete ones too), observed sites are
    drawn, deterministic sites are computed. Observations among ``data`` that are to be drawn only serve their shapes.
    The missing entries of an ``obs_mask`` site are drawn with the others.

    A ``scan`` that runs for more steps under the new data is continued, which is a forecast: latent series go on from
    their last step, observed series are held at the observations for as long as these last. The results then hold the
    new steps only.

    Args:
        model: The model that was fitted, or one of the same sites (``model.do(...)``, say).
        tree: What ``pg.infer`` returned. It is not changed.
        data: New values of arguments; the others stay. Arguments that were observations are dropped unless given.
        seed: An int or a typed JAX key.
        sites: What to return. Observed sites that are not named keep their observations (with ``data``: those among
            ``data``). Default: every observed site, and with ``data`` also every deterministic site and each latent
            site that was continued or drawn.
        resample: Latent sites to draw from their prior given the others, instead of holding them: members of a plate
            that the fit has not seen.
        coords: Labels by dimension for the new data. Labels of the model are kept for dimensions that the posterior
            has.
        group: Name of the new group. Default: ``posterior_predictive``, and ``predictions`` with ``data``.
        progress: Show a progress bar. ``None``: at a terminal only.

    Returns:
        A copy of the tree with the new group, dims ``(chain, draw, ...)`` as in the posterior; with ``data`` also
        ``predictions_constant_data``.

    Raises:
        ModelError: If a name is not a site, or the program fails with the new data.
        DataError: If the new data do not fit.
        MethodError: If a latent site has no draws, or draws of another shape, and is not in ``resample``; if there is
            nothing to draw.
    """
    _check_model(model)
    key = as_key(seed)
    posterior = Posterior(model, tree)
    asked = None if sites is None else _names(sites, model, "sites")
    redrawn = frozenset(_names(resample, model, "resample"))
    drawn = posterior.outcomes if asked is None else posterior.outcomes & set(asked)
    target = model
    if data is not None:
        drawn |= unknown(model, data)
        target = with_new_data(model, dict(data), drawn, posterior.dims, dict(coords or {}))
    plan = Replayed(target, posterior, drawn, redrawn, new=data is not None)
    default = [n for n in plan.names if n in drawn] if data is None else plan.interesting
    names = tuple(default if asked is None else dict.fromkeys(asked))
    if not names:
        raise MethodError(
            "the model has no observed site, so there is nothing to predict. Name what to compute: sites=[...]."
        )
    rows, ancestors = posterior.rows(jax.random.fold_in(key, 0))
    held = {name: value[rows] for name, value in plan.per_draw.items()}
    held |= {name: np.broadcast_to(value, (len(rows), *value.shape)) for name, value in plan.constant.items()}
    values = in_batches(
        forward,
        (target.unlabelled(), jax.random.fold_in(key, 1)),
        len(rows),
        held,
        (plan.kept, names),
        memory(target),
        progress,
    )
    chains = {name: value.reshape(*posterior.size, *value.shape[1:]) for name, value in values.items()}
    result = plan.cut(labelled(target, chains))
    attrs = {"inference_library": "probgen", "seed": _seed(seed)}
    groups = {group or ("posterior_predictive" if data is None else "predictions"): (result, attrs)}
    if data is not None:
        groups["predictions_constant_data"] = (constant_data(target), {})
    return posterior.extended(groups, ancestors)


def log_likelihood(model: Model, tree: xarray.DataTree, *, progress: bool | None = None) -> xarray.DataTree:
    """Add the log likelihood of each observation at each posterior draw, as ``arviz.loo`` and ``arviz.compare`` read
    it.

    Discrete latent sites with finite support are summed out, as leave-one-out needs it; where they cannot be, the
    densities are conditional on their draws and the attribute ``conditional_on`` names them. Observations that a mask
    leaves out
    (``obs_mask``, ``numpyro.mask``) are dropped: such a site has one axis ``SITE_observed`` with the flat index of
    those that count. Factors have no observations; their names are in the attribute ``factors_left_out``.

    Args:
        model: The model that was fitted.
        tree: What ``pg.infer`` returned. It is not changed.
        progress: Show a progress bar. ``None``: at a terminal only.

    Returns:
        A copy of the tree with the group ``log_likelihood``, dims ``(chain, draw)`` and the batch axes of each observed
        site.

    Raises:
        MethodError: If the model has no observed site, a latent site has no draws, or observations share a discrete
            site (a hidden Markov chain), so that there is no likelihood of each alone.
    """
    _check_model(model)
    observed = model.of_kind(Kind.observed)
    if not observed:
        raise MethodError(
            "the model has no observed site, and factors are not pointwise. "
            "Write the likelihood as numpyro.sample(..., obs=...)."
        )
    posterior = Posterior(model, tree)
    plan = Replayed(model, posterior, frozenset(), frozenset(), new=False)
    rows, ancestors = posterior.rows(jax.random.key(0))
    held = {name: value[rows] for name, value in plan.per_draw.items()}
    density = _summed_out(model)
    if density is not None:
        terms, masks = in_batches(marginal, (density,), len(rows), held, (), memory(model), progress), {}
    else:
        leading = (model.unlabelled(), jax.random.key(0))
        terms, masks = in_batches(pointwise, leading, len(rows), held, (), memory(model), progress)
    scaffold = halves(model)
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    coords = {}
    for site in observed:
        name = scaffold.get(site.name, site.name)
        value = terms[site.name].reshape(*posterior.size, *terms[site.name].shape[1:])
        dims = site.dims[: value.ndim - 2]
        if site.name in masks:
            counted = np.flatnonzero(masks[site.name].any(0).reshape(-1))
            value, dims = value.reshape(*posterior.size, -1)[..., counted], (variable_name(f"{name}_observed"),)
            coords[dims[0]] = counted
        variables[name] = (("chain", "draw", *dims), value)
    attrs: dict[str, Any] = {"inference_library": "probgen"}
    factors = [site.name for site in model.of_kind(Kind.factor)]
    if factors:
        attrs["factors_left_out"] = ", ".join(factors)
    discrete = [site.name for site in model.of_kind(Kind.discrete)]
    if discrete and density is None:
        attrs["conditional_on"] = ", ".join(discrete)
    return posterior.extended({"log_likelihood": (dataset(model, variables).assign_coords(coords), attrs)}, ancestors)


def marginal(density: Density, indices: Array, values: Values) -> Values:
    """Log likelihood of each observation at each draw, discrete sites summed out."""
    return jax.vmap(lambda here: density.pointwise_log_likelihood(density.unconstrain(here)))(values)


def _summed_out(model: Model) -> Density | None:
    """The density without discrete sites; ``None`` if there are none, or they cannot be summed out."""
    if not model.of_kind(Kind.discrete):
        return None
    try:
        return density_of(model)
    except MethodError:
        return None


# -- checks ----------------------------------------------------------------------------------------------------------


def _check_model(model: Any) -> None:
    if not isinstance(model, Model):
        raise ModelError(
            f"model must be a pg.Model, got {type(model).__name__}. Wrap the program: pg.Model(program, data=...)."
        )


def _names(names: Iterable[str], model: Model, argument: str) -> list[str]:
    if isinstance(names, str):
        raise MethodError(f"{argument} must be a list of sites, got the string {names!r}. Write [{names!r}].")
    listed, known = list(names), reported(model)
    for name in listed:
        if name not in known:
            raise ModelError(f"{argument} names {name!r}, which is not a site of the model. {suggestion(name, known)}")
        if argument == "resample" and not model.sites[name].latent:
            raise MethodError(
                f"resample names {name!r}, which is {model.sites[name].kind.value}. "
                f"Name latent sites; observed ones are drawn anyway."
            )
    return listed


def _seed(seed: int | jax.Array) -> int | str:
    return str(jax.random.key_data(seed).tolist()) if isinstance(seed, jax.Array) else int(seed)
