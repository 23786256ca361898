"""Runs that survive: whatever interrupts a run, the same call ends with the same draws, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray

import probgen as pg
from probgen.infer import chains
from probgen.run import output
from probgen.run.store import Pace, Store


def program(y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 3))
    tau = numpyro.sample("tau", dist.HalfNormal(2))
    with numpyro.plate("school", 4):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)
    numpyro.deterministic("best", jnp.max(theta))


COORDS = {"school": ["A", "B", "Ç", "D"]}
MODEL = pg.Model(program, data={"y": np.array([1.0, -0.5, 2.0, 0.3])}, coords=COORDS)
RUN = {"draws": 60, "warmup": 60, "chains": 2, "seed": 3}


def assert_same(a, b):
    assert set(a.groups) == set(b.groups)
    for group in a.groups:
        xarray.testing.assert_identical(a[group].to_dataset().drop_attrs(), b[group].to_dataset().drop_attrs())
    differing = {k for k in {**a.attrs, **b.attrs} if a.attrs.get(k) != b.attrs.get(k)}
    assert all(name.startswith("seconds_") for name in differing), differing


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """Save after every piece, so that small runs have something to lose."""
    monkeypatch.setattr(Pace, "SECONDS", -1.0)
    monkeypatch.setattr(Pace, "SHARE", float("inf"))


@pytest.fixture(scope="module")
def plain():
    return pg.infer(MODEL, pg.NUTS(), **RUN)


METHODS = {
    "nuts": pg.NUTS(),
    "random_walk": pg.RandomWalk(),
    "ensemble": pg.AIES(),
    "sgld": pg.SGLD(step_size=0.01, decay=0.6),
    "svi": pg.SVI(steps=1000, window=100),
    "svgd": pg.SVGD(particles=30, steps=300),
    "stein_vi": pg.SteinVI(components=2, steps=400, window=100),
    "pathfinder": pg.Pathfinder(),
}


@pytest.mark.filterwarnings("ignore::probgen.base.errors.ProbgenWarning")
@pytest.mark.parametrize("name", METHODS)
def test_a_store_changes_no_number(name, tmp_path):
    run = RUN | ({"chains": 16} if name == "ensemble" else {})
    method = METHODS[name]
    stored = pg.infer(MODEL, method, **run, store=tmp_path / "run.zarr")
    assert_same(stored, pg.infer(MODEL, method, **run))
    assert_same(stored, pg.load(tmp_path / "run.zarr"))


def test_a_kept_and_thinned_warmup_is_stored_too(tmp_path):
    run = RUN | {"keep_warmup": True, "thin": 3, "warmup": 61}
    assert_same(pg.infer(MODEL, pg.NUTS(), **run, store=tmp_path / "run.zarr"), pg.infer(MODEL, pg.NUTS(), **run))


def test_the_same_call_on_a_run_that_has_ended_computes_nothing(plain, tmp_path, monkeypatch):
    first = pg.infer(MODEL, pg.NUTS(), **RUN, store=tmp_path / "run.zarr")
    monkeypatch.setattr(chains.Programs, "__init__", lambda *_: pytest.fail("it ran again"))
    assert_same(pg.infer(MODEL, pg.NUTS(), **RUN, store=tmp_path / "run.zarr"), first)
    assert_same(first, plain)
    assert {item.name for item in (tmp_path / "run.zarr" / "resume").iterdir()} <= {
        "identity.record",
        "sealed.record",
        "lock",
    }


class Killed(BaseException):
    """Stands for the end of the process."""


def killed_at(monkeypatch, n, after):
    """End the process at its n-th write: before the new file takes its place, or after."""
    count, replace = 0, os.replace

    def fatal(source, target):
        nonlocal count
        count += 1
        if count > n:  # other threads die as well
            raise Killed
        if count == n and not after:
            raise Killed
        replace(source, target)
        if count == n:
            raise Killed

    monkeypatch.setattr(output.os, "replace", fatal)


@pytest.mark.parametrize(
    ("method", "writes"),
    [
        (pg.NUTS(), 926),
        (pg.SVI(steps=600, window=100), 40),
        (pg.SVGD(particles=30, steps=600), 40),
        (pg.SteinVI(components=2, steps=600, window=100), 40),
    ],
)
@pytest.mark.filterwarnings("ignore::probgen.base.errors.ProbgenWarning")
def test_killed_at_any_write_it_goes_on_bit_for_bit(method, writes, tmp_path, monkeypatch):
    """It dies again and again, each time after more writes; between the deaths the store opens as a tree."""
    whole = pg.infer(MODEL, method, **RUN)
    path, deaths = tmp_path / "run.zarr", 0
    for death in range(12):
        n = 1 + death * writes // 40
        with monkeypatch.context() as patch:
            killed_at(patch, n, after=death % 2 == 1)
            try:
                tree = pg.infer(MODEL, method, **RUN, store=path)
                break
            except Killed:
                deaths += 1
        if (path / "zarr.json").exists():
            partial = pg.load(path)
            xarray.open_datatree(path, engine="zarr").close()
            if "posterior" in partial.children:
                drawn = partial["posterior"].sizes.get("draw", 0)
                np.testing.assert_array_equal(
                    partial["posterior"]["theta"], whole["posterior"]["theta"].isel(draw=slice(0, drawn))
                )
    else:
        tree = pg.infer(MODEL, method, **RUN, store=path)
    assert deaths > 5
    assert_same(tree, whole)


CHILD = """
import sys, time
import jax
jax.config.update("jax_enable_x64", True)
sys.path.insert(0, sys.argv[2])
import numpy as np
import probgen as pg
from probgen.infer import chains
from probgen.run.store import Pace
from tests_program import MODEL, RUN
Pace.SECONDS, Pace.SHARE = -1.0, float("inf")
once = chains.Job.work
def work(self, first, last):
    if not work.told:
        work.told = True
        print("running", flush=True)
    return once(self, first, last)
