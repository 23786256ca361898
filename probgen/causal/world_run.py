r"""Worlds: what would have happened to these units, had something else been done.

For each posterior draw, abduction finds the noise :math:`u` of every site from its factual value, action changes the
program, and prediction runs it again with the same :math:`u` (Pearl 2009, section 7.1). All worlds share the noise, so

.. math:: Y_{x, W_x(u)}(u) = Y_x(u), \qquad X_x(u) = x, \qquad X(u) = x \Rightarrow Y_x(u) = Y(u)

(composition, effectiveness, consistency) hold exactly for every draw. ``probgen.program.noise`` says which mechanism
each site has.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution

from probgen.base.errors import DataError, MethodError, ModelError, suggestion
from probgen.base.keys import as_key
from probgen.causal.many_worlds import Plan, Refer, evaluate
from probgen.infer.batched import in_batches
from probgen.infer.replayed import Posterior, Replayed, check_drawable, reported
from probgen.infer.results import dataset, observed_data, versions
from probgen.program.graph import arguments_of
from probgen.program.interventions import FACTUAL, FromWorld, Intervention, NewMechanism, parameters_of
from probgen.program.model import Model
from probgen.program.simulate import full_shape, halves, memory, outcomes
from probgen.program.sites import Kind, Site, variable_name
from probgen.program.structural import Apply, Assumption, Change, Fix, GumbelMax, Independent, Monotone, Redraw

if TYPE_CHECKING:
    import xarray

__all__ = ["Run", "run_worlds"]

_MODES = ("counterfactual", "interventional")


@dataclasses.dataclass(frozen=True)
class Run:
    """How worlds were asked for, so that others can be asked for alike.

    Attributes:
        model: The model.
        tree: What ``pg.infer`` returned.
        mode: ``counterfactual`` or ``interventional``.
        assume: Assumptions by site.
        resample: Latent sites that are drawn anew in interventional mode.
        seed: The seed.
    """

    model: Model
    tree: xarray.DataTree
    mode: str
    assume: Mapping[str, Assumption]
    resample: tuple[str, ...] | None
    seed: int | jax.Array


def run_worlds(
    run: Run, interventions: Mapping[str, Intervention], sites: Iterable[str] | None, progress: bool | None
) -> xarray.DataTree:
    """Evaluate worlds; see ``pg.causal.worlds``.

    Returns:
        Groups ``worlds``, ``factual`` and ``noise``.
    """
    import xarray

    model, mode = run.model, run.mode
    operations, levels = _planned(model, interventions)
    _check_reaches(model, {name for what in operations for name in what})
    posterior = Posterior(model, run.tree)
    drawn, redrawn = _drawn(run, posterior)
    if mode == "counterfactual":
        _check_units(model, run.tree, posterior, drawn)
    replayed = Replayed(model, posterior, drawn, redrawn, new=False)
    key_rows, key_units = jax.random.split(as_key(run.seed))
    rows, ancestors = posterior.rows(key_rows)
    held = {name: value[rows] for name, value in replayed.per_draw.items()}
    asked = None if sites is None else _known(sites, model)
    unheld = frozenset(s.name for s in model.sites if _is_random(s) and s.name not in replayed.kept | held.keys())
    plan = Plan(replayed.kept, unheld, levels, tuple(sorted(run.assume.items())), asked, mode == "counterfactual")
    size = memory(model) * (len(interventions) + 3)
    (worlds, factual, noise, impossible), said = in_batches(
        evaluate, (model.unlabelled(), key_units, operations), len(rows), held, (plan,), size, progress
    )
    _check_possible(impossible)
    if "world" in {dim for site in model.sites for dim in site.dims}:
        raise ModelError("the model has a dimension called 'world', which names an axis of the result. Rename it.")

    def shaped(values: Mapping[str, np.ndarray], *between: str) -> xarray.Dataset:
        variables = {}
        for name, value in values.items():
            array = value.reshape(*posterior.size, *value.shape[1:])
            own = array.ndim - 2 - len(between)
            dims = model.sites[name].dims if name in {s.name for s in model.sites} else ()
            more = tuple(f"{name}_noise_{axis}" for axis in range(len(dims), own))
            variables[name] = (("chain", "draw", *between, *dims[:own], *more), array)
        return dataset(model, variables)

    everywhere = reported(model)
    as_observed = observed_data(model) if mode == "counterfactual" else xarray.Dataset()
    names = {variable_name(name) for name in everywhere}
    groups = {
        "worlds": shaped(worlds, "world").assign_coords(world=list(interventions)),
        "factual": xarray.merge(
            [shaped(factual), as_observed[[n for n in as_observed.data_vars if n in names]]], compat="override"
        ),
        "noise": shaped(_leaves(noise)),
    }
    coords: dict[str, Any] = dict(posterior.coords)
    if ancestors is not None:
        coords["ancestor"] = (("chain", "draw"), ancestors)
    for name, group in groups.items():
        groups[name] = group.assign_coords(coords) if "draw" in group.dims else group
    tree = xarray.DataTree.from_dict(groups)
    factors = [site.name for site in model.of_kind(Kind.factor)]
    tree.attrs.update(
        {
            "inference_library": "probgen",
            **versions(),
            "mode": mode,
            "seed": str(run.seed) if isinstance(run.seed, jax.Array) else int(run.seed),
            "interventions": json.dumps({name: repr(what) for name, what in interventions.items()}),
            "assumptions": json.dumps(said),
            "drawn_anew": json.dumps(sorted(unheld)),
            "factors_left_out": ", ".join(factors),
        }
    )
    return tree


def _leaves(noise: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Noise that has several parts is numbered."""
    found: dict[str, np.ndarray] = {}
    for name, parts in noise.items():
        leaves = jax.tree.leaves(parts)
        found |= {name if len(leaves) == 1 else f"{name}_{i}": leaf for i, leaf in enumerate(leaves)}
    return found


