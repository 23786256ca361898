r"""The density on a random mini-batch: an unbiased estimate of the log density, and of its gradient.

A plate of :math:`N` rows with ``subsample_size=n`` shows the program :math:`n` rows at a time, drawn without
replacement, and NumPyro scales what stands inside by :math:`N/n`. The mean over batches is the density of all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
from numpyro import handlers

from probgen.base.errors import MethodError
from probgen.base.typing import Position, PRNGKey, Values
from probgen.program.density import Block, Density
from probgen.program.model import Model
from probgen.program.sites import Kind, Site

__all__ = ["BatchDensity", "check_minibatches", "is_subsampled"]


class BatchDensity(Density):
    """A density whose subsampled plates show the rows that a key draws.

    Args:
        model: The model.
        key: Draws the rows.

    Raises:
        MethodError: If a latent site stands inside a subsampled plate: its rows would change their meaning with every
        batch.
    """

    model: Model
    discrete: Values
    blocks: tuple[Block, ...] = eqx.field(static=True)
    key: PRNGKey
    """Draws the rows."""

    def __init__(self, model: Model, key: PRNGKey) -> None:
        super().__init__(model)
        check_minibatches(model)
        self.key = key

    def of(self, key: PRNGKey) -> BatchDensity:
        """The density on another batch."""
        return eqx.tree_at(lambda density: density.key, self, key)

    def bound(self) -> Callable[[], Any]:
        """See ``Density.bound``."""
        return handlers.seed(super().bound(), self.key)

    def constrain(self, u: Position, discrete: Values | None = None) -> Values:
        """See ``Density.constrain``; sites inside a subsampled plate, which belong to one batch, are left out."""
        values = super().constrain(u, discrete)
        return {name: value for name, value in values.items() if not is_subsampled(self.model.sites[name])}


def check_minibatches(model: Model) -> None:
    """Raise ``MethodError`` for a model that no density of mini-batches fits: see ``BatchDensity``."""
    for site in model.of_kind(Kind.discrete):
        raise MethodError(
            f"site {site.name!r} is discrete, and a mini-batch density does not sum it out. Sum it out by hand "
            f"(a MixtureSameFamily, say)."
        )
    for site in model.sites:
        if site.latent and is_subsampled(site):
            raise MethodError(
                f"site {site.name!r} is latent inside a plate with subsample_size, so its rows are others in every "
                f"batch. Marginalise it, or drop subsample_size and use a method that sees all rows."
            )


def is_subsampled(site: Site) -> bool:
    """Whether an execution of the program sees only some of the rows of a site."""
    return any(plate.subsample < plate.size for plate in site.plates)
