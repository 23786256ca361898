"""What an amortized posterior answers."""

from __future__ import annotations

from collections.abc import Mapping

import equinox as eqx
import numpy as np
from jax import Array

from probgen.amortized.reading import Reading
from probgen.base.counts import is_count
from probgen.base.errors import DataError, MethodError
from probgen.base.part import Part
from probgen.program.density import Density
from probgen.program.model import Model
from probgen.program.simulate import observed_values
from probgen.program.sites import Kind

__all__ = ["Question"]


class Question(Part):
    """What an amortized posterior answers: the parameters, and the observations they are inferred from.

    Attributes:
        reading: How an observation is read.
        blocks: Name and unconstrained shape of each parameter, in the order of the coordinates.
        constants: Arguments of the program that were the same in all simulations.
        settings: Its settings.
        missing: Share of the entries that training hides, up to which an observation may have entries missing; 0 for
            complete observations.
        fewest: By group of rows, how few an observation may have; groups that are not named always have all.
        simulations: How many simulations it was trained on.
        failed: How many more were not finite and were left out.
    """

    reading: Reading
    blocks: tuple[tuple[str, tuple[int, ...]], ...] = eqx.field(static=True)
    constants: tuple[tuple[str, Array], ...]
    settings: tuple[tuple[str, str], ...] = eqx.field(static=True)
    missing: float = eqx.field(static=True)
    fewest: tuple[tuple[str, int], ...] = eqx.field(static=True)
    simulations: int = eqx.field(static=True)
    failed: int = eqx.field(static=True)

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
        if seen != set(self.reading.observed):
            raise MethodError(
                f"the model observes {sorted(seen)}, and the amortized posterior was trained for observations of "
                f"{sorted(self.reading.observed)}. Give the model the same observations."
            )
        self._check_constants(model)
        return self._packed(observed_values(model), model)

    def _packed(self, observed: Mapping[str, Array], model: Model) -> Array:
        for name, value in observed.items():
            bad = int(np.sum(~np.isfinite(np.asarray(value, float))))
            if bad and not (self.missing and not np.isinf(np.asarray(value, float)).any()):
                raise DataError(
                    f"the observation {name!r} has {bad} entries that are not finite. Give a complete observation, or "
                    f"amortize with missing=0.2, say, and mark what is missing by NaN."
                )
        arguments = {name: model.leaves[name] for name in self.reading.arguments}
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
        return packed

    def _check_constants(self, model: Model) -> None:
        for name, value in self.constants:
            here = model.leaves.get(name)
            if here is None or here.shape != value.shape or not np.allclose(here, value, rtol=1e-6, atol=0):
                raise MethodError(
                    f"the argument {name!r} is not what it was in the simulations, and the amortized posterior holds for "
                    f"that value only. Amortize this model, or let the argument vary: design=."
                )
        settings = tuple((name, repr(value)) for name, value in model.settings if name not in self.reading.observed)
        for name, value in settings:
            if dict(self.settings).get(name, value) != value and name not in self.reading.arguments:
                raise MethodError(
                    f"the setting {name!r} is {value}, and was {dict(self.settings)[name]} in the simulations. Amortize "
                    f"this model."
                )


def _shown(blocks: tuple[tuple[str, tuple[int, ...]], ...]) -> str:
    return ", ".join(f"{name}{list(shape) if shape else ''}" for name, shape in blocks)
