"""``pg.check``: called with a result it looks for signs of trouble; its methods ask harder questions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from probgen.check.bayes_factor import bayes_factor
from probgen.check.c2st import c2st
from probgen.check.compare import compare
from probgen.check.coverage import coverage, tarp
from probgen.check.diagnose import diagnose
from probgen.check.findings import Findings
from probgen.check.predictive import posterior_predictive
from probgen.check.recover import simulate_recover
from probgen.check.sbc import sbc

if TYPE_CHECKING:
    import xarray

    from probgen.program.model import Model

__all__ = ["Check", "check"]


class Check:
    """Checks of results and methods: ``pg.check(tree)``, ``pg.check.sbc(...)`` and so on."""

    sbc = staticmethod(sbc)
    coverage = staticmethod(coverage)
    tarp = staticmethod(tarp)
    c2st = staticmethod(c2st)
    posterior_predictive = staticmethod(posterior_predictive)
    compare = staticmethod(compare)
    bayes_factor = staticmethod(bayes_factor)
    simulate_recover = staticmethod(simulate_recover)

    def __init__(self) -> None:
        self.__doc__ = diagnose.__doc__  # what `pg.check?` should say

    def __call__(self, tree: xarray.DataTree, model: Model | None = None) -> Findings:
        """See ``probgen.check.diagnose.diagnose``."""
        return diagnose(tree, model)

    def __repr__(self) -> str:
        return "<pg.check: call it with a result; see also its methods sbc, coverage, tarp, ...>"


check = Check()