def _is_random(site: Site) -> bool:
    return site.kind in (Kind.continuous, Kind.discrete, Kind.observed)


# -- what is done ----------------------------------------------------------------------------------------------------


def _planned(
    model: Model, interventions: Mapping[str, Intervention]
) -> tuple[tuple[dict[str, Any], ...], tuple[tuple[int, ...], ...]]:
    """What is done in each world, checked; and the order of the worlds."""
    if not isinstance(interventions, Mapping) or not interventions:
        raise ModelError('worlds must be a dict of interventions by name, {"t1": pg.do(T=1)}, say. Give at least one.')
    numbers = {name: number for number, name in enumerate(interventions)}
    for name, what in interventions.items():
        if not isinstance(name, str) or name == FACTUAL:
            raise ModelError(
                f"a world is called {name!r}, expected a string other than {FACTUAL!r} (the world in which nothing is "
                f"done, which is always there). Rename it."
            )
        if not isinstance(what, Intervention):
            raise ModelError(f"world {name!r} is {type(what).__name__}, expected pg.do(...). Write pg.do(SITE=value).")
        for other in what.references:
            if other not in numbers and other != FACTUAL:
                raise ModelError(
                    f"world {name!r} refers to the world {other!r}, which is not among them. "
                    f"{suggestion(other, [*numbers, FACTUAL])}"
                )
    operations = tuple(
        {site: _operation(model, name, site, target, numbers) for site, target in what.targets.items()}
        for name, what in interventions.items()
    )
    return operations, _levels(interventions)


def _levels(interventions: Mapping[str, Intervention]) -> tuple[tuple[int, ...], ...]:
    waiting = {name: {w for w in what.references if w != FACTUAL} for name, what in interventions.items()}
    numbers = {name: number for number, name in enumerate(interventions)}
    levels: list[tuple[int, ...]] = []
    while waiting:
        ready = [name for name, others in waiting.items() if not others & waiting.keys()]
        if not ready:
            raise ModelError(
                f"the worlds {', '.join(map(repr, waiting))} refer to one another in a circle. Let one of them stand alone."
            )
        levels.append(tuple(numbers[name] for name in ready))
        for name in ready:
            del waiting[name]
    return tuple(levels)


def _operation(model: Model, world: str, name: str, target: Any, numbers: Mapping[str, int]) -> Any:
    site = model.sites[name]
    if not (_is_random(site) or site.kind is Kind.deterministic) or name in halves(model):
        raise ModelError(
            f"world {world!r} sets site {name!r}, which is {site.kind.value}. Intervene on a sample or deterministic site."
        )
    shape = full_shape(site)
    if isinstance(target, FromWorld):
        other = model.sites[target.site or name]
        if full_shape(other) != shape:
            raise ModelError(
                f"world {world!r} sets site {name!r} (shape {shape}) to site {other.name!r} of another world (shape "
                f"{full_shape(other)}). Name a site of the same shape."
            )
        return Refer(numbers.get(target.world, -1), other.name)
    if isinstance(target, NewMechanism):
        if site.kind is Kind.deterministic:
            raise ModelError(
                f"world {world!r} gives the deterministic site {name!r} a NewMechanism, but it has no distribution. "
                f"Give it a value or a function."
            )
        if isinstance(target.change, Distribution):
            return Change(*_taken_apart(target.change))
        return Change(None, target.change)
    if isinstance(target, Distribution):
        if site.kind is Kind.deterministic:
            raise ModelError(
                f"world {world!r} gives the deterministic site {name!r} a distribution. Give it a value or a function."
            )
        return Redraw(*_taken_apart(target))
    if callable(target) and not isinstance(target, jax.Array | np.ndarray):
        return Apply(target, parameters_of(name, target))
    return _fixed(world, site, target, shape)


