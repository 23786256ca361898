"""The report: one HTML file that tells a colleague whether a result can be used, and why.

The file holds everything it shows: no font, script, style or picture is fetched, which its own content security policy
makes the browser enforce. The one script in it sorts and filters tables; without it the page says the same.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probgen.base.errors import DataError, ModelError
from probgen.check.diagnose import diagnose
from probgen.program.model import Model
from probgen.program.sites import Kind
from probgen.run.output import check_writable, write_whole

if TYPE_CHECKING:
    import xarray

    from probgen.causal.sensitivity import Sensitivity
    from probgen.report.draws import Draws
    from probgen.report.page import Block, Section, Verdict

__all__ = ["report"]


def report(
    tree: xarray.DataTree | Sequence[xarray.DataTree] | Mapping[str, xarray.DataTree] | Sensitivity,
    path: str | Path = "report.html",
    *,
    model: Model | Sequence[Model] | None = None,
    sensitivity: Sensitivity | None = None,
    title: str = "",
    seed: int = 0,
) -> Path:
    """Write a report on a result, or on several side by side, as one HTML file that needs no network.

    On top stands a verdict with its reasons. Then come findings and what to do about them, the model, priors against
    posteriors, a table of all numbers, traces and ranks of what mixed worst, pairs, energies, predictions beside the
    data, leave-one-out, settings, and the call that makes the result anew. Each part says how to read it, and a part
    whose ingredients are missing says which.

    Args:
        tree: What ``pg.infer`` returned, or any DataTree with a ``posterior``. A list or a mapping of several gives a
            comparison: shared entries, scores of prediction, findings and settings side by side. What
            ``pg.causal.sensitivity`` returned gets a page of its own.
        path: The file, ``.html``. It appears whole or not at all.
        model: The model that was fitted; for several trees, one model for all or a list with one for each. With it the
            report has the graph, and what the tree lacks: prior draws, predictions, log likelihoods.
        sensitivity: What ``pg.causal.sensitivity`` returned, to be added to the report.
        title: Heading. Default: the name of the program.
        seed: For the draws from the prior and the predictive distribution.

    Returns:
        The path.

    Raises:
        StoreError: If the file cannot be written; nothing is computed then, and nothing left behind.
        DataError: If a tree has no posterior draws of numbers, or there is no tree.
        ModelError: If a model is none, or none of its latent sites is in the posterior.
    """
    from probgen.causal.sensitivity import Sensitivity
    from probgen.report.sensitivity import sensitivity_sections, sensitivity_verdict

    path = check_writable(path, ".html")
    if sensitivity is not None and not isinstance(sensitivity, Sensitivity):
        raise DataError(
            f"sensitivity must be what pg.causal.sensitivity returned, got {type(sensitivity).__name__}. Call it first."
        )
    if isinstance(tree, Sensitivity):
        if sensitivity is not None:
            raise DataError("tree is a sensitivity analysis already. Leave out sensitivity, or write two reports.")
        alone = sensitivity_sections(tree)
        heading = title or f"Sensitivity of the {tree.heading}"
        subtitle = "How strong would a hidden confounder have to be?"
        page = _rendered(heading, subtitle, sensitivity_verdict(tree), None, alone)
        write_whole(path, [page.encode()])
        return path
    several = _named(tree)
    models = _models(model, several)
    if len(several) == 1:
        parts = _single(several[0], models[0], seed)
        heading = title or _heading(models[0], several[0])
    else:
        parts = _several(several, models)
        heading = title or f"{len(several)} results side by side"
    if sensitivity is not None:
        parts[3].extend(sensitivity_sections(sensitivity))
    page = _rendered(heading, *parts)
    write_whole(path, [page.encode()])
    return path


def _named(tree: Any) -> list[Draws]:
    """The results with the names that they have in a comparison."""
    from probgen.report.draws import Draws

    if hasattr(tree, "children"):
        return [Draws(tree)]
    if isinstance(tree, Mapping):
        named = [(str(name), one) for name, one in tree.items()]
    elif isinstance(tree, Sequence) and not isinstance(tree, str):
        labels = [str(getattr(one, "attrs", {}).get("method", "result")) for one in tree]
        unique = len(set(labels)) == len(labels)
        named = [
            (label if unique else f"{i + 1}: {label}", one)
            for i, (label, one) in enumerate(zip(labels, tree, strict=True))
        ]
    else:
        raise DataError(f"tree must be a DataTree or several, got {type(tree).__name__}. Pass what pg.infer returned.")
    if not named:
        raise DataError("there is no tree to report on. Pass what pg.infer returned.")
    return [Draws(one, name) for name, one in named]


def _models(model: Any, several: list[Draws]) -> list[Model | None]:
    models = list(model) if isinstance(model, Sequence) else [model] * len(several)
    if len(models) != len(several):
        raise ModelError(f"there are {len(several)} trees and {len(models)} models. Pass one model for each, or one.")
    for one, draws in zip(models, several, strict=True):
        if one is None:
            continue
        if not isinstance(one, Model):
            raise ModelError(
                f"model must be a pg.Model, got {type(one).__name__}. Wrap the program: pg.Model(program, data=...)."
            )
        latent = {site.name for site in one.of_kind(Kind.continuous, Kind.discrete)}
        if latent and not latent & set(draws.arrays):
            raise ModelError(
                f"none of the model's latent sites ({', '.join(sorted(latent))}) is in the posterior, which has "
                f"{', '.join(sorted(draws.arrays))}. Pass the model that was fitted."
            )
    return models


def _heading(model: Model | None, draws: Draws) -> str:
    if model is not None:
        name = getattr(model.program, "__name__", "")
        if name not in ("", "<lambda>", "model", "program"):
            return name.replace("_", " ").capitalize()
    return f"Posterior of {', '.join(list(draws.arrays)[:4])}{', …' if len(draws.arrays) > 4 else ''}"


type _Parts = tuple[str, Verdict, Block | None, list[Section]]


def _single(draws: Draws, model: Model | None, seed: int) -> _Parts:
    from probgen.report import particles, predictive, record, sections

    found = diagnose(draws.tree, model)
    parts = [
        sections.findings(found),
        sections.model(model),
        sections.priors(draws, model, seed),
        sections.summary(draws, found),
        sections.chains(draws),
        sections.pairs(draws, found),
        sections.energy(draws),
        *([particles.particles(draws)] if "particles" in draws.tree.children else []),
        predictive.predictions(draws, model, seed),
        predictive.leave_one_out(draws, model),
        record.settings(draws),
        record.again(draws, model),
    ]
    return record.described(draws), sections.verdict(draws, found), sections.facts(draws), parts


def _several(several: list[Draws], models: list[Model | None]) -> _Parts:
    from probgen.report import comparison, sections

    found = [diagnose(draws.tree, model) for draws, model in zip(several, models, strict=True)]
    parts = comparison.compared(several, found, models)
    same = models[0] is not None and all(model is models[0] for model in models)
    if same:
        parts.insert(3, sections.model(models[0]))
    return ", ".join(draws.name for draws in several), comparison.overall(several, found), None, parts


# -- the file --------------------------------------------------------------------------------------------------------


def _rendered(heading: str, subtitle: str, verdict: Verdict, facts: Block | None, parts: list[Section]) -> str:
    import jinja2
    from markupsafe import Markup

    from probgen.report.draws import printable

    here = resources.files("probgen.report")
    style, script, template = (
        here.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "report.js", "report.html.jinja")
    )
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    made = datetime.datetime.now(datetime.UTC)
    page = environment.from_string(template).render(
        heading=heading,
        subtitle=subtitle,
        verdict=verdict,
        facts=facts,
        sections=parts,
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        made=f"{made:%Y-%m-%d %H:%M} UTC",
        versions=", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("probgen", "arviz")),
    )
    return printable(page)
