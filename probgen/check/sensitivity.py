r"""Checks that weigh the draws anew: leave-one-out, and power-scaling of prior and likelihood.

Power-scaling (Kallioinen, Paananen, Bürkner and Vehtari 2024, Statistics and Computing 34:57) raises the prior, or the
likelihood, to a power :math:`\alpha` near 1, weighs the draws by :math:`p(x)^{\alpha - 1}`, and asks how far each
marginal moves: the sensitivity is the rate, per doubling of :math:`\alpha`, of the cumulative Jensen-Shannon distance
between the two distribution functions; 0.05 is worth knowing. The prior that is scaled is that of the latent sites
without latent parents (in the space in which they are written, no Jacobians): scaling what stands between the
top of a hierarchy and the data would change the model, not the prior.

Numbers agree with ``arviz_stats.psense`` (the tests compare them); ArviZ takes one quantity at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.typing import PRNGKey, Scalar, Values
from probgen.check.findings import Finding, Severity, listed, worst
from probgen.check.subject import Quantities, Subject
from probgen.check.tails import weights_k
from probgen.infer.replayed import Posterior, Replayed
from probgen.program.graph import graph_of
from probgen.program.model import Model
from probgen.program.observations import site_log_prob
from probgen.program.simulate import trace_forward
from probgen.program.sites import Kind
from probgen.run.compiled import compile_all

if TYPE_CHECKING:
    import xarray

__all__ = ["leave_one_out", "log_prior", "power_scaling", "scaling_sensitivity"]

ALPHAS = (0.99, 1.01)
SENSITIVE = 0.05
IN_THE_TAIL = 0.01
"""Prior probability beyond the posterior median below which the data have pulled a value into the tail of its prior."""
_BATCH = 256


def leave_one_out(subject: Subject) -> Iterator[Finding | str]:
    """Pareto k-hat of leave-one-out weights: observations without which the posterior would be another one."""
    terms = subject.log_likelihood
    if isinstance(terms, str):
        yield f"leave-one-out not possible ({terms})"
        return
    if terms is None or not subject.measurable:
        return
    observations = Quantities(terms)
    k: dict[str, float] = {}
    for which, x in observations.blocks():
        shapes = weights_k(-x.reshape(len(x), -1))
        k |= {observations.label(i): float(v) for i, v in zip(which, shapes, strict=True) if not np.isnan(v)}
    if not k:
        return
    limit = min(1 - 1 / np.log10(np.prod(subject.shape)), 0.7)
    high = worst({label: value for label, value in k.items() if value > limit}, largest=True)
    if not high:
        yield f"leave-one-out k-hat at most {max(k.values()):.2f}"
        return
    # In the tree, it is there to be used; else nobody has asked.
    given = "log_likelihood" in subject.tree.children
    yield Finding(
        Severity.warning if given else Severity.note,
        f"leave-one-out by importance sampling is unreliable for {len(high)} of {len(k)} observations (Pareto k-hat "
        f"above {limit:.2g})",
        listed(high, "{:.2f}"),
        "The posterior itself is not in doubt. These observations move it a lot: look whether they are outliers, or "
        "have a parameter each; refit without them, or leave out groups, to compare models.",
        "loo",
        tuple(label for label, _ in high),
    )


def power_scaling(subject: Subject) -> Iterator[Finding | str]:
    """Sensitivity to prior and likelihood, and conflict between them."""
    if not subject.measurable or not len(subject.quantities):
        return
    terms = subject.log_likelihood
    likelihood = None if terms is None or isinstance(terms, str) else summed(subject, terms)
    prior = None if likelihood is None else log_prior(subject)
    if likelihood is None or prior is None or not np.isfinite(prior).all():
        return
    which = subject.quantities.of(subject.latent_names())
    if not len(which):
        return
    by_prior, by_data = (
        np.concatenate([sensitivity(x.reshape(len(x), -1)) for _, x in subject.quantities.blocks(which)])
        for sensitivity in (scaling_sensitivity(prior), scaling_sensitivity(likelihood))
    )
    strong = np.flatnonzero(by_prior >= SENSITIVE)
    if not len(strong):
        yield f"prior sensitivity at most {np.nanmax(by_prior):.2g}"
        return
    strong = strong[np.argsort(-by_prior[strong])]
    label = {i: subject.quantities.label(which[i]) for i in strong}
    both = [i for i in strong if by_data[i] >= SENSITIVE]
    pulled = _pulled(subject, {label[i]: int(which[i]) for i in both})
    conflict = [i for i in both if label[i] in pulled]
    if conflict:
        yield Finding(
            Severity.warning,
            "prior-data conflict: the data pull these values into the tail of their prior, and both prior and "
            "likelihood decide where they end",
            listed([(label[i], f"{pulled[label[i]]} of the prior beyond") for i in conflict]),
            "Is the prior what you mean, in these units? Are the data what you think? If both, say so in a report.",
            "prior_data_conflict",
            tuple(label[i] for i in conflict),
        )
    for group, what, kind, advice in (
        (
            [i for i in both if i not in conflict],
            "the prior matters for these values, as well as the data",
            "informative_prior",
            "Fine where it is meant to; else see how the answer changes under another reasonable prior.",
        ),
        (
            [i for i in strong if i not in both],
            "strong prior or weak likelihood: the data hardly move these values",
            "weak_likelihood",
            "What is said of them is what the prior says.",
        ),
    ):
        if group:
            yield Finding(
                Severity.note,
                f"{what} (power-scaling sensitivity above {SENSITIVE})",
                listed([(label[i], f"prior {by_prior[i]:.2f}, likelihood {by_data[i]:.2f}") for i in group]),
                advice,
                kind,
                tuple(label[i] for i in group),
            )


# -- sensitivity -----------------------------------------------------------------------------------------------------


def scaling_sensitivity(component: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The power-scaling sensitivity of any quantities to one component of the posterior.

    Args:
        component: Log prior or log likelihood of each draw, shape ``(chains, draws)``.

    Returns:
        A function from draws, shape ``(quantities, chains * draws)``, to sensitivities, shape ``(quantities,)``.
    """
    from arviz_stats.base import array_stats

    if np.ptp(component) == 0:  # a flat prior, whose powers are all the same
        return lambda x: np.zeros(len(x))
    log_w = []
    for alpha in ALPHAS:
        try:
            w = array_stats.power_scale_lw(component, alpha=alpha, axis=(-2, -1))  # pyright: ignore[reportArgumentType]
            log_w.append(np.ravel(w))
        except ValueError:  # equal values have no tail to smooth
            log_w.append(np.ravel((alpha - 1) * (component - component.max())))
    scaled = [np.exp(one) for one in log_w]

    def sensitivity(x: np.ndarray) -> np.ndarray:
        order = np.argsort(x, axis=-1)
        steps = np.diff(np.take_along_axis(x, order, axis=-1), axis=-1)
        rates = []
        for alpha, w in zip(ALPHAS, scaled, strict=True):
            there = _distance(steps, w[order])
            back = _distance(steps[:, ::-1], w[order[:, ::-1]])
            rates.append(np.maximum(there, back) / abs(np.log2(alpha)))
        return np.mean(rates, axis=0)

    return sensitivity


