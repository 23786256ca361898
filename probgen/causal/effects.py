"""Effects: what worlds say about one another, for every posterior draw."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.base.errors import DataError, MethodError, ModelError, suggestion
from probgen.causal.effect import Effect
from probgen.infer.results import constant_data
from probgen.program.graph import graph_of
from probgen.program.interventions import FACTUAL, FromWorld, Intervention, do, from_world
from probgen.program.model import Model
from probgen.program.sites import Kind, Site, variable_name
from probgen.program.structural import descendants

if TYPE_CHECKING:
    import xarray

__all__ = ["Effects"]

_GROUPS = 100
"""More groups than this are a mistake."""


class Effects(abc.ABC):
    """Worlds that can be compared.

    Attributes:
        interventions: What is done, by world.
        tree: Values of sites, by group.
    """

    def __init__(self, model: Model, interventions: Mapping[str, Intervention], tree: xarray.DataTree) -> None:
        self.interventions, self.tree = dict(interventions), tree
        self._model = model
        self._more: list[Effects] = []

    @abc.abstractmethod
    def value(self, site: str, world: str = FACTUAL) -> xarray.DataArray:
        """Values of a site in one world."""

    @abc.abstractmethod
    def also(self, interventions: Mapping[str, Intervention]) -> Effects:
        """The same worlds and further ones, for the same units with the same noise."""

    def is_random(self, site: str) -> bool:
        """Whether a site is drawn, not computed."""
        return self.site(site).kind in (Kind.continuous, Kind.discrete, Kind.observed)

    def unit_dims(self, site: str) -> tuple[str, ...]:
        """The axes of a site that count units: its plates; where it stands in none, its first axis other than time."""
        found = self.site(site)
        dims = tuple(variable_name(dim) for dim in found.dims)
        plates = {variable_name(plate.name) for plate in found.plates}
        if plates:
            return tuple(dim for dim in dims if dim in plates)
        return dims[1:2] if found.scanned else dims[:1]

    def site(self, name: str) -> Site:
        """A site of the model, by its own name or that in results."""
        for site in self._model.sites:
            if variable_name(site.name) == variable_name(name):
                return site
        return self._model.sites[name]

    # -- effects -----------------------------------------------------------------------------------------------------

    def ate(self, outcome: str, treated: str, control: str) -> Effect:
        """Average effect, ``E[Y_treated - Y_control]``: the mean over units, for every posterior draw.

        These are the units that there are. In interventional mode each draw has new ones, so that its spread is that of
        the parameters and that of a mean over so many units; the latter goes away with more units.

        Args:
            outcome: The site.
            treated: A world.
            control: Another one (``"factual"`` is one too).
        """
        effect = self._difference(outcome, treated, control).mean(self.unit_dims(outcome))
        return Effect(f"ATE of {treated} against {control} on {outcome}", effect)

    def ite(self, outcome: str, treated: str, control: str) -> Effect:
        """Effect on each unit, ``Y_treated - Y_control``."""
        difference = self._difference(outcome, treated, control)
        return Effect(f"ITE of {treated} against {control} on {outcome}", difference)

    def cate(self, outcome: str, treated: str, control: str, *, by: str | np.ndarray | Sequence[Any]) -> Effect:
        """Average effect in groups of units.

        Args:
            outcome: The site.
            treated: A world.
            control: Another one.
            by: Name of a site, of an argument of the program, or of an axis of the outcome; or one label per unit.

        Raises:
            MethodError: If the labels do not fit the units, or are too many.
        """
        difference, labels = self._difference(outcome, treated, control), self._labels(outcome, by)
        groups = np.unique(labels.values)
        if len(groups) > _GROUPS:
            raise MethodError(
                f"by has {len(groups)} different values, which are no groups. Bin them: by=numpy.digitize(values, edges)."
            )
        name = by if isinstance(by, str) else "group"
        import xarray

        dims = self.unit_dims(outcome)
        means = [difference.where(labels == group).mean(dims) for group in groups]
        axis = xarray.DataArray(groups, dims=name if name not in difference.dims or name in dims else f"{name}_group")
        label = str(axis.dims[0])
        return Effect(
            f"CATE of {treated} against {control} on {outcome} by {name}",
            xarray.concat(means, axis.rename(label).assign_coords({label: groups})),
        )

    def att(self, outcome: str, treated: str, control: str, *, treatment: str | None = None) -> Effect:
        """Average effect on the treated: on units whose factual treatment is that of the world ``treated``.

        Args:
            outcome: The site.
            treated: A world that sets the treatment.
            control: Another one.
            treatment: The treatment, where more than one site differs between the two.

        Raises:
            DataError: If no unit has that treatment.
        """
        difference = self._difference(outcome, treated, control)
        effect = self._among(outcome, difference, self._has(outcome, treated, control, treatment, treated))
        return Effect(f"ATT of {treated} against {control} on {outcome}", effect)

    # -- mediation ---------------------------------------------------------------------------------------------------

    def nde(self, outcome: str, mediator: str | Sequence[str], treated: str, control: str) -> Effect:
        """Natural direct effect, ``E[Y_{treated, M_control} - Y_control]``: treatment without what it does to the mediator.

        Args:
            outcome: The site.
            mediator: One site or several.
            treated: A world.
            control: Another one.
        """
        more, cross = self._crossed(mediator, treated, control)
        return _named(more.ate(outcome, cross, control), f"NDE of {treated} against {control} on {outcome}")

    def nie(
        self, outcome: str, mediator: str | Sequence[str], treated: str, control: str, *, total: bool = False
    ) -> Effect:
        """Natural indirect effect: only what the treatment does to the mediator.

        Args:
            outcome: The site.
            mediator: One site or several.
            treated: A world.
            control: Another one.
            total: ``False``: the pure one of Pearl (2001), ``E[Y_{control, M_treated} - Y_control]``. ``True``: the total
                one, ``E[Y_treated - Y_{treated, M_control}]``, which with ``nde`` adds up to the total effect.
        """
        if total:
            more, cross = self._crossed(mediator, treated, control)
            effect = more.ate(outcome, treated, cross)
        else:
            more, cross = self._crossed(mediator, control, treated)
            effect = more.ate(outcome, cross, control)
        kind = "total NIE" if total else "NIE"
        return _named(effect, f"{kind} of {treated} against {control} on {outcome}")

    def cde(self, outcome: str, treated: str, control: str, at: Intervention) -> Effect:
        """Controlled direct effect: the average effect where the mediator is set in both worlds.

        Args:
            outcome: The site.
            treated: A world.
            control: Another one.
            at: What else is done in both: ``pg.do(M=0)``.
        """
        names = [f"{world}, {at!r}" for world in (treated, control)]
        # Not by _and: two interventions may look alike in words.
        more = self.also({name: self._done(w).also(at) for name, w in zip(names, (treated, control), strict=True)})
        return _named(more.ate(outcome, *names), f"CDE of {treated} against {control} on {outcome} at {at!r}")

    # -- probabilities of causation ----------------------------------------------------------------------------------

    def pn(self, outcome: str, treated: str, control: str, *, event: Callable[[Any], Any] | None = None) -> Effect:
        """Probability of necessity: among treated units with the event, how many would have been without it as controls.

        Args:
            outcome: The site; 0 or 1 unless ``event`` is given.
            treated: A world that sets the treatment.
            control: Another one.
            event: From outcomes to whether the event happened.

        Raises:
            DataError: If no unit is treated and has the event.
        """
        happened = self._event(outcome, event)
        among = self._has(outcome, treated, control, None, treated) & happened(FACTUAL)
        effect = self._among(outcome, (~happened(control)).astype(float), among)
        return Effect(f"probability that {treated} was necessary for {outcome}", effect)

    def ps(self, outcome: str, treated: str, control: str, *, event: Callable[[Any], Any] | None = None) -> Effect:
        """Probability of sufficiency: among controls without the event, how many would have had it if treated.

        Args and errors are those of ``pn``.
        """
        happened = self._event(outcome, event)
        among = self._has(outcome, treated, control, None, control) & ~happened(FACTUAL)
        effect = self._among(outcome, happened(treated).astype(float), among)
        return Effect(f"probability that {treated} is sufficient for {outcome}", effect)

    def pns(self, outcome: str, treated: str, control: str, *, event: Callable[[Any], Any] | None = None) -> Effect:
        """Probability of necessity and sufficiency: the event if treated, and not as control.

        Args are those of ``pn``.
        """
        happened = self._event(outcome, event)
        both = (happened(treated) & ~happened(control)).astype(float).mean(self.unit_dims(outcome))
        return Effect(f"probability that {treated} is necessary and sufficient for {outcome}", both)

    # -- fairness ----------------------------------------------------------------------------------------------------

    def fairness(
        self, outcome: str, treated: str, control: str, *, mediator: str | Sequence[str] | None = None
    ) -> dict[str, Effect]:
        """Why two groups differ in an outcome (Zhang and Bareinboim 2018), and whether the outcome is counterfactually fair.

        With ``a1`` and ``a0`` what the worlds set the protected attribute to:
        ``total = E[Y | a1] - E[Y | a0] = direct - indirect - spurious`` with the effects of the units of group a0

        - ``direct``: ``E[Y_{a1, M_{a0}} - Y_{a0} | a0]``;
        - ``indirect``: ``E[Y_{a1, M_{a0}} - Y_{a1} | a0]``, of the way back from a1 to a0;
        - ``spurious``: ``E[Y_{a1} | a0] - E[Y | a1]``.

        ``gap`` is the mean of ``|Y_{a1} - Y_{a0}|`` over all units: 0 where the outcome is counterfactually fair (Kusner et
        al. 2017).

        Args:
            outcome: The site.
            treated: The world that sets the attribute to ``a1``.
            control: The world that sets it to ``a0``.
            mediator: Sites between the attribute and the outcome; ``None`` for all of them.

        Returns:
            Effects by name.

        Raises:
            DataError: If a group has no unit.
        """
        attribute = self._treatment(treated, control, None)
        between = self._between(attribute, outcome) if mediator is None else _listed(mediator)
        if between:
            more, cross = self._crossed(between, treated, control)
        else:
            more, cross = self, treated
        group1, group0 = (self._has(outcome, treated, control, attribute, world) for world in (treated, control))
        y1, y0, crossed = (more.value(outcome, world) for world in (treated, control, cross))
        now = self.value(outcome, FACTUAL)
        in1, in0 = self._among(outcome, now, group1), self._among(outcome, now, group0)
        found = {
            "total": in1 - in0,
            "direct": self._among(outcome, crossed - y0, group0),
            "indirect": self._among(outcome, crossed - y1, group0),
            "spurious": self._among(outcome, y1, group0) - in1,
            "gap": abs(y1 - y0).mean(self.unit_dims(outcome)),
        }
        return {name: Effect(f"{name} of {attribute} on {outcome}", draws) for name, draws in found.items()}

    # -- parts -------------------------------------------------------------------------------------------------------

    def _difference(self, outcome: str, treated: str, control: str) -> xarray.DataArray:
        # An outcome that no world can change has the observed values, without an axis of draws.
        return (self.value(outcome, treated) * 1.0 - self.value(outcome, control) * 1.0).broadcast_like(self._draws)

    def _done(self, world: str) -> Intervention:
        if world != FACTUAL and world not in self.interventions:
            raise ModelError(f"there is no world {world!r}. {suggestion(world, [*self.interventions, FACTUAL])}")
        return do() if world == FACTUAL else self.interventions[world]

    def _and(self, interventions: dict[str, Intervention]) -> Effects:
        """These and further worlds, run once however often they are asked for."""
        new = {name: what for name, what in interventions.items() if name not in self.interventions}
        if not new:
            return self
        for known in self._more:
            if new.keys() <= known.interventions.keys():
                return known
        self._more.append(self.also(new))
        return self._more[-1]

    def _crossed(self, mediator: str | Sequence[str], world: str, other: str) -> tuple[Effects, str]:
        """The world ``world`` with mediators as in ``other``."""
        names = _listed(mediator)
        for name in names:
            if name in self._done(world).targets:
                raise MethodError(
                    f"world {world!r} sets the mediator {name!r} already. Name worlds that leave it free."
                )
        name = f"{world}, {', '.join(names)} from {other}"
        return self._and({name: self._done(world).also(do({m: from_world(other) for m in names}))}), name

    def _treatment(self, treated: str, control: str, treatment: str | None) -> str:
        """The one site that the worlds set to different values."""
        for world in (treated, control):
            if world not in self.interventions:
                raise ModelError(
                    f"there is no world {world!r} that sets a treatment. {suggestion(world, self.interventions)}"
                )
        if treatment is not None:
            self.site(treatment)
            return treatment
        first, second = (self.interventions[world].targets for world in (treated, control))
        found = [
            name
            for name in first
            if name in second
            and not isinstance(first[name], FromWorld)
            and not self.value(name, treated).equals(self.value(name, control))
        ]
        if len(found) != 1:
            raise MethodError(
                f"the worlds {treated!r} and {control!r} set {len(found)} sites to different values "
                f"({', '.join(found) or 'none'}), expected one: the treatment. Name it: treatment=..., or compare other "
                f"worlds."
            )
        return found[0]

    def _has(self, outcome: str, treated: str, control: str, treatment: str | None, world: str) -> xarray.DataArray:
        """Which units have the treatment of a world in fact, on the axes of units of the outcome."""
        name = self._treatment(treated, control, treatment)
        return self._aligned(name, self.value(name, FACTUAL) == self.value(name, world), outcome)

    def _aligned(self, name: str, values: xarray.DataArray, outcome: str) -> xarray.DataArray:
        """Values of a site, its axis of units named as that of the outcome; without plates each site has its own."""
        mine, its = self.unit_dims(name), self.unit_dims(outcome)
        rows = not self.site(name).plates and not self.site(outcome).plates and mine and its and mine != its
        if rows and values.sizes[mine[0]] == self.value(outcome).sizes[its[0]] and its[0] not in values.dims:
            values = values.drop_vars(mine[0], errors="ignore").rename({mine[0]: its[0]})
            labels = self.value(outcome).coords
            return values.assign_coords({its[0]: labels[its[0]]}) if its[0] in labels else values
        return values

    def _among(self, outcome: str, values: xarray.DataArray, units: xarray.DataArray) -> xarray.DataArray:
        """Mean over units of a kind, for every posterior draw; NaN where there is none."""
        extra = set(units.dims) - set(values.dims) - {"chain", "draw"}
        if extra:
            raise MethodError(
                f"the treatment has the axes {sorted(map(str, extra))}, which the outcome {outcome!r} does not have. Name "
                f"an outcome of the same units."
            )
        values, units = values.broadcast_like(self._draws), units.broadcast_like(values).astype(bool)
        if not bool(units.any()):
            raise DataError(
                f"no unit is of the kind that the effect on {outcome!r} is about (its factual treatment or outcome is "
                f"never that). Compare worlds that set the treatment to values that occur."
            )
        return values.where(units).mean(self.unit_dims(outcome))

    @property
    def _draws(self) -> xarray.DataArray:
        import xarray

        group = self.tree["worlds"]
        return xarray.DataArray(
            np.zeros((group.sizes["chain"], group.sizes["draw"])),
            dims=("chain", "draw"),
            coords={"chain": group["chain"].values, "draw": group["draw"].values},
        )

    def _event(self, outcome: str, event: Callable[[Any], Any] | None) -> Callable[[str], xarray.DataArray]:
        def happened(world: str) -> xarray.DataArray:
            value = self.value(outcome, world)
            if event is not None:
                return value.copy(data=np.asarray(event(value.values), bool))
            if not bool(value.isin([0, 1]).all()):
                raise MethodError(
                    f"outcome {outcome!r} is not 0 or 1 everywhere. Say which values are the event: event=lambda y: y > 3."
                )
            return value == 1

        return happened

    def _labels(self, outcome: str, by: Any) -> xarray.DataArray:
        import xarray

        dims = self.unit_dims(outcome)
        shape = tuple(self.value(outcome).sizes[dim] for dim in dims)
        if not isinstance(by, str):
            array = np.asarray(by)
            if array.shape != shape:
                raise MethodError(
                    f"by has shape {array.shape}, but the outcome {outcome!r} has units of shape {shape}. Give one label per "
                    f"unit."
                )
            return xarray.DataArray(array, dims=dims)
        if by in dims:
            return self.value(outcome)[by]
        arguments = constant_data(self._model)
        factual = self.tree["factual"].to_dataset()
        if by in factual:
            found = self._aligned(by, factual[by], outcome)
        elif by in arguments.data_vars:
            found = arguments[by]
            if not set(found.dims) <= set(dims) and found.shape == shape:
                found = xarray.DataArray(found.values, dims=dims)
        else:
            known = {*map(str, factual.data_vars), *map(str, arguments.data_vars), *dims}
            raise MethodError(f"by names {by!r}, which is no label of the units. {suggestion(by, known)}")
        if not set(found.dims) - {"chain", "draw"} <= set(dims):
            raise MethodError(
                f"by={by!r} has the axes {found.dims}, but the units of {outcome!r} have {dims}. Give one label per unit."
            )
        return found

    def _between(self, attribute: str, outcome: str) -> list[str]:
        """Drawn sites on the way from one site to another."""
        graph = graph_of(self._model)
        attribute, outcome = self.site(attribute).name, self.site(outcome).name
        below = descendants(self._model, [attribute])
        above, waiting = set(), [outcome]
        while waiting:
            for parent in graph.predecessors(waiting.pop()):
                if parent not in above:
                    above.add(parent)
                    waiting.append(parent)
        return [
            site.name
            for site in self._model.sites
            if site.name in below & above and self.is_random(site.name) and site.name not in (attribute, outcome)
        ]


def _named(effect: Effect, name: str) -> Effect:
    """The same effect under another name."""
    return Effect(name, effect.draws)


def _listed(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)
