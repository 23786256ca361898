"""Reference posteriors: NUTS agrees with posteriordb in means and means of squares, on both engines."""

import json
import math
from pathlib import Path
from statistics import NormalDist

import arviz_base
import arviz_stats
import pytest

import probgen as pg
from probgen.program.files import load_program, match_arguments

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "models" / "posteriordb"
INDEX = json.loads((FOLDER / "index.json").read_text())
REFERENCE = {
    name: entry["params"]
    for name, entry in json.loads((ROOT / "tests" / "reference" / "posteriordb.json").read_text()).items()
}
FALSE_ALARM = 1e-6
"""Probability that a right sampler fails one posterior."""

# One of each kind of program, on the engine that NUTS has by default; two on the other.
FAST = {
    ("arK-arK", "blackjax"),
    ("eight_schools-eight_schools_noncentered", "blackjax"),
    ("eight_schools-eight_schools_noncentered", "numpyro"),
    ("garch-garch11", "blackjax"),
    ("gp_pois_regr-gp_pois_regr", "blackjax"),
    ("hmm_example-hmm_example", "blackjax"),
    ("kidiq-kidscore_interaction", "blackjax"),
    ("kidiq-kidscore_interaction", "numpyro"),
}
# The centred funnel: every divergence hides a part of the posterior, at any target; more draws and small steps find it.
HARD = {"eight_schools-eight_schools_centered": {"target_accept": 0.99, "draws": 10_000, "warmup": 4_000}}


def model(posterior):
    entry = INDEX[posterior]
    columns = json.loads((FOLDER / "data" / f"{entry['data']}.json").read_text())
    program = load_program(FOLDER / f"{entry['model']}.py")
    return pg.Model(program, match_arguments(program, columns).data)


def z_scores(tree, reference):
    """Distance from the reference in standard errors: those of our draws, and of the reference's 10,000."""
    names = {name.partition("[")[0] for name in reference}
    scores = {}
    for power, mean_key, sd_key in ((1, "mean", "sd"), (2, "mean_sq", "sd_sq")):
        draws = {name: tree["posterior"][name].values ** power for name in names}
        mcse = arviz_stats.mcse(arviz_base.from_dict({"posterior": draws})["posterior"].to_dataset())
        for name, row in reference.items():
            stem, _, index = name.partition("[")
            column = int(index[:-1]) - 1 if index else 0
            mean = draws[stem].reshape(draws[stem].shape[0] * draws[stem].shape[1], -1)[:, column].mean()
            error = math.hypot(mcse[stem].values.reshape(-1)[column], row[sd_key] / 100)
            scores[f"{name}^{power}"] = (mean - row[mean_key]) / error
    return scores


@pytest.mark.parametrize(
    ("posterior", "backend"),
    [
        pytest.param(name, backend, marks=[] if (name, backend) in FAST else [pytest.mark.slow])
        for name in sorted(INDEX)
        for backend in ("blackjax", "numpyro")
    ],
)
def test_agrees_with_the_reference(posterior, backend):
    settings = dict(HARD.get(posterior, {}))
    target = settings.pop("target_accept", None if backend == "blackjax" else 0.9)
    tree = pg.infer(model(posterior), pg.NUTS(backend=backend, target_accept=target), seed=1, **settings)
    assert tree.attrs["ended"] == "completed"
    scores = z_scores(tree, REFERENCE[posterior])
    limit = NormalDist().inv_cdf(1 - FALSE_ALARM / (2 * len(scores)))
    worst = max(scores, key=lambda name: abs(scores[name]))
    assert abs(scores[worst]) < limit, f"{worst}: {scores[worst]:.1f} standard errors"


def test_the_index_names_what_exists():
    assert set(INDEX) == set(REFERENCE)
    assert len(INDEX) == 30
