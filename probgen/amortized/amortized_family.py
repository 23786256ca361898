"""Families whose fitted laws answer for any observation."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

from probgen.generative.family import Family
from probgen.generative.learned import Learned

if TYPE_CHECKING:
    from probgen.amortized.amortized import Amortized

__all__ = ["AmortizedFamily"]


class AmortizedFamily(Family):
    """A family that is fitted to simulations of a model, all of what ``pg.amortize`` returns following from the law."""

    @abc.abstractmethod
    def method(self, law: Learned) -> Amortized:
        """The method of inference that answers by a fitted law of this family."""
