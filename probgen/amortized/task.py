"""What there is to learn: simulations of a model, and how its observations are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.amortized.question import Question
from probgen.amortized.reading import Reading, reading_of
from probgen.amortized.simulations import Simulations
from probgen.base.errors import MethodError, ModelError, suggestion
from probgen.base.keys import as_key
from probgen.base.typing import PRNGKey
from probgen.program.density import Density
from probgen.program.model import Model
from probgen.program.simulate import halves, outcomes, trace_forward
from probgen.program.sites import Kind, Site

__all__ = ["Task", "exchangeable", "observing", "question_of", "read"]

_SAME = 1e-6
_TRIES = 64


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
    sources = {site.source for site in model.of_kind(Kind.observed)}
    constants = tuple(
        (name, jnp.asarray(leaf))
        for name, leaf in model.leaves.items()
        if ("data", name) not in sources and name not in reading.arguments and hasattr(leaf, "shape")
    )
    return Question(
        reading,
        tuple((block.name, block.shape) for block in density.blocks),
        constants,
        tuple((name, repr(value)) for name, value in model.settings if name not in reading.observed),
        missing,
        tuple(sorted(fewest.items())),
        len(simulations),
        simulations.failed,
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


def exchangeable(density: Density, observed: tuple[str, ...]) -> frozenset[str]:
    """The plates whose rows the program treats alike: permuting the observations of the rows, together with the arguments
    that have a value per row, leaves the likelihood as it is. Plates with latent sites of their own are none."""
    model = density.model
    sites = [model.sites[name] for name in observed]
    names = {plate.name for site in sites for plate in site.plates if plate.size > 1 and plate.size == plate.subsample}
    names -= {dim for site in model.of_kind(Kind.continuous, Kind.discrete) for dim in site.dims}
    found = set()
    points = jax.vmap(density.draw_prior)(jax.random.split(as_key(0), 4))
    likelihood = jax.jit(jax.vmap(lambda d, u: d.log_likelihood(u), (None, 0)))
    before = np.asarray(likelihood(density, points))
    for name in sorted(names):
        here = _permuted(density, [site for site in sites if name in site.dims], name)
        if here is None:
            continue
        after = np.asarray(likelihood(here, points))
        good = np.isfinite(before) & np.isfinite(after)
        tolerance = _SAME if before.dtype == np.float64 else 1e-3
        if good.any() and np.all(np.abs(after - before)[good] <= tolerance * (1 + np.abs(before[good]))):
            found.add(name)
    return frozenset(found)


def _permuted(density: Density, sites: list[Site], name: str) -> Density | None:
    """With the rows of a plate in another order; ``None`` if an observation does not enter unchanged."""
    count = next(site.shape[site.dims.index(name)] for site in sites)
    order = np.roll(np.arange(count), 1)
    model = density.model
    done = {}
    for site in sites:
        source = site.source or (("given", site.name) if site.name in model.given else None)
        if source is None:
            return None
        done[source] = site.dims.index(name)
    for argument, leaf in model.leaves.items():
        if ("data", argument) not in done and jnp.shape(leaf)[:1] == (count,):
            done["data", argument] = 0

    def found(here: Density) -> list[Array]:
        return [(here.model.leaves if part == "data" else here.model.given)[key] for part, key in done]

    new = [jnp.take(rows, order, axis) for rows, axis in zip(found(density), done.values(), strict=True)]
    return eqx.tree_at(found, density, new)


def read(
    density: Density, simulations: Simulations, observed: tuple[str, ...], alike: frozenset[str]
) -> tuple[Reading, np.ndarray]:
    """The reading of a model, and the packed simulations, shape ``(n, reading.size)``."""
    reading = reading_of(density.model, observed, alike, tuple(simulations.arguments))
    fixed = {name: density.model.leaves[name] for name in reading.arguments if name not in simulations.arguments}

    def one(observed: Mapping[str, Array], arguments: Mapping[str, Array]) -> Array:
        return reading.pack(observed, {**fixed, **arguments})

    return reading, np.asarray(jax.jit(jax.vmap(one))(simulations.observed, simulations.arguments))
