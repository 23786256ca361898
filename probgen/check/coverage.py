r"""Do intervals and regions contain the truth as often as they claim?

Both checks read truths and draws of many data sets: those of ``pg.check.sbc``, or any others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

import jax
import numpy as np

from probgen.base.errors import DataError, suggestion
from probgen.base.keys import as_key
from probgen.check.calibration import Calibration, Words
from probgen.check.ranks import draws_of, rank, ranks, truth_of
from probgen.check.sbc import rank_points

if TYPE_CHECKING:
    import xarray

__all__ = ["coverage", "tarp"]

_LEVELS = np.arange(1, 50) / 50
_COVERAGE = Words(
    "Coverage of central intervals",
    "level at which a central interval reaches the truth",
    "intervals are too wide: they cover more than they claim",
    "intervals are too narrow: they cover less than they claim",
    "intervals cover too little in the tails and too much in the middle",
    "intervals cover too much in the tails and too little in the middle",
    "See pg.check.sbc for the direction; widen or correct the posterior before quoting intervals.",
)
_TARP = Words(
    "Coverage of random regions (TARP)",
    "share of draws nearer to a random point than the truth",
    "the truth is nearer to random points than the draws: draws are too wide, or displaced",
    "the truth is farther from random points than the draws: draws are displaced",
    "regions cover too little: draws are too narrow, or displaced",
    "regions cover too much: draws are too wide",
    "The joint posterior is wrong; see pg.check.sbc for which sites, and look at their correlations.",
)


def coverage(result: Calibration | xarray.DataTree, *, seed: int | jax.Array = 0) -> Calibration:
    r"""Coverage of central credible intervals, at every level.

    The central interval of level :math:`q` contains the truth if and only if :math:`|2 p - 1| \le q`, with :math:`p`
    the randomised position of the truth among the draws. Under calibration this number is uniform, and ``curve`` is
    the coverage at each ``ecdf_level``.

    Args:
        result: What ``pg.check.sbc`` returned, or a DataTree with the groups ``truth`` (dims ``dataset, ...``) and
            ``posterior`` (``dataset, draw, ...``): amortized posteriors, say.
        seed: Breaks ties.

    Returns:
        The result: ``.curve`` and ``.band`` at each level, ``.findings``, ``.plot()``, ``.to_dataframe()``.

    Raises:
        DataError: If the tree lacks truths or draws.
    """
    tree = _tree(result)
    rng = _generator(seed)
    found = tree["ranks"].to_dataset() if "ranks" in tree.children else ranks(tree, rng)
    length = draws_of(tree).sizes["draw"]
    position = found.map(lambda v: (v + rng.uniform(size=v.shape)) / (length + 1))
    return Calibration(_COVERAGE, abs(2 * position - 1), _LEVELS, tree)


def tarp(
    result: Calibration | xarray.DataTree, *, sites: Iterable[str] | None = None, seed: int | jax.Array = 0
) -> Calibration:
    """Coverage of balls around random points: a check of the joint posterior (Lemos et al. 2023, arXiv:2302.03026).

    For each data set a reference point is drawn: the truth of another data set, independent of this one. The share of
    draws that are nearer to it than the truth is uniform under calibration. Distances are Euclidean, each coordinate
    divided by the standard deviation of its truths. As the reference points do not depend on the data, a method that
    returns the prior passes: ``pg.check.sbc`` sees it by the log likelihood.

    Args:
        result: As for ``coverage``.
        sites: Sites that span the space. ``None``: all latent ones (of a tree that does not say: every variable).
        seed: Chooses the reference points.

    Returns:
        The result, with the single quantity ``distance``.

    Raises:
        DataError: If the tree lacks truths or draws, or a site of ``sites``.
    """
    import xarray

    tree = _tree(result)
    rng = _generator(seed)
    truths, draws = truth_of(tree), draws_of(tree)
    if isinstance(sites, str):
        raise DataError(f"sites must be a list of sites, got the string {sites!r}. Write [{sites!r}].")
    latent = json.loads(tree.attrs["latent"]) if "latent" in tree.attrs else list(truths.data_vars)
    names = [str(name) for name in (latent if sites is None else sites)]
    for name in names:
        if name not in truths:
            raise DataError(f"sites names {name!r}, which has no draws. {suggestion(name, map(str, truths.data_vars))}")
    count, length = truths.sizes["dataset"], draws.sizes["draw"]
    if count < 2:
        raise DataError(f"there are {count} data sets, expected at least 2. Use more.")
    truth = np.concatenate([truths[n].values.reshape(count, -1).astype(float) for n in names], 1)
    draw = np.concatenate([draws[n].values.reshape(count, length, -1).astype(float) for n in names], 2)
    scale = truth.std(0)
    moving = scale > 0
    if not moving.any():
        raise DataError("the truths are the same in every data set, so there is nothing to cover. Keep a latent site.")
    truth, draw = truth[:, moving] / scale[moving], draw[..., moving] / scale[moving]
    # A cyclic shift of a random order: every data set gets the truth of another one.
    order = rng.permutation(count)
    reference = np.empty_like(truth)
    reference[order] = truth[np.roll(order, 1)]
    found, _ = rank(np.linalg.norm(draw - reference[:, None], axis=-1), np.linalg.norm(truth - reference, axis=-1), rng)
    values = xarray.Dataset({"distance": ("dataset", (found + 0.5) / (length + 1))}, {"dataset": truths["dataset"]})
    return Calibration(_TARP, values, rank_points(length), tree)


def _tree(result: Calibration | xarray.DataTree) -> xarray.DataTree:
    return result.tree if isinstance(result, Calibration) else result


def _generator(seed: int | jax.Array) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(as_key(seed))))
