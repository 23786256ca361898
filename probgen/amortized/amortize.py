"""``pg.amortize``: from a program to a posterior that answers for any data set in milliseconds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import jax

from probgen.amortized.amortized import Amortized
from probgen.amortized.estimator import Estimator, FlowMatching
from probgen.amortized.simulate import prepare
from probgen.amortized.simulations import Design, Simulations, simulate_pairs
from probgen.amortized.simulator import Executor, Simulator, run_simulator
from probgen.amortized.task import Task, exchangeable, question_of, read
from probgen.amortized.truncated import Source, Truncated, in_rounds
from probgen.base.counts import is_count
from probgen.base.errors import DataError, MethodError
from probgen.base.keys import as_key
from probgen.program.model import Model
from probgen.run.compiled import TRACING
from probgen.run.progress import show_by_default

__all__ = ["amortize"]


def amortize(
    model: Model,
    observed: Sequence[str] | None = None,
    method: Estimator | None = None,
    simulations: int | Simulations | Truncated = 10_000,
    *,
    simulator: Simulator | None = None,
    workers: int | Executor = 1,
    design: Design | None = None,
    fewest: Mapping[str, int] | None = None,
    missing: float = 0.0,
    seed: int | jax.Array = 0,
    store: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Amortized:
    """Learn the posterior of a model for every data set at once, from simulations of the model.

    Parameters are learned in unconstrained coordinates, so no draw leaves the support of the prior. How observations are
    read follows from the program: rows of a plate that are treated alike as a set, of a ``scan`` as a series, the rest
    entry by entry (see ``Reading``). Discrete latent sites are summed out as by ``pg.NUTS``, and drawn back.

    Args:
        model: The model; its data may be missing. Its arguments stay what they are, unless ``design`` draws them.
        observed: Names of the sites that will be observed; ``None`` for those whose argument is ``y=None``, or that
            are observed already.
        method: What is learned, for example ``pg.FlowMatching()`` (the default), ``pg.NPE()``.
        simulations: How many simulations; or those that ``pg.amortized.simulate`` made, which may serve many estimators;
            or ``pg.amortized.Truncated(4000)``, made in rounds that close in on the data of the model: what is learned
            is about those alone.
        simulator: ``simulator(sites, rng)`` draws the observations where the program does not: a Python function of the
            values of all sites by name and a NumPy generator, which returns arrays by name. The model is then the prior
            alone, and an observation is given by ``amortized.condition(x=...)``. Simulations that fail are left out.
        workers: How many processes run the simulator (1: this one), or an executor such as a Dask client.
        design: ``design(key)`` draws arguments of the program by name (positions, times, covariates), in the shapes
            that the model has. The network is told them.
        fewest: By plate (or axis of time), how few rows an observation may have; the model has the most.
        missing: Share of the entries that is hidden in training. Observations may then have NaN where a value is
            missing (at random), if the program leaves such entries out by ``numpyro.handlers.mask``, as other methods
            need it too.
        seed: An int or a typed JAX key.
        store: A folder ``*.zarr`` in which training is kept while it goes on; after a crash the same call goes on.
        progress: Show progress bars. ``None``: at a terminal only.

    Returns:
        A method: ``pg.infer(model, amortized)`` for any data of the same shapes, ``pg.ImportanceSampling(amortized)``
        to correct it by the density of the model.

    Raises:
        ModelError: If a name is not a site, nothing is observed, or nothing is latent.
        MethodError: If a prior cannot be drawn from, or settings make no sense.
        DataError: If hardly a simulation succeeds or is finite, or all are equal.
    """
    method = FlowMatching() if method is None else method
    if not isinstance(method, Estimator):
        shown = method.__name__ if isinstance(method, type) else type(method).__name__
        raise MethodError(f"method must be an estimator, got {shown}. Write for example pg.FlowMatching().")
    method.check()
    if not isinstance(simulations, Simulations | Truncated) and not is_count(simulations):
        raise MethodError(f"simulations must be an int of at least 1, got {simulations!r}. 10_000 is usual.")
    if isinstance(simulations, Simulations) and simulator is not None:
        raise MethodError("simulations= holds simulations already, and simulator= would make others. Give one of them.")
    key_see, key_simulate, key_fit = jax.random.split(as_key(seed), 3)
    shown = show_by_default() if progress is None else progress
    given = simulations if isinstance(simulations, Simulations) else None
    density, names = prepare(key_see, model, observed, design, simulator, workers, given)
    if isinstance(simulations, Truncated):
        simulations.check(model, names, method, simulator, missing)
        source = Source(density, names, simulator, workers, design, store, shown)
        return in_rounds(key_fit, simulations, method, source, missing, fewest or {})
    if isinstance(simulations, Simulations):
        made = simulations
    elif simulator is not None:
        made = run_simulator(key_simulate, density, simulations, simulator, workers, progress=shown)
    else:
        made = simulate_pairs(key_simulate, density, simulations, names, design, progress=shown)
    if made.names != density.names:
        raise DataError(
            f"the simulations are of the parameters {', '.join(made.names)}, and the model has "
            f"{', '.join(density.names)}. Simulate this model."
        )
    if not set(names) <= set(made.observed):
        raise DataError(
            f"the simulations have {sorted(made.observed)}, and {sorted(names)} will be observed. Simulate these, or name "
            f"the others by observed=."
        )
    for name in names:
        found, wanted = made.observed[name].shape[1:], density.model.sites[name].shape
        if found != wanted:
            raise DataError(
                f"the simulations have observations of {name!r} of shape {found}, and those of the model have {wanted}. "
                f"Simulate this model."
            )
    with TRACING:
        alike = exchangeable(density, names, made)
    reading, packed = read(density, made, names, alike)
    question = question_of(density, reading, made, missing, fewest or {})
    question.check()
    task = Task(density, question, made, packed)
    return method.fit(key_fit, task, store=store, progress=shown)
