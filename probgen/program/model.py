"""A NumPyro program with its data: the one description of a model that everything else interprets."""

from __future__ import annotations

import dataclasses
import inspect
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro import handlers
from numpyro.distributions.distribution import validation_enabled

from probgen.base.errors import DataError, ModelError, suggestion
from probgen.base.typing import Program
from probgen.program.handlers import Intervene, RowOrder, natural_name
from probgen.program.sites import RESERVED, Kind, Site, discover, variable_name
from probgen.program.tracing import surroundings
from probgen.run.compiled import TRACING

if TYPE_CHECKING:
    import networkx

__all__ = ["Model", "SiteTable"]


class SiteTable(tuple[Site, ...]):
    """The sites of a program in order of execution; printable, and indexable by name."""

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            for site in self:
                if site.name == key:
                    return site
            raise ModelError(f"the model has no site {key!r}. {suggestion(key, [s.name for s in self])}")
        return super().__getitem__(key)

    def __repr__(self) -> str:
        rows = [("site", "kind", "distribution", "support", "shape", "dims")]
        rows += [(s.name, s.kind.value, s.distribution, s.support, str(s.shape), ", ".join(s.dims)) for s in self]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


class Model(eqx.Module):
    """A NumPyro program, its data, and the labels of its axes.

    The program is static; arrays among the data are pytree leaves. Whatever is compiled for one data set therefore
    serves every other of the same shapes. The program is traced once, abstractly, when the model is made, and mistakes
    are reported then.

    Args:
        program: A function that calls ``numpyro.sample`` and the other primitives. Its arguments are filled from
            ``data``.
        data: Values by argument name. Arrays, lists of numbers and floats are traced; Python ints, bools, strings and
            ``None`` are static (sizes and switches), and a new value of one compiles anew.
        coords: Labels by dimension. Dimensions are named after plates; the time axis of a ``scan`` is ``time``; event
            axes are named by ``infer={"event_dims": [...]}`` at the site; others are ``SITE_dim_0`` and so on.
        dims: Dimension names by site, where neither plates nor ``event_dims`` give them (deterministic sites, say), or
            by argument, for the axes of ``constant_data``.
        given: Values of further observed sites; ``condition`` fills it.
        world: Interventions by site; ``do`` fills it.

    Raises:
        ModelError: If the program cannot be read (duplicate site, control flow on values, an exception in the program
            ...).
        DataError: If the data do not fit (a missing or unknown argument, NaN, outside the support, a wrong shape or
            length).
    """

    program: Program = eqx.field(static=True)
    leaves: dict[str, Any]
    """Array arguments, by name."""
    given: dict[str, Array]
    """Values of sites that ``condition`` observes."""
    world: dict[str, Array]
    """Values of sites that ``do`` sets."""
    settings: tuple[tuple[str, Any], ...] = eqx.field(static=True)
    """Arguments that are not arrays."""
    mechanisms: tuple[tuple[str, Callable[[Array], Any]], ...] = eqx.field(static=True)
    """Functions with which ``do`` replaces sites."""
    coords: tuple[tuple[str, tuple[Any, ...]], ...] = eqx.field(static=True)
    dims: tuple[tuple[str, tuple[str, ...]], ...] = eqx.field(static=True)
    sites: SiteTable = eqx.field(static=True)
    """Every site, in the order of execution."""
    surroundings: tuple[Any, ...] = eqx.field(static=True)
    """What the program and ``mechanisms`` find outside of their arguments, and the types of ``settings``: all that is
    compiled in and that equality of the other fields does not see."""
    own_keys: bool = eqx.field(static=True)
    """Whether the program draws random keys of its own (``numpyro.prng_key``); such a program can only be simulated."""

    def __init__(
        self,
        program: Program,
        data: Mapping[str, Any] | None = None,
        coords: Mapping[str, Any] | None = None,
        dims: Mapping[str, Sequence[str]] | None = None,
        *,
        given: Mapping[str, Array] | None = None,
        world: Mapping[str, Any] | None = None,
    ) -> None:
        if not callable(program):
            raise ModelError(f"program must be a function, got {type(program).__name__}. Pass the function itself.")
        world = dict(world or {})
        self.program = program
        self.leaves, self.settings = _split(program, dict(data or {}))
        self.given = dict(given or {})
        self.world = {name: new for name, new in world.items() if not callable(new)}
        self.mechanisms = tuple((name, new) for name, new in world.items() if callable(new))
        self.coords = tuple((str(name), _labels(name, values)) for name, values in (coords or {}).items())
        self.dims = tuple((k, tuple(v)) for k, v in (dims or {}).items())
        try:
            hash((program, self.settings, self.mechanisms))
        except TypeError as error:
            raise ModelError(f"the program and its settings must be hashable: {error}. Pass arrays as data.") from error
        values = {("data", k): v for k, v in self.leaves.items()}
        values |= {("given", k): v for k, v in self.given.items()} | {("world", k): v for k, v in self.world.items()}
        self.surroundings = (
            *(surroundings(f) for f in (program, *dict(self.mechanisms).values())),
            tuple(type(value) for _, value in self.settings),
        )
        with TRACING:
            sites, self.own_keys = discover(program, self._rebound, values)
        self.sites = SiteTable(_renamed(sites, self.dims, self.leaves))
        self._check_labels()

    # -- running -----------------------------------------------------------------------------------------------------

    def bind(self) -> Callable[[], Any]:
        """The program as a function without arguments: data filled in, conditions and interventions applied."""
        bound = self._bind(self.leaves, self.given, self.world)

        def program() -> Any:
            # The numbers were judged when the model was made; at every other run NumPyro's checks would only cost time.
            with validation_enabled(False):
                return bound()

        return program

    def _bind(self, leaves: Mapping[str, Any], given: Mapping[str, Any], world: Mapping[str, Any]) -> Callable[[], Any]:
        def program() -> Any:
            return self.program(**leaves, **dict(self.settings))

        bound = RowOrder(program)
        if world or self.mechanisms:
            bound = Intervene(bound, {**world, **dict(self.mechanisms)})
        return handlers.condition(bound, data=dict(given)) if given else bound

    def _rebound(self, values: Mapping[tuple[str, str], Any]) -> Callable[[], Any]:
        parts: dict[str, dict[str, Any]] = {"data": {}, "given": {}, "world": {}}
        for (part, name), value in values.items():
            parts[part][name] = value
        return self._bind(parts["data"], parts["given"], parts["world"])

    # -- new models --------------------------------------------------------------------------------------------------

    def condition(self, **values: Any) -> Model:
        """Observe more sites.

        Args:
            values: By site name, values in constrained space with the shape of the site; a scalar is broadcast.

        Raises:
            ModelError: If a name is not a sample site.
            DataError: If a value has another shape or lies outside the support.
        """
        given = {}
        for name, value in values.items():
            site = self.sites[name]
            if site.kind not in (Kind.continuous, Kind.discrete, Kind.observed):
                raise ModelError(
                    f"site {name!r} is {site.kind.value} and cannot be conditioned on. Condition on a sample site."
                )
            array = _arrays(f"condition({name}=...)", value)
            if array.shape not in ((), site.shape):
                raise DataError(
                    f"condition({name}=...) has shape {array.shape}, but the site has shape {site.shape}. "
                    f"Give a scalar or an array of that shape."
                )
            given[name] = jnp.broadcast_to(array, site.shape)
        return self._changed(given={**self.given, **given})

    def do(self, **values: Any) -> Model:
        """Intervene: set sites to values, whatever would have caused them.

        Args:
            values: By site name (sample or deterministic, also inside ``scan``): an array of the shape of the site, a
                scalar, or a function of the value that the site would have had. That value stays in the model as
                ``SITE_natural``.

        Raises:
            ModelError: If a name is not a site, or a shape does not fit.
        """
        for name in values:
            site = self.sites[name]
            if site.kind not in (Kind.continuous, Kind.discrete, Kind.observed, Kind.deterministic):
                raise ModelError(
                    f"site {name!r} is {site.kind.value} and cannot be set. Intervene on a sample or deterministic "
                    f"site."
                )
        new = {name: value if callable(value) else _arrays(f"do({name}=...)", value) for name, value in values.items()}
        # What was known of a site that is set is known of the value that it would have had, if anything uses that.
        given = {name: value for name, value in self.given.items() if name not in new}
        given |= {natural_name(n): self.given[n] for n, value in new.items() if callable(value) and n in self.given}
        return self._changed(world={**self.world, **dict(self.mechanisms), **new}, given=given)

    def with_data(self, **data: Any) -> Model:
        """Replace arguments of the program; the others stay. ``None`` takes an argument's value away.

        Raises:
            DataError: As the constructor does.
        """
        return self._changed(data={**self.leaves, **dict(self.settings), **data})

    def with_coords(self, coords: Mapping[str, Any]) -> Model:
        """Replace labels by dimension."""
        return self._changed(coords={**dict(self.coords), **coords})

    def _changed(self, **changes: Any) -> Model:
        fields: dict[str, Any] = {
            "data": {**self.leaves, **dict(self.settings)},
            "coords": dict(self.coords),
            "dims": dict(self.dims),
            "given": self.given,
            "world": {**self.world, **dict(self.mechanisms)},
        }
        return Model(self.program, **{**fields, **changes})

    def unlabelled(self) -> Model:
        """The same model without coords: labels are no part of what is compiled."""
        bare = object.__new__(Model)
        for field in dataclasses.fields(self):
            object.__setattr__(bare, field.name, () if field.name == "coords" else getattr(self, field.name))
        return bare

    # -- looking -----------------------------------------------------------------------------------------------------

    def of_kind(self, *kinds: Kind) -> tuple[Site, ...]:
        """The sites of the given kinds, scaffolding included."""
        return tuple(site for site in self.sites if site.kind in kinds)

    @property
    def labels(self) -> dict[str, tuple[Any, ...]]:
        """Labels by dimension, as given."""
        return dict(self.coords)

    def graph(self) -> networkx.DiGraph:
        """The directed graph of sites; kinds, distributions, dims and plates are node attributes."""
        from probgen.program.graph import graph_of

        return graph_of(self)

    def draw(self, path: str | None = None) -> Any:
        """Draw the graph; returns a matplotlib figure, and writes it to ``path`` where given."""
        from probgen.program.graph import draw_graph

        return draw_graph(self, path)

    def __repr__(self) -> str:
        name = getattr(self.program, "__name__", type(self.program).__name__)
        return f"Model({name})\n{self.sites!r}"

    def _check_labels(self) -> None:
        sizes: dict[str, tuple[int, str]] = {}
        shown: dict[str, str] = {}
        for site in self.sites:
            first = shown.setdefault(variable_name(site.name), site.name)
            if first != site.name:
                raise ModelError(
                    f"sites {first!r} and {site.name!r} are both called {variable_name(first)!r} in results, where a "
                    f"slash separates groups. Rename one of them."
                )
            if site.name in RESERVED:
                raise ModelError(
                    f"a site is called {site.name!r}, which names an axis of the results. Rename the site."
                )
            for dim, size in zip(site.dims, site.shape, strict=False):
                known, first = sizes.setdefault(dim, (size, site.name))
                if dim in RESERVED:
                    raise ModelError(
                        f"site {site.name!r} has a dimension {dim!r}, which names an axis of the results. Rename it."
                    )
                if site.dims.count(dim) > 1:
                    raise ModelError(f"site {site.name!r} has two axes called {dim!r}. Give every axis its own name.")
                if known != size:
                    raise ModelError(
                        f"dimension {dim!r} has length {known} at site {first!r} and {size} at site {site.name!r}. "
                        f"Give them different names."
                    )
        for site in self.sites:
            if site.name in sizes:
                raise ModelError(
                    f"{site.name!r} names a site and a dimension (of site {sizes[site.name][1]!r}). Rename the site, "
                    f"the plate or the axis."
                )
        lengths = {dim: size for dim, (size, _) in sizes.items()}
        lengths.update({plate.name: plate.size for site in self.sites for plate in site.plates})
        for dim, labels in self.coords:
            if dim not in lengths:
                raise DataError(f"coords names the dimension {dim!r}, which no site has. {suggestion(dim, lengths)}")
            if len(labels) != lengths[dim]:
                raise DataError(
                    f"coords[{dim!r}] has {len(labels)} labels, but the dimension has length {lengths[dim]}. Give "
                    f"one label per entry."
                )


