"""Checks of Hamiltonian samplers: divergences and where they are, tree depth, E-BFMI.

A divergence says that a trajectory met curvature that its step size could not follow, so that draws from there are
missing (Betancourt 2017, arXiv:1701.02434). The threshold 0.3 for E-BFMI is that of Betancourt (2016),
arXiv:1604.00695.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from probgen.check.findings import Finding, Severity, listed, worst
from probgen.check.mixing import rank_normalised
from probgen.check.subject import Subject
from probgen.infer.meads import MEADS

__all__ = ["depth", "divergences", "energy"]

BFMI_LIMIT = 0.3
SHIFT = 0.5
"""Standardised shift of divergent draws from the others that is worth naming."""
FALSE_NAME = 0.05
"""Probability that divergences with no place of their own are said to have one."""
OFTEN = 0.01
"""Share of draws at the largest tree depth from which it is more than a curiosity."""


def divergences(subject: Subject) -> Iterator[Finding | str]:
    """Divergent transitions, with the parameters in which they differ from the other draws."""
    found = subject.stats.get("diverging")
    if found is None:
        return
    if "chain" in found.dims:
        found = found.transpose("chain", ...)
    diverging = found.values.astype(bool)
    if not diverging.any():
        yield "no divergences"
        return
    counts = diverging.reshape(len(diverging), -1).sum(-1)
    per_chain = {f"chain {chain}": float(count) for chain, count in enumerate(counts)}
    items = [(label, count) for label, count in worst(per_chain, largest=True) if count]
    share = 100 * diverging.mean()
    apart = _apart(subject, diverging) if diverging.shape == subject.shape and subject.measurable else []
    where, advice = listed(items, "{:.0f}"), "Raise target_accept (0.95, 0.99); if some stay, reparameterise."
    mostly = ""
    if apart:
        first = apart[0]
        mostly = f", mostly where {first[0]} is {first[2]}"
        where = f"{listed([(f'{label} {side}', shift) for label, shift, side in apart], 'by {:.1f} sd')}; {where}"
        if first[2] in ("small", "low"):
            advice = (
                f"Likely the neck of a funnel: if {first[0]} is a scale, what it scales hardly moves there. Write that "
                f"non-centred (theta = mu + tau * z with z ~ Normal(0, 1), or numpyro's LocScaleReparam); a larger "
                f"target_accept (0.95, 0.99) helps a little."
            )
        else:
            advice = (
                "Raise target_accept (0.95, 0.99); if some stay, reparameterise the sites named here (non-centred, "
                "another scale), or give them a prior that keeps them out of there."
            )
    yield Finding(
        Severity.warning,
        f"{diverging.sum()} of {diverging.size} draws ({share:.2g} %) diverged{mostly}: regions of high curvature are "
        f"missing",
        where,
        advice,
        "divergences",
        tuple(label for label, *_ in apart),
    )


def _apart(subject: Subject, diverging: np.ndarray) -> list[tuple[str, float, str]]:
    """Quantities in which divergent draws differ from the others: label, size of the shift, and where they are.

    The shift is the difference of the mean normal scores of the ranks of the values, or of their distances from the
    median, which standardised differences of skewed or heavy-tailed draws would blur.
    """
    from scipy.stats import norm

    at, rest = diverging.ravel(), ~diverging.ravel()
    if not rest.any():
        return []
    least = norm.isf(FALSE_NAME / (4 * max(1, len(subject.quantities)))) * np.sqrt(1 / at.sum() + 1 / rest.sum())
    found: list[tuple[float, int, str]] = []
    for which, x in subject.quantities.blocks():
        flat = x.reshape(len(x), -1)
        distance = np.abs(flat - np.median(flat, axis=-1, keepdims=True))
        shifts = np.stack([_shift(rank_normalised(v), at) for v in (flat, distance)])
        better = np.argmax(np.abs(shifts), axis=0)
        shift = np.take_along_axis(shifts, better[None], axis=0)[0]
        positive = flat.min(-1) >= 0
        for i in np.flatnonzero(np.abs(shift) > max(SHIFT, least)):
            up = shift[i] > 0
            if better[i]:
                side = "far from its median" if up else "near its median"
            else:
                side = ("large" if up else "small") if positive[i] else ("high" if up else "low")
            found.append((abs(float(shift[i])), int(which[i]), side))
    found.sort(key=lambda item: -item[0])
    return [(subject.quantities.label(i), shift, side) for shift, i, side in found]


def _shift(z: np.ndarray, at: np.ndarray) -> np.ndarray:
    return z[:, at].mean(-1) - z[:, ~at].mean(-1)


def depth(subject: Subject) -> Iterator[Finding | str]:
    """Trajectories that were cut off at the largest tree depth."""
    limit = subject.settings.get("max_tree_depth")
    if "reached_max_treedepth" in subject.stats:
        reached = subject.stats["reached_max_treedepth"].values.astype(bool)
    elif "tree_depth" in subject.stats and limit is not None:
        reached = subject.stats["tree_depth"].values >= limit
    else:
        return
    if not reached.any():
        yield "tree depth never at its limit"
        return
    yield Finding(
        Severity.warning if reached.mean() >= OFTEN else Severity.note,
        f"{reached.sum()} of {reached.size} draws reached the largest tree depth" + (f" ({limit})" if limit else ""),
        "",
        "Slow rather than wrong: rescale or reparameterise strongly correlated sites, or raise max_tree_depth.",
        "tree_depth",
    )


def energy(subject: Subject) -> Iterator[Finding | str]:
    """E-BFMI: does the energy change enough from draw to draw to reach the tails?"""
    import arviz

    energies = subject.stat("energy")
    # Momenta that are kept from draw to draw, as in MEADS, change the energy little by design.
    if energies is None or not subject.measurable or not np.isfinite(energies).all():
        return
    if subject.attrs.get("method") == MEADS.name:
        return
    with np.errstate(divide="ignore", invalid="ignore"):  # a chain that does not move
        bfmi = np.atleast_1d(arviz.bfmi(energies))
    low = {f"chain {chain}": float(value) for chain, value in enumerate(bfmi) if value < BFMI_LIMIT}
    if low:
        yield Finding(
            Severity.warning,
            f"E-BFMI below {BFMI_LIMIT}: the energy moves too little from draw to draw, so tails may be missed",
            listed(worst(low, largest=False), "{:.2g}"),
            "Reparameterise heavy-tailed or funnel-shaped sites; warm up longer.",
            "energy",
        )
    elif np.isfinite(bfmi).any():
        yield f"E-BFMI at least {np.nanmin(bfmi):.2g}"
