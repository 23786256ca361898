"""Parameters drawn from the prior of a program, and the observations that it draws at them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.errors import DataError
from probgen.base.typing import PRNGKey, Values
from probgen.program.density import Density
from probgen.program.simulate import trace_forward
from probgen.program.sites import Kind
from probgen.run.compiled import compile_all
from probgen.run.progress import Progress

__all__ = ["Simulations", "simulate_pairs"]

_CHUNK = 1024

type Design = Callable[[PRNGKey], Mapping[str, Array]]
"""Draws values of arguments of the program: positions, times, covariates."""


@dataclasses.dataclass(frozen=True)
class Simulations:
    """Pairs of parameters and observations.

    Attributes:
        u: Parameters in the unconstrained coordinates of the program, shape ``(n, dim)``.
        observed: By observed site, shape ``(n, *shape)``.
        arguments: By argument that varied, shape ``(n, *shape)``.
        names: One label per coordinate.
        failed: How many simulations were left out because they were not finite.
    """

    u: np.ndarray
    observed: dict[str, np.ndarray]
    arguments: dict[str, np.ndarray]
    names: tuple[str, ...]
    failed: int = 0

    def __len__(self) -> int:
        return len(self.u)


def with_arguments(density: Density, arguments: Mapping[str, Array]) -> Density:
    """The density of the same program with other values of some arguments."""
    if not arguments:
        return density
    names = list(arguments)
    return eqx.tree_at(
        lambda d: [d.model.leaves[n] for n in names], density, [jnp.asarray(arguments[n]) for n in names]
    )


def _pairs(
    key: PRNGKey, density: Density, indices: Array, observed: tuple[str, ...], design: Design | None
) -> tuple[Array, Values, Values]:
    latent = [site.name for site in density.model.of_kind(Kind.continuous)]

    def one(index: Array) -> tuple[Array, Values, Values]:
        key_design, key_prior, key_data = jax.random.split(jax.random.fold_in(key, index), 3)
        arguments = {} if design is None else dict(design(key_design))
        here = with_arguments(density, arguments)
        u = here.draw_prior(key_prior)
        values = here.constrain(u)
        traced = trace_forward(
            here.model, key_data, {name: values[name] for name in latent if name in values}, frozenset()
        )
        return u, {name: traced[name]["value"] for name in observed}, arguments

    return jax.vmap(one)(indices)


def simulate_pairs(
    key: PRNGKey,
    density: Density,
    count: int,
    observed: tuple[str, ...],
    design: Design | None = None,
    *,
    progress: bool = False,
) -> Simulations:
    """Run a program forward ``count`` times.

    Raises:
        MethodError: If a prior is improper.
        DataError: If hardly a simulation is finite.
    """
    parts = []
    with Progress(["simulations"], count, progress, "draws") as bar:
        for first in range(0, count, _CHUNK):
            # The last chunk is as long as the others, so that nothing is compiled anew.
            call = (key, density, jnp.arange(first, first + min(_CHUNK, count)), observed, design)
            (program,), _ = compile_all([(_pairs, call)])
            parts.append(jax.device_get(program(*call)))
            bar.update(0, min(first + _CHUNK, count), {})
    u, data, arguments = jax.tree.map(lambda *xs: np.concatenate(xs)[:count], *parts)
    return finite_only(Simulations(np.asarray(u), data, arguments, density.names))


def finite_only(found: Simulations) -> Simulations:
    """Without the simulations that are not finite, which are counted.

    Raises:
        DataError: If fewer than one in ten is finite, or all observations are equal.
    """
    count = len(found.u)
    good = np.isfinite(found.u).all(1)
    for values in found.observed.values():
        good &= np.isfinite(values.reshape(count, -1)).all(1)
    if good.sum() < max(0.1 * count, 2):
        bad = [name for name, v in found.observed.items() if not np.isfinite(v.reshape(count, -1)).all()]
        raise DataError(
            f"{count - good.sum()} of {count} simulations are not finite{f' at {bad[0]!r}' if bad else ''}. Narrow the priors, "
            f"or mend the simulator where they are extreme."
        )
    if all(np.ptp(v[good].reshape(good.sum(), -1), axis=0).max(initial=0) == 0 for v in found.observed.values()):
        raise DataError(
            "all simulations have the same observations, so there is nothing to learn from. Check that the observed "
            "sites depend on the latent ones."
        )
    keep = {part: {k: v[good] for k, v in getattr(found, part).items()} for part in ("observed", "arguments")}
    return dataclasses.replace(found, u=found.u[good], failed=found.failed + int(count - good.sum()), **keep)
