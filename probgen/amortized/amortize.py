"""``pg.amortize``: from a program to a posterior that answers for any data set in milliseconds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from probgen.amortized.amortized import Amortized
from probgen.amortized.estimator import Estimator, FlowMatching
from probgen.amortized.simulations import Design, Simulations, simulate_pairs
from probgen.amortized.task import Task, exchangeable, observing, question_of, read
from probgen.base.counts import is_count
from probgen.base.errors import DataError, MethodError, ModelError, suggestion
from probgen.base.keys import as_key
from probgen.infer.method import Need
from probgen.infer.replayed import check_drawable
from probgen.program.enumerated import density_of
from probgen.program.model import Model
from probgen.program.sites import Kind
from probgen.run.compiled import TRACING
from probgen.run.progress import show_by_default

__all__ = ["amortize"]


def amortize(
    model: Model,
    observed: Sequence[str] | None = None,
    method: Estimator | None = None,
    simulations: int | Simulations = 10_000,
    *,
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
        simulations: How many simulations; or those of ``amortized.simulations`` from an earlier call.
        design: ``design(key)`` draws arguments of the program by name (positions, times, covariates), in the shapes
            that the model has. The network is told them.
        fewest: By plate (or axis of time), how few rows an observation may have; the model has the most.
        missing: Share of the entries that is hidden in training. Observations may then have NaN where a value is
            missing (at random).
        seed: An int or a typed JAX key.
        store: A folder ``*.zarr`` in which training is kept while it goes on; after a crash the same call goes on.
        progress: Show progress bars. ``None``: at a terminal only.

    Returns:
        A method: ``pg.infer(model, amortized)`` for any data of the same shapes, ``pg.ImportanceSampling(amortized)``
        to correct it by the density of the model.

    Raises:
        ModelError: If a name is not a site, nothing is observed, or nothing is latent.
        MethodError: If a prior cannot be drawn from, or settings make no sense.
        DataError: If hardly a simulation is finite, or all are equal.
    """
    if not isinstance(model, Model):
        raise ModelError(
            f"model must be a pg.Model, got {type(model).__name__}. Wrap the program: pg.Model(program, data=...)."
        )
    method = FlowMatching() if method is None else method
    if not isinstance(method, Estimator):
        shown = method.__name__ if isinstance(method, type) else type(method).__name__
        raise MethodError(f"method must be an estimator, got {shown}. Write for example pg.FlowMatching().")
    method.check()
    if not isinstance(simulations, Simulations) and not is_count(simulations):
        raise MethodError(f"simulations must be an int of at least 1, got {simulations!r}. 10_000 is usual.")
    for site in model.sites:
        check_drawable(site, "pg.amortize")
        if site.kind is Kind.factor:
            raise ModelError(
                f"site {site.name!r} is a numpyro.factor, which changes the posterior but not what is simulated. Write it as "
                f"numpyro.sample."
            )
        if site.weighed and site.latent:
            raise MethodError(
                f"the prior of site {site.name!r} is changed by handlers.scale or a mask, which {Need.prior_draws.value} do "
                f"not follow. Put the site outside of the handler."
            )
    key_see, key_simulate, key_fit = jax.random.split(as_key(seed), 3)
    shown = show_by_default() if progress is None else progress
    with TRACING:
        model, names = observing(model, observed, key_see)
        density = density_of(model)
        _check_design(model, design)
        alike = exchangeable(density, names)
    if not isinstance(simulations, Simulations):
        simulations = simulate_pairs(key_simulate, density, simulations, names, design, progress=shown)
    if simulations.names != density.names:
        raise DataError(
            f"the simulations are of the parameters {', '.join(simulations.names)}, and the model has "
            f"{', '.join(density.names)}. Simulate this model."
        )
    reading, packed = read(density, simulations, names, alike)
    question = question_of(density, reading, simulations, missing, fewest or {})
    question.check()
    task = Task(density, question, simulations, packed)
    return method.fit(key_fit, task, store=store, progress=shown)


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
