"""The sections on a sensitivity analysis: numbers that sum up, words, scenarios, pictures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from probgen.report.page import NONE, Block, Facts, Note, Panels, Picture, Section, Table, Verdict
from probgen.report.sections import guarded
from probgen.report.style import drawing, inline

if TYPE_CHECKING:
    from probgen.causal.analysis import Analysis
    from probgen.causal.sensitivity import Sensitivity

__all__ = ["sensitivity_sections", "sensitivity_verdict"]


def sensitivity_verdict(found: Sensitivity) -> Verdict:
    """What on top of a page that has nothing but a sensitivity analysis: the first number of each model."""
    reasons = []
    for one in found.analyses:
        for measure in one.measures[:1]:
            name = measure.name[:1].upper() + measure.name[1:]
            reasons.append((f"{name} {measure.shown}: {measure.meaning}.", one.title))
    return Verdict("look", "Whether a hidden confounder could be this strong is for you to judge", reasons)


def sensitivity_sections(found: Sensitivity) -> list[Section]:
    """A section for each sensitivity model."""
    single = len(found.analyses) == 1
    return [_section(one, "sensitivity" if single else f"sensitivity-{i + 1}") for i, one in enumerate(found.analyses)]


def _section(one: Analysis, key: str) -> Section:
    def build() -> list[Block]:
        blocks: list[Block] = []
        if one.measures:
            blocks.append(Facts([(m.name, m.shown, m.meaning) for m in one.measures]))
        blocks.append(Note(one.text, "In words"))
        if one.scenarios:
            table = one.table
            rows = [
                (str(label), *(_cell(float(value)) for value in row))
                for label, row in zip(table.index, table.to_numpy(float), strict=True)
            ]
            header = ("scenario", *(str(name).replace("_", " ") for name in table.columns))
            blocks.append(Table(header, rows, "Scenarios, and the effect that each leaves"))
        pictures = _pictures(one)
        if pictures:
            blocks.append(Panels(pictures, 340))
        blocks += [Note(note) for note in one.notes]
        return blocks

    return guarded(key, f"Hidden confounding: {one.title}", one.assumption, build)


def _cell(value: float) -> str:
    return NONE if math.isnan(value) else f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def _pictures(one: Analysis) -> list[Picture]:
    from probgen.causal.sensitivity_plots import band_figure, contour_figure, curves_figure

    made = []
    with drawing():
        for contour in one.contours:
            label = f"{contour.title} over {contour.xlabel} and {contour.ylabel}."
            note = "The thick line is where the conclusion changes; diamonds are benchmarks, the triangle is no confounder."
            made.append(Picture(inline(contour_figure([contour]), label), contour.title, note))
        if one.bounds is not None:
            label = f"Bounds of the {one.bounds.ylabel} against {one.bounds.xlabel}."
            made.append(Picture(inline(band_figure(one.bounds), label), "bounds", "The horizontal line is the null."))
        if one.tipping is not None:
            label = f"Pairs of {one.tipping.xlabel} and {one.tipping.ylabel} that change the conclusion."
            note = "Confounders above a line change the conclusion."
            made.append(Picture(inline(curves_figure(one.tipping), label), "tipping points", note))
        if one.extreme is not None:
            label = f"{one.extreme.ylabel} against {one.extreme.xlabel} in extreme scenarios."
            note = "Ticks at the bottom are benchmarks."
            made.append(Picture(inline(curves_figure(one.extreme), label), "extreme scenarios", note))
    return made
