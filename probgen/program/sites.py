"""What one execution of a program tells about its sites: the table behind ``model.sites``.

The program runs once, abstractly (``jax.eval_shape``): nothing is compiled and no number is computed. What stays is
plain, hashable data; distributions and bijections are asked again at every run, since they may depend on the values of
other sites.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.distributions.util import is_identically_one

from probgen.base.errors import DataError, ModelError
from probgen.program.chart import chart_of, in_noise_space
from probgen.program.handlers import Watch, base_of
from probgen.program.observations import Leaves, Origin, Suspect, described, outside, raise_if_wrong, site_log_prob
from probgen.program.tracing import check_repeatable, explained, makes_generators, pure

__all__ = ["Kind", "Plate", "Site", "discover", "start_value", "variable_name"]

RESERVED = ("chain", "draw")


class Kind(enum.Enum):
    """What a site is to an inference method."""

    continuous = "latent, continuous"
    discrete = "latent, discrete"
    observed = "observed"
    deterministic = "deterministic"
    factor = "factor"
    param = "param"


def variable_name(name: str) -> str:
    """What a site, or a dimension, is called in results: ``net/layers[0].weight`` of a network has a slash, which
    separates groups there."""
    return name.replace("/", ".")


@dataclasses.dataclass(frozen=True)
class Plate:
    """A plate around a site. ``size`` is the full size, ``subsample`` the rows seen per execution."""

    name: str
    size: int
    subsample: int
    dim: int


@dataclasses.dataclass(frozen=True)
class Site:
    """One site of a program.

    Attributes:
        name: Name of the site.
        kind: Latent continuous, latent discrete, observed, deterministic, factor or param.
        distribution: Name of the NumPyro distribution; empty for deterministic sites.
        support: Support of the distribution, in words.
        shape: Shape of the value in constrained space.
        coordinates: Shape in unconstrained coordinates; ``None`` where there are none.
        noise: Shape of the noise of a learned distribution that is sampled in noise space; ``None`` for others.
        dtype: Name of the dtype.
        dims: Name of each axis of the value.
        plates: The plates around the site, outermost last.
        scanned: Whether the leading axis is the time of a ``scan``.
        proper: Whether its distribution can be sampled (not an improper prior).
        finite: Whether a discrete site has a finite support that can be enumerated.
        auxiliary: Whether it is scaffolding (half of an ``obs_mask`` site) that results leave out.
        source: Where an observation comes from (``data`` or ``given``, and its name) when it is passed on unchanged.
        weighed: Whether ``handlers.scale`` or a mask stands between its distribution and its log probability, so that
            draws do not follow the density.
    """

    name: str
    kind: Kind
    distribution: str
    support: str
    shape: tuple[int, ...]
    coordinates: tuple[int, ...] | None
    dtype: str
    dims: tuple[str, ...]
    plates: tuple[Plate, ...] = ()
    scanned: bool = False
    proper: bool = True
    finite: bool = False
    auxiliary: bool = False
    source: Origin | None = None
    weighed: bool = False
    noise: tuple[int, ...] | None = None

    @property
    def latent(self) -> bool:
        """Whether inference must find its value."""
        return self.kind in (Kind.continuous, Kind.discrete)

    @property
    def reported(self) -> bool:
        """Whether results show its value."""
        return (self.latent or self.kind is Kind.deterministic) and not self.auxiliary


def discover(
    program: Callable[..., Any], bound: Callable[[Leaves], Callable[[], Any]], leaves: Leaves
) -> tuple[tuple[Site, ...], bool]:
    """Run the program once, abstractly, and describe its sites.

    Args:
        program: The program itself; only its code is looked at.
        bound: Makes the argument-free program from array values.
        leaves: The arrays, by where they come from (``data``, ``given``, ``world``) and name.

    Returns:
        The sites, and whether the program asks for random keys of its own (``numpyro.prng_key``).

    Raises:
        ModelError: If the program cannot be traced, or a site breaks a rule.
        DataError: If an observation does not have the shape of its site or lies outside its support, or if a NaN or
            infinite argument makes a log probability NaN or infinite.
    """
    sites: list[Site] = []
    suspects: dict[str, Suspect] = {}
    watch = Watch(lambda: None)

    def execute(leaves: Leaves, key: Array) -> dict[str, Any]:
        nonlocal watch
        watch = Watch(bound(leaves))
        with explained(watch, [name for _, name in leaves]):
            return handlers.trace(handlers.seed(handlers.substitute(watch, substitute_fn=start_value), key)).get_trace()

    def log_probs(leaves: Leaves, key: Array) -> dict[str, Array]:
        return {n: site_log_prob(s) for n, s in execute(leaves, key).items() if s["type"] == "sample"}

    def run(leaves_now: Leaves, key: Array) -> None:
        origin = {id(leaf): where for where, leaf in leaves_now.items()}
        traced = execute(leaves_now, key)
        times = _TimeDims(watch.plates)
        sites.clear()
        for site in traced.values():
            if site["type"] == "mutable":
                raise ModelError(
                    f"site {site['name']!r} is mutable state, which would stay frozen at its first value. "
                    f"Use a network without running statistics."
                )
            if site["type"] not in ("sample", "deterministic", "param"):
                continue
            source = origin.get(id(site["value"])) if site.get("is_observed") else None
            sites.append(_describe(site, source, times, watch.plates))
            if sites[-1].kind is Kind.observed:
                wrong = outside(site, leaves[source] if source else site["value"], origin, leaves)
                if wrong is not None:
                    suspects[site["name"]] = (source, wrong)

    key = jax.random.key(0)
    with pure(program):
        jax.eval_shape(run, dict(leaves), key)
    if makes_generators(program):
        check_repeatable(log_probs, dict(leaves), key)
    raise_if_wrong(lambda leaves: execute(leaves, key), leaves, suspects)
    return tuple(_without_scaffolding(_without_replaced(sites, watch.params))), watch.own_keys


def start_value(site: dict[str, Any]) -> Array | None:
    """A value inside the support for each continuous latent site; improper priors cannot be sampled."""
    if site["type"] != "sample" or site["is_observed"] or site["fn"].support.is_discrete:
        return None
    chart = chart_of(site["fn"], site["name"], noise=True)
    return chart.forward(jnp.zeros(chart.coordinates(tuple(site["fn"].shape()))))


class _TimeDims:
    """Names ``time``, ``time_1`` ... for scans of different lengths."""

    def __init__(self, plates: Mapping[str, int]) -> None:
        self.plates, self.names = plates, {}

    def name(self, length: int) -> str:
        if length not in self.names:
            free = ("time" if i == 0 else f"time_{i}" for i in range(len(self.names) + len(self.plates) + 1))
            taken = {n for n, size in self.plates.items() if size != length} | set(self.names.values())
            self.names[length] = next(name for name in free if name not in taken)
        return self.names[length]


def _describe(site: dict[str, Any], source: Origin | None, times: _TimeDims, sizes: Mapping[str, int]) -> Site:
    name, value = site["name"], site["value"]
    scanned = bool(site.get("_control_flow_done", False))
    frames = sorted(site.get("cond_indep_stack", []), key=lambda frame: -frame.dim)
    plates = tuple(Plate(f.name, sizes.get(f.name, f.size), f.size, f.dim) for f in frames)
    if site["type"] == "param":
        return Site(name, Kind.param, "", "", (), None, "", ())
    shape, dtype = tuple(jnp.shape(value)), str(jnp.result_type(value))
    if site["type"] == "deterministic":
        dims = _dims(name, shape, 0, plates, (), times, scanned)
        return Site(name, Kind.deterministic, "", "", shape, None, dtype, dims, plates, scanned)
    fn = site["fn"]
    base = base_of(fn)
    if isinstance(base, dist.Unit):
        return Site(name, Kind.factor, "", "", shape, None, dtype, (), plates, scanned)
    if site["kwargs"].get("sample_shape", ()):
        raise ModelError(
            f"site {name!r} has sample_shape {site['kwargs']['sample_shape']}, which no plate explains. "
            f"Put the statement in numpyro.plate, or expand the distribution."
        )
    if shape != tuple(fn.shape()):
        raise _shape_error(site, shape, source)
    if isinstance(base, dist.Delta) and not site["is_observed"]:
        raise ModelError(
            f"site {name!r} is a latent Delta, whose value is no unknown. Write numpyro.deterministic({name!r}, ...)."
        )
    support = fn.support
    kind, coordinates, noise = Kind.observed, None, None
    if not site["is_observed"]:
        if support.is_discrete:
            kind = Kind.discrete
        else:
            kind, coordinates = Kind.continuous, chart_of(fn, name).coordinates(shape)
            if in_noise_space(fn):
                noise = chart_of(fn, name, noise=True).coordinates(shape)
    event_dims = tuple(site["infer"].get("event_dims", ()))
    return Site(
        name,
        kind,
        type(base).__name__,
        _support_words(support),
        shape,
        coordinates,
        dtype,
        _dims(name, shape, fn.event_dim, plates, event_dims, times, scanned),
        plates,
        scanned,
        proper=not isinstance(base, dist.ImproperUniform),
        finite=bool(support.is_discrete and fn.has_enumerate_support),
        source=source,
        weighed=_weighed(site),
        noise=noise,
    )


def _weighed(site: dict[str, Any]) -> bool:
    fn = site["fn"]
    while isinstance(fn, dist.MaskedDistribution | dist.Independent | dist.ExpandedDistribution):
        if isinstance(fn, dist.MaskedDistribution) and not is_identically_one(fn._mask):
            return True
        fn = fn.base_dist
    return site["scale"] is not None and not is_identically_one(site["scale"])


def _shape_error(site: dict[str, Any], shape: tuple[int, ...], source: Origin | None) -> DataError:
    name, expected = site["name"], tuple(site["fn"].shape())
    got = f"site {name!r}" if source is None else f"site {name!r} (from {described(source, name)})"
    return DataError(
        f"{got} got an observation of shape {shape}, but the site has shape {expected}. Give both the same shape: "
        f"put the statement in numpyro.plate, expand the distribution, or flatten a column of shape (n, 1) to (n,)."
    )


def _support_words(support: constraints.Constraint) -> str:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    name = type(support).__name__.lstrip("_")
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()
    bounds = [getattr(support, b, None) for b in ("lower_bound", "upper_bound")]
    shown = ["" if b is None else f"{float(b):g}" if isinstance(b, int | float) else "..." for b in bounds]
    return f"{words}({', '.join(b for b in shown if b)})" if any(shown) else words


def _dims(
    name: str,
    shape: tuple[int, ...],
    event_ndim: int,
    plates: tuple[Plate, ...],
    event_dims: tuple[str, ...],
    times: _TimeDims,
    scanned: bool,
) -> tuple[str, ...]:
    dims = [f"{name}_dim_{axis}" for axis in range(len(shape))]
    for plate in plates:
        axis = len(shape) - event_ndim + plate.dim
        if 0 <= axis < len(shape) and shape[axis] == plate.subsample:
            dims[axis] = plate.name
    if len(event_dims) > len(shape):
        raise ModelError(
            f"site {name!r} has event_dims {list(event_dims)}, but only {len(shape)} axes (shape {shape}). "
            f"Give one name per event axis."
        )
    if event_dims:
        dims[len(shape) - len(event_dims) :] = event_dims
    if scanned and shape and dims[0] == f"{name}_dim_0":
        dims[0] = times.name(shape[0])
    return tuple(dims)


def _without_replaced(sites: list[Site], params: Mapping[str, list[tuple[int, ...]]]) -> Iterator[Site]:
    """Drop the parameters of networks from ``numpyro.contrib.module`` that priors replace entry by entry."""
    for site in sites:
        if site.kind is Kind.param and site.name.endswith("$params"):
            stem = site.name.removesuffix("$params")
            drawn = [s.shape for s in sites if s.name.startswith(stem) and s.latent]
            if all(drawn.count(shape) >= params[site.name].count(shape) for shape in params[site.name]):
                continue
        yield site


def _without_scaffolding(sites: Iterator[Site]) -> Iterator[Site]:
    """Mark the latent half of an ``obs_mask`` site; the site itself takes the axes of its halves."""
    table = {site.name: site for site in sites}
    for name, site in table.items():
        stem = name.removesuffix("_unobserved")
        observed = table.get(f"{name}_observed")
        if stem != name and {stem, f"{stem}_observed"} <= table.keys():
            yield dataclasses.replace(site, auxiliary=True)
        elif observed is not None and f"{name}_unobserved" in table and observed.shape == site.shape:
            yield dataclasses.replace(
                site, dims=tuple(d.replace(f"{observed.name}_dim_", f"{name}_dim_") for d in observed.dims)
            )
        else:
            yield site