def _check_reaches(model: Model, done: set[str]) -> None:
    """What is set must be what the program uses: the value of the site, not the argument that observes it."""
    sources = {
        site.source[1]: name for name in sorted(done) if (site := model.sites[name]).source and site.source[0] == "data"
    }
    if not sources:
        return
    for name, used in arguments_of(model, lambda _: None).items():
        site = model.sites[name]
        if (
            site.kind is Kind.factor or name in halves(model).values()
        ):  # where missing values and others are put together
            continue
        for argument in sorted(used & sources.keys()):
            if sources[argument] not in (name, halves(model).get(name)):
                raise ModelError(
                    f"site {name!r} uses the argument {argument!r} and not the value of the site {sources[argument]!r} "
                    f"that observes it, so that setting {sources[argument]!r} would not reach {name!r}. Write "
                    f"{argument} = numpyro.sample({sources[argument]!r}, ..., obs={argument}), and use that value."
                )


def _taken_apart(fn: Distribution) -> tuple[list[jax.Array], Any]:
    leaves, structure = jax.tree.flatten(fn)
    return [jnp.asarray(leaf) for leaf in leaves], structure


def _fixed(world: str, site: Site, target: Any, shape: tuple[int, ...]) -> Fix:
    given = np.ma.getdata(target) if isinstance(target, np.ma.MaskedArray) else np.asarray(target)
    dtype = np.dtype(site.dtype)
    # A fraction must not be cut off because the site counts.
    if dtype.kind in "biu" and given.dtype.kind == "f" and np.any(given != np.round(given)):
        dtype = np.dtype(jnp.result_type(float))
    elif dtype.kind == "b" and np.any((given != 0) & (given != 1)):
        dtype = np.dtype(jnp.result_type(int))
    try:
        value = np.broadcast_to(given, shape)
        mask = None
        if isinstance(target, np.ma.MaskedArray):
            mask = jnp.asarray(np.broadcast_to(~np.ma.getmaskarray(target), shape))
    except ValueError as error:
        raise ModelError(
            f"world {world!r} sets site {site.name!r} to an array of shape {given.shape}, but the site has shape {shape}. "
            f"Give a scalar or an array that broadcasts to it."
        ) from error
    if mask is not None:
        value = np.where(np.asarray(mask), value, 0)
    return Fix(jnp.asarray(value.astype(dtype)), mask)


def _known(sites: Iterable[str], model: Model) -> tuple[str, ...]:
    if isinstance(sites, str):
        raise MethodError(f"sites must be a list of sites, got the string {sites!r}. Write [{sites!r}].")
    known = [n for n in reported(model) if model.sites[n].kind is not Kind.param]
    for name in (listed := tuple(dict.fromkeys(sites))):
        if name not in known:
            raise ModelError(f"sites names {name!r}, which is not a site of the model. {suggestion(name, known)}")
    return listed


# -- the factual world -----------------------------------------------------------------------------------------------


def check_run(run: Run) -> None:
    """Raise unless the arguments of ``pg.causal.worlds`` make sense."""
    if not isinstance(run.model, Model):
        raise ModelError(
            f"model must be a pg.Model, got {type(run.model).__name__}. Wrap the program: pg.Model(program, data=...)."
        )
    if run.mode not in _MODES:
        raise MethodError(f"mode must be one of {', '.join(map(repr, _MODES))}, got {run.mode!r}. Choose one.")
    if run.model.own_keys:
        raise ModelError(
            "the program draws random keys of its own (numpyro.prng_key), so its noise has no site. Draw with "
            "numpyro.sample."
        )
    for name, assumed in run.assume.items():
        site = run.model.sites[name]
        if not _is_random(site):
            raise ModelError(f"assume names {name!r}, which is {site.kind.value}. Name a sample site.")
        if not isinstance(assumed, Monotone | GumbelMax | Independent):
            raise ModelError(
                f"assume[{name!r}] is {type(assumed).__name__}, expected pg.causal.Monotone(), pg.causal.GumbelMax() or "
                f"pg.causal.Independent(). Give one of these."
            )
    for name in run.resample or ():
        if not run.model.sites[name].latent:
            raise MethodError(
                f"resample names {name!r}, which is {run.model.sites[name].kind.value}. Name latent sites; observed "
                f"ones are drawn anyway."
            )
        if run.mode == "counterfactual":
            raise MethodError(
                f"resample names {name!r}, but mode='counterfactual' is about the units that were observed. Leave it out, "
                f"or ask for mode='interventional'."
            )


