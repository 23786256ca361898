"""Parameters drawn from the prior of a program, and the observations that it draws at them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.errors import DataError, StoreError
from probgen.base.typing import PRNGKey, Values
from probgen.program.density import Density
from probgen.program.model import Model
from probgen.program.simulate import trace_forward
from probgen.program.sites import Kind
from probgen.run.compiled import compile_all
from probgen.run.progress import Progress
from probgen.run.record import read_record, write_record

__all__ = ["Points", "Simulations", "simulate_pairs"]

_CHUNK = 1024
_VERSION = 1

type Design = Callable[[PRNGKey], Mapping[str, Array]]
"""Draws values of arguments of the program: positions, times, covariates."""


class Points(NamedTuple):
    """Where to simulate.

    Attributes:
        u: Unconstrained coordinates, shape ``(n, dim)``.
        arguments: By argument that varies, shape ``(n, *shape)``.
    """

    u: np.ndarray
    arguments: dict[str, np.ndarray]

    def at(self, rows: np.ndarray) -> Points:
        """Some of them, by number or by mark."""
        return Points(self.u[rows], {name: values[rows] for name, values in self.arguments.items()})


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

    def outside(self, model: Model) -> bool:
        """Whether what was observed are no sites of a model, but outputs of a simulator that is not part of it."""
        sites = {site.name for site in model.sites}
        return not sites.issuperset(self.observed)

    def chosen(self, rows: np.ndarray) -> Simulations:
        """Some of them, by number or by mark."""
        observed, arguments = ({k: v[rows] for k, v in part.items()} for part in (self.observed, self.arguments))
        return dataclasses.replace(self, u=self.u[rows], observed=observed, arguments=arguments)

    def and_those(self, others: Simulations) -> Simulations:
        """These, and others of the same model after them."""
        observed, arguments = (
            {k: np.concatenate([v, more[k]]) for k, v in part.items()}
            for part, more in ((self.observed, others.observed), (self.arguments, others.arguments))
        )
        u, failed = np.concatenate([self.u, others.u]), self.failed + others.failed
        return Simulations(u, observed, arguments, self.names, failed)

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write them to one file: a description in JSON, the arrays, and a checksum. The file is the old one or the new one,
        whatever happens.

        Raises:
            StoreError: If the file holds something else, or cannot be written.
        """
        path = Path(file)
        if path.is_dir() or (path.exists() and not _is_ours(path)):
            raise StoreError(f"{path} exists and holds no simulations. Choose another file.")
        if not path.absolute().parent.is_dir():
            raise StoreError(f"the folder {path.parent} of {path.name} does not exist. Make it first.")
        meta = {
            "simulations": _VERSION,
            "names": list(self.names),
            "failed": self.failed,
            "observed": list(self.observed),
            "arguments": list(self.arguments),
        }
        write_record(path, meta, [self.u, *self.observed.values(), *self.arguments.values()])

    @staticmethod
    def load(file: str | os.PathLike[str]) -> Simulations:
        """Read what ``save`` wrote. The file is data: nothing in it is executed.

        Raises:
            StoreError: If it is no such file, is damaged, or was written by a newer probgen.
        """
        path = Path(file)
        if not path.exists():
            raise StoreError(f"{path} does not exist. Give the file of Simulations.save().")
        meta, arrays = read_record(path)
        try:
            if meta["simulations"] > _VERSION:
                raise StoreError(f"{path} was written by a newer probgen. Use that one.")
            u, *rest = arrays
            names, observed, arguments = (tuple(meta[part]) for part in ("names", "observed", "arguments"))
            ours = meta["simulations"] == _VERSION and type(meta["failed"]) is int
            strings = all(isinstance(name, str) for name in (*names, *observed, *arguments))
            fitting = u.shape[1:] == (len(names),) and all(len(a) == len(u) for a in rest)
            if not (ours and strings and fitting and len(rest) == len(observed) + len(arguments)):
                raise ValueError
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(f"{path} holds no simulations. Give the file of Simulations.save().") from error
        first, second = rest[: len(observed)], rest[len(observed) :]
        return Simulations(
            u,
            dict(zip(observed, first, strict=True)),
            dict(zip(arguments, second, strict=True)),
            names,
            meta["failed"],
        )


def _is_ours(path: Path) -> bool:
    try:
        return "simulations" in read_record(path).meta
    except StoreError:
        return False


def with_arguments(density: Density, arguments: Mapping[str, Array]) -> Density:
    """The density of the same program with other values of some arguments."""
    if not arguments:
        return density
    names = list(arguments)
    return eqx.tree_at(
        lambda d: [d.model.leaves[n] for n in names], density, [jnp.asarray(arguments[n]) for n in names]
    )


def _pairs(
    key: PRNGKey,
    density: Density,
    indices: Array,
    observed: tuple[str, ...],
    design: Design | None,
    points: tuple[Array, Values] | None,
) -> tuple[Array, Values, Values]:
    latent = [site.name for site in density.model.of_kind(Kind.continuous)]

    def one(index: Array, point: tuple[Array, Values] | None) -> tuple[Array, Values, Values]:
        key_design, key_prior, key_data = jax.random.split(jax.random.fold_in(key, index), 3)
        if point is None:
            arguments = {} if design is None else dict(design(key_design))
            here = with_arguments(density, arguments)
            u = here.draw_prior(key_prior)
        else:
            u, arguments = point
            here = with_arguments(density, arguments)
        values = here.constrain(u)
        traced = trace_forward(
            here.model, key_data, {name: values[name] for name in latent if name in values}, frozenset()
        )
        return u, {name: traced[name]["value"] for name in observed}, arguments

    return jax.vmap(one)(indices, points)


def simulate_pairs(
    key: PRNGKey,
    density: Density,
    count: int,
    observed: tuple[str, ...],
    design: Design | None = None,
    *,
    points: Points | None = None,
    progress: bool = False,
) -> Simulations:
    """Run a program forward ``count`` times, at draws from the prior or, if they are given, at as many points.

    Raises:
        MethodError: If a prior is improper.
        DataError: If hardly a simulation is finite.
    """
    parts = []
    with Progress(["simulations"], count, progress, "draws") as bar:
        for first in range(0, count, _CHUNK):
            # The last chunk is as long as the others, so that nothing is compiled anew.
            indices = np.arange(first, first + min(_CHUNK, count))
            here = None if points is None else points.at(indices % count)
            call = (key, density, jnp.asarray(indices), observed, design, here)
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
    return dataclasses.replace(found.chosen(good), failed=found.failed + int(count - good.sum()))
