r"""Simulation-based calibration: is a method, with a program, right on average over the prior?

With :math:`\theta \sim p(\theta)`, :math:`y \sim p(y \mid \theta)` and :math:`L` independent draws from the posterior
of :math:`y`, the rank of :math:`f(\theta, y)` among its draws is uniform on :math:`0 \dots L`, for every function
:math:`f` (Talts et al. 2018, arXiv:1804.06788). Functions of the data are needed: a method that returns the prior
passes for every function of :math:`\theta` alone (Modrák et al. 2023). The log likelihood is one, and is always asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import jax
import numpy as np

from probgen.base.keys import as_key
from probgen.check.calibration import Calibration, Words
from probgen.check.design import Quantity, Settings
from probgen.check.ranks import draws_of, ranks
from probgen.check.refits import refit
from probgen.infer.method import Method
from probgen.program.model import Model

if TYPE_CHECKING:
    import xarray

__all__ = ["rank_points", "sbc"]

_MOST_POINTS = 200
_WORDS = Words(
    "Simulation-based calibration",
    "rank of the truth among its draws",
    "the truth ranks low: draws are too high",
    "the truth ranks high: draws are too low",
    "the truth lies in the tails: draws are too narrow",
    "the truth lies in the middle: draws are too wide",
    "The draws are not those of the posterior of the program that makes the data: look for a wrong prior, scale, index "
    "or Jacobian; if the method is approximate, it is too crude here.",
)


def sbc(
    model: Model,
    method: Method,
    *,
    datasets: int = 500,
    draws: int = 100,
    warmup: int = 500,
    chains: int | None = None,
    thin: int | None = None,
    sites: Iterable[str] | None = None,
    quantities: Mapping[str, Quantity] | None = None,
    simulator: Model | None = None,
    arguments: Mapping[str, str] | None = None,
    weighted: bool = True,
    seed: int | jax.Array = 0,
    progress: bool | None = None,
) -> Calibration:
    """Simulation-based calibration: draw parameters and data from the model, fit all data sets, rank the truths.

    Observed sites are drawn; all other arguments of the program (covariates, sizes) stay. Arguments that held the
    observations stay too where the program uses them elsewhere: a prior computed from the data is part of the model.
    The quantities that are ranked are every latent and deterministic site, entry by entry, the log likelihood, the log
    joint density, and ``quantities``. The ranks are compared with uniform ones by simultaneous bands (Säilynoja,
    Bürkner and Vehtari 2022); p-values are exact, for independent draws.

    A data set costs one short fit. Kernel methods compile once and run data sets in parallel; other methods run one
    data set at a time.

    Args:
        model: The model. Its observations are not used, and may be missing where it runs without them.
        method: What to check, with its settings. Discrete sites are ranked too.
        datasets: Number of data sets. 500 see an error of a fifth of a posterior standard deviation, 100 a half.
        draws: Draws kept per data set (rounded up to a multiple of ``chains``).
        warmup: Adaptation steps per chain.
        chains: Chains per data set. ``None``: one, and 16 for methods that tune across chains.
        thin: Steps per kept draw. ``None``: chosen so that kept draws are nearly independent. Kernel methods only.
        sites: Sites to rank. ``None``: all.
        quantities: Further quantities by name: functions of the values of latent, deterministic and observed sites (a
            dict by name) that JAX can trace; the result is a number or an array.
        simulator: A model to draw parameters and data from instead, with the same observed sites: the plain form of a
            program that was rewritten, say. Quantities that it lacks are not ranked.
        arguments: By observed site, the argument of the program that takes its observations. Needed only where a
            subsampled plate takes rows of an argument of another name.
        weighted: Use the importance weights of a method that gives them, as ``pg.predict`` does. ``False`` asks about
            the draws as they are.
        seed: An int or a typed JAX key.
        progress: Show a progress bar. ``None``: at a terminal only.

    Returns:
        The result: ``.findings``, ``.plot()``, ``.to_dataframe()``, and ``.tree`` with the groups ``ranks``, ``truth``,
        ``posterior``, ``simulated_data`` and ``fits``, each with the dim ``dataset``. ``pg.check.coverage`` and
        ``pg.check.tarp`` read it too.

    Raises:
        ModelError: If the model has no observed site, or a ``numpyro.factor`` changes the posterior but not the data
            (unless ``simulator`` draws these).
        DataError: If the data that the prior draws are not finite.
        MethodError: If a prior is improper, the method cannot run the model, or no fit ended well.
    """
    sites = sites if sites is None or isinstance(sites, str) else tuple(sites)
    settings = Settings(datasets, draws, warmup, chains, thin, sites, quantities, True, simulator, arguments, weighted)
    key_fits, key_ties = jax.random.split(as_key(seed))
    tree = refit(model, method, settings, seed=key_fits, progress=progress, caller="pg.check.sbc")
    tree.attrs["seed"] = int(seed) if isinstance(seed, int) else str(jax.random.key_data(seed).tolist())
    return ranked(tree, np.random.default_rng(np.asarray(jax.random.key_data(key_ties))))


def ranked(tree: xarray.DataTree, rng: np.random.Generator) -> Calibration:
    """The calibration of truths and draws that are at hand; the tree gets the group ``ranks``."""
    import xarray

    found = ranks(tree, rng)
    length = draws_of(tree).sizes["draw"]
    tree["ranks"] = xarray.DataTree(found)
    return Calibration(_WORDS, (found + 0.5) / (length + 1), rank_points(length), tree)


def rank_points(length: int) -> np.ndarray:
    """Points between the ranks 0 ... ``length``, as fractions."""
    steps = np.unique(np.linspace(1, length, min(length, _MOST_POINTS)).round())
    return steps / (length + 1)
