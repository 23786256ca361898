"""What one execution of a program tells about its sites: the table behind ``model.sites``.

The program runs once, abstractly (``jax.eval_shape``): nothing is compiled and no number is computed. What stays is plain, hashable
data; distributions and bijections are asked again at every run, since they may depend on the values of other sites.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.distributions import constraints

from probgen.base.errors import DataError, ModelError, ProbgenError, ProbgenWarning
from probgen.program.chart import chart_of
from probgen.program.handlers import Watch

__all__ = ["Kind", "Plate", "Site", "discover", "explained"]


class Kind(enum.Enum):
    """What a site is to an inference method."""

    continuous = "latent, continuous"
    discrete = "latent, discrete"
    observed = "observed"
    deterministic = "deterministic"
    factor = "factor"
    param = "param"


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
        dtype: Name of the dtype.
        dims: Name of each axis of the value.
        plates: The plates around the site, outermost last.
        scanned: Whether the leading axis is the time of a ``scan``.
        proper: Whether its distribution can be sampled (not an improper prior).
        finite: Whether a discrete site has a finite support that can be enumerated.
        auxiliary: Whether it is scaffolding (half of an ``obs_mask`` site) that results leave out.
        source: Where an observation comes from (``data`` or ``given``, and its name) when it is passed on unchanged.
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
    source: tuple[str, str] | None = None

    @property
    def latent(self) -> bool:
        """Whether inference must find its value."""
        return self.kind in (Kind.continuous, Kind.discrete)


@contextlib.contextmanager
def explained(watch: Watch, arguments: Sequence[str]) -> Iterator[None]:
    """Turn what a program raises while it is traced into a ``ModelError`` that says where."""

    def where() -> str:
        return f"after site {watch.seen[-1]!r}" if watch.seen else "before its first site"

    try:
        yield
    except ProbgenError:
        raise
    except (jax.errors.TracerBoolConversionError, jax.errors.ConcretizationTypeError) as error:
        raise ModelError(
            f"the program branches on, or counts with, a value that is only known while it runs ({where()}): "
            f"{str(error).splitlines()[0]} Use numpyro.contrib.control_flow.cond or jnp.where for values of sites and arrays; "
            f"sizes and switches must be Python ints, bools or strings in data."
        ) from error
    except AssertionError as error:
        if "unique names" in str(error):
            raise ModelError(
                f"a site occurs twice in one execution of the program ({error}). Give every site its own name."
            ) from error
        raise ModelError(f"the program failed an assertion {where()}: {error}. Correct the program.") from error
    except Exception as error:
        raise ModelError(
            f"the program raised {type(error).__name__} {where()}: {error}. Correct the program or its arguments "
            f"({', '.join(arguments) or 'none'})."
        ) from error


@contextlib.contextmanager
def _pure() -> Iterator[None]:
    """Warn about effects that happen once, while tracing, and not once per draw."""
    stream, before = io.StringIO(), np.random.get_state()[1:3]  # noqa: NPY002
    with contextlib.redirect_stdout(stream):
        yield
    after = np.random.get_state()[1:3]  # noqa: NPY002
    if before[1] != after[1] or not np.array_equal(before[0], after[0]):
        raise ModelError(
            "the program draws from numpy.random, which JAX would run once and freeze. "
            "Use numpyro.sample, or pass the numbers as data."
        )
    if stream.getvalue():
        warnings.warn(
            f"the program prints ({stream.getvalue().strip()[:60]!r}); this happens while tracing only. "
            f"Use jax.debug.print to print values of a run.",
            ProbgenWarning,
            stacklevel=2,
        )


def discover(
    bound: Callable[[Mapping[tuple[str, str], Any]], Callable[[], Any]], leaves: Mapping[tuple[str, str], Any]
) -> tuple[Site, ...]:
    """Run the program once, abstractly, and describe its sites.

    Args:
        bound: Makes the argument-free program from array values.
        leaves: The arrays, by where they come from (``data``, ``given``, ``world``) and name.

    Raises:
        ModelError: If the program cannot be traced, or a site breaks a rule.
        DataError: If an observation does not have the shape of its site or lies outside its support.
    """
    sites: list[Site] = []

    def run(leaves: Mapping[tuple[str, str], Any], key: Array) -> None:
        owner = {id(leaf): where for where, leaf in leaves.items()}
        watch = Watch(bound(leaves))
        with explained(watch, [name for _, name in leaves]):
            traced = handlers.trace(handlers.seed(handlers.substitute(watch, substitute_fn=_start), key)).get_trace()
        times = _TimeDims()
        sizes = {s["name"]: s["args"][0] for s in traced.values() if s["type"] == "plate"}
        sites.clear()
        for site in traced.values():
            if site["type"] in ("sample", "deterministic", "param"):
                described = _describe(site, times, sizes)
                if described.kind is Kind.observed:
                    source = owner.get(id(site["value"]))
                    described = dataclasses.replace(described, source=source)
                    _check_observed(site, described, source, concrete)
                sites.append(described)
            elif site["type"] == "mutable":
                raise ModelError(
                    f"site {site['name']!r} is mutable state, which would stay frozen at its first value. "
                    f"Use a network without running statistics."
                )

    concrete = leaves
    with _pure():
        jax.eval_shape(run, dict(leaves), jax.random.key(0))
    return tuple(_without_scaffolding(sites))


def _start(site: dict[str, Any]) -> Array | None:
    """A value inside the support for each continuous latent site; improper priors cannot be sampled."""
    if site["type"] != "sample" or site["is_observed"] or site["fn"].support.is_discrete:
        return None
    chart = chart_of(site["fn"], site["name"])
    return chart.forward(jnp.zeros(chart.coordinates(tuple(site["fn"].shape()))))


class _TimeDims:
    """Names ``time``, ``time_1`` ... for scans of different lengths."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def name(self, length: int) -> str:
        if length not in self.lengths:
            self.lengths.append(length)
        index = self.lengths.index(length)
        return "time" if index == 0 else f"time_{index}"


