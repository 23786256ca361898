"""``pg.amortized.simulate``: simulations that are kept, and serve several estimators."""

from __future__ import annotations

import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from probgen.amortized.simulations import Design, Simulations, simulate_pairs
from probgen.amortized.simulator import Executor, Simulator, check_simulator, run_simulator
from probgen.amortized.task import observing
from probgen.base.counts import is_count
from probgen.base.errors import MethodError, ModelError, suggestion
from probgen.base.keys import as_key
from probgen.base.typing import PRNGKey
from probgen.infer.replayed import check_drawable
from probgen.program.density import Density
from probgen.program.implicit_density import simulable
from probgen.program.model import Model
from probgen.program.simulate import outcomes
from probgen.program.sites import Kind
from probgen.run.compiled import TRACING
from probgen.run.progress import show_by_default

__all__ = ["prepare", "simulate"]


def simulate(
    model: Model,
    observed: Sequence[str] | None = None,
    count: int = 10_000,
    *,
    simulator: Simulator | None = None,
    workers: int | Executor = 1,
    design: Design | None = None,
    seed: int | jax.Array = 0,
    store: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Simulations:
    """Draw parameters from the prior of a model, and observations at them.

    The simulations are those that ``pg.amortize`` would make with this seed; pass them as its ``simulations=``, as often
    as you like. ``Simulations.save`` writes them to a file.

    Args:
        model: The model; with a ``simulator``, the prior alone.
        observed: Names of the sites that will be observed, as for ``pg.amortize``.
        count: How many simulations; those that fail are among them.
        simulator: ``simulator(sites, rng)`` draws the observations where the program does not: a Python function of the
            values of all sites by name and a NumPy generator, which returns arrays by name.
        workers: How many processes run the simulator (1: this one), or an executor such as a Dask client.
        design: As for ``pg.amortize``.
        seed: An int or a typed JAX key.
        store: A folder ``*.zarr`` in which the results of a simulator are kept as they are made: after a crash the same
            call goes on, and the same call with a larger ``count`` adds to them.
        progress: Show a progress bar. ``None``: at a terminal only.

    Raises:
        ModelError: If a name is not a site, nothing is observed, or nothing is latent.
        MethodError: If a prior cannot be drawn from, or settings make no sense.
        DataError: If hardly a simulation succeeds, or all are equal.
        StoreError: If the store cannot be used, or holds other simulations.
    """
    if not is_count(count):
        raise MethodError(f"count must be an int of at least 1, got {count!r}. 10_000 is usual.")
    if simulator is None and store is not None:
        raise MethodError(
            "store= keeps the results of a simulator=; a program's own simulations are remade from the seed. Leave store "
            "out, and keep them with save()."
        )
    key_see, key_simulate, _ = jax.random.split(as_key(seed), 3)
    density, names = prepare(key_see, model, observed, design, simulator, workers)
    shown = show_by_default() if progress is None else progress
    if simulator is not None:
        return run_simulator(key_simulate, density, count, simulator, workers, store=store, progress=shown)
    return simulate_pairs(key_simulate, density, count, names, design, progress=shown)


def prepare(
    key: PRNGKey,
    model: Model,
    observed: Sequence[str] | None,
    design: Design | None,
    simulator: Simulator | None = None,
    workers: int | Executor = 1,
    given: Simulations | None = None,
) -> tuple[Density, tuple[str, ...]]:
    """The density of a model with its outcomes observed, and their names; without outcomes, if these come from outside.

    Raises:
        ModelError, MethodError: See ``simulate``.
    """
    if not isinstance(model, Model):
        raise ModelError(
            f"model must be a pg.Model, got {type(model).__name__}. Wrap the program: pg.Model(program, data=...)."
        )
    for site in model.sites:
        check_drawable(site, "pg.amortize")
        if site.kind is Kind.factor:
            raise ModelError(
                f"site {site.name!r} is a numpyro.factor, which changes the posterior but not what is simulated. Write it as "
                f"numpyro.sample."
            )
        if site.weighed and not site.auxiliary:
            what = "likelihood" if site.kind is Kind.observed or site.name in outcomes(model) else "prior"
            raise MethodError(
                f"the {what} of site {site.name!r} is changed by handlers.scale, a mask or a subsampled plate, which "
                f"simulations do not follow. Put the site outside of it"
                f"{'; mark what is missing by NaN, with missing=.' if what == 'likelihood' else '.'}"
            )
    if simulator is not None:
        check_simulator(simulator, workers)
    elif workers != 1:
        raise MethodError(
            "workers= run a simulator=, and there is none. Leave workers out: a program runs as one batch."
        )
    with TRACING:
        if simulator is not None or (given is not None and given.outside(model)):
            _check_prior(model, observed, design)
            return simulable(model), ()
        model, names = observing(model, observed, key)
        density = simulable(model)
        _check_design(model, design)
    return density, names


def _check_prior(model: Model, observed: Sequence[str] | None, design: Design | None) -> None:
    """Refuse a program that is more than a prior."""
    if observed is not None or design is not None:
        raise MethodError(
            f"{'observed' if observed is not None else 'design'}= is about a program that draws its own observations, and "
            f"these come from a simulator. Leave it out: all that the simulator returns is observed."
        )
    own = outcomes(model)
    if own:
        raise ModelError(
            f"the program draws the observation {min(own)!r} itself, and a simulator would draw it again. Leave the simulator "
            f"out, or the site."
        )
    for site in model.of_kind(Kind.discrete):
        raise ModelError(
            f"site {site.name!r} is discrete, and what a simulator says about it could not be learned. Let the simulator draw "
            f"it, if it need not be inferred."
        )
    if not model.of_kind(Kind.continuous):
        raise ModelError("the model has no continuous latent site, so there is nothing to learn. Give it a prior.")


def _check_design(model: Model, design: Design | None) -> None:
    """Refuse a design that draws what the program does not take."""
    if design is None:
        return
    if not callable(design):
        raise MethodError(f"design must be a function of a key, got {design!r}. Write design=lambda key: {{'t': ...}}.")
    drawn = jax.eval_shape(lambda key: {k: jnp.asarray(v) for k, v in design(key).items()}, jax.random.key(0))
    for name, value in drawn.items():
        leaf = model.leaves.get(name)
        if leaf is None:
            raise MethodError(
                f"design draws {name!r}, which is not an array among the data of the model. {suggestion(name, model.leaves)}"
            )
        if value.shape != leaf.shape:
            raise MethodError(
                f"design draws {name!r} with shape {value.shape}, and the model has {leaf.shape}. Draw it in that shape."
            )
