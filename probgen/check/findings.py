r"""Findings: what is wrong with a result, where, and what to do about it.

The thresholds are those of Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), Bayesian Analysis 16(2):
rank-normalised split R-hat at most 1.01, bulk and tail effective sample sizes of at least 100 per chain; 0.3 for
E-BFMI, Betancourt (2016), arXiv:1604.00695; and 0.7 for the Pareto k-hat of an approximation, Yao, Vehtari, Simpson and
Gelman (2018), arXiv:1802.02538. ArviZ computes the numbers.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from probgen.base.errors import DataError, Ended

if TYPE_CHECKING:
    import pandas
    import xarray

__all__ = ["Finding", "Findings", "Severity", "check"]

RHAT_LIMIT = 1.01
RHAT_WRONG = 1.1
"""Beyond this the chains are samples of different distributions, and no summary of them means anything."""
ESS_PER_CHAIN = 100
BFMI_LIMIT = 0.3
PARETO_K_LIMIT = 0.7
_SHOWN = 3


class Severity(enum.Enum):
    """How much a finding matters; ``.value`` is a sentence for people."""

    error = "The result must not be used as it is."
    warning = "The result may be off; look before using it."


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        severity: How much it matters.
        what: What is wrong, with the numbers.
        where: The variables, chains or draws concerned, worst first.
        advice: What to do.
    """

    severity: Severity
    what: str
    where: str
    advice: str

    def __str__(self) -> str:
        where = f" [{self.where}]" if self.where else ""
        return f"{self.severity.name}: {self.what}{where}. {self.advice}"


class Findings(Sequence[Finding]):
    """What a check found, worst first; empty when all is well. Printable.

    Args:
        found: The findings.
        checked: One phrase per thing that was looked at and is fine.
        caveat: What no check can see: how the method that made the draws is approximate. Empty for an exact one.
    """

    def __init__(self, found: Sequence[Finding], checked: Sequence[str] = (), caveat: str = "") -> None:
        self._found = tuple(sorted(found, key=lambda finding: list(Severity).index(finding.severity)))
        self.checked = tuple(checked)
        self.caveat = caveat

    @overload
    def __getitem__(self, index: int) -> Finding: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Finding, ...]: ...
    def __getitem__(self, index: int | slice) -> Finding | tuple[Finding, ...]:
        return self._found[index]

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._found)

    @property
    def summary(self) -> str:
        """No problems and what was looked at, or how many of which severity; and the caveat."""
        caveat = f" The result is approximate: {self.caveat}" if self.caveat else ""
        if not self:
            return f"No problems found: {'; '.join(self.checked)}.{caveat}"
        counts = [(sum(f.severity is severity for f in self), severity.name) for severity in Severity]
        return f"{', '.join(f'{n} {name}{"s" * (n > 1)}' for n, name in counts if n)}.{caveat}"

    def __repr__(self) -> str:
        return "\n".join([self.summary, *(f"- {finding}" for finding in self)])

    def to_dataframe(self) -> pandas.DataFrame:
        """One row per finding: severity, what, where, advice."""
        import pandas

        rows = [(f.severity.name, f.what, f.where, f.advice) for f in self]
        return pandas.DataFrame(rows, columns=["severity", "what", "where", "advice"])


def check(tree: xarray.DataTree) -> Findings:
    """Look for signs that a result must not be trusted.

    Checked, where the tree has what it takes: how the run ended, finite values, chains that did not move, rank R-hat,
    bulk and tail effective sample sizes, divergences, tree depth, E-BFMI. None of them can prove that a result is
    right.

    Args:
        tree: What ``pg.infer`` returned, or any DataTree with a ``posterior`` with the dims ``chain`` and ``draw``.

    Raises:
        DataError: If the tree has no posterior draws.
    """
    if "posterior" not in tree.children or not {"chain", "draw"} <= set(tree["posterior"].dims):
        raise DataError("the tree has no posterior with the dims 'chain' and 'draw'. Pass what pg.infer returned.")
    posterior = tree["posterior"].to_dataset()
    stats = tree["sample_stats"].to_dataset() if "sample_stats" in tree.children else None
    report = _Report()
    attrs = tree.attrs or tree["posterior"].attrs
    _ended(report, attrs)
    _approximation(report, attrs)
    usable = _finite(report, posterior)
    _moved(report, usable)
    _convergence(report, usable)
    if stats is not None:
        _divergences(report, stats)
        _tree_depth(report, stats, attrs)
        _energy(report, stats)
    return Findings(report.found, report.fine, str(attrs.get("approximate", "")))


