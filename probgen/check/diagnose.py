"""Every sign that a result must not be trusted, with what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from probgen.base.errors import ModelError
from probgen.check.approximation import approximation, ended, evidence, particles, weights
from probgen.check.convergence import agreement, digits, finite, information, moved, stood_still
from probgen.check.drift import drifting
from probgen.check.findings import Finding, Findings
from probgen.check.geometry import heavy_tails, modes, ridges, switched_labels
from probgen.check.hamiltonian import depth, divergences, energy
from probgen.check.sensitivity import leave_one_out, power_scaling
from probgen.check.subject import Subject
from probgen.program.model import Model

if TYPE_CHECKING:
    import xarray

__all__ = ["CHECKS", "diagnose"]

type Check = Callable[[Subject], Iterator[Finding | str]]
"""Yields what it found, or a phrase for what it looked at and is fine."""

CHECKS: tuple[Check, ...] = (
    ended,
    approximation,
    weights,
    particles,
    finite,
    moved,
    switched_labels,
    modes,
    drifting,
    agreement,
    information,
    stood_still,
    divergences,
    depth,
    energy,
    heavy_tails,
    ridges,
    digits,
    evidence,
    leave_one_out,
    power_scaling,
)
"""In the order in which a result is read: causes before the numbers that they spoil."""


def diagnose(tree: xarray.DataTree, model: Model | None = None) -> Findings:
    """Look for signs that a result must not be trusted.

    Checked, where the tree has what it takes: how the run ended, finite values, chains that did not move or stood
    still, rank-normalised R-hat, separate modes, exchanged labels, draws that wander off (an improper posterior), bulk
    and tail effective sample sizes, Monte Carlo error, divergences and where they are, tree depth, E-BFMI, heavy tails,
    collinear values; of approximations and weighted draws Pareto k-hat, the weights and the error of the evidence;
    with a group ``log_likelihood`` leave-one-out; with ``log_prior`` too, power-scaling sensitivity.

    None of them can prove that a result is right. A program that says something else than its author means (a wrong
    Jacobian in a ``numpyro.factor``, say) has a posterior of its own, from which samplers draw in perfect health:
    simulation-based calibration finds that, this function cannot.

    Args:
        tree: What ``pg.infer`` returned, or any DataTree whose ``posterior`` has the dims ``chain`` and ``draw``, also
            one that was read from a file or made by another library. It is not changed.
        model: The model that was fitted. With it, log likelihood, log prior and prior draws are computed where the tree
            has none, for leave-one-out, power-scaling, prior-data conflict and identification; deterministic sites are
            told from latent ones. Compiles two or three small programs.

    Returns:
        The findings, worst first; empty when all is well.

    Raises:
        DataError: If the tree has no posterior draws.
        ModelError: If ``model`` is not a model.
        MethodError: If the posterior lacks a latent site of the model.
    """
    if model is not None and not isinstance(model, Model):
        raise ModelError(f"model must be a pg.Model, got {type(model).__name__}. Pass the model that was fitted.")
    subject = Subject(tree, model)
    found: list[Finding] = []
    fine: list[str] = []
    for check in CHECKS:
        for said in check(subject):
            if isinstance(said, Finding):
                found.append(said)
            else:
                fine.append(said)
    return Findings(found, fine, str(subject.attrs.get("approximate", "")))