def _drawn(run: Run, posterior: Posterior) -> tuple[frozenset[str], frozenset[str]]:
    """Outcomes, and other latent sites, that the factual world draws anew."""
    model, scaffold = run.model, halves(run.model)
    missing = [
        site
        for site in model.sites
        if site.latent
        and not {site.name, scaffold.get(site.name), _without_natural(site.name)} & posterior.draws.keys()
    ]
    if run.mode == "counterfactual":
        # What nobody has seen or inferred follows its distribution, unless evidence further down speaks of it.
        return frozenset(scaffold.get(site.name, site.name) for site in missing), frozenset()
    found = outcomes(model)
    if run.resample is not None:
        redrawn = set(run.resample)
    else:
        # A model without data is about the units that the tree was fitted to, or about those whose sites it lacks.
        seen = found | posterior.outcomes or {site.name for site in missing}
        redrawn = {site.name for site in unit_sites(model, frozenset(seen)) if site.name not in found}
    redrawn |= {site.name for site in missing if site.plates or site.scanned}
    for name in redrawn:
        check_drawable(model.sites[name], "pg.causal.worlds")
    return found, frozenset(redrawn)


def _without_natural(name: str) -> str:
    """A site upon which ``model.do`` acts goes on under another name, with the draws of the old one."""
    return name.removesuffix("_natural")


def unit_sites(model: Model, found: frozenset[str] | None = None) -> tuple[Site, ...]:
    """Latent sites that belong to units: those that share a plate, or the steps of a ``scan``, with an outcome.

    Args:
        model: The model.
        found: The outcomes; ``None`` for those of the model.
    """
    scaffold, found = halves(model), outcomes(model) if found is None else found
    rows: set[str] = set()
    for site in model.sites:
        if scaffold.get(site.name, site.name) in found:
            rows |= {plate.name for plate in site.plates} | ({site.dims[0]} if site.scanned and site.dims else set())
    return tuple(
        site
        for site in model.sites
        if site.latent
        and scaffold.get(site.name, site.name) not in found
        and rows & ({plate.name for plate in site.plates} | ({site.dims[0]} if site.scanned and site.dims else set()))
    )


def _check_units(model: Model, tree: xarray.DataTree, posterior: Posterior, drawn: frozenset[str]) -> None:
    """Latent properties of units must have been inferred from the evidence about these very units."""
    own = [site for site in model.sites if site.latent and halves(model).get(site.name, site.name) not in drawn]
    for site in own:
        draws = posterior.draws.get(site.name)
        if draws is not None and draws.shape[1:] != full_shape(site):
            raise MethodError(
                f"site {site.name!r} has draws of shape {draws.shape[1:]}, but the model has shape {full_shape(site)}: it "
                f"belongs to units that the tree does not know. Fit the model to the evidence about these units with "
                f"pg.infer, or ask about new units with mode='interventional'."
            )
    # A model of one unit has no plate that would tell its latent sites from parameters.
    single = not any(site.plates or site.scanned for site in model.sites)
    suspects = own if single else list(unit_sites(model))
    if not suspects or "observed_data" not in tree.children:
        return
    for name, now in observed_data(model).data_vars.items():
        before = tree["observed_data"].data_vars.get(name)
        if before is not None and not np.array_equal(before.values, now.values, equal_nan=True):
            raise MethodError(
                f"the model observes {name!r} with other values than the tree was fitted to, but site "
                f"{suspects[0].name!r} belongs to the unit and must be inferred from its evidence. Fit the model to this "
                f"evidence with pg.infer."
            )


def _check_possible(impossible: Mapping[str, np.ndarray]) -> None:
    for name, counts in impossible.items():
        draws = int(np.count_nonzero(counts))
        if draws:
            raise DataError(
                f"the evidence has probability zero: the factual value of site {name!r} has no noise that gives it, or "
                f"none that floating point resolves ({int(counts.max())} entries, {draws} of {len(counts)} posterior draws). "
                f"Correct the evidence, fit the model to it, or compute in 64 bits."
            )
