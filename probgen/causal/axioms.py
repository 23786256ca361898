r"""The axioms of structural counterfactuals (Galles and Pearl 1998; Pearl 2009, section 7.3), checked in numbers.

- Composition: :math:`W_x = w \Rightarrow Y_{xw} = Y_x`. Every world is run again with one further site set to the very
  value that it had there; nothing may change.
- Effectiveness: :math:`X_x = x`. In every world a site that is set has the value that it was set to.
- Consistency: :math:`X = x \Rightarrow Y_x = Y`. A unit whose factual values are those that it is set to stays as it is.
- Reversibility: :math:`Y_{xw} = y, W_{xy} = w \Rightarrow Y_x = y`.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING

import numpy as np
from numpyro.distributions import Distribution

from probgen.program.interventions import FACTUAL, FromWorld, Intervention, NewMechanism, do, from_world

if TYPE_CHECKING:
    import xarray

    from probgen.causal.worlds import Worlds

__all__ = ["Axioms", "check_axioms"]

_PAIRS = 6
"""Pairs of sites for which reversibility is checked."""


@dataclasses.dataclass(frozen=True)
class Axioms:
    """How far the axioms are from holding; every number is a largest absolute difference, 0 where an axiom holds exactly.

    Attributes:
        composition: By site that was set to its own value.
        effectiveness: By site that was set.
        consistency: By site; over units whose factual values are those that they were set to.
        reversibility: By pair of sites.
        compared: How many values the check of consistency could compare (0: no unit is set to its factual value).
    """

    composition: dict[str, float]
    effectiveness: dict[str, float]
    consistency: dict[str, float]
    reversibility: dict[str, float]
    compared: int

    @property
    def worst(self) -> float:
        """The largest of all numbers."""
        parts = (self.composition, self.effectiveness, self.consistency, self.reversibility)
        return max((value for part in parts for value in part.values()), default=0.0)

    def __repr__(self) -> str:
        lines = [f"Axioms(worst difference {self.worst:.3g})"]
        for name in ("composition", "effectiveness", "consistency", "reversibility"):
            part = getattr(self, name)
            shown = ", ".join(f"{site} {value:.3g}" for site, value in part.items()) or "nothing to compare"
            lines.append(f"  {name:<13} {shown}")
        return "\n".join(lines)


def check_axioms(worlds: Worlds) -> Axioms:
    """Check the axioms on worlds: see the module."""
    names = [worlds.site(str(name)).name for name in worlds.tree["worlds"].data_vars]
    random = [name for name in names if worlds.is_random(name)]
    given = worlds.interventions
    extra: dict[str, Intervention] = {}
    for world, what in {FACTUAL: do(), **given}.items():
        for site in random:
            if site not in what.targets and not _changes_mechanism(what):
                extra[f"{world}|{site}"] = _held(world, what).also(do({site: from_world(world)}))
    pairs = list(itertools.permutations([n for n in random if all(n not in w.targets for w in given.values())], 2))
    pairs = pairs[:_PAIRS]
    for world, what in given.items():
        for y, w in pairs if not _changes_mechanism(what) else ():
            # Y is set to its value in the world where W was set to its own, Y_{xw}.
            extra[f"{world}|{w}|{y}"] = _held(world, what).also(do({y: from_world(f"{world}|{w}")}))
    targets = [name for what in given.values() for name in what.targets]
    more = worlds.also(extra, sites=dict.fromkeys([*names, *targets]))
    consistency, compared = _consistency(more, given, names)
    return Axioms(
        composition=_composition(more, random, given, names),
        effectiveness=_effectiveness(more, given),
        consistency=consistency,
        reversibility=_reversibility(more, pairs, given),
        compared=compared,
    )


def _changes_mechanism(what: Intervention) -> bool:
    return any(isinstance(target, NewMechanism) for target in what.targets.values())


def _held(world: str, what: Intervention) -> Intervention:
    """The same world, what it computes or draws held at what came of it."""
    return Intervention(
        {
            site: from_world(world) if callable(target) or isinstance(target, Distribution) else target
            for site, target in what.targets.items()
        }
    )


def _composition(
    worlds: Worlds, random: list[str], given: dict[str, Intervention], names: list[str]
) -> dict[str, float]:
    found: dict[str, float] = {}
    for site in random:
        for world in (FACTUAL, *given):
            again = f"{world}|{site}"
            if again in worlds.interventions:
                gaps = [_gap(worlds.value(name, again), worlds.value(name, world)) for name in names]
                found[site] = max(found.get(site, 0.0), *gaps)
    return found


def _effectiveness(worlds: Worlds, given: dict[str, Intervention]) -> dict[str, float]:
    found: dict[str, float] = {}
    for world, what in given.items():
        for site, target in what.targets.items():
            if isinstance(target, FromWorld):
                wanted = worlds.value(target.site or site, target.world)
            elif isinstance(target, NewMechanism) or callable(target):
                continue
            else:
                wanted = target
            got = worlds.value(site, world)
            if isinstance(wanted, np.ma.MaskedArray):
                gap = np.max(np.ma.abs(got.values * 1.0 - wanted).filled(0.0), initial=0.0)
            else:
                gap = np.max(np.abs(got.values * 1.0 - np.asarray(wanted)), initial=0.0)
            found[site] = max(found.get(site, 0.0), float(gap))
    return found


def _consistency(worlds: Worlds, given: dict[str, Intervention], names: list[str]) -> tuple[dict[str, float], int]:
    found: dict[str, float] = {}
    compared = 0
    for world, what in given.items():
        if not what.targets or any(isinstance(t, NewMechanism) for t in what.targets.values()):
            continue
        # All that is set, of every unit that a unit may depend on: whole draws are compared.
        same = None
        for site in what.targets:
            equal = worlds.value(site, world) == worlds.value(site, FACTUAL)
            units = [d for d in equal.dims if d not in ("chain", "draw") and d not in worlds.unit_dims(site)]
            equal = equal.all(units)
            same = equal if same is None else same & equal
        assert same is not None
        for name in names:
            if not set(same.dims) - {"chain", "draw"} <= set(worlds.unit_dims(name)):
                continue
            gap = abs(worlds.value(name, world) * 1.0 - worlds.value(name, FACTUAL)).where(same)
            compared += int(gap.notnull().sum())
            found[name] = max(found.get(name, 0.0), float(gap.max().fillna(0.0)))
    return found, compared


def _reversibility(worlds: Worlds, pairs: list[tuple[str, str]], given: dict[str, Intervention]) -> dict[str, float]:
    found: dict[str, float] = {}
    for world in given:
        for y, w in pairs:
            set_w, set_y = f"{world}|{w}", f"{world}|{w}|{y}"
            if set_y not in worlds.interventions:
                continue
            fixed = worlds.value(w, set_y) == worlds.value(w, world)
            fixed = fixed.all([d for d in fixed.dims if d not in ("chain", "draw")])
            gap = abs(worlds.value(y, set_w) * 1.0 - worlds.value(y, world)).where(fixed)
            found[f"{y}, {w}"] = max(found.get(f"{y}, {w}", 0.0), float(gap.max().fillna(0.0)))
    return found


def _gap(a: xarray.DataArray, b: xarray.DataArray) -> float:
    return float(abs(a * 1.0 - b * 1.0).max())
