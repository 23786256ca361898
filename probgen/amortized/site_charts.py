"""Unconstrained coordinates of all sites of a program, parameters and data, and of what a simulator returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpyro import handlers
from numpyro.distributions import constraints

from probgen.base.typing import Values
from probgen.program.chart import Chart, NoiseChart, chart_of
from probgen.program.density import Density
from probgen.program.model import Model
from probgen.program.sites import Kind, start_value

__all__ = ["charts_of", "coordinates", "floating"]

_SAME = 1e-4
_TRIED = 64


class _Whole:
    """What stands for a chart where values are whole numbers: they are their own coordinates, and are rounded back."""

    def __init__(self, support: Any) -> None:
        boolean = support is constraints.boolean
        self._low = 0.0 if boolean else getattr(support, "lower_bound", -jnp.inf)
        self._high = 1.0 if boolean else getattr(support, "upper_bound", jnp.inf)

    def inverse(self, x: Array) -> Array:
        return x

    def forward(self, u: Array) -> Array:
        return jnp.clip(jnp.round(u), self._low, self._high)


class _Output:
    """What stands for a chart of an output of a simulator: numbers that are their own coordinates."""

    def inverse(self, x: Array) -> Array:
        return x

    def forward(self, u: Array) -> Array:
        return u


type _Chart = Chart | NoiseChart | _Output | _Whole


def charts_of(model: Model, data: tuple[str, ...]) -> dict[str, _Chart]:
    """The chart of each site, made with all others at a value in the middle of their supports."""
    program = handlers.substitute(model.bind(), substitute_fn=start_value)
    traced = handlers.trace(handlers.seed(program, jax.random.key(0))).get_trace()
    charts = _charts_in(traced, [s.name for s in model.of_kind(Kind.continuous, Kind.observed)], data)
    return {name: _Output() for name in data if name not in traced} | charts


def _charts_in(traced: Mapping[str, Any], names: list[str], data: tuple[str, ...]) -> dict[str, _Chart]:
    found: dict[str, _Chart] = {}
    for name in names:
        fn = traced[name]["fn"]
        found[name] = _Whole(fn.support) if fn.support.is_discrete else chart_of(fn, name, noise=name not in data)
    return found


def coordinates(chart: _Chart, values: ArrayLike) -> np.ndarray:
    """Coordinates of values with a leading axis; NaN where a value is missing, not finite if outside of the support."""
    return np.asarray(jax.vmap(chart.inverse)(jnp.asarray(values, float)))


def floating(
    density: Density, charts: Mapping[str, _Chart], u: np.ndarray, observed: Mapping[str, np.ndarray]
) -> set[str]:
    """The sites whose chart is not the same at different values of the others."""
    names = [block.name for block in density.blocks] + list(observed)

    def values(u: Array, charts: Mapping[str, _Chart], data: Mapping[str, Array]) -> Values:
        blocks = {**density.split(u), **data}
        return {name: charts[name].forward(blocks[name]) for name in names if not isinstance(charts[name], _Whole)}

    def one(u: Array, data: Mapping[str, Array]) -> tuple[Values, Values]:
        traced = handlers.trace(handlers.seed(density.substituted(u), jax.random.key(0))).get_trace()
        return values(u, charts, data), values(u, _charts_in(traced, names, tuple(observed)), data)

    data = {name: coordinates(charts[name], v[:_TRIED]) for name, v in observed.items()}
    fixed, moving = jax.jit(jax.vmap(one))(jnp.asarray(u[:_TRIED]), data)
    found = set()
    for name in fixed:
        same = np.isclose(np.asarray(fixed[name]), np.asarray(moving[name]), rtol=_SAME, atol=_SAME)
        if not same.all():
            found.add(name)
    return found
