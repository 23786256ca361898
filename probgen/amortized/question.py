"""What an amortized posterior answers."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from probgen.amortized.reading import Reading
from probgen.amortized.truncation import Truncation
from probgen.base.counts import is_count
from probgen.base.errors import DataError, MethodError
from probgen.base.part import Part
from probgen.program.density import Density
from probgen.program.model import Model
from probgen.program.simulate import observed_values
from probgen.program.sites import Kind

__all__ = ["Question", "constants_of", "settings_of"]


class Question(Part):
    """What an amortized posterior answers: the parameters, and the observations they are inferred from.

    Attributes:
        reading: How an observation is read.
        blocks: Name and unconstrained shape of each parameter, in the order of the coordinates.
        constants: Arguments of the program, and values of interventions, that were the same in all simulations.
        settings: Its settings.
        missing: Share of the entries that training hides, up to which an observation may have entries missing; 0 for
            complete observations.
        fewest: By group of rows, how few an observation may have; groups that are not named always have all.
        simulations: How many simulations it was trained on.
        failed: How many more failed or were not finite, and were left out.
        outside: Whether observations are those of a simulator, and not of sites of the program.
        bound: Such an observation, by name; none if empty.
        fixed: Arguments with a value per row that were the same in all simulations. The rows of an observation must be
            some of them.
        truncation: The one observation that it is about, where simulations closed in on it.
    """

    reading: Reading
    blocks: tuple[tuple[str, tuple[int, ...]], ...] = eqx.field(static=True)
    constants: tuple[tuple[str, Array], ...]
    settings: tuple[tuple[str, str], ...] = eqx.field(static=True)
    missing: float = eqx.field(static=True)
    fewest: tuple[tuple[str, int], ...] = eqx.field(static=True)
    simulations: int = eqx.field(static=True)
    failed: int = eqx.field(static=True)
    outside: bool = eqx.field(static=True, default=False)
    bound: tuple[tuple[str, Array], ...] = ()
    fixed: tuple[tuple[str, Array], ...] = ()
    truncation: Truncation | None = None

    def check(self) -> None:
        """Refuse what makes no sense."""
        if not 0.0 <= self.missing < 1.0:
            raise MethodError(f"missing is a share of the entries, got {self.missing!r}, expected 0 <= missing < 1.")
        for name, least in self.fewest:
            group = next((g for g in self.reading.rows if g.name == name), None)
            if group is None:
                known = [g.name for g in self.reading.rows]
                raise MethodError(
                    f"fewest names {name!r}, whose rows are not read as a set or a series. "
                    f"{'Such are: ' + ', '.join(known) if known else 'The model has no such plate or scan'}."
                )
            if not is_count(least) or least > group.count:
                raise MethodError(
                    f"fewest[{name!r}] must be an int from 1 to {group.count}, the number of rows of the model, got {least!r}."
                )

    @property
    def dim(self) -> int:
        """Number of unconstrained coordinates."""
        return sum(int(np.prod(shape)) for _, shape in self.blocks)

    def observation(self, density: Density) -> Array:
        """The packed observation of a model.

        Raises:
            MethodError: If the model asks another question: other parameters, observed sites, constants.
            DataError: If the observation has another shape, or has missing values and may not.
        """
        model = density.model
        own = tuple((block.name, block.shape) for block in density.blocks)
        if own != self.blocks:
            raise MethodError(
                f"the model has the parameters {_shown(own)}, and the amortized posterior was trained for "
                f"{_shown(self.blocks)}. Amortize this model."
            )
        seen = {site.name for site in model.of_kind(Kind.observed)}
        if self.outside:
            if seen:
                raise MethodError(
                    f"the model observes {sorted(seen)}, and the amortized posterior was trained on a simulator outside of "
                    f"it. Give the prior alone, and the observation by amortized.condition(...)."
                )
            bound = self.observation_outside()
            self.check_constants(model)
            return self._packed(bound, {})
        if seen != set(self.reading.observed):
            raise MethodError(
                f"the model observes {sorted(seen)}, and the amortized posterior was trained for observations of "
                f"{sorted(self.reading.observed)}. Give the model the same observations."
            )
        self.check_constants(model)
        return self._packed(observed_values(model), {name: model.leaves[name] for name in self.reading.arguments})

    def observation_outside(self) -> dict[str, Array]:
        """The observation of a simulator, by name; empty if observations are sites of the program.

        Raises:
            MethodError: If none was given.
        """
        if self.outside and not self.bound:
            raise MethodError(f"no observation was given. Write pg.infer(model, amortized.condition({self._call})).")
        return dict(self.bound)

    def bound_to(self, observed: Mapping[str, ArrayLike]) -> Question:
        """The same question about one observation of a simulator.

        Raises:
            MethodError: If observations are sites of the program, or other names are given.
            DataError: If the observation has another shape, or has missing values and may not.
        """
        if not self.outside:
            raise MethodError(
                f"the observations are sites of the program, which is given them. Write pg.Model(program, "
                f"data={{{', '.join(f'{name!r}: ...' for name in self.reading.observed)}}})."
            )
        if set(observed) != set(self.reading.observed):
            raise MethodError(
                f"the observation has {sorted(observed)}, and the simulator returned {sorted(self.reading.observed)}. Write "
                f"amortized.condition({self._call})."
            )
        arrays = {name: jnp.asarray(np.asarray(value, float)) for name, value in observed.items()}
        self._packed(arrays, {})
        return dataclasses.replace(self, bound=tuple(arrays.items()))

    @property
    def groups(self) -> dict[str, dict[str, tuple[tuple[str, ...], np.ndarray]]]:
        """For ``Run.groups``: the observation, if it is no part of the model."""
        if not self.bound:
            return {}
        axes = {name: tuple(f"{name}_dim_{i}" for i in range(value.ndim)) for name, value in self.bound}
        return {"observed_data": {name: (axes[name], np.asarray(value)) for name, value in self.bound}}

    @property
    def _call(self) -> str:
        return ", ".join(f"{name}=..." for name in self.reading.observed)

    def _packed(self, observed: Mapping[str, Array], arguments: Mapping[str, Array]) -> Array:
        for name, value in observed.items():
            bad = int(np.sum(~np.isfinite(np.asarray(value, float))))
            if bad and not (self.missing and not np.isinf(np.asarray(value, float)).any()):
                raise DataError(
                    f"the observation {name!r} has {bad} entries that are not finite. Give a complete observation, or "
                    f"amortize with missing=0.2, say, and mark what is missing by NaN."
                )
        packed = self.reading.pack(observed, arguments)
        read = self.reading.unpack(packed)
        least = dict(self.fewest)
        for group, present in zip(self.reading.rows, read.present, strict=True):
            count, lowest = int(present.sum()), least.get(group.name, group.count)
            if count < lowest:
                raise DataError(
                    f"the observation has {count} rows along {group.name!r}, and the simulations had {lowest} or more. "
                    f"Amortize with fewest={{{group.name!r}: {count}}}."
                )
        if self.truncation is not None:
            self.truncation.check(packed)
        return packed

    def check_constants(self, model: Model) -> None:
        """Raise ``MethodError`` if an argument that was the same in all simulations is not what it was."""
        here, usual = constants_of(model), _defaults(model)
        for name, value in self.constants:
            if not _equal(here.get(name, usual.get(name)), value):
                raise MethodError(
                    f"the argument {name!r} is not what it was in the simulations, and the amortized posterior holds for "
                    f"that value only. Amortize this model, or let the argument vary: design=."
                )
        was, now = dict(self.settings), settings_of(model, self.reading.observed)
        known = {*self.reading.arguments, *(name for name, _ in self.constants)}
        for name in sorted({*here, *now} - known - {*was}):
            # What the simulations were not given had its default; where that is None it may be data by another name.
            default = usual.get(name)
            same = _equal(here[name], default) if name in here else now[name] == repr(default)
            if not same and (default is not None or name.startswith("do(")):
                raise MethodError(
                    f"the argument {name!r} is given, and was {'not' if default is None else f'{default!r}'} in the "
                    f"simulations. Amortize this model."
                )
        for name, value in was.items():
            found = now.get(name, repr(usual[name]) if name in usual else None)
            if found != value and name not in here and name not in self.reading.arguments and value != "None":
                raise MethodError(
                    f"the setting {name!r} is {found}, and was {value} in the simulations. Amortize this model."
                )
        self._check_rows(model)

    def _check_rows(self, model: Model) -> None:
        """Raise ``MethodError`` if arguments of rows that did not vary are not those of some of the rows."""
        fixed = dict(self.fixed)
        for group in self.reading.rows:
            names = [field.name for field in group.designs if field.name in fixed]
            if not names:
                continue
            rows, here = (
                np.concatenate([np.asarray(values[n], float).reshape(len(values[n]), -1) for n in names], 1)
                for values in (fixed, model.leaves)
            )
            if here.shape[1] != rows.shape[1] or len(here) > len(rows):
                continue  # the reading says what is wrong
            if not (_same(here, rows[: len(here)]) if group.ordered else _among(here, rows)):
                raise MethodError(
                    f"{', '.join(map(repr, names))} along {group.name!r} did not vary in the simulations, and the observation "
                    f"has rows that were not among them. Amortize this model, or let the argument vary: design=."
                )


def constants_of(model: Model) -> dict[str, Array]:
    """Arrays that a program is given beside its observations, by name: arguments, and what interventions set."""
    sources = {site.source for site in model.of_kind(Kind.observed)}
    found = {f"do({name})": jnp.asarray(value) for name, value in model.world.items()}
    for name, leaf in model.leaves.items():
        if ("data", name) not in sources:
            parts = jax.tree_util.tree_leaves_with_path(leaf)
            found |= {f"{name}{jax.tree_util.keystr(path)}": jnp.asarray(value) for path, value in parts}
    return found


def settings_of(model: Model, observed: tuple[str, ...]) -> dict[str, str]:
    """The settings of a program in words, but for observations; functions of interventions by name."""
    found = {name: repr(value) for name, value in model.settings if name not in observed}
    return found | {f"do({name})": getattr(f, "__qualname__", type(f).__name__) for name, f in model.mechanisms}


def _defaults(model: Model) -> dict[str, Any]:
    """Arguments of a program that have a default."""
    try:
        parameters = inspect.signature(model.program).parameters
    except (TypeError, ValueError):
        return {}
    return {name: p.default for name, p in parameters.items() if p.default is not p.empty}


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.allclose(a, b, rtol=1e-6, atol=1e-9 * np.abs(b).max(initial=0), equal_nan=True))


def _equal(a: Any, b: Any) -> bool:
    """Whether two values are the same numbers."""
    if a is None or b is None or isinstance(a, str) or isinstance(b, str):
        return a is b
    try:
        a, b = np.asarray(a, float), np.asarray(b, float)
    except (TypeError, ValueError):
        return False
    return a.shape == b.shape and _same(a, b)


def _among(here: np.ndarray, rows: np.ndarray) -> bool:
    """Whether rows are some of others, none taken twice."""
    free = np.ones(len(rows), bool)
    slack = 1e-6 * np.abs(rows) + 1e-9 * np.abs(rows).max(initial=0)
    for row in here:
        found = free & np.all((np.abs(rows - row) <= slack) | (np.isnan(rows) & np.isnan(row)), 1)
        if not found.any():
            return False
        free[np.argmax(found)] = False
    return True


def _shown(blocks: tuple[tuple[str, tuple[int, ...]], ...]) -> str:
    return ", ".join(f"{name}{list(shape) if shape else ''}" for name, shape in blocks)