work.told = False
chains.Job.work = work
pg.infer(MODEL, pg.NUTS(), **RUN, store=sys.argv[1])
print("ended", flush=True)
"""

CHILD_PROGRAM = """
import numpy as np, numpyro, numpyro.distributions as dist
import probgen as pg

def program(y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 3))
    tau = numpyro.sample("tau", dist.HalfNormal(2))
    with numpyro.plate("school", 4):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)

MODEL = pg.Model(program, data={"y": np.array([1.0, -0.5, 2.0, 0.3])})
RUN = {"draws": 30_000, "warmup": 500, "chains": 2, "seed": 11}
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_killed_at_twenty_random_moments(tmp_path):
    """The real thing: the process is killed by the system, and the next one goes on."""
    (tmp_path / "tests_program.py").write_text(CHILD_PROGRAM)
    (tmp_path / "child.py").write_text(CHILD)
    path, moments, kills = tmp_path / "run.zarr", random.Random(0), 0
    command = [sys.executable, str(tmp_path / "child.py"), str(path), str(tmp_path)]
    grown = []
    for _ in range(20):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = child.stdout.readline()
        assert line.strip() == "running", child.stderr.read()
        time.sleep(moments.uniform(0.0, 0.25))
        kills += child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.communicate()
        grown.append(pg.load(path)["posterior"].sizes["draw"] if (path / "posterior").exists() else 0)
    assert kills == 20
    assert grown == sorted(grown)
    assert grown[-1] > 0
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["running", "ended"], done.stderr
    sys.path.insert(0, str(tmp_path))
    try:
        import tests_program
    finally:
        sys.path.remove(str(tmp_path))
    whole = pg.infer(tests_program.MODEL, pg.NUTS(), **tests_program.RUN)
    assert_same(pg.load(path), whole)


def test_interrupted_by_ctrl_c_it_keeps_what_was_drawn(plain, tmp_path, monkeypatch):
    path, work = tmp_path / "run.zarr", chains.Job.work

    def interrupted(self, first, last):
        if last >= RUN["warmup"] + 30 and self.name == "chain-1":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)  # the main thread gets it
        return work(self, first, last)

    with monkeypatch.context() as patch:
        patch.setattr(chains.Job, "work", interrupted)
        some = pg.infer(MODEL, pg.NUTS(), **RUN, store=path)
    assert some.attrs["ended"] == "interrupted"
    drawn = some["posterior"].sizes["draw"]
    assert 0 < drawn < RUN["draws"]
    np.testing.assert_array_equal(some["posterior"]["theta"], plain["posterior"]["theta"].isel(draw=slice(0, drawn)))
    assert_same(pg.infer(MODEL, pg.NUTS(), **RUN, store=path), plain)


