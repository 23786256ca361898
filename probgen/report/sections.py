"""The sections of the report on one result, in words and numbers; ``figures`` draws.

A section whose ingredients are missing says so in a sentence. So does one that fails: a report is read when something
is wrong, and one broken part must not take the others away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.base.errors import ProbgenError
from probgen.base.palette import ACCENT
from probgen.report import figures
from probgen.report.draws import ESS_PER_CHAIN, GOOD_K, INTERVAL, RHAT_STEP, Draws, number, printable
from probgen.report.page import (
    NONE,
    TIMES,
    Block,
    Code,
    Facts,
    Item,
    Items,
    Legend,
    Note,
    Panels,
    Picture,
    Section,
    Table,
    Verdict,
)
from probgen.report.style import drawing, inline, series

if TYPE_CHECKING:
    from probgen.check.findings import Findings
    from probgen.program.model import Model

__all__ = [
    "Missing",
    "chains",
    "energy",
    "facts",
    "findings",
    "guarded",
    "model",
    "pairs",
    "priors",
    "summary",
    "verdict",
]

_ROWS = 2000
"""Rows of the table of entries; more make the page slow."""
_PRIORS, _WORST, _PAIRED = 12, 6, 4
_SHAPES = ("divergences", "multimodality", "label_switching", "not_identified", "collinear", "heavy_tails")
"""Kinds of findings that a picture of two entries can explain."""
_PRIOR_DRAWS = 1000
_PERCENT = f"{100 * INTERVAL:.0f} %"


class Missing(Exception):
    """Why a section has nothing to show, in a sentence for the reader."""


def guarded(key: str, title: str, about: str, build: Callable[[], Sequence[Block]]) -> Section:
    """A section, or the sentence that says why there is none."""
    try:
        return Section(key, title, about, build())
    except (Missing, ProbgenError) as reason:
        return Section(key, title, missing=str(reason))
    except Exception as error:
        text = f"This part could not be made ({type(error).__name__}: {error}). The others do not depend on it."
        return Section(key, title, missing=text)


# -- what to make of it ----------------------------------------------------------------------------------------------


def verdict(draws: Draws, found: Findings) -> Verdict:
    """May the result be used? Only as good as what was checked, and it says what that was."""
    errors = [finding for finding in found if finding.severity.name == "error"]
    warnings = [finding for finding in found if finding.severity.name == "warning"]
    unknown = _unjudged(draws)
    reasons = [(_capital(f.what), f.where) for f in (errors or warnings)]
    if errors:
        return Verdict("bad", "Do not use", reasons, found.caveat)
    if warnings or unknown:
        return Verdict("look", "Look before using", [*reasons, *((text, "") for text in unknown)], found.caveat)
    return Verdict("good", "Good to use", [(_capital(f"{'; '.join(found.checked)}."), "")], found.caveat)


def _unjudged(draws: Draws) -> list[str]:
    """What stays unknown because the run did not show it."""
    if draws.independent:
        unknown = "How far the approximation is from the posterior was not measured."
        return [] if draws.pareto_k is not None else [unknown]
    if draws.chains == 1 and draws.attrs.get("method") != "exact":
        return ["There is one chain only, so nothing shows whether another one would agree."]
    return []


def facts(draws: Draws) -> Facts:
    """The numbers that people ask for first."""
    attrs = draws.attrs
    shown = [("draws", f"{draws.chains} {TIMES} {draws.draws:,}", f"chains {TIMES} draws")]
    shown.append(("entries", f"{len(draws.labels):,}", f"numbers in {len(draws.arrays)} variables"))
    if draws.mixing is not None:
        shown.append(("largest R-hat", f"{draws.mixing[0]:.3f}", f"good: about {1 + RHAT_STEP} or less"))
        shown.append(("smallest ESS", f"{draws.mixing[1]:,.0f}", f"good: at least {ESS_PER_CHAIN * draws.chains:,}"))
    if draws.pareto_k is not None:
        shown.append(("Pareto k-hat", number(draws.pareto_k, 1.0), f"good: at most {GOOD_K}"))
    if draws.weight_ess is not None:
        shown.append(("worth of the weighted draws", f"{draws.weight_ess:,.0f}", "unweighted draws"))
    if draws.diverging is not None:
        shown.append(("divergences", f"{int(draws.diverging.sum()):,}", "good: none"))
    seconds = [float(v) for k, v in attrs.items() if k.startswith("seconds_")]
    if seconds:
        shown.append(("time", f"{sum(seconds):,.1f} s", "compilation included"))
    if "log_evidence" in attrs:
        se = attrs.get("log_evidence_se")
        remark = f"standard error {float(se):.2g}" if se is not None else ""
        shown.append(("log evidence", number(float(attrs["log_evidence"]), 1.0), remark))
    return Facts(shown)


def findings(found: Findings) -> Section:
    """Everything that was found, with what to do."""
    about = (
        "What the automatic checks found, worst first, and what to do about each. No check can prove a result right."
    )
    items = [Item(f.severity.name, _capital(f.what), f.where, f.advice) for f in found]
    return Section("findings", "Findings", about, [Items(items, [_capital(fine) for fine in found.checked])])


# -- the model -------------------------------------------------------------------------------------------------------


def model(given: Model | None) -> Section:
    """The graph, the sites and the program."""
    about = (
        "What the result assumes. An arrow means that one quantity is computed from another; shaded quantities were "
        "observed, dashed ones are computed, and a box repeats what it holds."
    )

    def build() -> list[Block]:
        if given is None:
            raise Missing("No model was passed, so there is no graph. Pass it: pg.report(tree, path, model=model).")
        with drawing():
            figure = given.draw()
            width = float(figure.get_size_inches()[0])
            names = ", ".join(site.name for site in given.sites)
            graph = Picture(inline(figure, f"Directed graph of the model, with the sites {names}."))
        header = ("site", "kind", "distribution", "support", "shape", "dims")
        rows = [
            (s.name, s.kind.value, s.distribution, s.support, f" {TIMES} ".join(map(str, s.shape)), ", ".join(s.dims))
            for s in given.sites
        ]
        blocks: list[Block] = [Panels([graph], min(int(96 * width), 900), scroll=True)]
        blocks.append(Table(header, rows, "Sites of the program, in order of execution", numbers=False))
        source = _source(given.program)
        return [*blocks, Code(source, "The program")] if source else blocks

    return guarded("model", "Model", about, build)


def _source(program: Any) -> str:
    import inspect
    import textwrap

    try:
        return textwrap.dedent(inspect.getsource(inspect.unwrap(program)))
    except (OSError, TypeError):  # a program made at a prompt, or a callable object
        return ""


def priors(draws: Draws, given: Model | None, seed: int) -> Section:
    """Priors against posteriors."""
    about = (
        "What was believed before seeing the data, and after. A posterior that is narrower than its prior has learnt "
        "from the data; where the two coincide the data said nothing; a posterior in the tail of its prior means that "
        f"prior and data disagree. Below each: where {_PERCENT} of it lies, before → after."
    )

    def build() -> list[Block]:
        if "prior" in draws.tree.children:
            prior, told = draws.tree["prior"].to_dataset(), "The prior is the one that the result holds."
        elif given is None:
            raise Missing("The result holds no prior draws and no model was passed, so the prior is not known here.")
        else:
            from probgen.infer.predict import simulate

            tree = simulate(given, _PRIOR_DRAWS, seed=seed, progress=False)
            if "prior" not in tree.children:
                raise Missing("The model has no latent site with a prior to draw from.")
            prior, told = tree["prior"].to_dataset(), f"Priors are shown by {_PRIOR_DRAWS:,} draws from the model."
        entries = [
            index
            for index in draws.main(len(draws.labels))
            if (name := draws.places[index][0]) in prior
            and prior[name].size == prior.sizes["chain"] * prior.sizes["draw"] * draws.arrays[name].shape[-1]
        ]
        if not entries:
            raise Missing("No entry of the posterior has a prior of the same shape.")
        chosen = [index for index in draws.main(_PRIORS) if index in set(entries)] or entries[:_PRIORS]
        legend = Legend([(figures.PRIOR, "prior"), (figures.POSTERIOR, "posterior")])
        more = f" {len(chosen)} of {len(entries):,} entries are shown." if len(chosen) < len(entries) else ""
        return [legend, Panels(figures.priors(draws, prior, chosen), 250), Note(f"{told}{more} {draws.note}".strip())]

    return guarded("priors", "Priors and posteriors", about, build)


# -- the numbers -----------------------------------------------------------------------------------------------------


def summary(draws: Draws, found: Findings) -> Section:
    """The table of all entries."""
    has_chains = "r_hat" in draws.summary
    about = f"Every number of the posterior: its mean, its standard deviation, and where {_PERCENT} of it lies."
    if has_chains:
        about += (
            " R-hat compares the chains, and above 1.01 they have not mixed. ESS says how many independent draws the "
            "chains are worth, for means (bulk) and for intervals (tail). MCSE is the error of the simulation: digits "
            "smaller than it mean nothing."
        )

    named = {printable(label) for finding in found.problems for label in finding.variables}
    if named:
        about += " Marked rows are named by a warning or an error above."

    def build() -> list[Block]:
        cells = draws.cells
        header = ["", "mean", "sd", f"{_PERCENT} from", "to"]
        header += ["ESS bulk", "ESS tail", "R-hat", "MCSE mean", "MCSE sd"] if has_chains else []
        order: Sequence[int] = range(len(cells))
        blocks: list[Block] = [Note(draws.note)] if draws.note else []
        if len(cells) > _ROWS:
            others = set(draws.worst[:_ROWS])
            order = [*draws.worst, *(i for i in order if i not in others)][:_ROWS]
            blocks.append(Note(f"The {_ROWS:,} entries that mixed worst, of {len(cells):,}."))
        rows = [(draws.labels[i], *(_cell(cell) for cell in cells[i])) for i in order]
        flagged = frozenset(place for place, i in enumerate(order) if draws.labels[i] in named)
        blocks.append(Table(header, rows, "Posterior, by entry", sortable=True, flagged=flagged))
        return blocks

    return guarded("summary", "Summary", about, build)


def _cell(text: str) -> str:
    return NONE if text.lower() == "nan" else f"\N{MINUS SIGN}{text[1:]}" if text.startswith("-") else text


def chains(draws: Draws) -> Section:
    """Traces and ranks of the entries that mixed worst; for an approximation, its fit."""
    about = (
        "The entries whose chains mixed worst. Traces should look like noise around one level, all chains on top of "
        "one "
        "another; ticks below are divergences. In the rank plots each line is a chain, and lines that stay in the "
        "shaded band are good: one that leaves it belongs to a chain that sits lower or higher than the others."
    )
    if draws.independent:
        return _fit(draws)

    def build() -> list[Block]:
        worst = draws.worst[:_WORST]
        if not worst:
            raise Missing("No entry is finite and moves, so there is nothing to draw. See the findings.")
        if draws.draws < 4:
            raise Missing(f"There are {draws.draws} draws per chain, too few for a picture.")
        shown = figures.shown_chains(draws)
        legend = Legend([(colour, f"chain {i}") for i, colour in enumerate(series(shown))])
        blocks: list[Block] = [legend] if shown > 1 else []
        pictures = []
        # One chain has nobody to be ranked against.
        ranks = figures.ranks(draws, worst) if draws.chains > 1 else [None] * len(worst)
        for i, trace, rank in zip(worst, figures.traces(draws, worst), ranks, strict=True):
            row, note = draws.summary.iloc[i], ""
            if "r_hat" in row:
                note = f"R-hat {row['r_hat']:.3f}, bulk ESS {row['ess_bulk']:.0f}, tail ESS {row['ess_tail']:.0f}"
            pictures.append(Picture(trace.svg, f"{draws.labels[i]}: trace", note))
            if rank is not None:
                pictures.append(Picture(rank.svg, f"{draws.labels[i]}: ranks"))
        blocks.append(Panels(pictures, 340))
        if draws.weights is not None:
            blocks.append(Note("The draws are weighted; here they are shown as they are, without their weights."))
        if shown < draws.chains:
            blocks.append(Note(f"{shown} of {draws.chains:,} chains are shown, spread evenly."))
        return blocks

    return guarded("chains", "Chains", about, build)


def _fit(draws: Draws) -> Section:
    about = (
        "This method draws independently from an approximation, so there are no chains to look at. What can be seen is "
        "whether its optimisation settled: the objective should be level at the end."
    )

    def build() -> list[Block]:
        if "optimization" not in draws.tree.children:
            raise Missing(
                "This method draws independently from an approximation, so there are no chains to look at; and the "
                "result holds no record of an optimisation."
            )
        pictures = []
        for name, variable in draws.tree["optimization"].to_dataset().data_vars.items():
            if "step" in variable.dims and variable.ndim <= 2 and variable.dtype.kind == "f":
                values = np.atleast_2d(variable.transpose(..., "step").values)
                pictures.append(figures.learning(values[: len(series(8))], str(name)))
        if not pictures:
            raise Missing("The record of the optimisation holds no objective by step.")
        return [Panels(pictures, 340)]

    return guarded("chains", "Fit of the approximation", about, build)


def pairs(draws: Draws, found: Findings) -> Section:
    """The entries that findings name, and the worst, against one another."""
    about = (
        "The entries that the findings name, or that mixed worst, against one another. Narrow ridges, funnels and "
        "separate clouds are hard to "
        "sample. Divergences that gather in one corner show where the sampler could not go."
    )
    if draws.independent:
        about = "Entries of the posterior against one another: correlations and shapes that a table cannot show."

    def build() -> list[Block]:
        named = dict.fromkeys(printable(label) for f in found.of_kind(*_SHAPES) for label in f.variables)
        index = {label: i for i, label in enumerate(draws.labels) if draws.usable[i]}
        worst = list(dict.fromkeys([index[label] for label in named if label in index] + draws.worst))[:_PAIRED]
        if len(worst) < 2:
            raise Missing("Fewer than two entries are finite and move, so there are no pairs.")
        pictures = figures.pairs(draws, worst)
        blocks: list[Block] = []
        if draws.diverging is not None:
            blocks.append(Legend([(figures.POSTERIOR, "draw"), (ACCENT, f"divergence ({int(draws.diverging.sum())})")]))
        blocks.append(Panels(pictures, 250))
        return [*blocks, Note(draws.note)] if draws.note else blocks

    return guarded("pairs", "Pairs", about, build)


def energy(draws: Draws) -> Section:
    """Energies, for methods that have them."""
    about = (
        "Hamiltonian samplers move between levels of energy. The changes from draw to draw should spread about as "
        "widely as the energies themselves; where they are much narrower (E-BFMI below 0.3) the tails are not explored."
    )

    def build() -> list[Block]:
        if "energy" not in draws.stats:
            raise Missing("The result has no energies: only Hamiltonian samplers record them.")
        values = draws.stats["energy"]
        if draws.draws < 4 or not np.isfinite(values).all():
            raise Missing("The energies are too few, or not finite, so they cannot be drawn.")
        import arviz

        bfmi = np.atleast_1d(arviz.bfmi(values))
        legend = Legend([(series(2)[0], "energy"), (series(2)[1], "change from draw to draw")])
        shown = [(f"E-BFMI, chain {i}", number(float(value), 1), "good: at least 0.3") for i, value in enumerate(bfmi)]
        return [legend, Panels(figures.energy(draws), 340), Facts(shown[: len(series(8))])]

    return guarded("energy", "Energy", about, build)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
