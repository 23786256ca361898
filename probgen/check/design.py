r"""The data sets of a calibration or design study: drawn from a model, and put where its observations are.

Only observed sites are drawn; arguments of the program stay as they are, also those that held the observations. A site
is given its simulated value by conditioning on it, so the joint distribution that is simulated is the one that is
fitted, whatever else the program does with its arguments. Sites that see some of their rows at a time are the
exception: the program takes those rows itself, and the data must enter as its argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.errors import DataError, MethodError, ModelError, suggestion
from probgen.base.typing import PRNGKey, Values
from probgen.infer.method import Method
from probgen.infer.predict import simulate
from probgen.infer.replayed import check_drawable
from probgen.program.density import Density
from probgen.program.model import Model
from probgen.program.observations import site_log_prob
from probgen.program.simulate import full_shape, halves, observed_values, outcomes, trace_forward
from probgen.program.sites import Kind, Site
from probgen.run.compiled import TRACING

__all__ = [
    "LOG_JOINT",
    "LOG_LIKELIHOOD",
    "Design",
    "Quantity",
    "Settings",
    "Source",
    "check_settings",
    "log_probs",
    "simulated",
    "with_observations",
]

type Quantity = Callable[[Values], Array]
"""A function of the sites of one draw and its data: values by name, latent, deterministic and observed."""

LOG_LIKELIHOOD, LOG_JOINT = "log_likelihood", "log_joint"


class Settings(NamedTuple):
    """How much to run, and on what.

    Attributes:
        datasets: Number of data sets.
        draws: Draws kept per data set.
        warmup: Adaptation steps per chain.
        chains: Chains per data set; ``None`` for one (an ensemble: 16).
        thin: Steps per kept draw; ``None`` lets a pilot choose.
        sites: Sites to keep; ``None`` for all.
        quantities: Further functions of the draws and the data, by name.
        log_probs: Whether log likelihood and log joint are among the quantities.
        simulator: The model that draws the data; ``None`` for the model itself.
        arguments: By observed site, the argument of the program that takes its observations.
        weighted: Whether importance weights that a method gives are used.
    """

    datasets: int
    draws: int
    warmup: int
    chains: int | None = None
    thin: int | None = None
    sites: Iterable[str] | None = None
    quantities: Mapping[str, Quantity] | None = None
    log_probs: bool = True
    simulator: Model | None = None
    arguments: Mapping[str, str] | None = None
    weighted: bool = True


def check_settings(model: Any, method: Any, settings: Settings, caller: str) -> None:
    """Raise ``ModelError`` or ``MethodError`` for a study that makes no sense; nothing is computed."""
    for name, given in (("model", model), ("simulator", settings.simulator)):
        if not isinstance(given, Model) and not (name == "simulator" and given is None):
            raise ModelError(
                f"{name} must be a pg.Model, got {type(given).__name__}. Wrap the program: pg.Model(program, data=...)."
            )
    if method is not None and not isinstance(method, Method):
        shown = method.__name__ if isinstance(method, type) else repr(method)
        raise MethodError(f"method must be a method object, got {shown}. Write for example pg.NUTS().")
    least = {"datasets": 2, "draws": 10, "warmup": 0, "chains": 1, "thin": 1}
    for name, lowest in least.items():
        value = getattr(settings, name)
        if value is None and name in ("chains", "thin"):
            continue
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < lowest:
            raise MethodError(f"{name} must be an int of at least {lowest}, got {value!r}. Correct {name}.")
    if isinstance(settings.sites, str):
        raise MethodError(
            f"sites must be a list of sites, got the string {settings.sites!r}. Write [{settings.sites!r}]."
        )
    taken = {name for site in model.sites for name in (site.name, *site.dims)} | {LOG_LIKELIHOOD, LOG_JOINT}
    for name, quantity in (settings.quantities or {}).items():
        if name in taken or not callable(quantity):
            wrong = (
                "is the name of a site, a dimension or a quantity that is there"
                if name in taken
                else "is not a function"
            )
            raise MethodError(f"quantities[{name!r}] {wrong}. Give a function of the sites a name of its own.")
    for site in model.sites:
        if "dataset" in (site.name, *site.dims):
            raise ModelError(
                f"site {site.name!r} has the name or a dimension 'dataset', which {caller} gives to its own axis. "
                f"Rename it."
            )


class Source(NamedTuple):
    """Where the observations of a site enter the model."""

    site: str
    stem: str
    """The site's name in simulations: ``y`` for ``y_observed``, the observed half of an ``obs_mask`` site."""
    part: str
    """``given`` (the site is conditioned) or ``data`` (an argument of the program)."""
    name: str

    def leaf(self, model: Model) -> Any:
        """The observations in the model."""
        return (model.given if self.part == "given" else model.leaves)[self.name]


class Design(eqx.Module):
    """What is done to each data set, apart from drawing.

    Args:
        density: The density of the method, with some observations.
        sources: Where the observations are.
        quantities: Functions of the draws and the data.
        log_probs: Whether log likelihood and log joint are wanted.
    """

    density: Density
    sources: tuple[Source, ...] = eqx.field(static=True)
    quantities: tuple[tuple[str, Quantity], ...] = eqx.field(static=True)
    log_probs: bool = eqx.field(static=True)

    def given(self, observed: Values) -> Density:
        """The density, given other observations (by ``stem``)."""

        def where(density: Density) -> list[Any]:
            return [source.leaf(density.model) for source in self.sources]

        return eqx.tree_at(where, self.density, [observed[s.stem] for s in self.sources])

    def quantify(self, observed: Values, values: Values) -> Values:
        """The quantities at one draw of the sites."""
        out: Values = {}
        if self.log_probs:
            log_likelihood, log_joint = log_probs(self.given(observed).model, values)
            out |= {LOG_LIKELIHOOD: log_likelihood, LOG_JOINT: log_joint}
        for name, quantity in self.quantities:
            out[name] = jnp.asarray(quantity({**values, **observed}))
        return out


