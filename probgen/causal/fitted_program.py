"""A fitted program as a subject of sensitivity analysis: laws of the outcome under both arms, for every draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike

from probgen.base.errors import MethodError, ModelError, suggestion
from probgen.base.typing import Values
from probgen.causal.outcome_law import Law, has_quantiles
from probgen.infer.batched import in_batches
from probgen.infer.replayed import Posterior, Replayed
from probgen.program.graph import graph_of
from probgen.program.handlers import base_of
from probgen.program.model import Model
from probgen.program.simulate import memory, trace_forward
from probgen.program.sites import Kind, Site

if TYPE_CHECKING:
    import xarray

__all__ = ["FittedProgram"]

_RANDOM = (Kind.continuous, Kind.discrete, Kind.observed)

type ArmBounds = Callable[[Law, Array, Array], tuple[Array, Array]]
"""Bounds of the mean under an arm, from the law of the outcome in it, the probability of it, and a strength."""


@dataclass(frozen=True, eq=False)
class FittedProgram:
    """A program that was fitted as if nothing were hidden, and the effect that it gives.

    Attributes:
        model: The model.
        tree: What ``pg.infer`` returned.
        treatment: Site of the treatment.
        outcome: Site of the outcome, given treatment and covariates.
        values: The treatment that is compared, and the one that it is compared with; for a dose response, all doses.
        draws: How many draws stand for the law of an outcome that has no quantile function.
        seed: Seed of these draws.
    """

    model: Model
    tree: xarray.DataTree = field(repr=False)
    treatment: str
    outcome: str
    values: tuple[float, ...] = (1.0, 0.0)
    draws: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        names = [site.name for site in self.model.sites if site.kind in _RANDOM]
        for role in ("treatment", "outcome"):
            name = getattr(self, role)
            if name not in names:
                raise ModelError(
                    f"the {role} {name!r} is not a random site of the program. {suggestion(name, names)} If it is an "
                    f"argument, write the law by which units get it as a site."
                )
        if len(self.values) < 2 or (self.binary and set(self.values) - {0.0, 1.0}):
            raise MethodError(
                f"values must be two treatments to compare, or more, got {self.values} for {self.treatment!r}."
            )
        graph = graph_of(self.model)
        from networkx import ancestors, descendants

        causes = ancestors(graph, self.outcome)
        if self.treatment not in causes:
            raise ModelError(f"{self.outcome!r} does not depend on {self.treatment!r} in the program. Check the sites.")
        site = self._site(self.outcome)
        between = [s for s in (descendants(graph, self.treatment) & causes) if s in names]
        if between:
            raise ModelError(
                f"{', '.join(sorted(between))} stand between treatment and outcome, so that the law of the outcome given "
                f"treatment and covariates is not a site. Fit a program without them, or give draws to "
                f"pg.causal.marginal_bounds."
            )
        hidden = [s.name for s in self.model.sites if s.kind in _RANDOM[:2] and s.name in causes and _shares(s, site)]
        if hidden:
            raise ModelError(
                f"{', '.join(hidden)} are latent for each unit, so the program has hidden variables of its own and the "
                f"law of the outcome given covariates is not a site. Fit a program without them."
            )

    @property
    def binary(self) -> bool:
        """Whether the treatment is a site on 0 and 1."""
        return self._site(self.treatment).distribution.startswith("Bernoulli")

    def bounds(self, arm: ArmBounds, strengths: ArrayLike, *, by_unit: bool = False) -> np.ndarray:
        """Bounds of the effect of the first value against the second, for every posterior draw.

        Args:
            arm: Bounds of the mean under an arm; hashable.
            strengths: Strengths of confounding, shape (s,).
            by_unit: Whether to keep units apart, instead of their average.

        Returns:
            Lower and upper bounds, shape (draws, s, 2), with ``by_unit`` followed by the shape of the outcome.
        """
        ends = self.bounds_of_means(arm, strengths, by_unit=by_unit)
        return np.stack([ends[:, 0, :, 0] - ends[:, 1, :, 1], ends[:, 0, :, 1] - ends[:, 1, :, 0]], axis=2)

    def bounds_of_means(self, arm: ArmBounds, strengths: ArrayLike, *, by_unit: bool = False) -> np.ndarray:
        """Bounds of the mean outcome under each of the values, for every posterior draw.

        Args:
            arm: Bounds of the mean under an arm; hashable.
            strengths: Strengths of confounding, shape (s,).
            by_unit: Whether to keep units apart, instead of their average.

        Returns:
            Lower and upper bounds, shape (draws, values, s, 2), with ``by_unit`` followed by the shape of the outcome.
        """
        model = self.model
        posterior = Posterior(model, self.tree)
        replayed = Replayed(model, posterior, frozenset(), frozenset(), new=False)
        key_rows, key_draws = jax.random.split(jax.random.key(self.seed))
        rows, _ = posterior.rows(key_rows)
        held = {name: value[rows] for name, value in replayed.per_draw.items()}
        worlds = tuple(model.do(**{self.treatment: self._value(value)}).unlabelled() for value in self.values)
        outcome = self._site(self.outcome)
        size = memory(model) * (len(worlds) + 1) + 16 * int(np.prod(outcome.shape, dtype=int)) * (self.draws + 200)
        names = (self.treatment, self.outcome)
        settings = (self.draws, by_unit, self.binary, tuple(value == 0 for value in self.values))
        return in_batches(
            _draws_of_bounds,
            (model.unlabelled(), worlds, key_draws, jnp.atleast_1d(jnp.asarray(strengths, float))),
            len(rows),
            held,
            (arm, replayed.kept, names, settings),
            size,
            False,
        )

    def _value(self, value: float) -> Any:
        return np.asarray(value, self._site(self.treatment).dtype)

    def _site(self, name: str) -> Site:
        return self.model.sites[name]


def _shares(site: Site, outcome: Site) -> bool:
    """Whether a site has a value for every unit."""
    plates = {plate.name for plate in outcome.plates}
    if plates:
        return bool(plates & {plate.name for plate in site.plates})
    return bool(outcome.shape) and outcome.shape[0] > 1 and site.shape[:1] == outcome.shape[:1]


def _draws_of_bounds(
    model: Model,
    worlds: tuple[Model, ...],
    key: Array,
    strengths: Array,
    indices: Array,
    values: Values,
    arm: ArmBounds,
    kept: frozenset[str],
    names: tuple[str, str],
    settings: tuple[int, bool, bool, tuple[bool, ...]],
) -> Array:
    treatment, outcome = names
    count, by_unit, binary, control = settings

    def one(index: Array, held: Values) -> Array:
        key_factual, key_worlds, key_laws = jax.random.split(jax.random.fold_in(key, index), 3)
        if binary:
            propensity = base_of(trace_forward(model, key_factual, held, kept)[treatment]["fn"]).mean
        else:
            propensity = jnp.zeros(())
        ends = []
        for number, world in enumerate(worlds):
            law = trace_forward(world, key_worlds, held, kept - {treatment})[outcome]["fn"]
            chance = 1 - propensity if binary and control[number] else propensity
            shape = jnp.broadcast_shapes(law.batch_shape, jnp.shape(chance))
            law = _usable(law, jax.random.fold_in(key_laws, number), count, outcome)
            ends.append(jax.vmap(lambda s, law=law, e=chance, shape=shape: _pair(arm(law, e, s), shape))(strengths))
        found = jnp.stack(ends)
        return found if by_unit else found.mean(axis=tuple(range(3, found.ndim)))

    return jax.vmap(one)(indices, values)


def _pair(ends: tuple[Array, Array], shape: tuple[int, ...]) -> Array:
    return jnp.stack([jnp.broadcast_to(end, shape) for end in ends])


def _usable(law: dist.Distribution, key: Array, count: int, name: str) -> Law:
    if base_of(law).event_shape or law.event_shape:
        raise MethodError(f"the outcome {name!r} has several numbers per unit. Take a site with one.")
    return law if has_quantiles(law) else law.sample(key, (count,))