def test_a_store_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.zarr"
    pg.infer(MODEL, pg.NUTS(), **RUN, store=path)

    def other(y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 4))
        tau = numpyro.sample("tau", dist.HalfNormal(2))
        with numpyro.plate("school", 4):
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
            numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)
        numpyro.deterministic("best", jnp.max(theta))

    data = {"y": np.array([1.0, -0.5, 2.0, 0.4])}
    cases = [
        (pg.Model(other, MODEL.leaves, coords=COORDS), pg.NUTS(), RUN, "differs in the program"),
        (MODEL.with_data(**data), pg.NUTS(), RUN, "differs in the data 'y'"),
        (MODEL, pg.NUTS(target_accept=0.9), RUN, r"setting 'target_accept' of the method \(there None, here 0.9\)"),
        (MODEL, pg.NUTS(), RUN | {"draws": 61}, r"draws \(there 60, here 61\)"),
        (MODEL, pg.NUTS(), RUN | {"seed": 4}, "seed"),
        (MODEL, pg.RandomWalk(), RUN, r"method \(there nuts, here random_walk\)"),
    ]
    for model, method, run, words in cases:
        with pytest.raises(pg.StoreError, match=words):
            pg.infer(model, method, **run, store=path)


def test_a_comment_or_another_name_makes_no_other_program(tmp_path):
    path = tmp_path / "run.zarr"
    first = pg.infer(MODEL, pg.NUTS(), **RUN, store=path)

    def renamed(y=None):
        # The same, said in other words.
        m = numpyro.sample("mu", dist.Normal(0, 3))
        t = numpyro.sample("tau", dist.HalfNormal(2))
        with numpyro.plate("school", 4):
            effects = numpyro.sample("theta", dist.Normal(m, t))
            numpyro.sample("y", dist.Normal(effects, 1.0), obs=y)
        numpyro.deterministic("best", jnp.max(effects))

    model = pg.Model(renamed, MODEL.leaves, coords=COORDS)
    assert_same(pg.infer(model, pg.NUTS(), **RUN, store=path), first)


def test_two_processes_never_share_a_store(tmp_path):
    with (
        Store(tmp_path / "run.zarr", {"a": "b"}),
        pytest.raises(pg.StoreError, match="in use by another process"),
    ):
        Store(tmp_path / "run.zarr", {"a": "b"})
    Store(tmp_path / "run.zarr", {"a": "b"}).__exit__()  # and it is free again


def full(folder):
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")
    return folder


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "run.nc", "must be a folder"),
        (lambda p: p / "missing" / "run.zarr", "does not exist"),
        (lambda p: (p / "file.zarr").write_text("x") and p / "file.zarr", "is a file"),
        (lambda p: full(p / "full.zarr"), "something else"),
    ],
)
def test_a_path_that_cannot_be_a_store_is_refused_before_any_work(make, words, tmp_path, monkeypatch):
    monkeypatch.setattr(chains.Programs, "__init__", lambda *_: pytest.fail("it ran"))
    with pytest.raises(pg.StoreError, match=words):
        pg.infer(MODEL, pg.NUTS(), **RUN, store=make(tmp_path))


def test_a_folder_of_a_tree_that_cannot_be_resumed_is_not_overwritten(plain, tmp_path):
    plain.to_zarr(tmp_path / "theirs.zarr")
    with pytest.raises(pg.StoreError, match="something else"):
        pg.infer(MODEL, pg.NUTS(), **RUN, store=tmp_path / "theirs.zarr")


def test_a_full_disk_harms_nothing(plain, tmp_path, monkeypatch):
    path, fsync, left = tmp_path / "run.zarr", os.fsync, [400]

    def full(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(output.os, "fsync", full)
        with pytest.raises(pg.StoreError, match=r"cannot be written \(No space left on device\)"):
            pg.infer(MODEL, pg.NUTS(), **RUN, store=path)
    assert not list(path.rglob("*.partial"))
    pg.load(path)
    assert_same(pg.infer(MODEL, pg.NUTS(), **RUN, store=path), plain)


def test_a_folder_that_is_read_only_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):  # permissions mean nothing to an administrator
        mkdir = type(folder).mkdir

        def refused(self, *args, **kwargs):
            if folder in self.parents:
                raise PermissionError(13, "Permission denied")
            mkdir(self, *args, **kwargs)

        monkeypatch.setattr(type(folder), "mkdir", refused)
    with pytest.raises(pg.StoreError, match="Permission denied"):
        pg.infer(MODEL, pg.NUTS(), **RUN, store=folder / "run.zarr")


