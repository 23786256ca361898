"""Checks of the shape of a posterior, as far as draws show it: separate modes, exchanged labels, heavy tails,
combinations that the data do not tell apart."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from probgen.check.convergence import RHAT_WRONG
from probgen.check.drift import wandering
from probgen.check.findings import Finding, Severity, listed, worst
from probgen.check.mixing import rhat
from probgen.check.subject import Quantities, Subject
from probgen.check.tails import LEAST, pareto_k, tail_length

__all__ = ["heavy_tails", "modes", "ridges", "switched_labels"]

MOST_LOOKED_AT = 2000
"""Quantities that disagree, or may be collinear, of which more are not looked at one by one."""
MOST_LABELS = 200
HEAVY_K = 0.7
INFINITE_MEAN_K = 1.0
LEAST_TAIL = 20
"""Effective draws in a tail, below which its shape is noise."""
COLLINEAR = 0.99


def modes(subject: Subject) -> Iterator[Finding | str]:
    """Groups of chains that share no ground: each half of every chain in its group's place, and a gap between.

    Places are apart in a quantity when the central 80 % of the draws of one lie all below those of the other.
    """
    chains, draws = subject.shape
    if subject.independent or not subject.measurable or chains < 2 or draws < 20:
        return
    disagree = np.setdiff1d(np.flatnonzero(subject.mixing.rhat > RHAT_WRONG), wandering(subject))[:MOST_LOOKED_AT]
    found: list[tuple[int, np.ndarray, np.ndarray]] = []
    for which, x in subject.quantities.blocks(disagree):
        half = x.shape[-1] // 2
        parts = np.stack([x[..., :half], x[..., half:]], axis=-2)  # (quantities, chains, 2, half)
        low, middle, high = np.quantile(parts, [0.1, 0.5, 0.9], axis=-1)
        places = _places(low.min(-1), high.max(-1))
        still = (np.ptp(x, axis=-1) == 0).any(-1)  # chains that do not move are found elsewhere
        for i in np.flatnonzero((places.max(-1) > 0) & ~still):
            found.append((int(which[i]), places[i], middle[i].mean(-1)))
    if not found:
        return
    together = np.unique(np.stack([places for _, places, _ in found], axis=1), axis=0, return_inverse=True)[1].ravel()
    groups = [np.flatnonzero(together == g) for g in dict.fromkeys(together)]
    named = " | ".join(f"chains {', '.join(map(str, g))}" if len(g) > 1 else f"chain {g[0]}" for g in groups)
    behind = _behind(subject.stat("lp"), groups)
    gap = [np.ptp(middle) / subject.mixing.sd[i] for i, _, middle in found]
    items = [
        (subject.quantities.label(i), " | ".join(f"{np.median(middle[g]):.3g}" for g in groups))
        for i, _, middle in (found[j] for j in np.argsort(gap)[::-1])
    ]
    if behind:
        height = f"; the log density is far lower in {' and '.join(map(_chain, behind))}"
        advice = (
            "Another seed, or more warm-up: that place is a minor mode, or a chain that has not arrived. Do not drop "
            "it before you know which."
        )
    else:
        height = ""
        advice = (
            "The posterior has several modes, and how many chains sit in each says nothing of their weights. Where "
            "one solution is told several times (labels, signs), order or fix it in the model; else run a method that "
            "crosses between modes, and report the modes apart."
        )
    yield Finding(
        Severity.error,
        f"multimodal: the chains sit in {len(groups)} separate places ({named}), which none of them leaves{height}",
        listed(items),
        advice,
        "multimodality",
        tuple(label for label, _ in items),
    )


def _places(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Number the separate places in which chains sit, from below; ranges ``(quantities, chains)``."""
    order = np.argsort(low, axis=-1)
    low, high = np.take_along_axis(low, order, -1), np.take_along_axis(high, order, -1)
    reach = np.maximum.accumulate(high, axis=-1)
    apart = np.concatenate([np.zeros((len(low), 1), int), low[:, 1:] > reach[:, :-1]], axis=-1)
    places = np.empty(order.shape, int)
    np.put_along_axis(places, order, np.cumsum(apart, axis=-1), -1)
    return places


def _behind(lp: np.ndarray | None, groups: list[np.ndarray]) -> list[int]:
    """Chains that are nearly always below nearly everything that the best group has seen."""
    if lp is None or not np.isfinite(lp).all():
        return []
    best = max(groups, key=lambda g: float(np.median(lp[g])))
    floor = np.quantile(lp[best], 0.01)
    return [int(c) for g in groups if g is not best for c in g if np.quantile(lp[c], 0.95) < floor]


def _chain(index: int) -> str:
    return f"chain {index}"


def switched_labels(subject: Subject) -> Iterator[Finding | str]:
    """Variables whose entries disagree between chains, but agree once they are sorted: exchanged labels."""
    if subject.independent or not subject.measurable or subject.shape[0] < 2:
        return
    quantities, disagree = subject.quantities, subject.mixing.rhat > RHAT_WRONG
    switched = []
    for position in np.unique(quantities.owner[disagree]):
        name = quantities.names[position]
        values = quantities.variables[name]
        if values.dtype.kind != "f":
            continue
        for axis in range(2, values.ndim):
            if not 2 <= values.shape[axis] <= MOST_LABELS or values[0, 0].size > MOST_LOOKED_AT:
                continue
            ordered = np.sort(values, axis=axis).reshape(*values.shape[:2], -1)
            if np.nanmax(rhat(np.moveaxis(ordered, -1, 0))) < 1 + (RHAT_WRONG - 1) / 2:
                switched.append(name)
                break
    if switched:
        of = quantities.owner[disagree]
        labels = [
            quantities.label(i)
            for i, owner in zip(np.flatnonzero(disagree), of, strict=True)
            if quantities.names[owner] in switched
        ]
        yield Finding(
            Severity.error,
            "label switching: the chains agree once the entries of a draw are sorted, so the model does not tell "
            "these entries apart",
            ", ".join(switched),
            "Give the labels a meaning in the model (an ordered support, such as OrderedTransform, or different "
            "priors), or summarise only what does not depend on labels.",
            "label_switching",
            tuple(labels),
        )