def _describe(site: dict[str, Any], times: _TimeDims, sizes: Mapping[str, int]) -> Site:
    name, value = site["name"], site["value"]
    shape, dtype = tuple(jnp.shape(value)), str(jnp.result_type(value)) if not isinstance(value, dict) else "pytree"
    scanned = bool(site.get("_control_flow_done", False))
    frames = sorted(site.get("cond_indep_stack", []), key=lambda frame: -frame.dim)
    plates = tuple(Plate(f.name, sizes.get(f.name, f.size), f.size, f.dim) for f in frames)
    if site["type"] == "param":
        return Site(name, Kind.param, "", "", (), None, dtype, ())
    if site["type"] == "deterministic":
        dims = _dims(name, shape, 0, plates, (), times, scanned)
        return Site(name, Kind.deterministic, "", "", shape, None, dtype, dims, plates, scanned)
    fn = site["fn"]
    event_dims = tuple(site["infer"].get("event_dims", ()))
    if isinstance(fn, dist.Unit):
        return Site(name, Kind.factor, "", "", shape, None, dtype, (), plates, scanned)
    if shape != tuple(fn.shape()):
        raise DataError(
            f"site {name!r} got an observation of shape {shape}, but the site has shape {tuple(fn.shape())}. Give both the "
            f"same shape: put the statement in numpyro.plate('obs', {shape[0] if shape else 1}), or expand the distribution."
        )
    base = fn
    while isinstance(base, dist.Independent | dist.MaskedDistribution | dist.ExpandedDistribution):
        base = base.base_dist
    support = fn.support
    words = _support_words(support)
    dims = _dims(name, shape, fn.event_dim, plates, event_dims, times, scanned)
    kind, coordinates = Kind.observed, None
    if not site["is_observed"]:
        if support.is_discrete:
            kind = Kind.discrete
        else:
            kind, coordinates = Kind.continuous, chart_of(fn, name).coordinates(shape)
    return Site(
        name,
        kind,
        type(base).__name__,
        words,
        shape,
        coordinates,
        dtype,
        dims,
        plates,
        scanned,
        proper=not isinstance(base, dist.ImproperUniform),
        finite=bool(support.is_discrete and fn.has_enumerate_support),
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
    if event_dims and len(event_dims) <= len(shape):
        dims[len(shape) - len(event_dims) :] = event_dims
    if scanned and shape and dims[0] == f"{name}_dim_0":
        dims[0] = times.name(shape[0])
    return tuple(dims)


def _check_observed(
    site: dict[str, Any], described: Site, leaf: tuple[str, str] | None, concrete: Mapping[tuple[str, str], Any]
) -> None:
    """Compare an observation that is an argument itself with the support, where the support does not depend on latents."""
    if leaf is None:
        return
    value, support = concrete[leaf], site["fn"].support
    if any(isinstance(bound, jax.core.Tracer) for bound in jax.tree.leaves(support)):
        return
    label = leaf[1] if leaf[1] == described.name else f"{leaf[1]} (site {described.name!r})"
    values = np.asarray(value)
    if np.issubdtype(values.dtype, np.floating) and np.isnan(values).any():
        where = tuple(int(i) for i in np.argwhere(np.isnan(values))[0])
        raise DataError(
            f"data {label!r} has NaN at index {where}. Drop the row, or mark missing values: replace them by any number in "
            f"the support and pass obs_mask= to numpyro.sample, which makes them latent."
        )
    with jax.ensure_compile_time_eval():
        inside = np.asarray(support(jnp.asarray(values)))
    if inside.all():
        return
    where = tuple(int(i) for i in np.argwhere(~inside)[0])
    raise DataError(
        f"data {label!r} has the value {values[where]} at index {where}, outside the support of {described.distribution} "
        f"({described.support}). Correct the data or the distribution."
    )


def _without_scaffolding(sites: list[Site]) -> Iterator[Site]:
    names = {site.name for site in sites}
    for site in sites:
        stem = site.name.removesuffix("_unobserved")
        if stem != site.name and {stem, f"{stem}_observed"} <= names:
            site = dataclasses.replace(site, auxiliary=True)  # noqa: PLW2901
        yield site
