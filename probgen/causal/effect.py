"""An effect with its posterior: one number per posterior draw, or one per draw and group or unit."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from probgen.base.errors import MethodError

if TYPE_CHECKING:
    import xarray

__all__ = ["Effect"]


@dataclasses.dataclass(frozen=True, eq=False)
class Effect:
    """The posterior of an effect.

    Attributes:
        name: What it is, in words.
        draws: Its value at each posterior draw, dims ``(chain, draw)`` and those of groups or units. NaN at draws in
            which no unit is of the kind that the effect is about; these do not count below.
    """

    name: str
    draws: xarray.DataArray

    @property
    def mean(self) -> xarray.DataArray:
        """Posterior mean."""
        return self.draws.mean(("chain", "draw"))

    @property
    def sd(self) -> xarray.DataArray:
        """Posterior standard deviation."""
        return self.draws.std(("chain", "draw"))

    @property
    def left_out(self) -> int:
        """Number of draws in which no unit was of the kind that the effect is about."""
        missing = self.draws.isnull()
        return int(missing.any([d for d in missing.dims if d not in ("chain", "draw")]).sum())

    def interval(self, level: float = 0.94) -> xarray.DataArray:
        """The narrowest interval with this posterior probability (HDI), on an axis ``bound`` (``lower``, ``upper``).

        Raises:
            MethodError: If ``level`` is not between 0 and 1.
        """
        import xarray

        if not 0 < level < 1:
            raise MethodError(f"level must be between 0 and 1, got {level}. Give 0.94, say.")
        flat = self.draws.stack(__draws=("chain", "draw")).transpose(..., "__draws")
        rows = np.sort(flat.values.reshape(-1, flat.sizes["__draws"]), axis=1)  # NaN goes to the end
        ends = np.stack([_narrowest(row[~np.isnan(row)], level) for row in rows])
        dims = [d for d in flat.dims if d != "__draws"]
        coords = {d: flat[d] for d in dims if d in flat.coords}
        shape = [flat.sizes[d] for d in dims]
        bounds = {**coords, "bound": ["lower", "upper"]}
        return xarray.DataArray(ends.reshape(*shape, 2), dims=[*dims, "bound"], coords=bounds)

    def probability(self, above: float = 0.0) -> xarray.DataArray:
        """Posterior probability that the effect is larger than ``above``."""
        return (self.draws > above).where(self.draws.notnull()).mean(("chain", "draw"))

    def __float__(self) -> float:
        return float(self.mean)

    def __repr__(self) -> str:
        if self.mean.ndim:
            sizes = ", ".join(f"{dim}: {size}" for dim, size in self.mean.sizes.items())
            return f"Effect({self.name}; {sizes})\n{self._table()}"
        low, high = self.interval().values
        without = f", {self.left_out} draws without such units left out" if self.left_out else ""
        return f"Effect({self.name}: {float(self.mean):.4g} +- {float(self.sd):.2g}, 94% HDI [{low:.4g}, {high:.4g}]{without})"

    def _table(self, rows: int = 8) -> str:
        mean, sd, ends = (
            part.values.reshape(-1, *part.shape[self.mean.ndim :]) for part in (self.mean, self.sd, self.interval())
        )
        labels = [
            np.asarray(self.mean[d].values if d in self.mean.coords else range(n)) for d, n in self.mean.sizes.items()
        ]
        lines = []
        for i in range(min(rows, len(mean))):
            at = np.unravel_index(i, self.mean.shape)
            name = ", ".join(str(label[k]) for label, k in zip(labels, at, strict=True))
            lines.append(f"  {name:>12}  {mean[i]:.4g} +- {sd[i]:.2g}, 94% HDI [{ends[i, 0]:.4g}, {ends[i, 1]:.4g}]")
        return "\n".join(lines + (["  ..."] if len(mean) > rows else []))


def _narrowest(ordered: np.ndarray, level: float) -> np.ndarray:
    if len(ordered) == 0:
        return np.full(2, np.nan)
    inside = min(int(np.floor(level * len(ordered))), len(ordered) - 1)
    widths = ordered[inside:] - ordered[: len(ordered) - inside]
    first = int(np.argmin(widths))
    return np.array([ordered[first], ordered[first + inside]])