def interrupted_store(path, monkeypatch, writes=25):
    with monkeypatch.context() as patch:
        killed_at(patch, writes, after=True)
        with pytest.raises(Killed):
            pg.infer(MODEL, pg.NUTS(), **RUN, store=path)


@pytest.mark.parametrize("part", ["chunk", "state", "identity"])
def test_damage_is_found_and_named_before_it_goes_on(part, tmp_path, monkeypatch):
    path = tmp_path / "run.zarr"
    interrupted_store(path, monkeypatch, 600)
    file = {
        "chunk": path / "posterior" / "theta" / "c.0.0.0",
        "state": path / "resume" / "chain-0.record",
        "identity": path / "resume" / "identity.record",
    }[part]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    words = (
        "chunk c.0.0.0 of posterior/theta does not fit its checksum" if part == "chunk" else f"{file.name} is damaged"
    )
    with pytest.raises(pg.StoreError, match=words):
        pg.infer(MODEL, pg.NUTS(), **RUN, store=path)


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    from probgen.run import record

    path = tmp_path / "run.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(record, "FORMAT", record.FORMAT + 1)
        interrupted_store(path, monkeypatch)
    with pytest.raises(pg.StoreError, match="Use a newer probgen"):
        pg.infer(MODEL, pg.NUTS(), **RUN, store=path)


@pytest.mark.filterwarnings("ignore::probgen.base.errors.ProbgenWarning")
def test_a_lost_chain_is_started_again_in_a_store_too(tmp_path, monkeypatch):
    """The second run of a chain, killed in the middle, ends as if it had not been."""
    from probgen.infer import sampling

    compare, calls = sampling.compare, []

    def lost_once(u, stats, skip=0):
        verdict = compare(u, stats, skip)
        calls.append(1)
        return type(verdict)((1,), 9.0, 0, ("Chain 1 is lost, for a test.",)) if len(calls) == 1 else verdict

    monkeypatch.setattr(sampling, "compare", lost_once)
    whole = pg.infer(MODEL, pg.NUTS(), **RUN)
    assert whole.attrs["restarted_chains"] == "[1]"
    for writes in (600, 1000, 1300):
        path = tmp_path / f"run{writes}.zarr"
        calls.clear()
        interrupted_store(path, monkeypatch, writes)
        if (path / "resume" / "stage.record").exists():
            calls.append(1)  # the verdict is known; it is not asked for again
        else:
            calls.clear()
        assert_same(pg.infer(MODEL, pg.NUTS(), **RUN, store=path), whole)


def test_memory_stays_bounded(tmp_path):
    """Draws of 200 MB, and as much again in unconstrained coordinates, pass through far less: they are on disk, not in memory."""
    tracked = """
import resource, sys
import jax
jax.config.update("jax_enable_x64", True)
import numpyro, numpyro.distributions as dist
import probgen as pg

def program():
    numpyro.sample("x", dist.Normal(0, 1).expand([250]).to_event(1))

def grown(draws, path):
    pg.infer(pg.Model(program), pg.RandomWalk(), draws=draws, warmup=50, chains=2, seed=0, store=path)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = grown(2_000, sys.argv[1] + "/a.zarr")
from probgen.run import archive
archive._IN_MEMORY = 1
after = grown(50_000, sys.argv[1] + "/b.zarr")
print((after - before) / 1024)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", tracked, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 120  # MB


def test_records_keep_keys_and_arrays(tmp_path):
    from probgen.run.record import pack, read_record, unpack, write_record

    state = {"key": jax.random.key(3), "x": jnp.arange(4.0), "n": jnp.asarray(2), "static": "name"}
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, "shape") else x, state)
    write_record(tmp_path / "a.record", {"step": 3}, pack(state))
    record = read_record(tmp_path / "a.record")
    back = unpack(template, record.arrays, tmp_path / "a.record")
    assert record.meta == {"step": 3}
    assert back["static"] == "name"
    np.testing.assert_array_equal(jax.random.key_data(back["key"]), jax.random.key_data(state["key"]))
    np.testing.assert_array_equal(back["x"], state["x"])
    with pytest.raises(pg.StoreError, match="another sampler"):
        unpack({**template, "x": jax.ShapeDtypeStruct((5,), float)}, record.arrays, tmp_path / "a.record")
    with pytest.raises(pg.StoreError, match="another sampler"):
        unpack({**template, "y": template["x"]}, record.arrays, tmp_path / "a.record")
    assert json.dumps(record.meta)
