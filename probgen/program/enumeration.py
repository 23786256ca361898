"""Running a program with all values of its discrete latent sites side by side.

NumPyro's enumeration gives every discrete site an axis of its own, to the left of all batch axes, and names the axes.
This module imports funsor and is imported only when a model needs it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.contrib.funsor import config_enumerate, enum, plate_to_enum_plate
from numpyro.contrib.funsor.enum_messenger import NamedMessenger
from numpyro.contrib.funsor.enum_messenger import trace as packed_trace
from numpyro.distributions import Delta, Distribution, Unit
from numpyro.distributions.util import is_identically_one
from numpyro.handlers import trace
from numpyro.primitives import Messenger

from probgen.base.errors import MethodError, ModelError, ProbgenError
from probgen.base.typing import Position, PRNGKey, Scalar
from probgen.program.density import Density
from probgen.program.elimination import TIME, Factor, eliminate, lag_of, root_of
from probgen.program.handlers import _Reaching
from probgen.program.observations import mask_of, site_log_prob
from probgen.program.sites import Kind, Site

__all__ = ["Tables", "Term", "tables_of"]

type Traced = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Term:
    """What a traced site contributes.

    Attributes:
        name: Its name in the trace: inside ``scan`` the first steps are sites of their own.
        site: Its name in the program.
        kind: ``observed`` stands for factors too.
        factor: Its table.
        log_prob: The array that the table was made from.
        support: Values of a discrete site.
    """

    name: str
    site: str
    kind: Kind
    factor: Factor
    log_prob: Array
    support: Array | None = None


@dataclasses.dataclass(frozen=True)
class Tables:
    """One execution with all values of the discrete sites side by side.

    Attributes:
        terms: One or two per site.
        variables: By enumerated variable, the plates and time axes that it lives in.
        plates: Names of all plates and time axes.
        moving: Whether the value of a continuous site depends on a discrete one (its support does).
    """

    terms: list[Term]
    variables: dict[str, tuple[str, ...]]
    plates: frozenset[str]
    moving: bool

    def depends(self, term: Term) -> bool:
        return not self.variables.keys().isdisjoint(term.factor.names)

    def total(self, terms: list[Term], key: PRNGKey | None = None, extra: tuple[Factor, ...] = ()) -> Scalar:
        return eliminate([*(term.factor for term in terms), *extra], frozenset(self.variables), self.plates, key)


def tables_of(density: Density, u: Position, nesting: int) -> Tables:
    """Run the program of a density at ``u`` with all values of its discrete sites side by side.

    Args:
        density: Gives the model and the layout of the coordinates.
        u: Unconstrained coordinates, shape ``(dim,)``.
        nesting: Number of batch axes of the program.

    Raises:
        MethodError: If a discrete site cannot be summed out.
        ModelError: If the program does not run, or mixes a discrete site into a batch axis.
    """
    try:
        sites = run_enumerated(density.substituted(u), nesting)
    except ProbgenError:
        raise
    except Exception as error:
        raise ModelError(
            f"the program does not run with all values of its discrete sites side by side: {type(error).__name__}: "
            f"{error}. "
            f"Declare batch axes with numpyro.plate, and use discrete sites so that they may have axes to the left: "
            f"table[z], jnp.where(z == 1, a, b)."
        ) from error
    blocks, pieces = density.split(u), _scan_pieces(sites)
    enumerated = {name for name, site in sites.items() if is_enumerated(site)}
    plates = {frame.name for site in sites.values() for frame in site["cond_indep_stack"]}
    plates |= {n for site in sites.values() for n in site["infer"]["dim_to_name"].values() if n.startswith(TIME)}
    terms, variables, moving = [], {}, False
    for name, site in sites.items():
        known, lag = density.model.sites[root_of(name)], lag_of(name)
        kind, support = Kind.observed if site["is_observed"] else known.kind, None
        _check_plates(site, known)
        if kind is Kind.continuous:
            piece, size = _coordinates(blocks[known.name], site, known, lag, pieces.get(known.name, 0))
            moving |= jnp.size(site["value"]) > size
            arrays = density.latent_terms(site, known.name, piece)
        elif kind is Kind.discrete:
            support = _support(site, known)
            # Where a site is masked out it takes no part: let its values sum to one.
            arrays = (jnp.where(mask_of(site["fn"]), site_log_prob(site), -math.log(len(support))),)
        else:
            arrays = (site_log_prob(site),)
        for i, array in enumerate(arrays):
            factor = _table(array, site, known, enumerated | plates, whole=i == 0)
            terms.append(Term(name, known.name, kind, factor, array, support))
            if kind is Kind.discrete and name in factor.names:
                variables[name] = tuple(n for n in factor.names if n in plates)
    tables = Tables(terms, variables, frozenset(plates), moving)
    for term in terms:
        if tables.depends(term) and not _unscaled(sites[term.name]):
            raise MethodError(
                f"site {term.site!r} is scaled (numpyro.handlers.scale, or a subsampled plate) and depends on a "
                "discrete site; "
                f"the scaled sum over its values is no density. Drop the scale, or write the sum as numpyro.factor."
            )
    return tables


def run_enumerated(program: Callable[[], Any], nesting: int) -> dict[str, dict[str, Any]]:
    """The sample sites of one execution; ``site["infer"]["dim_to_name"]`` names the axes.

    Args:
        program: The program with its continuous sites filled in.
        nesting: Number of its batch axes.
    """
    enumerated = _Enumerate(config_enumerate(_Forward(_Factors(program))), first_available_dim=-1 - nesting)
    with plate_to_enum_plate():
        sites = _Trace(enumerated, -1 - nesting).get_trace()
    for site in sites.values():
        names = site["infer"]["dim_to_name"]
        # Under ``handlers.scope`` the plates of a site have a prefix, which the axes do not know.
        names.update({frame.dim: frame.name for frame in site["cond_indep_stack"] if frame.dim in names})
    return sites


def is_enumerated(site: dict[str, Any]) -> bool:
    """Whether a traced site has an axis of its own."""
    return not site["is_observed"] and site["fn"].has_enumerate_support


def support_of(fn: Distribution) -> Array:
    """The values of a discrete distribution, shape ``(K,)``."""
    return jnp.reshape(fn.enumerate_support(expand=False), -1)


def counts_from_zero(fn: Distribution) -> bool:
    """Whether the values are 0, 1, ..., K - 1."""
    with jax.ensure_compile_time_eval():
        try:
            values = np.asarray(support_of(fn))
        except jax.errors.TracerArrayConversionError:
            return False
    return bool(np.array_equal(values, np.arange(len(values))))


class _Enumerate(enum):
    """NumPyro enumerates indices; where the values are others, look them up."""

    def process_message(self, msg: dict[str, Any]) -> None:
        done = msg.get("done", False)
        if msg["type"] == "sample" and not msg["is_observed"] and msg["fn"].has_enumerate_support:
            _check_scalar(msg["name"], msg["fn"])
        super().process_message(msg)
        if msg["type"] == "sample" and msg.get("done", False) and not done and not counts_from_zero(msg["fn"]):
            msg["value"] = support_of(msg["fn"])[msg["value"]]


class _Trace(packed_trace):
    """Name only axes that are plates, times or enumerated: naming others would move the plates that follow."""

    def __init__(self, fn: Callable[[], Any], first: int) -> None:
        super().__init__(fn)
        self.first = first

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] != "sample":
            return
        fn, value = msg["fn"], msg["value"]
        batch = np.broadcast_shapes(fn.batch_shape, jnp.shape(value)[: jnp.ndim(value) - fn.event_dim])
        plates = {frame.dim for frame in msg["cond_indep_stack"]}
        dims = range(-len(batch), 0)
        named = tuple(size if d in plates or d <= self.first else 1 for d, size in zip(dims, batch, strict=True))
        msg["infer"]["dim_to_name"] = NamedMessenger._get_dim_to_name(named)
        trace.postprocess_message(self, msg)


class _Factors(_Reaching):
    """Inside ``scan``, make factors deltas: NumPyro takes the time axis of a ``Unit`` for that of a discrete site."""

    def act(self, msg: dict[str, Any], step: Array | None, length: int | None) -> None:
        if step is not None and msg["type"] == "sample" and isinstance(msg["fn"], Unit):
            log_factor = jnp.asarray(msg["fn"].log_factor)
            msg["fn"], msg["value"] = Delta(jnp.zeros_like(log_factor), log_factor), jnp.zeros_like(log_factor)


class _Forward(Messenger):
    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "control_flow" and len(msg["args"]) == 5 and msg["args"][4]:
            raise MethodError(
                "a program with discrete latent sites has a scan with reverse=True, which cannot be enumerated. "
                "Flip the arrays and scan forwards."
            )


def _unscaled(site: Traced) -> bool:
    return site["scale"] is None or bool(is_identically_one(site["scale"]))


def _scan_pieces(sites: dict[str, Traced]) -> dict[str, int]:
    """How many first steps of each scanned site are sites of their own."""
    count: dict[str, int] = {}
    for name in sites:
        count[root_of(name)] = max(count.get(root_of(name), 0), lag_of(name))
    return count


def _check_plates(site: Traced, known: Site) -> None:
    here = {(frame.name, frame.dim) for frame in site["cond_indep_stack"]}
    if here != {(plate.name, plate.dim) for plate in known.plates}:
        raise ModelError(
            f"the plates of site {known.name!r} move when discrete sites are enumerated. Declare every batch axis of "
            "the program with "
            f"numpyro.plate, or make it part of an event with .to_event()."
        )


def _check_scalar(name: str, fn: Distribution) -> None:
    if fn.event_dim:
        raise MethodError(
            f"site {name!r} is a discrete vector, whose values cannot be enumerated one by one. Put its elements in "
            "a numpyro.plate "
            f"instead of .to_event(), or sample it with pg.DiscreteHMCGibbs()."
        )


def _support(site: Traced, known: Site) -> Array:
    fn = site["fn"]
    _check_scalar(known.name, fn)
    if not known.scanned:
        return support_of(fn)
    if not counts_from_zero(fn):
        raise MethodError(
            f"site {known.name!r} ({known.distribution}) has values that do not count from 0, which a scan cannot "
            "enumerate. "
            f"Write it as a Categorical plus an offset."
        )
    return support_of(fn)


def _coordinates(block: Array, site: Traced, known: Site, lag: int, pieces: int) -> tuple[Array, int]:
    """The coordinates of a traced piece of a site, with the axes of its value, and the size of this value alone."""
    event = site["fn"].event_dim
    batch = jnp.shape(site["value"])[: jnp.ndim(site["value"]) - event]
    piece, shape, time = block, known.shape, ()
    if known.scanned and lag:
        piece, shape = block[pieces - lag], known.shape[1:]
    elif known.scanned:
        piece, shape = block[pieces:], (known.shape[0] - pieces, *known.shape[1:])
        time = shape[:1]
    inner = piece.shape[len(shape) - event :]
    more = (1,) * (len(batch) + event - len(shape))
    piece = piece.reshape(*time, *more, *piece.shape[len(time) :])
    return jnp.broadcast_to(piece, batch + inner), math.prod(shape)


def _table(array: Array, site: Traced, known: Site, names: set[str], whole: bool) -> Factor:
    """The table of a term: axes of length one dropped, undeclared batch axes summed.

    Args:
        array: One number per independent draw and value of the discrete sites.
        site: The traced site.
        known: The site of the program.
        names: Names of plates, times and enumerated sites.
        whole: Whether to broadcast to the batch shape of the site first.
    """
    if whole:
        value, fn = site["value"], site["fn"]
        batch = jnp.shape(value)[: jnp.ndim(value) - fn.event_dim]
        array = jnp.broadcast_to(array, np.broadcast_shapes(fn.batch_shape, batch, jnp.shape(array)))
    axes = {dim: site["infer"]["dim_to_name"].get(dim) for dim in range(-array.ndim, 0)}
    undeclared = tuple(dim for dim, name in axes.items() if name is None and array.shape[dim] > 1)
    if undeclared and known.kind is Kind.discrete:
        raise MethodError(
            f"site {known.name!r} is discrete with a batch axis that is no plate, so its elements cannot be summed "
            "out one by one. "
            f"Put it in a numpyro.plate, or sample it with pg.DiscreteHMCGibbs()."
        )
    strange = [name for dim, name in axes.items() if name is not None and name not in names and array.shape[dim] > 1]
    if strange:
        raise ModelError(
            f"site {known.name!r} depends on the last state of a scan over discrete sites, or on an axis that is no "
            "plate. "
            f"Move the site into the scan, or declare the axis with numpyro.plate."
        )
    kept = tuple(name for dim, name in axes.items() if name is not None and array.shape[dim] > 1)
    array = jnp.sum(array, undeclared) if undeclared else array
    sizes = [size for size in array.shape if size > 1]
    return Factor(kept, array.reshape(sizes))
