"""Two samples, one question: can a classifier tell them apart?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.base.errors import DataError, MethodError, suggestion

if TYPE_CHECKING:
    import xarray

__all__ = ["c2st"]


def c2st(
    reference: xarray.DataTree | np.ndarray,
    approximation: xarray.DataTree | np.ndarray,
    *,
    sites: Iterable[str] | None = None,
    folds: int = 5,
    seed: int = 1,
) -> float:
    """Classifier two-sample test: accuracy of a classifier that tells draws of two posteriors apart.

    0.5: they cannot be told apart; 1: they do not overlap. As ``sbibm`` defines it (Lueckmann et al. 2021), so that
    numbers compare with published ones: both samples standardised by the reference, a perceptron of scikit-learn with
    two layers of ten times as many units as dimensions, mean accuracy of five shuffled folds. Published numbers use
    10,000 draws on either side; with fewer the accuracy comes out lower. Differences below 0.01 mean little.

    Args:
        reference: A DataTree with a posterior, or an array of shape ``(draws, dim)``.
        approximation: The same, of the same dimension; an equal number of draws, or 0.5 would not mean equality.
        sites: Variables of the posteriors to compare. ``None``: all that both have.
        folds: Folds of the cross-validation.
        seed: Of the classifier and the folds.

    Raises:
        MethodError: If scikit-learn is not installed.
        DataError: If the samples do not fit together, are constant, or not finite.
    """
    try:
        from sklearn.model_selection import KFold, cross_val_score
        from sklearn.neural_network import MLPClassifier
    except ModuleNotFoundError as error:
        raise MethodError(
            "pg.check.c2st needs scikit-learn, which is not installed. Run pip install scikit-learn."
        ) from error
    x, y = _samples(reference, approximation, None if sites is None else list(sites))
    center, scale = x.mean(0), x.std(0, ddof=1)
    if not (scale > 0).all():
        raise DataError("the reference is constant in some dimension. Leave that site out: sites=[...].")
    # The definition works in single precision.
    both = np.concatenate([(x - center) / scale, (y - center) / scale]).astype(np.float32)
    label = np.concatenate([np.zeros(len(x)), np.ones(len(y))])
    classifier = MLPClassifier(
        activation="relu",
        hidden_layer_sizes=(10 * x.shape[1], 10 * x.shape[1]),
        max_iter=10_000,
        solver="adam",
        random_state=seed,
    )
    split = KFold(n_splits=folds, shuffle=True, random_state=seed)
    return float(np.mean(cross_val_score(classifier, both, label, cv=split, scoring="accuracy")))


def _samples(reference: Any, approximation: Any, sites: list[str] | None) -> tuple[np.ndarray, np.ndarray]:
    trees = [hasattr(sample, "children") for sample in (reference, approximation)]
    if trees[0] != trees[1]:
        raise DataError("one sample is a DataTree and the other an array. Give two of a kind.")
    if trees[0]:
        x, y = _posteriors(reference, approximation, sites)
    else:
        x, y = (np.asarray(sample, float) for sample in (reference, approximation))
        if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
            raise DataError(
                f"the samples have shapes {x.shape} and {y.shape}, expected (draws, dim) with one dim. Reshape them."
            )
    if len(x) != len(y):
        raise DataError(
            f"the reference has {len(x)} draws and the approximation {len(y)}: the accuracy would not be 0.5 for equal "
            f"distributions. Thin the larger."
        )
    for name, sample in (("reference", x), ("approximation", y)):
        if not np.isfinite(sample).all():
            raise DataError(f"the {name} has values that are not finite. Look at how its run ended.")
    return x, y


def _posteriors(reference: Any, approximation: Any, sites: list[str] | None) -> tuple[np.ndarray, np.ndarray]:
    for tree in (reference, approximation):
        if "posterior" not in tree.children or not {"chain", "draw"} <= set(tree["posterior"].dims):
            raise DataError("a tree has no posterior with the dims 'chain' and 'draw'. Pass what pg.infer returned.")
    first, second = (tree["posterior"].to_dataset() for tree in (reference, approximation))
    common = [str(name) for name in first.data_vars if name in second.data_vars]
    for name in sites or ():
        if name not in common:
            raise DataError(f"sites names {name!r}, which not both posteriors have. {suggestion(name, common)}")
    names = common if sites is None else sites
    if not names:
        raise DataError("the posteriors have no variable in common. Give them the same sites.")
    sides = []
    for dataset in (first, second):
        columns = [dataset[n].transpose("chain", "draw", *_rest(first[n])).values for n in names]
        sides.append(np.concatenate([c.reshape(c.shape[0] * c.shape[1], -1) for c in columns], 1).astype(float))
    if sides[0].shape[1] != sides[1].shape[1]:
        raise DataError(
            "the variables of the two posteriors differ in shape. Compare fits of one model: or name sites."
        )
    return sides[0], sides[1]


def _rest(variable: xarray.DataArray) -> list[Any]:
    return [dim for dim in variable.dims if dim not in ("chain", "draw")]