class _Report:
    def __init__(self) -> None:
        self.found: list[Finding] = []
        self.fine: list[str] = []

    def error(self, what: str, where: str, advice: str) -> None:
        self.found.append(Finding(Severity.error, what, where, advice))

    def warning(self, what: str, where: str, advice: str) -> None:
        self.found.append(Finding(Severity.warning, what, where, advice))


def _ended(report: _Report, attrs: dict[Any, Any]) -> None:
    ended = attrs.get("ended")
    if ended in (None, Ended.completed.name):
        return
    because = str(attrs.get("ended_because", ended)).rstrip(".")
    why = str(attrs.get("chains_report", ""))
    if ended == Ended.interrupted.name:
        report.warning(because, "", "Run it to the end, or see below whether the draws that were made suffice.")
    else:
        report.error(
            because, why.rstrip("."), "Try more warm-up, another seed, or a reparameterised model; do not drop a chain."
        )


def _approximation(report: _Report, attrs: dict[Any, Any]) -> None:
    """Draws of an approximation are independent, so R-hat and ESS praise them; only their weights can judge."""
    if "pareto_k" not in attrs:
        return
    k = float(attrs["pareto_k"])
    advice = "Use pg.NUTS, or a richer approximation; weights cannot correct this one."
    if np.isnan(k):
        report.warning("too few draws to judge the approximation (Pareto k-hat)", "", "Draw at least 100.")
    elif k > PARETO_K_LIMIT:
        report.error(
            f"the approximation is far from the posterior: Pareto k-hat {k:.2f}, above {PARETO_K_LIMIT}", "", advice
        )
    else:
        report.fine.append(f"Pareto k-hat {k:.2f}")


def _finite(report: _Report, posterior: xarray.Dataset) -> xarray.Dataset:
    """The variables that are finite throughout."""
    bad = {str(name): int((~np.isfinite(v.values)).sum()) for name, v in posterior.items() if v.dtype.kind in "fc"}
    bad = {name: count for name, count in bad.items() if count}
    if bad:
        report.error(
            f"NaN or infinite values in {len(bad)} of {len(posterior)} variables",
            _listed(_worst(bad, largest=True), "{:.0f}"),
            "Look at the functions of that site: log or division near 0, exp of a large number, a Cholesky factor of a "
            "singular matrix.",
        )
    return posterior.drop_vars(list(bad))


def _moved(report: _Report, posterior: xarray.Dataset) -> None:
    """Chains that repeat one value of a continuous variable that is not constant over all chains."""
    stuck: dict[int, set[str]] = {}
    moving = False
    for name, variable in posterior.items():
        values = variable.transpose("chain", "draw", ...).values
        if values.dtype.kind != "f" or values.shape[1] < 2:
            moving = True
            continue
        still = np.ptp(values, axis=1) == 0
        constant = np.ptp(values, axis=(0, 1)) == 0
        moving = moving or not constant.all()
        for chain in np.flatnonzero((still & ~constant).reshape(len(values), -1).any(-1)):
            stuck.setdefault(int(chain), set()).add(str(name))
    advice = "Try another seed, a smaller step size (a larger target_accept) or more warm-up; do not drop the chain."
    if not moving and len(posterior):
        report.error("every draw of every variable is the same", "", advice)
    for chain, names in sorted(stuck.items()):
        report.error(f"chain {chain} did not move", ", ".join(sorted(names)), advice)


def _convergence(report: _Report, posterior: xarray.Dataset) -> None:
    import arviz

    chains, draws = posterior.sizes.get("chain", 0), posterior.sizes.get("draw", 0)
    if draws < 4:
        report.warning(f"only {draws} draws per chain", "", "Draw at least 100 per chain, else nothing can be said.")
        return
    if not len(posterior):
        return
    named = posterior.map(lambda variable: variable.astype(float))
    moving = named.max(("chain", "draw")) > named.min(("chain", "draw"))
    with np.errstate(divide="ignore", invalid="ignore"):  # constants
        rhat = _labelled(arviz.rhat(named, method="rank"), moving)
    high = {label: value for label, value in rhat.items() if value > RHAT_LIMIT}
    worst = max(rhat.values(), default=1.0)
    if high:
        mixed = "do not agree" if worst > RHAT_WRONG else "have not mixed well"
        (report.error if worst > RHAT_WRONG else report.warning)(
            f"rank R-hat above {RHAT_LIMIT} in {len(high)} of {len(rhat)} values: the chains {mixed}",
            _listed(_worst(high, largest=True), "{:.3g}"),
            "Draw longer and warm up longer; if that does not help, reparameterise the sites named here."
            if worst <= RHAT_WRONG
            else "Chains sit in different places: look at the traces of these sites for modes, ridges or a lost chain.",
        )
    elif rhat:
        only = " (one chain against itself)" if chains == 1 else ""
        report.fine.append(f"rank R-hat at most {worst:.3f}{only}")
    for kind in ("bulk", "tail"):
        ess = _labelled(arviz.ess(named, method=kind), moving)
        low = {label: value for label, value in ess.items() if value < ESS_PER_CHAIN * chains}
        if low:
            factor = np.ceil(ESS_PER_CHAIN * chains / max(min(low.values()), 1.0) + 0.5)
            noisy = "means and sds" if kind == "bulk" else "quantiles and intervals"
            report.warning(
                f"{kind} effective sample size below {ESS_PER_CHAIN * chains} in {len(low)} of {len(ess)} values",
                _listed(_worst(low, largest=False), "{:.0f}"),
                "Make the chains agree first (see R-hat)."
                if worst > RHAT_WRONG
                else f"Draw about {factor:.0f} times as many: {noisy} are still noisy.",
            )
        elif ess:
            report.fine.append(f"{kind} ESS at least {min(ess.values()):.0f}")


