"""Signs of an improper posterior: draws that wander off, or run away, instead of coming back.

Where a posterior has no finite integral there is nothing to converge to. On a flat ridge chains walk at random, ever
further; where the density only stays level towards infinity, they run there, each at its own pace.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from probgen.check.convergence import RHAT_WRONG
from probgen.check.findings import Finding, Severity, listed
from probgen.check.subject import Subject

__all__ = ["drifting", "wandering"]

DRIFT_LIMIT = 3.0
"""Random walks exceed it with probability 0.95, stationary chains of ten correlation times with 0.06, of twenty hardly
ever."""
DRIFT_ESS = 25
"""Effective draws per chain, as the chain itself would say, above which nothing is said to drift."""
FEWEST_DRAWS = 40
FAR = 1e8
APART = 10.0
"""Values run away where chains disagree, one is typically beyond ``FAR`` from 0, and another less far by this
factor."""
_SHOWN = 3


def wandering(subject: Subject) -> np.ndarray:
    """Indices of the quantities that wander off or run away, worst first.

    They wander where the mean square of how far they move in half a run exceeds that in a sixteenth of it
    ``DRIFT_LIMIT`` times: a chain that forgets its past within a sixteenth of the run moves equally far in both.
    """
    if subject.independent or not subject.measurable or subject.shape[1] < FEWEST_DRAWS:
        return np.zeros(0, int)
    mixing = subject.mixing
    slow = mixing.ess_within < DRIFT_ESS * subject.shape[0]
    disagree = mixing.rhat > RHAT_WRONG
    off = disagree & slow & (mixing.drift > DRIFT_LIMIT)
    for which, x in subject.quantities.blocks(np.flatnonzero(disagree & ~off & (np.abs(mixing.mean) > FAR / APART))):
        typical = np.median(np.abs(x), axis=-1)
        off[which] = (typical.max(-1) > FAR) & (typical.max(-1) > APART * typical.min(-1))
    found = np.flatnonzero(off)
    return found[np.argsort(-mixing.drift[found])]


def drifting(subject: Subject) -> Iterator[Finding | str]:
    """Draws that wander off, with the improper priors that are to blame where the model is known."""
    quantities = subject.quantities
    found = wandering(subject)
    if not len(found):
        return
    labels = [quantities.label(i) for i in found]
    ranges = [quantities.take(found[i : i + 1]) for i in range(min(_SHOWN, len(found)))]
    shown = [f"from {x.min():.2g} to {x.max():.2g}" for x in ranges]
    sites = () if subject.model is None else subject.model.sites
    improper = {site.name for site in sites if not site.proper}
    # What ran off to infinity is no longer among the quantities.
    guilty = sorted(improper & {*(quantities.names[i] for i in quantities.owner[found]), *subject.nonfinite})
    if guilty:
        advice = "Give it a proper prior: the posterior has no finite integral, and no sampler can draw from it."
    elif subject.model is not None and not improper:
        advice = (
            "Every prior is proper, so the posterior most likely is: warm up and draw far longer, or reparameterise. "
            "A numpyro.factor that grows without bound would still make it improper."
        )
    else:
        advice = (
            "Look for improper or extremely wide priors, and parameters that the likelihood leaves free: the "
            "posterior may have no finite integral. Else warm up and draw far longer."
        )
    yield Finding(
        Severity.error,
        f"{len(found)} of {len(quantities)} values wander off and do not come back within the run, a sign of an "
        f"improper posterior{f'; improper prior: {", ".join(guilty)}' if guilty else ''}",
        listed([*zip(labels, shown, strict=False), *((label, "") for label in labels[_SHOWN:])]),
        advice,
        "improper",
        tuple(labels),
    )
