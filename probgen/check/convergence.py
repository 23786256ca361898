"""Checks of the chains themselves: do they move, agree, and carry enough information?

Thresholds of Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), Bayesian Analysis 16(2): rank-normalised split
R-hat at most 1.01, bulk and tail effective sample sizes of at least 100 per chain. R-hat of healthy chains exceeds 1.01
by chance where they are short or many quantities are looked at, so it must also exceed what the correlations within
chains explain (family-wise at ``FALSE_ALARM``); beyond 1.05 no such excuse counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from probgen.check.findings import Finding, Severity, listed, worst
from probgen.check.subject import FEWEST, Subject

__all__ = ["RHAT_WRONG", "agreement", "digits", "finite", "information", "moved", "stood_still"]

RHAT_LIMIT = 1.01
RHAT_NO_EXCUSE = 1.05
RHAT_WRONG = 1.1
"""Beyond this the chains are samples of different distributions, and no summary of them means anything."""
ESS_PER_CHAIN = 100
FALSE_ALARM = 1e-3
LEAST_RUN = 50
"""Draws that a chain must repeat before it is said to stand still."""


def finite(subject: Subject) -> Iterator[Finding | str]:
    """NaN and infinite draws."""
    if subject.nonfinite:
        items = worst(subject.nonfinite, largest=True)
        yield Finding(
            Severity.error,
            f"NaN or infinite values in {len(items)} of {len(subject.posterior)} variables",
            listed(items, "{:.0f}"),
            "Look at the functions of that site: log or division near 0, exp of a large number, a Cholesky factor of a "
            "singular matrix, or values that ran off to infinity because the posterior is improper.",
            "nonfinite",
            tuple(name for name, _ in items),
        )


def moved(subject: Subject) -> Iterator[Finding | str]:
    """Chains that repeat one value of a continuous variable that is not constant over all chains."""
    stuck: dict[int, list[str]] = {}
    moving = not subject.quantities.variables
    for name, values in subject.quantities.variables.items():
        if values.dtype.kind != "f" or values.shape[1] < 2:
            moving = True
            continue
        still = np.ptp(values, axis=1) == 0
        constant = np.ptp(values, axis=(0, 1)) == 0
        moving = moving or not constant.all()
        for chain in np.flatnonzero((still & ~constant).reshape(len(values), -1).any(-1)):
            stuck.setdefault(int(chain), []).append(name)
    advice = "Try another seed, a smaller step size (a larger target_accept) or more warm-up; do not drop the chain."
    if not moving:
        yield Finding(Severity.error, "every draw of every variable is the same", "", advice, "stuck")
    for chain, names in sorted(stuck.items()):
        where = sorted(names)
        yield Finding(Severity.error, f"chain {chain} did not move", ", ".join(where), advice, "stuck", tuple(where))


def stood_still(subject: Subject) -> Iterator[Finding | str]:
    """Chains that repeat one point far longer than their rate of rejection explains."""
    chains, draws = subject.shape
    quantities = subject.quantities
    which = np.flatnonzero(quantities.is_float())
    if subject.independent or not len(which) or draws < 2 * LEAST_RUN:
        return
    same = np.ones((chains, draws - 1), bool)
    for name in {quantities.names[i] for i in np.unique(quantities.owner[which])}:
        values = quantities.variables[name].reshape(chains, draws, -1)
        same &= (values[:, 1:] == values[:, :-1]).all(-1)
    runs: dict[str, float] = {}
    for chain, repeats in enumerate(same):
        changes = np.flatnonzero(np.concatenate([[True], ~repeats, [True]]))
        longest = int(np.max(np.diff(changes)))  # draws at one point
        rest = (repeats.sum() - (longest - 1)) / max(1, draws - longest)
        # A run as long as this comes once in a million chains that reject at the rate of the rest of this one.
        chance = math.log(1e-6 / draws) / math.log(rest) if 0 < rest < 1 else 0.0
        if max(LEAST_RUN, chance) < longest < draws:
            runs[f"chain {chain}"] = longest
    if runs:
        yield Finding(
            Severity.warning,
            f"{len(runs)} of {chains} chains stood still for many draws, as in a place that they cannot leave",
            listed(worst(runs, largest=True), "{:.0f} draws"),
            "Smaller steps (a larger target_accept) and more warm-up; reparameterise narrow places such as the neck of "
            "a funnel.",
            "standstill",
        )


def agreement(subject: Subject) -> Iterator[Finding | str]:
    """Rank-normalised split R-hat."""
    chains, draws = subject.shape
    if draws < FEWEST:
        yield Finding(
            Severity.warning,
            f"only {draws} draws per chain",
            "",
            f"Draw at least {ESS_PER_CHAIN} per chain, else nothing can be said.",
            "few_draws",
        )
        return
    if not subject.measurable or not len(subject.quantities):
        return
    rhat = subject.mixing.rhat
    high = np.flatnonzero(rhat > _limits(subject))
    largest = float(np.nanmax(rhat, initial=1.0))
    if not len(high):
        only = " (one chain against itself)" if chains == 1 else ""
        yield f"rank R-hat at most {largest:.3f}{only}"
        return
    wrong = largest > RHAT_WRONG
    items = worst({subject.quantities.label(i): float(rhat[i]) for i in high}, largest=True)
    yield Finding(
        Severity.error if wrong else Severity.warning,
        f"rank R-hat above {RHAT_LIMIT} in {len(high)} of {len(rhat)} values: the chains "
        f"{'do not agree' if wrong else 'have not mixed well'}",
        listed(items, "{:.3g}"),
        "Chains sit in different places: look at the traces of these sites for modes, ridges or a lost chain."
        if wrong
        else "Draw longer and warm up longer; if that does not help, reparameterise the sites named here.",
        "rhat",
        tuple(label for label, _ in items),
    )


def _limits(subject: Subject) -> np.ndarray:
    """The R-hat that each quantity may have."""
    from scipy.stats import chi2

    halves = 2 * subject.shape[0]
    each = np.maximum(subject.mixing.ess_within / halves, 1.0)
    freedom = max(1, halves - 1)
    quantile = chi2.isf(FALSE_ALARM / (2 * len(each)), freedom) / freedom
    return np.clip(np.sqrt(1 + quantile / each), RHAT_LIMIT, RHAT_NO_EXCUSE)


def information(subject: Subject) -> Iterator[Finding | str]:
    """Effective sample sizes, of the bulk and of the tails."""
    if not subject.measurable or not len(subject.quantities):
        return
    least = ESS_PER_CHAIN * subject.shape[0]
    disagree = np.nanmax(subject.mixing.rhat, initial=1.0) > RHAT_WRONG
    for part, ess in (("bulk", subject.mixing.ess_bulk), ("tail", subject.mixing.ess_tail)):
        low = np.flatnonzero(ess < least)
        if not len(low):
            yield f"{part} ESS at least {np.nanmin(ess):.0f}"
            continue
        items = worst({subject.quantities.label(i): float(ess[i]) for i in low}, largest=False)
        factor = np.ceil(least / max(items[0][1], 1.0) + 0.5)
        noisy = "means and sds" if part == "bulk" else "quantiles and intervals"
        yield Finding(
            Severity.warning,
            f"{part} effective sample size below {least} in {len(low)} of {len(ess)} values",
            listed(items, "{:.0f}"),
            "Make the chains agree first (see R-hat)."
            if disagree
            else f"Draw about {factor:.0f} times as many: {noisy} are still noisy.",
            f"ess_{part}",
            tuple(label for label, _ in items),
        )


def digits(subject: Subject) -> Iterator[Finding | str]:
    """Monte Carlo error against the digits of a summary.

    A summary of ArviZ shows the mean with decimals down to the order of two Monte Carlo errors. Where that order is
    the one of the posterior standard deviation, not one digit below the leading one is known.
    """
    if not subject.measurable or subject.shape[1] < ESS_PER_CHAIN or not len(subject.quantities):
        return
    mixing = subject.mixing
    error = 2 * mixing.mcse_mean
    with np.errstate(divide="ignore", invalid="ignore"):
        known = np.floor(np.log10(mixing.sd)) - np.floor(np.log10(error)) + 1
    agree = ~(mixing.rhat > RHAT_WRONG)  # else there is nothing of which digits could be known
    few = np.flatnonzero((known <= 1) & (mixing.sd > 0) & agree)
    if not len(few):
        if agree.all():
            yield f"means known to {100 * np.nanmax(mixing.mcse_mean / mixing.sd):.1g} % of an sd"
        return
    few = few[np.argsort((error / mixing.sd)[few])[::-1]]
    labels = [subject.quantities.label(i) for i in few]
    shown = [f"{mixing.mean[i]:.4g} ± {error[i]:.2g}, sd {mixing.sd[i]:.2g}" for i in few[:3]]
    yield Finding(
        Severity.note,
        f"two Monte Carlo errors reach the leading digit of the sd in {len(few)} of {len(known)} means",
        listed([*zip(labels, shown, strict=False), *((label, "") for label in labels[3:])]),
        "A summary shows such a mean to that digit only; quote no more. A further digit costs 100 times the draws.",
        "mcse",
        tuple(labels),
    )