def heavy_tails(subject: Subject) -> Iterator[Finding | str]:
    """Pareto k-hat of the draws themselves: above 0.7 averages are useless in practice, from 1 there is no mean."""
    if not subject.measurable:
        return
    mixing, quantities = subject.mixing, subject.quantities
    total = subject.shape[0] * subject.shape[1]
    share = np.clip(np.fmin(mixing.ess_tail, mixing.ess_mean) / total, 0.0, 1.0)
    # Tails of correlated draws must be longer to hold as much; lengths in steps, to fit many tails at once.
    step = np.ceil(-np.log2(np.maximum(share, 1e-6)) - 1e-9)
    k = np.full(len(quantities), np.nan)
    for one in np.unique(step):
        length = tail_length(total, 2.0**-one)
        if length * 2.0**-one < LEAST_TAIL or length < LEAST:
            continue
        for which, x in quantities.blocks(np.flatnonzero((step == one) & quantities.is_float())):
            k[which] = pareto_k(x.reshape(len(x), -1), length)
    heavy = np.flatnonzero(k > HEAVY_K)
    if not len(heavy):
        if np.isfinite(k).any():
            yield f"tails light enough for means (k-hat at most {np.nanmax(k):.2f})"
        return
    items = worst({quantities.label(i): float(k[i]) for i in heavy}, largest=True)
    mean = items[0][1] >= INFINITE_MEAN_K
    yield Finding(
        Severity.warning,
        f"heavy tails in {len(heavy)} of {len(quantities)} values (Pareto k-hat of the draws above {HEAVY_K}): "
        f"{'the mean may not exist' if mean else 'the mean is unreliable, and the variance may be infinite'}",
        listed(items, "{:.2f}"),
        "Report medians and quantiles, not means and sds; if such tails make no sense, use a prior with lighter ones.",
        "heavy_tails",
        tuple(label for label, _ in items),
    )


def ridges(subject: Subject) -> Iterator[Finding | str]:
    """Pairs of values that are known only in combination: nearly collinear draws.

    With a group ``prior`` (or a model that can be simulated) it is also seen whether the data say anything about each
    by itself.
    """
    quantities = subject.quantities
    if not subject.measurable:
        return
    agree = ~(subject.mixing.rhat > RHAT_WRONG)  # between places that chains never leave, any two values correlate
    which = np.intersect1d(np.flatnonzero(quantities.is_float() & agree), quantities.of(subject.latent_names()))
    if not 2 <= len(which) <= MOST_LOOKED_AT:
        return
    x = np.concatenate([block.reshape(len(block), -1) for _, block in quantities.blocks(which)])
    x = x - x.mean(-1, keepdims=True)
    x /= np.sqrt((x**2).sum(-1, keepdims=True))
    r = np.triu(x @ x.T, 1)
    close = (np.abs(r) > COLLINEAR) & (np.abs(r) < 1 - 1e-9)  # what is equal is one thing told twice
    pairs = np.argwhere(close)
    if not len(pairs):
        return
    pairs = pairs[np.argsort(-np.abs(r[tuple(pairs.T)]))]
    label = {i: quantities.label(which[i]) for i in np.unique(pairs)}
    known = subject.prior is not None
    free = _uninformed(subject, [label[i] for i in np.unique(pairs)])
    loose = [(i, j) for i, j in pairs if label[i] in free and label[j] in free]
    if loose:
        names = dict.fromkeys(label[i] for pair in loose for i in pair)
        yield Finding(
            Severity.warning,
            "not identified: the data say almost nothing of these values one by one, only of their combination",
            listed([(f"{label[i]}, {label[j]}", f"correlation {r[i, j]:.5f}") for i, j in loose]),
            "Fix one of them or sum them into one parameter, or give them informative priors: by themselves they are "
            "as wide as their priors.",
            "not_identified",
            tuple(names),
        )
    rest = [(i, j) for i, j in pairs if (i, j) not in loose]
    if rest:
        names = dict.fromkeys(label[i] for pair in rest for i in pair)
        yield Finding(
            Severity.note,
            f"{len(rest)} {'pairs of values are' if len(rest) > 1 else 'pair of values is'} nearly collinear: the "
            f"combination is known far better than each",
            listed([(f"{label[i]}, {label[j]}", f"correlation {r[i, j]:.5f}") for i, j in rest]),
            "Harmless where the sampler copes; centred predictors help it, and the reader. "
            + ("" if known else "pg.check(tree, model) tells whether the data know each by itself."),
            "collinear",
            tuple(names),
        )


def _uninformed(subject: Subject, labels: list[str]) -> set[str]:
    """Which of these values have a posterior at least half as wide as their prior."""
    prior, posterior = subject.prior, subject.quantities
    if prior is None:
        return set()
    before, now = prior.index(), posterior.index()

    def width(quantities: Quantities, i: int) -> float:
        return float(np.subtract(*np.quantile(quantities.take(np.array([i])), [0.75, 0.25])))

    known = [label for label in labels if label in before]
    return {label for label in known if width(posterior, now[label]) > 0.5 * width(prior, before[label])}