def _labels(name: str, values: Any) -> tuple[Any, ...]:
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(f"coords[{name!r}] must be a list of labels, got {values!r}. Give one label per entry.")
    return tuple(array.tolist())


def _renamed(
    sites: tuple[Site, ...], dims: tuple[tuple[str, tuple[str, ...]], ...], leaves: Mapping[str, Any]
) -> tuple[Site, ...]:
    names = dict(dims)
    shapes = {name: jnp.shape(leaf) for name, leaf in leaves.items() if not isinstance(leaf, dict)}
    shapes |= {site.name: site.shape for site in sites}
    for name, new in names.items():
        if name not in shapes:
            raise DataError(
                f"dims names {name!r}, which is neither a site nor an array among the data. {suggestion(name, shapes)}"
            )
        if len(new) != len(shapes[name]):
            raise DataError(
                f"dims[{name!r}] has {len(new)} names, but {name!r} has shape {shapes[name]}. Give one name per axis."
            )
    return tuple(dataclasses.replace(s, dims=names[s.name]) if s.name in names else s for s in sites)


def _split(program: Program, data: dict[str, Any]) -> tuple[dict[str, Any], tuple[tuple[str, Any], ...]]:
    """Sort arguments into arrays (traced) and settings (static), after comparing their names with the signature."""
    try:
        parameters = inspect.signature(program).parameters
    except (TypeError, ValueError):
        parameters = None
    if parameters is not None:
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        names = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        for name in data:
            if name not in names and not open_ended:
                raise DataError(
                    f"data has {name!r}, which is not an argument of the program. {suggestion(name, names)}"
                )
        required = [
            n for n, p in parameters.items() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        ]
        missing = [name for name in required if name not in data]
        if missing:
            raise DataError(
                f"the program needs the argument {missing[0]!r}, which data does not have. Pass "
                f"data={{{missing[0]!r}: ...}}."
            )
    leaves, settings = {}, {}
    for name, value in data.items():
        if value is None or (isinstance(value, bool | str | numbers.Integral) and not isinstance(value, np.generic)):
            settings[name] = value
        else:
            leaves[name] = _arrays(f"data {name!r}", value)
    return leaves, tuple(sorted(settings.items()))


def _arrays(label: str, value: Any) -> Any:
    """Arrays of a pytree of numbers; a pandas column, an xarray variable or a list will do."""
    if isinstance(value, dict):
        return {key: _arrays(f"{label}[{key!r}]", item) for key, item in value.items()}
    if isinstance(value, jax.Array):
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise DataError(
            f"{label} is a masked array, whose mask would be lost. Pass the numbers and the mask as two arguments."
        )
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{label} is ragged: {error}. Give an array, or pad it and pass the lengths.") from error
    if array.dtype.kind not in "biufc":
        raise DataError(f"{label} has dtype {array.dtype}, expected numbers. Encode categories as integers from 0.")
    return jnp.array(array)  # a copy: whoever changes the array in place must not change the model
