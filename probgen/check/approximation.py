"""Checks of approximations and of weighted draws: how the run ended, Pareto k-hat, weights, evidence.

Draws of an approximation are independent, so R-hat and effective sample sizes praise them; only their weights can
judge. Threshold 0.7: Yao, Vehtari, Simpson and Gelman (2018), arXiv:1802.02538.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from probgen.base.errors import Ended
from probgen.check.findings import Finding, Severity, listed, worst
from probgen.check.subject import Subject
from probgen.check.tails import weights_k

__all__ = ["approximation", "ended", "evidence", "particles", "weights"]

PARETO_K_LIMIT = 0.7
LEAST_ESS = 100
COLLAPSED = 0.5
"""Share of all weight that one draw must carry for the weights to be called collapsed."""
EVIDENCE_SE = 1.0
"""Standard error of the log evidence, in nats, above which its order of magnitude is unknown."""
PARTICLE_SHARE = 0.05
_ADVICE = {
    Ended.interrupted.name: "Run it to the end, or see below whether the draws that were made suffice.",
    Ended.not_converged.name: "Give it more steps, or a smaller or larger learning rate; look at the group "
    "optimization.",
    Ended.no_start.name: "Look at the data and the distributions of the sites that are named.",
}
_RETRY = "Try more warm-up, another seed, or a reparameterised model; do not drop a chain."


def ended(subject: Subject) -> Iterator[Finding | str]:
    """How the run ended, and for an optimisation how much it still gained."""
    attrs = subject.attrs
    name = attrs.get("ended")
    if name in (None, Ended.completed.name):
        return
    because = str(attrs.get("ended_because", name)).rstrip(".")
    gain = _gain(subject) if name == Ended.not_converged.name else ""
    yield Finding(
        Severity.warning if name == Ended.interrupted.name else Severity.error,
        because + gain,
        str(attrs.get("chains_report", "")).rstrip("."),
        _ADVICE.get(str(name), _RETRY),
        "not_converged" if name == Ended.not_converged.name else "ended",
    )


def _gain(subject: Subject) -> str:
    """What the last fifth of the steps of an optimisation gained over the fifth before."""
    if "optimization" not in subject.tree.children or "objective" not in subject.tree["optimization"].data_vars:
        return ""
    trace = np.asarray(subject.tree["optimization/objective"].values, float).ravel()
    fifth = trace.size // 5
    last, before = trace[-fifth:], trace[-2 * fifth : -fifth]
    if fifth < 10 or not np.isfinite(last).any() or not np.isfinite(before).any():
        return ""
    return f"; the objective still rose by {np.nanmean(last) - np.nanmean(before):.2g} over the last fifth of the steps"


def approximation(subject: Subject) -> Iterator[Finding | str]:
    """Pareto k-hat of the importance weights of an approximation, or of weighted draws."""
    log_w = _log_weights(subject)
    if "hmc_drift" in subject.attrs:
        yield from _moved(subject)
        return
    if "pareto_k" in subject.attrs:
        k = float(subject.attrs["pareto_k"])
        whose, target = "the approximation is far from the posterior", "approximation"
    elif log_w is not None and (log_w != log_w[0, 0]).any() and not subject.independent:
        finite = np.where(np.isfinite(log_w), log_w, -np.inf)
        k = float(np.nanmax(weights_k(finite))) if np.isfinite(finite.max(-1)).all() else np.inf
        whose, target = "few draws carry the weight: the proposal is far from the posterior", "weights"
        if np.isnan(k):
            return
    else:
        return
    if np.isnan(k):
        yield Finding(
            Severity.warning,
            "too few draws to judge the approximation (Pareto k-hat)",
            "",
            "Draw at least 100.",
            "pareto_k",
        )
    elif k > PARETO_K_LIMIT:
        advice = (
            "Use pg.NUTS, or a richer approximation; weights cannot correct this one."
            if target == "approximation"
            else "More particles hardly help: take smaller steps from prior to posterior, or a better proposal."
        )
        yield Finding(Severity.error, f"{whose}: Pareto k-hat {k:.2f}, above {PARETO_K_LIMIT}", "", advice, "pareto_k")
    else:
        yield f"Pareto k-hat {k:.2f}" if np.isfinite(k) else "importance weights nearly equal"


def _moved(subject: Subject) -> Iterator[Finding | str]:
    """Points without weights, which HMC has moved on trial: what follows the posterior stays as it is."""
    drift, limit = float(subject.attrs["hmc_drift"]), float(subject.attrs["hmc_drift_limit"])
    if drift < limit:
        yield f"HMC leaves the particles as they are (largest change {drift:.1f} standard errors)"
        return
    yield Finding(
        Severity.error,
        f"the particles are not where the posterior is: a few HMC transitions change {subject.attrs['hmc_drift_worst']} "
        f"by {drift:.1f} standard errors, above {limit:.1f}",
        "",
        "Use more particles, pg.SteinVI, or pg.NUTS.",
        "hmc_drift",
    )


def _log_weights(subject: Subject) -> np.ndarray | None:
    """Log weights of the draws, shape ``(chains, draws)``, under the names that particle methods use."""
    for name in ("log_weight", "log_weights"):
        found = subject.stat(name)
        if found is not None:
            return found.astype(float)
    for name in ("weight", "weights"):
        found = subject.stat(name)
        if found is not None:
            with np.errstate(divide="ignore"):
                return np.log(found.astype(float))
    return None


def weights(subject: Subject) -> Iterator[Finding | str]:
    """How many draws the weights leave."""
    log_w = _log_weights(subject)
    advice = (
        "The result rests on a handful of draws. Use a proposal nearer to the posterior, more and smaller steps "
        "between prior and posterior, or pg.NUTS; more draws alone hardly help."
    )
    if log_w is None:
        yield from _told(subject, advice)
        return
    # Approximations weigh all their draws together; runs of particles are one chain each.
    rows = log_w.reshape(1, -1) if subject.independent else log_w
    labels = ["all draws"] if subject.independent else [f"chain {i}" for i in range(len(rows))]
    bad = [label for label, row in zip(labels, rows, strict=True) if not np.isfinite(row.max()) or np.isnan(row).any()]
    if bad:
        yield Finding(
            Severity.error,
            "weights that are NaN or all zero",
            ", ".join(bad),
            "No draw has a finite density: look at the data, and at how the run ended.",
            "weights",
        )
        return
    w = np.exp(rows - rows.max(-1, keepdims=True))
    w /= w.sum(-1, keepdims=True)
    top, left = w.max(-1), 1 / (w**2).sum(-1)
    collapsed = {label: 100 * float(t) for label, t in zip(labels, top, strict=True) if t > COLLAPSED}
    few = {label: float(n) for label, n in zip(labels, left, strict=True) if n < LEAST_ESS}
    if collapsed:
        items = worst(collapsed, largest=True)
        yield Finding(
            Severity.error,
            f"the weights have collapsed: one draw carries {items[0][1]:.3g} % of the weight",
            listed(items, "{:.3g} %"),
            advice,
            "weights",
        )
    elif few:
        items = worst(few, largest=False)
        yield Finding(
            Severity.warning,
            f"the weights leave {items[0][1]:.0f} effective draws of {rows.shape[-1]}, below {LEAST_ESS}",
            listed(items, "{:.0f}"),
            advice,
            "weights",
        )
    elif np.ptp(rows) > 1e-9:
        yield f"weights leave at least {left.min():.0f} effective draws"


def _told(subject: Subject, advice: str) -> Iterator[Finding]:
    """Weights that were spent in resampling: their numbers are in the attributes."""
    for name, what in (("importance_ess", "effective"), ("unique_draws", "distinct")):
        if name in subject.attrs and float(subject.attrs[name]) < LEAST_ESS:
            yield Finding(
                Severity.warning,
                f"the weights left {float(subject.attrs[name]):.0f} {what} draws, below {LEAST_ESS}",
                "",
                advice,
                "weights",
            )
            return


def particles(subject: Subject) -> Iterator[Finding | str]:
    """Effective sample sizes along the steps of a particle method, and how many first ancestors are left."""
    found = subject.steps.get("ess")
    if found is not None and found.size:
        count = int(subject.attrs.get("particles", subject.shape[1]))
        least = float(found.min())  # runs that ended earlier have NaN
        if least < PARTICLE_SHARE * count:
            place = np.unravel_index(int(np.nanargmin(found.values)), found.shape)
            at = ", ".join(f"{dim} {i}" for dim, i in zip(found.dims, place, strict=True))
            yield Finding(
                Severity.warning,
                f"at one step only {least:.0f} of {count} particles were effective",
                at,
                "Take smaller steps between the distributions, or more particles.",
                "particles",
            )
        else:
            yield f"at least {100 * least / count:.0f} % of the particles effective at each step"
    for name in ("ancestor", "ancestors"):
        ancestors = subject.stat(name)
        if ancestors is None:
            continue
        left = {f"chain {i}": float(len(np.unique(row))) for i, row in enumerate(ancestors)}
        few = worst({label: n for label, n in left.items() if n < LEAST_ESS}, largest=False)
        if few:
            yield Finding(
                Severity.warning,
                f"all particles descend from {few[0][1]:.0f} ancestors",
                listed(few, "{:.0f}"),
                "Resample less often or use more particles; where moves follow, take more of them after each "
                "resampling.",
                "particles",
            )


def evidence(subject: Subject) -> Iterator[Finding | str]:
    """Whether the log evidence is known."""
    error = float(subject.attrs.get("log_evidence_se", np.nan))
    source = "its standard error"
    found = subject.steps.get("log_evidence_run")
    if found is not None and found.size > 1:
        spread = float(found.std("chain", ddof=1)) / math.sqrt(found.size)
        if not error >= spread:
            error, source = spread, "its standard error, from the spread of the runs,"
    if not np.isfinite(error):
        return
    if error > EVIDENCE_SE:
        yield Finding(
            Severity.warning,
            f"the log evidence is hardly known: {source} is {error:.2g} nats",
            "",
            "Do not compare models by it. Use more particles or draws, or a better proposal.",
            "evidence",
        )
    elif error:
        yield f"log evidence known to {error:.1g} nats"
