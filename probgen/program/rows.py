r"""The density row by row: what each row of a subsampled plate adds to the log likelihood.

.. math:: \log p(u) = r(u) + \sum_k \sum_{i=1}^{N_k} \ell_{ki}(u)

over the plates :math:`k` with ``subsample_size``; :math:`r` is all the rest: priors, Jacobians, and observations that
stand in no such plate. The density itself is that of all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import Position, Scalar, Values
from probgen.program.batch import check_minibatches, is_subsampled
from probgen.program.density import Block, Density
from probgen.program.handlers import ShowRows
from probgen.program.model import Model
from probgen.program.sites import Plate

__all__ = ["RowDensity"]


class RowDensity(Density):
    """The density of all rows of a program with subsampled plates, which can be asked about any rows.

    Args:
        model: The model.
        reference: Values of every latent site, in constrained space, around which a method may expand; ``None`` if it
            finds such a point itself.

    Raises:
        MethodError: If a latent site stands inside a subsampled plate, a site stands in two of them, or the program
            cannot be run over all its rows.
        ModelError: If ``reference`` lacks a site.
    """

    model: Model
    discrete: Values
    blocks: tuple[Block, ...] = eqx.field(static=True)
    rows: dict[str, Array]
    """The rows that each plate shows."""
    reference: Array | None
    """Where to expand, unconstrained."""

    def __init__(self, model: Model, reference: Values | None = None) -> None:
        super().__init__(model)
        check_minibatches(model)
        for site in model.sites:
            inside = [plate.name for plate in site.plates if plate.subsample < plate.size]
            if len(inside) > 1:
                raise MethodError(
                    f"site {site.name!r} stands in several plates with subsample_size ({', '.join(inside)}), so it has "
                    f"no rows of its own. Subsample one of them."
                )
        self.rows = {plate.name: jnp.arange(plate.size) for plate in self.plates}
        self.reference = None
        self._check_whole()
        if reference is not None:
            self.reference = self.unconstrain(reference)

    @property
    def plates(self) -> tuple[Plate, ...]:
        """The subsampled plates."""
        found = {plate.name: plate for site in self.model.sites for plate in site.plates}
        return tuple(plate for plate in found.values() if plate.subsample < plate.size)

    def of(self, rows: dict[str, Array]) -> RowDensity:
        """The density that shows these rows, by plate, each of shape ``(n,)``."""
        return eqx.tree_at(lambda density: density.rows, self, rows)

    def by_row(self, u: Position) -> tuple[dict[str, Array], Scalar]:
        """The log likelihood of each row that is shown, by plate, shape ``(n,)``; and the log density of all the rest.

        Args:
            u: Unconstrained coordinates, shape ``(dim,)``.
        """
        plates = {site.name: plate for site in self.model.sites for plate in site.plates if plate in self.plates}
        terms = {plate.name: jnp.zeros(self.rows[plate.name].shape, jnp.result_type(float)) for plate in self.plates}
        rest = jnp.zeros((), jnp.result_type(float))
        for name, _, value in self._terms(u):
            if name not in plates:
                rest = rest + jnp.sum(value)
                continue
            plate = plates[name]
            axis = value.ndim + plate.dim
            here = jnp.sum(value, axis=tuple(i for i in range(value.ndim) if i != axis))
            # NumPyro scales the rows that it shows up to all rows.
            terms[plate.name] = terms[plate.name] + here * (here.shape[0] / plate.size)
        return terms, rest

    def bound(self) -> Callable[[], Any]:
        """See ``Density.bound``."""
        return ShowRows(super().bound(), self.rows)

    def constrain(self, u: Position, discrete: Values | None = None) -> Values:
        """See ``Density.constrain``; sites inside a subsampled plate are left out, and few of its rows are run."""
        few = self.of({plate.name: jnp.arange(plate.subsample) for plate in self.plates})
        values = Density.constrain(few, u, discrete)
        return {name: value for name, value in values.items() if not is_subsampled(self.model.sites[name])}

    def _check_whole(self) -> None:
        def run(u: Position) -> Any:
            for name, site in self._run(u).items():
                if site["type"] == "sample" and jnp.shape(site["value"]) != tuple(site["fn"].shape()):
                    raise ValueError(
                        f"site {name!r} has an observation of shape {jnp.shape(site['value'])} and the shape "
                        f"{tuple(site['fn'].shape())}"
                    )
            return self.by_row(u)

        try:
            jax.eval_shape(run, jnp.zeros(self.dim))
        except (TypeError, ValueError, IndexError) as error:
            raise MethodError(
                f"the program must run over all its rows here, which failed: {error}. Pass the whole data, and take "
                f"rows by the indices that the plate gives, or with numpyro.subsample."
            ) from error