def _distance(steps: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Cumulative Jensen-Shannon distance between equal weights and ``w``, of sorted draws that are ``steps`` apart."""
    draws = w.shape[-1]
    p = np.linspace(1 / draws, 1 - 1 / draws, draws - 1)
    q = (np.cumsum(w, axis=-1) / w.sum(-1, keepdims=True))[:, :-1]
    area_p, area_q = steps @ p, np.sum(steps * q, axis=-1)
    log_middle = np.log2((p + q) / 2)
    surplus = (area_q - area_p) / (2 * np.log(2))
    forward = np.sum(steps * p * (np.log2(p) - log_middle), axis=-1) + surplus
    backward = np.sum(steps * q * (np.log2(q, out=np.zeros_like(q), where=q > 0) - log_middle), axis=-1) - surplus
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt((np.maximum(forward, 0) + np.maximum(backward, 0)) / (area_p + area_q))


def log_prior(subject: Subject) -> np.ndarray | None:
    """Log prior of each draw, shape ``(chains, draws)``: that of the tree, else of the sites at the top of the
    model."""
    if "log_prior" in subject.tree.children:
        return summed(subject, subject.tree["log_prior"].to_dataset())
    if subject.model is None:
        return None
    names = _tops(subject.model)
    if not names:
        return None
    held = Replayed(subject.model, Posterior(subject.model, subject.tree), frozenset(), frozenset(), new=False).per_draw
    arguments = (subject.model.unlabelled(), {name: jnp.asarray(value) for name, value in held.items()}, names)
    (program,), _ = compile_all([(log_priors, arguments)])
    return np.asarray(program(*arguments)).reshape(subject.shape)


def _tops(model: Model) -> tuple[str, ...]:
    """Continuous latent sites none of whose ancestors is latent; learned ones, whose density may be missing or an
    integration, left out."""
    import networkx

    graph = graph_of(model)
    latent = {name for name, kind in graph.nodes(data="kind") if kind in (Kind.continuous.name, Kind.discrete.name)}
    return tuple(
        site.name
        for site in model.of_kind(Kind.continuous)
        if site.name in graph and site.noise is None and not latent & networkx.ancestors(graph, site.name)
    )


def log_priors(model: Model, values: Values, names: tuple[str, ...]) -> Array:
    """Log prior density of some sites, summed, at each draw of all latent sites (leading axis); constrained space."""
    kept = frozenset(site.name for site in model.of_kind(Kind.observed))
    key: PRNGKey = jax.random.key(0)  # every latent site is held, so that nothing is drawn

    def one(held: Values) -> Scalar:
        sites = trace_forward(model, key, held, kept)
        return sum((jnp.sum(site_log_prob(sites[name])) for name in names), jnp.zeros(()))

    return jax.lax.map(one, values, batch_size=_BATCH)


def summed(subject: Subject, terms: xarray.Dataset) -> np.ndarray | None:
    """The sum over all variables and entries at each draw, shape ``(chains, draws)``; ``None`` where some are not
    finite, or not by draw."""
    variables = Quantities(terms).variables if {"chain", "draw"} <= set(terms.dims) else {}
    if not variables or len(variables) < len(terms.data_vars):
        return None
    rows = [values.reshape(*subject.shape, -1).sum(-1) for values in variables.values()]
    return np.sum(rows, axis=0, dtype=float)


def _pulled(subject: Subject, which: dict[str, int]) -> dict[str, str]:
    """Values whose posterior median lies in the tail of their prior, with the prior probability beyond it in words."""
    if not which or subject.prior is None:
        return {}
    known = subject.prior.index()
    pulled = {}
    for label, index in which.items():
        if label in known:
            middle = np.median(subject.quantities.take(np.array([index])))
            before = subject.prior.take(np.array([known[label]]))
            beyond = float(min(np.mean(before <= middle), np.mean(before >= middle)))
            if beyond < IN_THE_TAIL:
                pulled[label] = f"{100 * beyond:.2g} %" if beyond else f"less than {100 / before.size:.2g} %"
    return pulled
