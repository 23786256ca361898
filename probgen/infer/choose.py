"""Which method runs when none is given."""

from __future__ import annotations

from probgen.base.errors import MethodError
from probgen.infer.exact import Exact
from probgen.infer.method import Method
from probgen.infer.nuts import NUTS
from probgen.program.model import Model

__all__ = ["choose"]


def choose(model: Model) -> tuple[Method, str]:
    """Choose a method: ``Exact`` where the posterior has a closed form, else ``NUTS``.

    Most programs without one are told by the names of their distributions; only one that looks conjugate is solved to
    see.

    Returns:
        The method, and a sentence that says why.
    """
    exact = Exact()
    try:
        solution = exact.solve(model)
    except MethodError as error:
        reason = str(error).removeprefix("no closed form: ").split(". ")[0]
        return NUTS(), f"chosen because the posterior has no closed form that is known here: {reason}"
    rules = sorted({block.rule.split(":")[0] for block in solution.recognised.blocks})
    return exact, f"chosen because the posterior has a closed form ({', '.join(rules)})"
