"""A question to data, stated by hand: which effect, and what makes units comparable."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from probgen.base.errors import MethodError

__all__ = ["Adjustment"]


@dataclass(frozen=True)
class Adjustment:
    """The effect of a treatment on an outcome, with what is needed to estimate it.

    ``pg.causal.identify`` makes the same of a graph, and checks that it suffices; here that is assumed.

    Attributes:
        treatment: Name of the treatment.
        outcome: Name of the outcome.
        covariates: Names of covariates that remove confounding.
        instruments: Names of instruments (which may need the covariates).
        active: The value of the treatment whose effect is asked for.
        reference: The value that it is compared with.
    """

    treatment: str
    outcome: str
    covariates: Sequence[str] = ()
    instruments: Sequence[str] = ()
    active: Hashable = 1
    reference: Hashable = 0

    def __post_init__(self) -> None:
        for role in ("covariates", "instruments"):
            names = getattr(self, role)
            names = (
                (names,) if isinstance(names, str) else sorted(names) if isinstance(names, frozenset | set) else names
            )
            object.__setattr__(self, role, tuple(names))
        names = [self.treatment, self.outcome, *self.covariates, *self.instruments]
        for name in names:
            if not isinstance(name, str):
                raise MethodError(f"names must be strings, got {name!r}. Name columns of the data.")
            if names.count(name) > 1:
                raise MethodError(f"{name!r} has two roles in the question. Give every column one role.")
        if self.active == self.reference:
            raise MethodError(f"active and reference are both {self.active!r}. Give two values of {self.treatment!r}.")