def log_probs(model: Model, values: Values) -> tuple[Array, Array]:
    """Log likelihood of all observations and log joint density, in constrained space, given every latent site.

    Args:
        model: The model, with its data. Subsampled plates run whole.
        values: Values of the latent sites.
    """
    scaffold, latent = halves(model), model.of_kind(Kind.continuous, Kind.discrete)
    held = {site.name: values[scaffold.get(site.name, site.name)].astype(site.dtype) for site in latent}
    observed = frozenset(site.name for site in model.of_kind(Kind.observed))
    traced = trace_forward(model, jax.random.key(0), held, observed)
    likelihood = prior = jnp.zeros((), jnp.result_type(float))
    for name, site in traced.items():
        if site["type"] != "sample":
            continue
        if name in held:
            prior = prior + jnp.sum(site_log_prob(site))
        else:
            likelihood = likelihood + jnp.sum(site_log_prob(site))
    return likelihood, prior + likelihood


def simulated(
    model: Model, settings: Settings, key: PRNGKey, caller: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Latent and deterministic values, and observations, by site, with a leading axis of data sets."""
    simulator = settings.simulator or model
    for site in simulator.sites:
        check_drawable(site, caller)
        if site.kind is Kind.factor:
            raise ModelError(
                f"site {site.name!r} is a numpyro.factor, which changes the posterior but not the data that "
                f"{caller} draws. Write it as numpyro.sample, or give simulator= a model that draws from the same "
                f"joint distribution."
            )
    tree = simulate(simulator, settings.datasets, seed=key, progress=False)
    groups = [
        {str(name): v.values[0] for name, v in tree[group].data_vars.items()} if group in tree.children else {}
        for group in ("prior", "prior_predictive")
    ]
    for name, values in groups[1].items():
        bad = ~np.isfinite(values.reshape(len(values), -1)).all(1)
        if bad.any():
            raise DataError(
                f"site {name!r} was drawn as NaN or infinite in {bad.sum()} of {len(values)} data sets. Give priors "
                f"that make such data impossible: narrower ones, or another likelihood."
            )
    # Latent halves of obs_mask sites are reported under the name of the whole.
    whole = {stem: groups[1][stem] for stem in halves(model).values() if stem in groups[1]}
    return {**groups[0], **whole}, groups[1]


def with_observations(
    model: Model, settings: Settings, observed: dict[str, np.ndarray]
) -> tuple[Model, tuple[Source, ...]]:
    """The model with the first data set, and where its observations are."""
    scaffold, named = halves(model), dict(settings.arguments or {})
    unfilled = outcomes(model) - {scaffold.get(site.name, site.name) for site in model.of_kind(Kind.observed)}
    sites = [s for s in model.sites if s.kind is Kind.observed or (s.name in unfilled and s.latent)]
    if not sites:
        raise ModelError(
            "the model has no observed site, so there is nothing to fit. Write the likelihood as "
            "numpyro.sample(name, ..., obs=...)."
        )
    for name in named:
        if name not in [site.name for site in sites]:
            raise ModelError(
                f"arguments names {name!r}, which is not an observed site. {suggestion(name, [s.name for s in sites])}"
            )
    sources, conditions, data = [], {}, {}
    for site in sites:
        stem = scaffold.get(site.name, site.name)
        if stem not in observed:
            raise ModelError(f"the simulator does not draw the observed site {stem!r}. {suggestion(stem, observed)}")
        value = observed[stem][0]
        partial = any(plate.subsample < plate.size for plate in site.plates)
        argument = named.get(site.name, site.name if partial else None)
        expected = full_shape(site)
        if value.shape != expected:
            raise DataError(
                f"the simulator draws site {stem!r} with shape {value.shape}, but the model has {expected}. Give both "
                f"the same data."
            )
        if argument is None:
            conditions[site.name] = value
            sources.append(Source(site.name, stem, "given", site.name))
        else:
            data[argument] = _as_argument(model, site, argument, value)
            sources.append(Source(site.name, stem, "data", argument))
    fitted = model.with_data(**data) if data else model
    fitted = fitted.condition(**conditions) if conditions else fitted
    _check_arguments(fitted, sources, observed)
    return fitted, tuple(sources)


def _as_argument(model: Model, site: Site, argument: str, value: np.ndarray) -> np.ndarray:
    leaf = model.leaves.get(argument)
    shape = getattr(leaf, "shape", None)
    if shape != value.shape:
        got = "there is no such argument" if leaf is None else f"that argument has shape {shape}"
        raise ModelError(
            f"site {site.name!r} takes rows of its observations by a subsampled plate, and the simulated ones, of "
            f"shape {value.shape}, must enter as the argument {argument!r} of the program: {got}. "
            f"Name the argument: arguments={{{site.name!r}: ...}}."
        )
    return value.astype(np.asarray(leaf).dtype)


def _check_arguments(fitted: Model, sources: list[Source], observed: dict[str, np.ndarray]) -> None:
    """Do arguments arrive at their sites unchanged?"""
    if all(source.part == "given" for source in sources):
        return
    with TRACING:
        arrived = jax.jit(observed_values)(fitted)
    for source in sources:
        if source.part == "data" and not np.array_equal(arrived[source.site], observed[source.stem][0]):
            raise ModelError(
                f"the argument {source.name!r} is not passed on unchanged to the site {source.site!r}, so simulated "
                f"observations cannot enter there. Transform it before it becomes data, or name the argument that is: "
                f"arguments={{{source.site!r}: ...}}."
            )
