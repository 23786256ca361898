"""What a check looks at: a tree, perhaps with its model, and the numbers that several checks share."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from probgen.base.errors import DataError, MethodError, ModelError
from probgen.check.mixing import Mixing, measure
from probgen.infer.predict import log_likelihood, simulate
from probgen.infer.stein import SVGD
from probgen.program.sites import Kind

if TYPE_CHECKING:
    import xarray

    from probgen.program.model import Model

__all__ = ["Quantities", "Subject"]

_BLOCK = 1 << 20
"""Numbers that are looked at together."""
_PRIOR_DRAWS = 1000
FEWEST = 4
"""Draws per chain below which nothing can be measured."""


class Quantities:
    """Every scalar entry of the variables of a Dataset that varies: what is measured one by one.

    Args:
        dataset: Draws, with the dims ``chain`` and ``draw``. Variables that are not numbers, lack a dim, or are not
            finite throughout are left out.
    """

    def __init__(self, dataset: xarray.Dataset) -> None:
        self.chains, self.draws = dataset.sizes["chain"], dataset.sizes["draw"]
        self.variables: dict[str, np.ndarray] = {}
        """Arrays by name, shape ``(chains, draws, ...)``."""
        self._ticks: dict[str, list[np.ndarray]] = {}
        entries, owners = [], []
        for name, given in dataset.data_vars.items():
            if not {"chain", "draw"} <= set(given.dims) or given.dtype.kind not in "biuf":
                continue
            variable = given.transpose("chain", "draw", ...)
            values = variable.values
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                continue
            self.variables[str(name)] = values
            self._ticks[str(name)] = [
                variable[dim].values if dim in variable.coords else np.arange(size)
                for dim, size in list(variable.sizes.items())[2:]
            ]
            varies = (values.max((0, 1)) > values.min((0, 1))) if values.size else np.zeros(values.shape[2:], bool)
            entries.append(np.flatnonzero(varies))
            owners.append(np.full(len(entries[-1]), len(self.variables) - 1))
        self.entry = np.concatenate(entries) if entries else np.zeros(0, int)
        """Flat index of each quantity in its variable."""
        self.owner = np.concatenate(owners) if owners else np.zeros(0, int)
        """Position of its variable."""
        self.names = list(self.variables)

    def __len__(self) -> int:
        return len(self.entry)

    def take(self, which: np.ndarray) -> np.ndarray:
        """Draws of some quantities, shape ``(quantities, chains, draws)``, as floats."""
        out = np.empty((len(which), self.chains, self.draws))
        owner, entry = self.owner[which], self.entry[which]
        for position in np.unique(owner):
            values = self.variables[self.names[position]].reshape(self.chains, self.draws, -1)
            out[owner == position] = np.moveaxis(values[..., entry[owner == position]], -1, 0)
        return out

    def blocks(self, which: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Indices and draws of all quantities (or of some), a bounded number at a time."""
        which = np.arange(len(self)) if which is None else which
        size = max(1, _BLOCK // max(1, self.chains * self.draws))
        for first in range(0, len(which), size):
            part = which[first : first + size]
            yield part, self.take(part)

    def label(self, index: SupportsIndex) -> str:
        """As ArviZ labels it: ``theta[A]``."""
        name = self.names[self.owner[index]]
        ticks = self._ticks[name]
        if not ticks:
            return name
        place = np.unravel_index(self.entry[index], [len(tick) for tick in ticks])
        return f"{name}[{', '.join(str(tick[i]) for tick, i in zip(ticks, place, strict=True))}]"

    def index(self) -> dict[str, int]:
        """Indices by label."""
        return {self.label(i): i for i in range(len(self))}

    def of(self, names: set[str]) -> np.ndarray:
        """Indices of the quantities of some variables."""
        positions = [i for i, name in enumerate(self.names) if name in names]
        return np.flatnonzero(np.isin(self.owner, positions))

    def is_float(self) -> np.ndarray:
        """Which quantities are of floating-point type."""
        kinds = np.array([self.variables[name].dtype.kind == "f" for name in self.names], bool)
        return kinds[self.owner] if len(kinds) else np.zeros(0, bool)


class Subject:
    """A tree under examination.

    Args:
        tree: What ``pg.infer`` returned, or any DataTree with a posterior.
        model: The model that was fitted, where it is at hand.

    Raises:
        DataError: If the tree has no posterior draws.
        MethodError: If the posterior lacks a latent site of the model.
    """

    def __init__(self, tree: xarray.DataTree, model: Model | None = None) -> None:
        children = getattr(tree, "children", {})
        if "posterior" not in children or not {"chain", "draw"} <= set(tree["posterior"].dims):
            raise DataError("the tree has no posterior with the dims 'chain' and 'draw'. Pass what pg.infer returned.")
        self.tree, self.model = tree, model
        self.posterior = tree["posterior"].to_dataset()
        latent = [] if model is None else model.of_kind(Kind.continuous, Kind.discrete)
        missing = [s.name for s in latent if not s.auxiliary and s.name not in self.posterior]
        if missing:
            raise MethodError(
                f"the posterior has no draws of the site {missing[0]!r} of the model. Pass the model that was fitted."
            )
        self.stats: dict[str, xarray.DataArray] = {}
        """Statistics of the sampler by name."""
        if "sample_stats" in children:
            self.stats = {str(name): v for name, v in tree["sample_stats"].to_dataset().data_vars.items()}
        self.steps: dict[str, xarray.DataArray] = {}
        """Numbers per step of the runs of a particle method, by name."""
        if "particles" in children:
            self.steps = {str(name): v for name, v in tree["particles"].to_dataset().data_vars.items()}
        self.attrs: dict[Any, Any] = dict(tree.attrs or tree["posterior"].attrs)

    @property
    def shape(self) -> tuple[int, int]:
        """Chains and draws."""
        return self.posterior.sizes["chain"], self.posterior.sizes["draw"]

    @property
    def measurable(self) -> bool:
        """Whether mixing and tails of the draws can be measured: there are enough, and they are draws.

        The particles of Stein variational gradient descent are arranged, in an order that means nothing.
        """
        return self.shape[0] > 0 and self.shape[1] >= FEWEST and self.attrs.get("method") != SVGD.name

    @property
    def independent(self) -> bool:
        """Whether the draws are independent ones of an approximation, and no chains."""
        return self.attrs.get("kind") == "approximate"

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the method, for a result of probgen."""
        return json.loads(self.attrs.get("settings", "{}")) if "ended" in self.attrs else {}

    @functools.cached_property
    def quantities(self) -> Quantities:
        """The scalar entries of the posterior that vary."""
        return Quantities(self.posterior)

    @functools.cached_property
    def nonfinite(self) -> dict[str, int]:
        """How many draws of a variable are NaN or infinite, for the variables that have some."""
        floats = {str(name): v.values for name, v in self.posterior.items() if v.dtype.kind in "fc"}
        counts = {name: int(np.sum(~np.isfinite(values))) for name, values in floats.items()}
        return {name: count for name, count in counts.items() if count}

    @functools.cached_property
    def mixing(self) -> Mixing:
        """How each quantity mixes."""
        return Mixing.joined(measure(x) for _, x in self.quantities.blocks())

    @functools.cached_property
    def prior(self) -> Quantities | None:
        """Prior draws: those of the tree, else simulated from the model; ``None`` where neither can be had."""
        if "prior" in self.tree.children and {"chain", "draw"} <= set(self.tree["prior"].dims):
            return Quantities(self.tree["prior"].to_dataset())
        if self.model is None or any(not s.proper or s.kind is Kind.param for s in self.model.sites):
            return None
        try:
            drawn = simulate(self.model, draws=_PRIOR_DRAWS, seed=0, progress=False)
        except ModelError:  # a subsampled plate that cannot be run whole
            return None
        return Quantities(drawn["prior"].to_dataset())

    @functools.cached_property
    def log_likelihood(self) -> xarray.Dataset | str | None:
        """Log likelihood of each observation: that of the tree, else computed from the model; a sentence where it
        cannot be, ``None`` without a model, or where draws have weights of their own."""
        if "log_likelihood" in self.tree.children:
            found = self.tree["log_likelihood"].to_dataset()
            return found if (found.sizes.get("chain"), found.sizes.get("draw")) == self.shape else None
        log_w = self.stat("log_weight")
        if self.model is None or (log_w is not None and np.ptp(log_w) > 0):
            return None
        try:
            return log_likelihood(self.model, self.tree, progress=False)["log_likelihood"].to_dataset()
        except (MethodError, ModelError) as error:
            return str(error).partition(". ")[0].rstrip(".")

    def stat(self, name: str) -> np.ndarray | None:
        """A statistic of each draw, shape ``(chains, draws)``; ``None`` where there is none of that shape."""
        found = self.stats.get(name)
        if found is None or not {"chain", "draw"} <= set(found.dims) or found.ndim != 2:
            return None
        values = found.transpose("chain", "draw").values
        return values if values.shape == self.shape else None

    def latent_names(self) -> set[str]:
        """Names of the variables that the model samples; all variables where there is no model."""
        if self.model is None:
            return set(self.quantities.names)
        return {site.name.removesuffix("_unobserved") for site in self.model.of_kind(Kind.continuous, Kind.discrete)}
