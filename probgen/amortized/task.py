"""What there is to learn: simulations of a model, and how its observations are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.amortized.question import Question, constants_of, settings_of
from probgen.amortized.reading import Field, Reading, reading_of
from probgen.amortized.simulations import Simulations
from probgen.base.errors import DataError, MethodError, ModelError, suggestion
from probgen.base.typing import PRNGKey
from probgen.program.density import Density
from probgen.program.implicit_density import ImplicitDensity
from probgen.program.model import Model
from probgen.program.simulate import halves, outcomes, trace_forward
from probgen.program.sites import Kind, Site

__all__ = ["Task", "exchangeable", "observing", "question_of", "read"]

_SAME = 1e-6
_SAME_32 = 3e-5
"""Relative difference of sums of the same numbers in another order, at most; in 32 bits."""
_TRIES = 64
_COARSEST = 0.05
"""Most that rounding may take of the interquartile range of an observation."""


@dataclasses.dataclass(frozen=True)
class Task:
    """Simulations of a model, ready to be learned from.

    Attributes:
        density: The density of the model, with some observation.
        question: What is asked.
        simulations: Parameters and observations.
        packed: The observations as vectors, shape ``(n, question.reading.size)``.
    """

    density: Density
    question: Question
    simulations: Simulations
    packed: np.ndarray


def question_of(
    density: Density, reading: Reading, simulations: Simulations, missing: float, fewest: Mapping[str, int]
) -> Question:
    """What a posterior learned from simulations answers."""
    model = density.model
    constants, fixed = constants_of(model), []
    for name in reading.arguments:
        value = constants.pop(name, None)
        if value is not None and name not in simulations.arguments:
            fixed.append((name, value))
    return Question(
        reading,
        tuple((block.name, block.shape) for block in density.blocks),
        tuple(constants.items()),
        tuple(settings_of(model, reading.observed).items()),
        missing,
        tuple(sorted(fewest.items())),
        len(simulations),
        simulations.failed,
        outside=simulations.outside(model),
        fixed=tuple(fixed),
    )


def observing(model: Model, observed: Sequence[str] | None, key: PRNGKey) -> tuple[Model, tuple[str, ...]]:
    """The model with its outcomes observed, at a draw of its own where there are no data, and their names.

    Raises:
        ModelError: If a name is not a sample site, the model observes others too, or nothing is left to infer.
    """
    scaffold = halves(model)
    if scaffold:
        stem = next(iter(scaffold.values()))
        raise ModelError(
            f"site {stem!r} has an obs_mask, which changes the parameters from one observation to the next. Leave the mask "
            f"out, mark missing entries by NaN, and amortize with missing=."
        )
    names = tuple(sorted(outcomes(model))) if observed is None else tuple(dict.fromkeys(observed))
    if isinstance(observed, str):
        raise MethodError(f"observed must be a list of sites, got the string {observed!r}. Write [{observed!r}].")
    if not names:
        raise ModelError("the model has no observed site. Name what will be observed: observed=['y'].")
    sampled = [s.name for s in model.of_kind(Kind.continuous, Kind.discrete, Kind.observed)]
    for name in names:
        if name not in sampled:
            raise ModelError(f"observed names {name!r}, which is not a sample site. {suggestion(name, sampled)}")
    for site in model.of_kind(Kind.observed):
        if site.name not in names:
            raise ModelError(
                f"the model observes {site.name!r} too, which observed does not name. Name it, or leave its data out."
            )
    empty = [name for name in names if model.sites[name].latent]
    if empty:
        model = model.condition(**_some_draw(model, empty, key))
    if not model.of_kind(Kind.continuous):
        raise ModelError("the model has no continuous latent site, so there is nothing to learn. Use pg.Exact().")
    return model, names


def _some_draw(model: Model, names: list[str], key: PRNGKey) -> dict[str, Array]:
    """A draw of some sites that is finite."""

    def one(key: PRNGKey) -> dict[str, Array]:
        traced = trace_forward(model, key, {}, frozenset())
        return {name: traced[name]["value"] for name in names}

    drawn = jax.jit(jax.vmap(one))(jax.random.split(key, _TRIES))
    good = np.ones(_TRIES, bool)
    for name, values in drawn.items():
        good &= np.isfinite(np.asarray(values, float)).reshape(_TRIES, -1).all(1)
        if not good.any():
            raise DataError(
                f"site {name!r} is not finite in {_TRIES} of {_TRIES} simulations. Narrow the priors, or mend the program where "
                f"they are extreme."
            )
    return {name: values[int(np.argmax(good))] for name, values in drawn.items()}


def exchangeable(density: Density, observed: tuple[str, ...], simulations: Simulations) -> frozenset[str]:
    """The plates whose rows the program treats alike: permuting the observations of the rows, together with the arguments
    that have a value per row, leaves the likelihood as it is. Plates with latent sites of their own are none.

    Looked at are simulations, and not the data that the model happens to have: among equal numbers no order shows. The
    two permutations that are tried generate all others.
    """
    if isinstance(density, ImplicitDensity):
        return frozenset()  # there is no likelihood to look at
    model = density.model
    sites = [model.sites[name] for name in observed]
    names = {plate.name for site in sites for plate in site.plates if plate.size > 1 and plate.size == plate.subsample}
    names -= {dim for site in model.of_kind(Kind.continuous, Kind.discrete) for dim in site.dims}
    names = {name for name in names if all(_origin(model, site) for site in sites if name in site.dims)}
    if not names:
        return frozenset()
    values = {("data", name): value[:_TRIES] for name, value in simulations.arguments.items()}
    values |= {origin: simulations.observed[s.name][:_TRIES] for s in sites if (origin := _origin(model, s))}
    u = jnp.asarray(simulations.u[:_TRIES])
    for argument, leaf in model.leaves.items():
        if ("data", argument) not in values and hasattr(leaf, "shape") and leaf.shape:
            values["data", argument] = np.broadcast_to(np.asarray(leaf), (len(u), *leaf.shape))

    @jax.jit
    @jax.vmap
    def likelihood(u: Array, new: list[Array]) -> Array:
        def found(here: Density) -> list[Array]:
            return [(here.model.leaves if part == "data" else here.model.given)[key] for part, key in values]

        return eqx.tree_at(found, density, new).log_likelihood(u)

    before = np.asarray(likelihood(u, list(values.values())))
    tolerance = (_SAME if before.dtype == np.float64 else _SAME_32) * (1 + np.abs(before))
    alike = set()
    for name in sorted(names):
        axes, count = _axes_of(name, model, sites, values)
        swapped = np.arange(count)
        swapped[:2] = 1, 0
        for order in (np.roll(np.arange(count), 1), swapped):
            new = [np.take(v, order, axes[key]) if key in axes else v for key, v in values.items()]
            after = np.asarray(likelihood(u, new))
            good = np.isfinite(before)
            if not good.any() or not np.all(np.abs(after - before)[good] <= tolerance[good]):
                break
        else:
            alike.add(name)
    return frozenset(alike)


def _origin(model: Model, site: Site) -> tuple[str, str] | None:
    """Where an observation is; ``None`` if it does not enter unchanged."""
    return site.source or (("given", site.name) if site.name in model.given else None)


def _axes_of(name: str, model: Model, sites: list[Site], values: Mapping[Any, Any]) -> tuple[dict[Any, int], int]:
    """The axis of the rows of a plate in stacked observations, and in arguments with as many; how many there are."""
    here = [site for site in sites if name in site.dims]
    count = here[0].shape[here[0].dims.index(name)]
    axes: dict[Any, int] = {_origin(model, site): 1 + site.dims.index(name) for site in here}
    observed = {_origin(model, site) for site in sites}
    for key, value in values.items():
        if key not in observed and key[0] == "data" and value.shape[1:2] == (count,):
            axes[key] = 1
    return axes, count


def read(
    density: Density, simulations: Simulations, observed: tuple[str, ...], alike: frozenset[str]
) -> tuple[Reading, np.ndarray]:
    """The reading of a model, and the packed simulations, shape ``(n, reading.size)``. What a simulator outside of the
    program returned is read entry by entry."""
    for name, values in simulations.observed.items():
        _check_resolved(name, values)
    if simulations.outside(density.model):
        reading = Reading(tuple(Field(name, v.shape[1:]) for name, v in simulations.observed.items()), ())
        return reading, np.asarray(jax.jit(jax.vmap(lambda one: reading.pack(one, {})))(simulations.observed))
    reading = reading_of(density.model, observed, alike, tuple(simulations.arguments))
    fixed = {name: density.model.leaves[name] for name in reading.arguments if name not in simulations.arguments}

    def one(observed: Mapping[str, Array], arguments: Mapping[str, Array]) -> Array:
        return reading.pack(observed, {**fixed, **arguments})

    return reading, np.asarray(jax.jit(jax.vmap(one))(simulations.observed, simulations.arguments))


def _check_resolved(name: str, values: np.ndarray) -> None:
    """Refuse observations that networks, which compute in 32 bits, could not tell from one another."""
    rows = np.asarray(values, float).reshape(len(values), -1)
    low, high = np.quantile(rows, [0.25, 0.75], axis=0)
    step = np.finfo(np.float32).eps * np.abs(np.median(rows, 0))
    if np.any((high > low) & (step > _COARSEST * (high - low))):
        raise DataError(
            f"the observations {name!r} differ by less than 32-bit numbers of their size resolve, in which networks read "
            f"them. Shift them by a constant in the program, and the data too."
        )
