"""A third party adds a method and an engine without touching probgen: the skeleton of the docs, copied and run."""

import importlib
import shutil
import sys
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats

import probgen as pg
from probgen.backends import registry
from probgen.run.compiled import compile_count

SKELETON = Path(__file__).parents[1] / "docs" / "adding" / "skeleton_kernel.py"
NAME = "copied_skeleton"

PRECISION = np.array([[1.0, 0.0], [0.0, 1.0]]) + np.array([[4.0, 4.0], [4.0, 4.0]])
COVARIANCE = np.linalg.inv(PRECISION)
MEAN = COVARIANCE @ np.array([4.0, 4.0]) * 1.5


def gaussian(y=None):
    """Two coordinates whose sum was measured: their posterior correlation is -0.8."""
    x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(x.sum(), 0.5), obs=y)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the copied file, where Python finds it; what it registers is forgotten afterwards."""
    shutil.copy(SKELETON, tmp_path / f"{NAME}.py")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    return tmp_path


@pytest.fixture
def skeleton(folder):
    return importlib.import_module(NAME)


@pytest.fixture
def model():
    return pg.Model(gaussian, {"y": 1.5})


def check_moments(method, model, replicates=48, draws=400):
    """z-tests of means and central second moments over independent replicates, each of two chains."""
    density = method.density(model)
    keys = jax.random.split(jax.random.key(7), replicates)
    run = eqx.filter_jit(jax.vmap(lambda key: method.draw(key, density, draws=draws, warmup=200, chains=2)))
    x = np.asarray(run(keys).values["x"]).reshape(replicates, 2 * draws, 2)
    centred = x - MEAN
    moments = np.concatenate([x.mean(1), (centred[..., [0, 0, 1]] * centred[..., [0, 1, 1]]).mean(1)], -1)
    errors = moments.std(0, ddof=1) / np.sqrt(replicates)
    expected = np.array([*MEAN, COVARIANCE[0, 0], COVARIANCE[0, 1], COVARIANCE[1, 1]])
    # The test must be able to see a variance that is off by a tenth.
    assert (errors[2:] < 0.1 / 4 * COVARIANCE[0, 0]).all()
    # A false alarm once in 10^5 runs.
    limit = scipy.stats.t.isf(1e-5 / 2 / len(expected), replicates - 1)
    z = (moments.mean(0) - expected) / errors
    assert (np.abs(z) < limit).all(), z


def check_result(method, model):
    """One DataTree, and a second fit that compiles nothing."""
    tree = pg.infer(model, method, draws=300, warmup=300, chains=2, seed=1)
    assert tree.attrs["ended"] == "completed"
    assert tree["posterior/x"].dims == ("chain", "draw", "x_dim_0")
    assert {"lp", "acceptance_rate", "step_size"} <= set(tree["sample_stats"].data_vars)
    before = compile_count()
    again = pg.infer(model.with_data(y=-1.0), method, draws=300, warmup=300, chains=2, seed=1)
    assert compile_count() == before
    assert again["posterior/x"].mean() < 0 < tree["posterior/x"].mean()
    return tree


def test_a_new_method_runs_and_is_right(skeleton, model):
    method = skeleton.Walk()
    tree = check_result(method, model)
    assert (tree.attrs["method"], tree.attrs["backend"]) == ("walk", "toy")
    check_moments(method, model, draws=1200)


def test_a_registered_engine_serves_a_method_of_probgen(skeleton, model):
    with pytest.raises(pg.MethodError, match="backend 'toy' does not serve HMC"):
        pg.infer(model, pg.HMC(backend="toy"))
    pg.register_backend("toy", skeleton)
    method = pg.HMC(backend="toy")
    tree = check_result(method, model)
    assert (tree.attrs["method"], tree.attrs["backend"]) == ("hmc", "toy")
    assert "toy" in next(row for row in pg.methods() if row.name == "hmc").backends
    check_moments(method, model)
    with pytest.raises(pg.MethodError, match="does not serve NUTS"):
        pg.infer(model, pg.NUTS(backend="toy"))


def test_an_installed_package_is_found_by_its_entry_point(folder, model):
    """What pip writes for ``[project.entry-points."probgen.backends"]``."""
    info = folder / "toy_engine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-engine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[probgen.backends]\ntoy = {NAME}\n")
    importlib.invalidate_caches()
    assert "toy" in next(row for row in pg.methods() if row.name == "hmc").backends
    tree = pg.infer(model, pg.HMC(backend="toy"), draws=20, warmup=20, chains=1, seed=0)
    assert tree.attrs["backend"] == "toy"


def test_bad_settings_of_a_new_method_are_refused_before_any_compute(skeleton, model):
    before = compile_count()
    with pytest.raises(pg.MethodError, match="target_accept must lie between 0 and 1, got 2"):
        pg.infer(model, skeleton.Walk(target_accept=2.0))
    assert compile_count() == before