def _divergences(report: _Report, stats: xarray.Dataset) -> None:
    if "diverging" not in stats:
        return
    diverging = stats["diverging"].values.astype(bool)
    if not diverging.any():
        report.fine.append("no divergences")
        return
    per_chain = {f"chain {chain}": float(count) for chain, count in enumerate(diverging.sum(-1)) if count}
    share = 100 * diverging.mean()
    report.warning(
        f"{diverging.sum()} of {diverging.size} draws ({share:.2g} %) diverged: regions of high curvature are missing",
        _listed(_worst(per_chain, largest=True), "{:.0f}"),
        "Raise target_accept (0.95, 0.99); if some stay, reparameterise where they are, for example non-centred.",
    )


def _tree_depth(report: _Report, stats: xarray.Dataset, attrs: dict[Any, Any]) -> None:
    # Results of probgen, which say how they ended, carry the settings of the method as JSON.
    limit = json.loads(attrs.get("settings", "{}")).get("max_tree_depth") if "ended" in attrs else None
    if "reached_max_treedepth" in stats:
        reached = stats["reached_max_treedepth"].values.astype(bool)
    elif "tree_depth" in stats and limit is not None:
        reached = stats["tree_depth"].values >= limit
    else:
        return
    if reached.any():
        report.warning(
            f"{reached.sum()} of {reached.size} draws reached the largest tree depth"
            + (f" ({limit})" if limit else ""),
            "",
            "Slow rather than wrong: rescale or reparameterise strongly correlated sites, or raise max_tree_depth.",
        )
    else:
        report.fine.append("tree depth never at its limit")


def _energy(report: _Report, stats: xarray.Dataset) -> None:
    import arviz

    if "energy" not in stats or stats.sizes["draw"] < 4 or not np.isfinite(stats["energy"].values).all():
        return
    bfmi = np.atleast_1d(arviz.bfmi(stats["energy"].transpose("chain", "draw").values))
    low = {f"chain {chain}": float(value) for chain, value in enumerate(bfmi) if value < BFMI_LIMIT}
    if low:
        report.warning(
            f"E-BFMI below {BFMI_LIMIT}: the energy moves too little from draw to draw, so tails may be missed",
            _listed(_worst(low, largest=False), "{:.2g}"),
            "Reparameterise heavy-tailed or funnel-shaped sites; warm up longer.",
        )
    else:
        report.fine.append(f"E-BFMI at least {bfmi.min():.2g}")


def _labelled(diagnostic: xarray.Dataset, moving: xarray.Dataset) -> dict[str, float]:
    """Entries of a diagnostic by label (``theta[A]``), without those of constants of the model."""
    values: dict[str, float] = {}
    for name, variable in diagnostic.items():
        ticks = [variable[d].to_numpy() if d in variable.coords else np.arange(n) for d, n in variable.sizes.items()]
        for index in np.argwhere(moving[name].transpose(*variable.dims).to_numpy() & ~np.isnan(variable.to_numpy())):
            label = ", ".join(str(tick[i]) for tick, i in zip(ticks, index, strict=True))
            values[f"{name}[{label}]" if label else str(name)] = float(variable.to_numpy()[tuple(index)])
    return values


def _worst(values: Mapping[str, float], *, largest: bool) -> list[tuple[str, float]]:
    return sorted(values.items(), key=lambda item: -item[1] if largest else item[1])


def _listed(items: Sequence[tuple[str, float]], form: str) -> str:
    shown = ", ".join(f"{label} ({form.format(value)})" for label, value in items[:_SHOWN])
    more = len(items) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
