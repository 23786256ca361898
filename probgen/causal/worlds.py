"""Worlds side by side, and the effects that compare them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import jax

from probgen.base.errors import ModelError, suggestion
from probgen.causal.axioms import Axioms, check_axioms
from probgen.causal.effects import Effects
from probgen.causal.world_run import Run, check_run, run_worlds
from probgen.program.interventions import FACTUAL, Intervention
from probgen.program.model import Model
from probgen.program.sites import variable_name
from probgen.program.structural import Assumption, descendants

if TYPE_CHECKING:
    import xarray

__all__ = ["Worlds", "worlds"]


def worlds(
    model: Model,
    tree: xarray.DataTree,
    interventions: Mapping[str, Intervention],
    *,
    mode: str = "counterfactual",
    assume: Mapping[str, Assumption] | None = None,
    sites: Iterable[str] | None = None,
    resample: Iterable[str] | None = None,
    seed: int | jax.Array = 0,
    progress: bool | None = None,
) -> Worlds:
    """Ask what would have happened to the units of a fitted program, had something else been done.

    ``mode="counterfactual"`` is about the units that were observed: for each posterior draw the noise of every site is
    found from the evidence (abduction), something is done (action), and the program runs again with that noise
    (prediction). ``mode="interventional"`` is about new units of the same population: their noise is fresh, global
    parameters stay at their posterior draws. In both, all worlds share the noise.

    To ask about other people than those that were fitted, give their data with ``model.with_data``: if the model has no
    latent site of the units, the tree of the fit serves; else infer these first, with ``pg.infer`` on the evidence.

    Args:
        model: The model that was fitted (or one with the same parameters).
        tree: What ``pg.infer`` returned. Weighted draws are resampled.
        interventions: By name of the world, what is done there: ``{"t1": pg.do(T=1), "t0": pg.do(T=0)}``.
        mode: ``"counterfactual"`` or ``"interventional"``.
        assume: By site, what is assumed where the program does not say: ``pg.causal.Monotone()``,
            ``pg.causal.GumbelMax()`` or ``pg.causal.Independent()``.
        sites: Sites whose values are kept. ``None``: all that some world may change.
        resample: In interventional mode, latent sites that new units have of their own. ``None``: those that share a
            plate, or the steps of a ``scan``, with an outcome; name them where the program has no plate.
        seed: An int or a typed JAX key.
        progress: Show a progress bar. ``None``: at a terminal only.

    Raises:
        ModelError: If a site is unknown, a shape does not fit, worlds refer to one another in a circle, or a site that
            may change has no known mechanism.
        DataError: If the evidence has probability zero.
        MethodError: If the tree does not go with the units that the model observes.
    """
    run = Run(model, tree, mode, dict(assume or {}), None if resample is None else tuple(resample), seed)
    check_run(run)
    listed = None if sites is None else tuple(sites) if not isinstance(sites, str) else sites
    return Worlds(run, dict(interventions), run_worlds(run, interventions, listed, progress))


class Worlds(Effects):
    """Worlds of the same units, which share their noise.

    Attributes:
        interventions: What is done, by world.
        tree: An ArviZ DataTree with the groups ``worlds`` (dims ``chain``, ``draw``, ``world`` and those of each site),
            ``factual`` (the world in which nothing is done) and ``noise``. Its attributes say the mode, the seed and the
            assumption of each site.
    """

    def __init__(self, run: Run, interventions: dict[str, Intervention], tree: xarray.DataTree) -> None:
        super().__init__(run.model, interventions, tree)
        self._run = run

    @property
    def assumptions(self) -> dict[str, str]:
        """Which mechanism each site has, in words."""
        return json.loads(self.tree.attrs["assumptions"])

    def __getitem__(self, site: str) -> xarray.DataArray:
        """Values of a site in all worlds, dims ``(chain, draw, world, ...)``."""
        import xarray

        parts = [self.value(site, world) for world in self.interventions]
        axis = xarray.DataArray(list(self.interventions), dims="world", name="world")
        return xarray.concat(parts, axis).transpose("chain", "draw", "world", ..., missing_dims="ignore")

    def value(self, site: str, world: str = FACTUAL) -> xarray.DataArray:
        """Values of a site in one world; where no world can change it, its factual values.

        Raises:
            ModelError: If there is no such world, or the site was not kept.
        """
        if world != FACTUAL and world not in self.interventions:
            raise ModelError(f"there is no world {world!r}. {suggestion(world, [*self.interventions, FACTUAL])}")
        name = variable_name(site)
        there, factual = (self.tree[group].to_dataset() for group in ("worlds", "factual"))
        if world != FACTUAL and name in there:
            return there[name].sel(world=world, drop=True)
        if name in factual and (world == FACTUAL or name not in self._changeable):
            return factual[name]
        if name in self._changeable:
            raise ModelError(
                f"the values of site {site!r} were not kept (sites=). Name it there too, or leave sites= out."
            )
        known = {str(n) for group in (there, factual) for n in group.data_vars}
        raise ModelError(f"site {site!r} is not among the values that were kept. {suggestion(site, known)}")

    @cached_property
    def _changeable(self) -> frozenset[str]:
        """Sites that some world may change, whether they were kept or not."""
        done = {name for what in self.interventions.values() for name in what.targets}
        return frozenset(variable_name(name) for name in done | descendants(self._model, done))

    def also(self, interventions: Mapping[str, Intervention], sites: Iterable[str] | None = None) -> Worlds:
        """The same worlds and further ones, for the same units with the same noise.

        Args:
            interventions: Further worlds; they may refer to those that are there.
            sites: As in ``pg.causal.worlds``.
        """
        for name in interventions:
            if name in self.interventions:
                raise ModelError(f"there is a world {name!r} already. Give the new one another name.")
        every = {**self.interventions, **dict(interventions)}
        listed = None if sites is None else tuple(sites)
        return Worlds(self._run, every, run_worlds(self._run, every, listed, False))

    # -- axioms ------------------------------------------------------------------------------------------------------

    def check_axioms(self) -> Axioms:
        """Check composition, effectiveness, consistency and reversibility in numbers; runs further worlds."""
        return check_axioms(self)

    def __repr__(self) -> str:
        attrs, lines = self.tree.attrs, []
        lines.append(f"Worlds({attrs['mode']})")
        lines += [f"  {name}: {what!r}" for name, what in self.interventions.items()]
        group = self.tree["worlds"]
        lines.append(f"  sites: {', '.join(f'{n} {tuple(v.dims)}' for n, v in group.data_vars.items())}")
        lines += [f"  {site}: {words}" for site, words in self.assumptions.items()]
        if attrs["factors_left_out"]:
            lines.append(f"  factors are no mechanisms and take no part: {attrs['factors_left_out']}")
        return "\n".join(lines)
