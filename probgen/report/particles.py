"""The section about the runs of a particle method: what happened at each step."""

from __future__ import annotations

import numpy as np

from probgen.report.draws import Draws
from probgen.report.figures import SIZE, WITH_TICKS
from probgen.report.page import Block, Legend, Panels, Picture, Section
from probgen.report.sections import Missing, guarded
from probgen.report.style import cut, drawing, series

__all__ = ["particles"]

_MOST = 4
"""Runs that a picture shows."""
_WORDS = {
    "ess": "effective sample size",
    "log_evidence": "log evidence so far",
    "unique_ancestors": "different ancestors",
}


def particles(draws: Draws) -> Section:
    """Effective sample sizes, evidence and what else was recorded, along the steps."""
    about = (
        "Every line is an independent run. Where the effective sample size falls to a few particles, what follows rests "
        "on these; the lines of the log evidence should end close to one another."
    )

    def build() -> list[Block]:
        if "particles" not in draws.tree.children:
            raise Missing("The result has no steps of particles: only particle methods record them.")
        recorded = draws.tree["particles"].to_dataset()
        pictures = []
        for name, variable in recorded.data_vars.items():
            if variable.dims != ("chain", "step") or variable.dtype.kind not in "fi":
                continue
            values = variable.values.astype(float)
            if np.isfinite(values).any():
                pictures.append(_lines(values[:_MOST], _WORDS.get(str(name), str(name).replace("_", " "))))
        count = min(recorded.sizes.get("chain", 0), _MOST)
        legend: list[Block] = [Legend([(colour, f"run {i}") for i, colour in enumerate(series(count))])]
        return [*(legend if count > 1 else []), Panels(pictures, 340)]

    return guarded("particles", "Particles", about, build)


def _lines(values: np.ndarray, label: str) -> Picture:
    import matplotlib.pyplot as plt

    with drawing():
        figure, axes = plt.subplots(figsize=SIZE)
        for colour, run in zip(series(len(values)), values, strict=True):
            axes.plot(run, color=colour, lw=1.2)
        axes.set_xlabel("step")
        if np.nanmin(values) >= 0:
            axes.set_ylim(bottom=0)
        picture = cut(axes, SIZE, WITH_TICKS, f"{label} along the steps of {len(values)} runs.")
        plt.close(figure)
    return Picture(picture, label)
