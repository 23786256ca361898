"""Quarantine: are the chains of a run samples of one distribution?

A sampler that is fast and wrong is worse than none, and a lost chain often looks healthy by itself. After a run the
chains are compared on the unconstrained draws and the log density. The tests are meant for gross failure (a chain in
another mode, stuck, or still travelling), where a number in a table is not enough; fine convergence diagnostics are
the business of the checks on the result.
"""

from __future__ import annotations

import dataclasses

import numpy as np

__all__ = ["FEWEST", "Verdict", "compare"]

RHAT_LIMIT = 1.2
"""Split R-hat above which chains disagree. Four healthy chains of 26 effective draws each exceed it in one coordinate
with probability 1e-6: between the eight halves, n (R^2 - 1) is a chi-square with 7 degrees of freedom over 7, n = 13."""
FEWEST = 50
"""Draws per chain from which R-hat is looked at: fewer draws of healthy chains are often less than 26 effective ones."""
GAP_LIMIT = 6.0
"""Distance of a chain's mean from the median of the chains' means, in pooled standard deviations within chains, above
which the chain is lost."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the comparison found.

    Attributes:
        lost: Chains that are not samples of the posterior: stuck, failing, not finite, begun far in the tail, or apart
            from the others where the log density is far lower. A chain apart with as good a density may have found a
            mode or a tail that the others have not: that is reported, and nothing is replaced, which would bias.
        worst: Largest split R-hat over coordinates and log density.
        coordinate: The coordinate that has it; -1 for the log density.
        reasons: One sentence per finding.
        nonfinite: Whether a draw is NaN or infinite.
    """

    lost: tuple[int, ...]
    worst: float
    coordinate: int
    reasons: tuple[str, ...]
    nonfinite: bool = False

    @property
    def agree(self) -> bool:
        """Whether nothing was found."""
        return not self.reasons

    def describe(self, names: tuple[str, ...]) -> str:
        """The findings in words, for ``attrs`` and messages."""
        where = "the log density" if self.coordinate < 0 else names[self.coordinate]
        return f"Largest split R-hat {self.worst:.3g} ({where}). " + " ".join(self.reasons)


def compare(u: np.ndarray, stats: dict[str, np.ndarray], skip: int = 0) -> Verdict:
    """Compare chains.

    Args:
        u: Draws in unconstrained coordinates, shape ``(chains, draws, dim)``.
        stats: Statistics of the draws; ``lp`` and ``acceptance_rate`` are used where present.
        skip: Leading draws to leave out (a kept warm-up).
    """
    u = u[:, skip:]
    _, draws, dim = u.shape
    finite = np.isfinite(u).all((1, 2))
    if not finite.all():
        bad = tuple(int(c) for c in np.flatnonzero(~finite))
        return Verdict(bad, np.inf, 0, (f"Chains {list(bad)} have draws that are not finite.",), True)
    if draws < 20:
        return Verdict((), 1.0, 0, ())
    lp = stats["lp"][:, skip:, None] if "lp" in stats and np.isfinite(stats["lp"]).all() else None
    series = u if lp is None else np.concatenate([u, lp], -1)
    lost: set[int] = set()
    reasons = []
    stuck = np.flatnonzero((np.ptp(u, axis=1) == 0).any(-1)) if dim else np.array([], int)
    if len(stuck):
        lost |= set(stuck.tolist())
        reasons.append(f"Chains {stuck.tolist()} did not move in at least one coordinate.")
    if lp is not None and draws >= 100:
        early = _started_far(lp[..., 0])
        if len(early):
            lost |= set(early.tolist())
            reasons.append(
                f"The first draws of chains {early.tolist()} lie far in the tail: they began outside the typical set."
            )
    failing = _failing(stats, skip)
    if failing:
        lost |= set(failing)
        reasons.append(f"Chains {failing} reject or diverge nearly always: they are tuned for another place.")
    rhat = _split_rhat(series)
    worst = int(np.argmax(rhat)) if rhat.size else 0
    if draws >= FEWEST and rhat.size and rhat[worst] > RHAT_LIMIT:
        apart = _standing_apart(series)
        if lp is not None:
            lost |= set(_lower(lp[..., 0]))
        text = f"chains {sorted(apart)} stand apart from the others" if apart else "no chain can be singled out"
        reasons.append(f"The chains disagree: {text}.")
    coordinate = -1 if worst >= dim else worst
    return Verdict(tuple(sorted(lost)), float(rhat[worst]) if rhat.size else 1.0, coordinate, tuple(reasons))


def _failing(stats: dict[str, np.ndarray], skip: int) -> list[int]:
    """Chains that accept far less often than the median chain, or diverge in more than a fifth of their draws."""
    bad: set[int] = set()
    if "acceptance_rate" in stats:
        rate = stats["acceptance_rate"][:, skip:].mean(1)
        bad |= set(np.flatnonzero((rate < 0.4 * np.median(rate)) | (rate < 0.02)).tolist())
    if "diverging" in stats:
        often = stats["diverging"][:, skip:].mean(1)
        bad |= set(np.flatnonzero(often > 0.2).tolist())
    return sorted(bad)


def _split_rhat(series: np.ndarray) -> np.ndarray:
    half = series.shape[1] // 2
    parts = np.concatenate([series[:, :half], series[:, -half:]])
    means, variances = parts.mean(1), parts.var(1, ddof=1)
    within = variances.mean(0)
    between = half * means.var(0, ddof=1) if len(parts) > 1 else np.zeros_like(within)
    with np.errstate(divide="ignore", invalid="ignore"):
        rhat = np.sqrt((half - 1) / half + between / (half * within))
    return np.where(within > 0, rhat, np.where(between > 0, np.inf, 1.0))


def _standing_apart(series: np.ndarray) -> list[int]:
    """Chains far from the median chain; empty when half of them or more are (then nobody knows who is right)."""
    means = series.mean(1)
    scale = np.sqrt(np.median(series.var(1), 0))
    gap = np.abs(means - np.median(means, 0)) / np.where(scale > 0, scale, np.inf)
    limit = min(GAP_LIMIT, max(1.0, 0.5 * gap.max()))
    apart = np.flatnonzero(gap.max(-1) > limit).tolist()
    return apart if 2 * len(apart) < len(means) else []


def _lower(lp: np.ndarray) -> list[int]:
    """Chains that are nearly always below nearly everything that the best chain has seen."""
    best = int(np.argmax(np.median(lp, 1)))
    return np.flatnonzero(np.quantile(lp, 0.95, axis=1) < np.quantile(lp[best], 0.01)).tolist()


def _started_far(lp: np.ndarray) -> np.ndarray:
    """Chains whose first draws have a log density far below everything that follows."""
    cut = max(2, lp.shape[1] // 50)
    head, tail = lp[:, :cut], lp[:, cut:]
    spread = np.median(tail, 1) - tail.min(1)
    return np.flatnonzero(head.min(1) < tail.min(1) - 3 * spread - 10)
