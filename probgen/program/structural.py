"""A program as a structural model: which mechanism each site has, and how it runs in a world where something is done.

Three steps (Pearl 2009, section 7.1). *Abduction*: the program runs once with every site at its factual value, and the
noise of each site is found from its value and its distribution there. *Action*: sites are set, or get other
mechanisms. *Prediction*: the program runs again, all sites that descend from these made anew by their own mechanism
from the noise that they had. Sites that do not descend from them keep their factual values and need no mechanism.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.distributions import transforms

from probgen.base.errors import ModelError, suggestion
from probgen.base.typing import PRNGKey, Values
from probgen.program.discrete_noise import FreshNoise, GumbelNoise, MixtureNoise, Steps
from probgen.program.graph import graph_of
from probgen.program.handlers import Message, base_of
from probgen.program.model import Model
from probgen.program.noise import Cholesky, LearnedNoise, LocationScale, NoiseMap, NoNoise, Quantile, Through, Walk
from probgen.program.observations import mask_of
from probgen.program.simulate import Replay, halves
from probgen.program.tails import tails_of

__all__ = [
    "Apply",
    "Assumption",
    "Change",
    "Fix",
    "GumbelMax",
    "Independent",
    "Monotone",
    "Operation",
    "Redraw",
    "abduct",
    "descendants",
    "mechanism_of",
    "run_world",
]


# -- assumptions -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Monotone:
    """The value of a site increases with its noise: the quantile function. Categories are ordered by their number."""


@dataclasses.dataclass(frozen=True)
class GumbelMax:
    """A category wins by the largest of its perturbed log probabilities (Oberst and Sontag 2019)."""


@dataclasses.dataclass(frozen=True)
class Independent:
    """A discrete site keeps its value while its distribution stays; where that changes, it is drawn independently of the
    factual value. Worlds that change its distribution alike agree; those that change it differently share one noise."""


type Assumption = Monotone | GumbelMax | Independent

_ADVICE = (
    "Write it as a transform of a Normal site, intervene on the site itself, or ask for interventional means with "
    "model.do and pg.predict."
)


def mechanism_of(fn: Any, name: str, assume: Assumption | None = None) -> NoiseMap:
    """The mechanism of a site.

    Args:
        fn: Its distribution.
        name: The site, for messages.
        assume: What is assumed, where that is a choice.

    Raises:
        ModelError: If no mechanism of the distribution is known, or it does not go with the assumption.
    """
    fn = base_of(fn)
    if isinstance(fn, dist.Delta):
        found: NoiseMap | None = NoNoise()
    elif fn.support is not None and fn.support.is_discrete:
        return _discrete(fn, name, assume)
    elif isinstance(fn, dist.MixtureSameFamily):
        inner = mechanism_of(fn.component_distribution, name, assume)
        return MixtureNoise(inner, base_of, f"component by Gumbel-max, within it: {inner.assumption}")
    elif hasattr(fn, "noise_of") and hasattr(fn, "noise_map"):
        found = LearnedNoise()
    elif isinstance(fn, dist.TransformedDistribution):
        if any(isinstance(t, transforms.AbsTransform) for t in fn.transforms):
            found = None
        else:
            inner = mechanism_of(fn.base_dist, name, assume)
            return Through(inner, base_of, f"transform of: {inner.assumption}")
    else:
        found = next((mechanism for family, mechanism in _CONTINUOUS if isinstance(fn, family)), None)
    if found is None and not fn.event_shape and _has_quantiles(fn):
        found = Quantile()
    if found is None:
        raise ModelError(
            f"site {name!r} follows {type(fn).__name__}, for which no mechanism v = F(parents, noise) is known. {_ADVICE}"
        )
    ordered = isinstance(found, LocationScale | Quantile)
    if assume is not None and not (isinstance(assume, Monotone) and ordered):
        raise ModelError(
            f"assume[{name!r}] is {type(assume).__name__}(), but site {name!r} is continuous ({type(fn).__name__}), where "
            f"the mechanism is: {found.assumption}. Leave {name!r} out of assume."
        )
    return found


def _discrete(fn: Any, name: str, assume: Assumption | None) -> NoiseMap:
    categorical = isinstance(fn, dist.CategoricalProbs | dist.CategoricalLogits)
    ordered = not categorical or isinstance(fn, dist.OrderedLogistic)
    tails = tails_of(fn)
    if tails is None:
        raise ModelError(
            f"site {name!r} follows {type(fn).__name__}, for which no mechanism v = F(parents, noise) is known. {_ADVICE}"
        )
    steps = Steps(*tails)
    if isinstance(assume, GumbelMax):
        if not categorical:
            raise ModelError(
                f"assume[{name!r}] is GumbelMax(), but site {name!r} follows {type(fn).__name__}. GumbelMax is for "
                f"categorical sites (for a Bernoulli site it is the same as Monotone()); use Monotone() or Independent()."
            )
        return GumbelNoise()
    if isinstance(assume, Independent):
        return FreshNoise(steps if ordered else GumbelNoise())
    return steps if isinstance(assume, Monotone) or ordered else GumbelNoise()


def _has_quantiles(fn: Any) -> bool:
    return type(fn).icdf is not dist.Distribution.icdf and type(fn).cdf is not dist.Distribution.cdf


def _shifted(location: str, scale: str) -> LocationScale:
    return LocationScale(
        lambda fn, x: (x - getattr(fn, location)) / getattr(fn, scale),
        lambda fn, u: getattr(fn, location) + getattr(fn, scale) * u,
    )


_CONTINUOUS: tuple[tuple[Any, NoiseMap], ...] = (
    (
        (dist.Normal, dist.Cauchy, dist.Laplace, dist.Logistic, dist.Gumbel, dist.SoftLaplace),
        _shifted("loc", "scale"),
    ),
    (
        (dist.HalfNormal, dist.HalfCauchy),
        LocationScale(lambda fn, x: x / fn.scale, lambda fn, u: fn.scale * u, 0.0, assumption="scale"),
    ),
    (
        dist.Exponential,
        LocationScale(lambda fn, x: x * fn.rate, lambda fn, u: u / fn.rate, 0.0, assumption="scale"),
    ),
    (
        dist.Weibull,
        LocationScale(
            lambda fn, x: (x / fn.scale) ** fn.concentration,
            lambda fn, u: fn.scale * u ** (1 / fn.concentration),
            0.0,
            assumption="scale and power",
        ),
    ),
    (
        dist.Uniform,
        LocationScale(
            lambda fn, x: (x - fn.low) / (fn.high - fn.low), lambda fn, u: fn.low + (fn.high - fn.low) * u, 0.0, 1.0
        ),
    ),
    ((dist.MultivariateNormal, dist.LowRankMultivariateNormal), Cholesky()),
    (dist.GaussianRandomWalk, Walk()),
)


# -- what descends from what -----------------------------------------------------------------------------------------


def descendants(model: Model, names: Iterable[str], *, strict: bool = True) -> frozenset[str]:
    """Sites that are computed from any of the given ones, through any number of others.

    Args:
        model: The model.
        names: Sites to start from.
        strict: Whether the given ones are left out unless they descend from one another (or from their own past, in a
            ``scan``).
    """
    graph, scaffold = graph_of(model), halves(model)
    start = {scaffold.get(name, name) for name in names}
    reached: set[str] = set() if strict else set(start)
    waiting = [child for name in start for child in graph.successors(name)]
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting.extend(graph.successors(node))
    return frozenset(reached | {half for half, stem in scaffold.items() if stem in reached})


# -- abduction -------------------------------------------------------------------------------------------------------


def abduct(
    model: Model,
    key: PRNGKey,
    traced: Mapping[str, Message],
    needed: frozenset[str],
    wanted: frozenset[str],
    assume: Mapping[str, Assumption],
) -> tuple[dict[str, Any], dict[str, Array], dict[str, str]]:
    """The noise of sites, from their factual values.

    Args:
        model: The model.
        key: Randomness for noise that a value does not determine.
        traced: One execution of the program with every site at its factual value.
        needed: Sites that must have a mechanism.
        wanted: Sites whose noise is found where they have one.
        assume: Assumptions by site.

    Returns:
        By site: the noise; how many entries have no noise that would give their value; the assumption in words.

    Raises:
        ModelError: If a needed site has no known mechanism.
    """
    noises: dict[str, Any] = {}
    impossible: dict[str, Array] = {}
    said: dict[str, str] = {}
    for position, site in enumerate(model.sites):
        message = traced.get(site.name)
        if message is None or message["type"] != "sample" or site.name not in needed | wanted:
            continue
        try:
            mechanism = mechanism_of(message["fn"], site.name, assume.get(site.name))
        except ModelError:
            if site.name in needed:
                raise
            continue
        fn, value = base_of(message["fn"]), jnp.asarray(message["value"])
        noise = mechanism.abduct(jax.random.fold_in(key, position), fn, value)
        batch = value.ndim - message["fn"].event_dim
        bad = [jnp.any(~jnp.isfinite(leaf), tuple(range(batch, leaf.ndim))) for leaf in jax.tree.leaves(noise)]
        counted = mask_of(message["fn"])
        impossible[site.name] = jnp.sum(jnp.any(jnp.stack(bad), 0) & counted)
        noises[site.name], said[site.name] = noise, mechanism.assumption
    return noises, impossible, said


# -- action and prediction -------------------------------------------------------------------------------------------


class Fix(eqx.Module):
    """Set a site.

    Attributes:
        value: Of the shape of the site (with the time axis of a ``scan``).
        mask: Where it is set; of the same shape or ``()``. ``None``: everywhere.
    """

    value: Array
    mask: Array | None = None


class Apply(eqx.Module):
    """Compute a site from the value that it would have had and from earlier sites."""

    function: Callable[..., Any] = eqx.field(static=True)
    sites: tuple[str, ...] = eqx.field(static=True)


class Redraw(eqx.Module):
    """Draw a site from a distribution, independently of its noise."""

    leaves: list[Array]
    structure: Any = eqx.field(static=True)

    def distribution(self) -> Any:
        """The distribution."""
        return jax.tree.unflatten(self.structure, self.leaves)


class Change(eqx.Module):
    """Another mechanism of a site; ``structure`` is a function, or the structure of a distribution with ``leaves``."""

    leaves: list[Array] | None
    structure: Any = eqx.field(static=True)

    def distribution(self, fn: Any) -> Any:
        """The new distribution, from the old one."""
        return self.structure(fn) if self.leaves is None else jax.tree.unflatten(self.structure, self.leaves)


type Operation = Fix | Apply | Redraw | Change


class _World(Replay):
    """Run a program with its noise held and something done."""

    def __init__(
        self,
        program: Callable[[], Any],
        factual: Values,
        noises: Mapping[str, Any],
        affected: frozenset[str],
        operations: Mapping[str, Operation],
        assume: Mapping[str, Assumption],
        keys: Mapping[str, PRNGKey],
    ) -> None:
        super().__init__(program, factual, frozenset())
        self.noises, self.affected, self.operations = noises, affected, operations
        self.assume, self.keys = assume, keys
        self._seen: dict[str, Any] = {}

    def process_message(self, msg: Message) -> None:
        if msg.get("_control_flow_done", False) and msg["type"] in ("sample", "deterministic"):
            self._seen[msg["name"]] = msg["value"]  # the whole series, once the scan is over
        super().process_message(msg)

    def act(self, msg: Message, step: Array | None, length: int | None) -> None:
        super().act(msg, step, length)
        factor = msg["type"] == "sample" and isinstance(base_of(msg["fn"]), dist.Unit)
        if msg["type"] not in ("sample", "deterministic") or factor:
            return
        name: str = msg["name"]
        operation = self.operations.get(name)
        value = jnp.asarray(msg["value"])
        if msg["type"] == "sample" and (name in self.affected or isinstance(operation, Change)):
            value = self._mechanism(msg, value, operation if isinstance(operation, Change) else None, step)
        if operation is not None and not isinstance(operation, Change):
            value = self._done(name, operation, value, msg, step)
        msg["value"] = self._seen[name] = value

    def _mechanism(self, msg: Message, factual: Array, change: Change | None, step: Array | None) -> Array:
        name, fn = msg["name"], msg["fn"]
        mechanism = mechanism_of(fn, name, self.assume.get(name))
        shape = jnp.shape(factual)
        event_dim = fn.event_dim
        if change is not None:
            fn = change.distribution(fn)
            _check_family(name, mechanism, fn, self.assume.get(name), shape, event_dim)
        noise = self.noises[name]
        if step is not None:
            noise = jax.tree.map(lambda series: series[step], noise)
        fn = base_of(fn)
        made = mechanism.again(fn, noise, factual)
        return jnp.broadcast_to(made, shape).astype(factual.dtype)

    def _done(self, name: str, operation: Operation, natural: Array, msg: Message, step: Array | None) -> Array:
        if isinstance(operation, Fix):
            value, mask = operation.value, operation.mask
            if step is not None:
                value = value[step]
                mask = mask[step] if mask is not None and mask.ndim else mask
            return value if mask is None else jnp.where(mask, value, natural)
        if isinstance(operation, Redraw):
            key = self.keys[name] if step is None else jax.random.fold_in(self.keys[name], step)
            fn = operation.distribution()
            drawn = fn.sample(key, natural.shape[: natural.ndim - len(fn.shape())])
            return _fitted(name, drawn, natural)
        assert isinstance(operation, Apply)
        missing = [site for site in operation.sites if site not in self._seen]
        if missing:
            raise ModelError(
                f"do({name}=...) is a function of {missing[0]!r}, which is not a site that runs before {name!r}. "
                f"{suggestion(missing[0], self._seen)}"
            )
        return _fitted(name, operation.function(natural, *(self._seen[site] for site in operation.sites)), natural)


def _fitted(name: str, new: Any, natural: Array) -> Array:
    try:
        return jnp.broadcast_to(new, natural.shape)
    except ValueError as error:
        raise ModelError(
            f"do({name}=...) gives shape {jnp.shape(new)}, but site {name!r} has shape {natural.shape}. "
            f"Give a scalar or an array of that shape."
        ) from error


def _check_family(
    name: str, old: NoiseMap, fn: Any, assume: Assumption | None, shape: tuple[int, ...], event_dim: int
) -> None:
    if not isinstance(fn, dist.Distribution):
        raise ModelError(
            f"NewMechanism for site {name!r} returned {type(fn).__name__}, expected a NumPyro distribution. Return one."
        )
    new = mechanism_of(fn, name, assume)
    try:
        fits = fn.event_dim == event_dim and jnp.broadcast_shapes(tuple(fn.shape()), shape) == shape
    except ValueError:
        fits = False
    if new != old or not fits:
        raise ModelError(
            f"NewMechanism for site {name!r} returned {type(fn).__name__} of shape {tuple(fn.shape())}, whose noise is not "
            f"that of the site (shape {shape}; {old.assumption}). Return a distribution of the same family and shape."
        )


def run_world(
    model: Model,
    key: PRNGKey,
    factual: Values,
    noises: Mapping[str, Any],
    affected: frozenset[str],
    operations: Mapping[str, Operation],
    assume: Mapping[str, Assumption],
) -> Values:
    """One execution of the program in a world where something is done.

    Args:
        model: The model.
        key: Randomness of ``Redraw``; worlds with the same key draw alike.
        factual: Factual values of every sample site (and ``param``).
        noises: Noise by site, of every sample site in ``affected`` and every site with ``Change``.
        affected: Sites that descend from what is done.
        operations: What is done, by site.
        assume: Assumptions by site.

    Returns:
        Values of all sample and deterministic sites.
    """
    program = model._bind(model.leaves, {}, model.world)
    keys = {site.name: jax.random.fold_in(key, position) for position, site in enumerate(model.sites, start=1)}
    world = _World(program, factual, noises, affected, operations, assume, keys)
    traced = handlers.trace(handlers.seed(world, jax.random.fold_in(key, 0))).get_trace()
    return {name: site["value"] for name, site in traced.items() if site["type"] in ("sample", "deterministic")}
