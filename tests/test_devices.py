"""Many devices: eight virtual ones in one process, and two processes with four each, draw what one device draws."""

import socket
import subprocess
import sys

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.sharding import Mesh

import probgen as pg
from probgen.run.devices import mesh_of

PREAMBLE = """
import sys
import jax
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))
if len(sys.argv) > 3:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(sys.argv[3], num_processes=2, process_id=int(sys.argv[4]))
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.sharding import Mesh
import probgen as pg

rng = np.random.default_rng(0)
X = rng.normal(size=64)

def regression(x, y=None):
    a = numpyro.sample("a", dist.Normal(0, 1))
    b = numpyro.sample("b", dist.Normal(0, 1))
    s = numpyro.sample("s", dist.HalfNormal(1))
    with numpyro.plate("row", 64):
        numpyro.sample("y", dist.Normal(a + b * x, s), obs=y)

model = pg.Model(regression, {"x": X, "y": 1 + 2 * X + rng.normal(size=64)})
RUN = dict(draws=100, warmup=150, chains=8, seed=0)

def numbers(tree):
    return np.stack([tree.posterior[name].values for name in ("a", "b", "s")])
"""

ONE_PROCESS = (
    PREAMBLE
    + """
found = {"8 devices": numbers(pg.infer(model, pg.NUTS(), **RUN, devices=8))}
found["2 devices, stored"] = numbers(pg.infer(model, pg.NUTS(), **RUN, devices=2, store=sys.argv[1] + ".zarr"))
short = dict(draws=10, warmup=0, chains=4, seed=0)
grid = np.array(jax.devices())
found["one device"] = numbers(pg.infer(model, pg.NUTS(), **short))
found["chains split"] = numbers(pg.infer(model, pg.NUTS(), **short, devices=4))
found["both split"] = numbers(pg.infer(model, pg.NUTS(), **short, devices=Mesh(grid.reshape(4, 2), ("chain", "data"))))

from numpyro.contrib.control_flow import scan

def walk(y):
    def step(x, now):
        x = numpyro.sample("x", dist.Normal(0.9 * x, 1.0))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=now)
        return x, None
    scan(step, 0.0, y)

for method, given in ((pg.ParticleFilter(particles=64), pg.Model(walk, {"y": X[:5]})), (pg.SMC(particles=64, moves=2), model)):
    for devices in (None, 8):
        tree = pg.infer(given, method, draws=64, chains=2, seed=0, devices=devices)
        first = tree.posterior["x" if "x" in tree.posterior else "a"].values
        found[f"{method.name} {devices}"] = np.append(first.ravel(), tree.attrs["log_evidence"])
np.savez(sys.argv[1], **found)
"""
)

ENSEMBLE = (
    PREAMBLE
    + """
run = dict(draws=200, warmup=300, chains=32, seed=0)
found = {"one device": pg.infer(model, pg.ChEES(), **run), "split": pg.infer(model, pg.ChEES(), **run, devices=8)}
found["nuts"] = pg.infer(model, pg.NUTS(), draws=1000, chains=8, seed=0, devices=8)
np.savez(sys.argv[1], **{name: numbers(tree) for name, tree in found.items()})
"""
)

TWO_PROCESSES = (
    PREAMBLE
    + """
assert jax.process_count() == 2 and len(jax.devices()) == 8 and len(jax.local_devices()) == 4
tree = pg.infer(model, pg.NUTS(), **RUN, devices=jax.devices())
np.savez(f"{sys.argv[1]}{jax.process_index()}", found=numbers(tree), ended=tree.attrs["ended"])
try:
    pg.infer(model, pg.NUTS(), **RUN, devices=8, store="run.zarr")
except pg.StoreError as error:
    assert "written by 2 processes at once" in str(error)
else:
    raise AssertionError("two processes shared a store")
"""
)


def start(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*children):
    for child in children:
        output = child.communicate(timeout=300)[0]
        assert child.returncode == 0, output[-3000:]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("devices") / "one.npz"
    finish(start(ONE_PROCESS, path, 8))
    return dict(np.load(path))


def test_any_number_of_devices_draws_the_same_bits(found):
    np.testing.assert_array_equal(found["2 devices, stored"], found["8 devices"])


@pytest.mark.parametrize("split", ["chains split", "both split"])
def test_many_devices_draw_what_one_draws_but_for_rounding(found, split):
    """Compiled for one device the program adds up in another order; from draw to draw that grows."""
    np.testing.assert_allclose(found[split], found["one device"], rtol=1e-8)


@pytest.mark.parametrize("method", ["particle_filter", "smc"])
def test_particles_on_many_devices_are_those_of_one_but_for_rounding(found, method):
    np.testing.assert_allclose(found[f"{method} 8"], found[f"{method} None"], rtol=1e-8)


@pytest.mark.slow
def test_an_ensemble_that_is_shared_out_draws_from_the_same_distribution(tmp_path):
    import arviz

    finish(start(ENSEMBLE, tmp_path / "found.npz", 8))
    found = dict(np.load(tmp_path / "found.npz"))
    for a, b in (("one device", "split"), ("split", "nuts")):
        for power in (1, 2):
            for i in range(3):
                x, y = found[a][i] ** power, found[b][i] ** power
                error = np.hypot(arviz.mcse(x), arviz.mcse(y))
                assert abs(x.mean() - y.mean()) < 4.5 * error


def test_two_processes_draw_what_one_draws_bit_for_bit(found, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    children = [start(TWO_PROCESSES, tmp_path / "two", 4, address, process) for process in (0, 1)]
    finish(*children)
    for process in (0, 1):
        two = np.load(tmp_path / f"two{process}.npz")
        np.testing.assert_array_equal(two["found"], found["8 devices"])
        assert two["ended"] == "completed"


def program(y=None):
    m = numpyro.sample("m", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(m, 1), obs=y)


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        (10_000, r"devices=10000, but JAX sees"),
        (0, "Ask for 1 to"),
        ("all", "devices must be an int, JAX devices or a mesh"),
        ([], "devices must be"),
        (True, "devices must be"),
        (Mesh(np.array(jax.devices()[:1]), ("x",)), r"expected \['chain', 'data'\] in this order"),
        (Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "chain")), "in this order"),
    ],
)
def test_devices_that_make_no_sense_are_refused(devices, words):
    with pytest.raises(pg.MethodError, match=words):
        pg.infer(pg.Model(program, {"y": 1.0}), pg.NUTS(), devices=devices)


def test_chains_are_shared_out_evenly_or_not_at_all(monkeypatch):
    monkeypatch.setattr("probgen.run.devices._listed", lambda devices: [jax.devices()[0]] * 3)
    with pytest.raises(pg.MethodError, match="4 chains cannot be shared out evenly over 3 devices"):
        mesh_of(3, 4)
    with pytest.raises(pg.MethodError, match="100 particles cannot be shared out evenly over 3 devices"):
        mesh_of(3, 100, "particles")


def test_a_method_without_chains_takes_no_devices():
    with pytest.raises(pg.MethodError, match="Laplace has none"):
        pg.infer(pg.Model(program, {"y": 1.0}), pg.Laplace(), devices=1)
