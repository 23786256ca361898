"""Files are data: whatever stands in them, reading ends in a tree or in a StoreError, soon, and without growing."""

import contextlib
import json
import os
import shutil
import struct
import time
import tracemalloc

import google_crc32c
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import probgen as pg
from probgen.run.record import read_record, write_record


def program(y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 3))
    with numpyro.plate("school", 3):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "run.zarr"
    model = pg.Model(program, data={"y": np.array([1.0, 2.0, 3.0])}, coords={"school": ["A", "B", "C"]})
    pg.infer(model, pg.NUTS(), draws=30, warmup=100, chains=2, seed=0, store=path)
    return path


@pytest.fixture
def copy(store, tmp_path):
    return shutil.copytree(store, tmp_path / "run.zarr")


def refused(path, words=""):
    """It is refused within a second, and allocates next to nothing on the way."""
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(pg.StoreError, match=words):
        pg.load(path)
    seconds, (_, peak) = time.perf_counter() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 1
    assert peak < 20e6


def edit(path, change):
    root = json.loads((path / "zarr.json").read_text())
    change(root, root["consolidated_metadata"]["metadata"])
    (path / "zarr.json").write_text(json.dumps(root))


CHUNK = "posterior/mu/c.0.0"


def test_the_store_itself_is_read(copy):
    tree = pg.load(copy)
    assert tree["posterior"]["mu"].shape == (2, 30)
    assert tree["observed_data"]["school"].values.tolist() == ["A", "B", "C"]


@pytest.mark.parametrize("file", [CHUNK, "zarr.json", "observed_data/school/c/0"])
def test_truncated(copy, file):
    content = (copy / file).read_bytes()
    (copy / file).write_bytes(content[: len(content) // 2])
    refused(copy, "damaged: chunk .* has .* bytes" if file != "zarr.json" else "not JSON")


def test_missing(copy):
    (copy / CHUNK).unlink()
    refused(copy, r"damaged: chunk c\.0\.0 of posterior/mu cannot be read")


@pytest.mark.parametrize("bit", range(0, 30 * 8 * 8, 97))
def test_bit_flipped(copy, bit):
    content = bytearray((copy / CHUNK).read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    (copy / CHUNK).write_bytes(content)
    refused(copy, r"chunk c\.0\.0 of posterior/mu does not fit its checksum")


def test_huge_declared_shape(copy):
    edit(copy, lambda root, nodes: nodes["posterior/mu"].update(shape=[2, 10**15]))
    refused(copy, "damaged")


def test_huge_declared_chunk(copy):
    edit(copy, lambda root, nodes: nodes["posterior/mu"]["chunk_grid"]["configuration"].update(chunk_shape=[1, 10**15]))
    refused(copy, "damaged")


@pytest.mark.parametrize("shape", [[2, -1], [2, 1.5], [2, "30"], [2], None, [2, True], [[2], 30], {}])
def test_impossible_shape(copy, shape):
    edit(copy, lambda root, nodes: nodes["posterior/mu"].update(shape=shape))
    refused(copy, "description of 'posterior/mu'")


@pytest.mark.parametrize(
    "dtype", ["float32", "object", "r4096", {"name": "object"}, {"name": "variable_length_utf8"}, 7, None]
)
def test_wrong_dtype(copy, dtype):
    edit(copy, lambda root, nodes: nodes["posterior/mu"].update(data_type=dtype))
    refused(copy, "is not what probgen writes|damaged")


@pytest.mark.parametrize(
    "codecs",
    [
        [{"name": "bytes"}, {"name": "zstd"}],
        [{"name": "pickle"}, {"name": "crc32c"}],
        [{"name": "bytes"}],
        [],
        "bytes",
        [{"name": "sharding_indexed"}, {"name": "crc32c"}],
    ],
)
def test_other_codecs(copy, codecs):
    edit(copy, lambda root, nodes: nodes["posterior/mu"].update(codecs=codecs))
    refused(copy, "description of 'posterior/mu'")


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "posterior/../../x", "a\\..\\b", "c:/x", "a\x00b", "", "a//b"]
)
def test_names_that_leave_the_folder(copy, name):
    def move(root, nodes):
        nodes[name] = nodes.pop("posterior/mu")

    edit(copy, move)
    refused(copy, "is not one of a group or an array")


def test_links(copy, tmp_path):
    secret = tmp_path / "secret"
    shutil.move(copy / CHUNK, secret)
    os.symlink(secret, copy / CHUNK)
    refused(copy, "is a link")
    (copy / CHUNK).unlink()
    shutil.move(secret, copy / CHUNK)
    shutil.move(copy / "posterior" / "mu", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", copy / "posterior" / "mu")
    refused(copy, "behind a link")


@pytest.mark.skipif(os.name == "nt", reason="there are no pipes in folders")
@pytest.mark.parametrize("file", ["zarr.json", CHUNK, "run.nc"])
def test_a_pipe_is_not_waited_for(copy, file):
    (copy / file).unlink(missing_ok=True)
    os.mkfifo(copy / file)
    refused(copy / file if file == "run.nc" else copy, "neither folder nor file|no file|damaged")


GROUP = {"attributes": {}, "zarr_format": 3, "node_type": "group"}


@pytest.mark.parametrize(
    "names",
    [[f"g{i}" for i in range(5000)], ["/".join("a" * i) for i in range(1, 500)], ["posterior/mu/x"], ["\ud800"]],
)
def test_groups_beyond_number_and_depth(copy, names):
    edit(copy, lambda root, nodes: nodes.update(dict.fromkeys(names, GROUP)))
    refused(copy, "is not what probgen writes|damaged")


@pytest.mark.parametrize(
    "change",
    [
        {"attributes": {"_FillValue": "AAAA"}},
        {"attributes": {"units": "days since 1000000-01-01"}},
        {"attributes": {"scale_factor": "x"}},
        {"attributes": {"coordinates": 7}},
        {"attributes": [1]},
        {"shape": [0, 10**30]},
        {"dimension_names": ["draw", "draw"]},
        {"fill_value": {}},
    ],
)
def test_what_the_reader_would_stumble_over(copy, change):
    edit(copy, lambda root, nodes: nodes["posterior/mu"].update(change))
    refused(copy, "is not what probgen writes")


def test_text_that_is_none(copy):
    file = copy / "observed_data" / "school" / "c" / "0"
    content = b"\xff" * (file.stat().st_size - 4)
    file.write_bytes(content + google_crc32c.value(content).to_bytes(4, "little"))
    refused(copy, "is not what probgen writes|damaged")


def test_a_name_as_long_as_no_file_can_have(copy):
    edit(copy, lambda root, nodes: nodes.update({"posterior/" + "x" * 5000: nodes.pop("posterior/mu")}))
    refused(copy, "is not one of a group or an array")


def test_a_root_as_large_as_a_disk(copy):
    with open(copy / "zarr.json", "wb") as file:
        file.truncate(10**12)  # sparse
    refused(copy, "too large")


def test_deeply_nested_json(copy):
    (copy / "zarr.json").write_text("[" * 200_000)
    refused(copy, "not JSON")


@pytest.mark.parametrize("root", ["7", "[]", "{}", "null", '{"zarr_format": 3, "node_type": "group"}', '"x"'])
def test_a_root_of_another_kind(copy, root):
    (copy / "zarr.json").write_text(root)
    refused(copy, "does not describe its groups")


def test_a_checksum_can_be_forged_but_only_numbers_come_in(copy):
    """Whoever can write the file can write its checksum: what is then read is still only an array of that shape."""
    content = np.full(30, np.nan).tobytes()
    (copy / CHUNK).write_bytes(content + google_crc32c.value(content).to_bytes(4, "little"))
    assert np.isnan(pg.load(copy)["posterior"]["mu"].values[0]).all()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
FUZZ = settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def paths_in(node, prefix=()):
    """Every place in a JSON document."""
    yield prefix
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from paths_in(value, (*prefix, key))


@FUZZ
@given(data=st.data(), value=JSON)
def test_fuzzed_descriptions_end_in_a_tree_or_a_store_error(store, data, value):
    text = (store / "zarr.json").read_text()
    root = json.loads(text)
    place = data.draw(st.sampled_from([path for path in paths_in(root) if path]))
    node = root
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    try:
        (store / "zarr.json").write_text(json.dumps(root))
        began = time.perf_counter()
        with contextlib.suppress(pg.StoreError):
            pg.load(store)
        assert time.perf_counter() - began < 1
    finally:
        (store / "zarr.json").write_text(text)


@FUZZ
@given(data=st.data(), noise=st.binary(min_size=1, max_size=6))
def test_fuzzed_bytes_end_in_a_tree_or_a_store_error(store, data, noise):
    files = sorted(p for p in store.rglob("*") if p.is_file() and "resume" not in p.parts)
    file = data.draw(st.sampled_from(files))
    content = file.read_bytes()
    at = data.draw(st.integers(0, max(0, len(content) - 1)))
    try:
        file.write_bytes(content[:at] + noise + content[at + len(noise) :])
        with contextlib.suppress(pg.StoreError):
            pg.load(store)
    finally:
        file.write_bytes(content)


@FUZZ
@given(data=st.data(), noise=st.binary(min_size=1, max_size=6))
def test_fuzzed_records_are_refused(tmp_path_factory, data, noise):
    path = tmp_path_factory.mktemp("record") / "a.record"
    write_record(path, {"step": 3}, [np.arange(5.0), np.ones((2, 0), bool)])
    content = path.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    changed = content[:at] + noise + content[at + len(noise) :]
    path.write_bytes(changed)
    if changed == content:
        return
    with pytest.raises(pg.StoreError):
        read_record(path)


@pytest.mark.parametrize(
    "header",
    [
        {"format": 1, "meta": {}, "arrays": [["<f8", [10**15]]]},
        {"format": 1, "meta": {}, "arrays": [["<f8", [-1]]]},
        {"format": 1, "meta": {}, "arrays": [["|O", [1]]]},
        {"format": 1, "meta": {}, "arrays": [["V999999999", [1]]]},
        {"format": 1, "meta": [], "arrays": []},
        {"format": "1", "meta": {}, "arrays": []},
        {"format": 1, "meta": {}, "arrays": [["<f8", [10**400]]]},
        {"format": 1, "meta": {}, "arrays": [["<f8", [True]]]},
        {"format": 1, "meta": {}},
        [],
    ],
)
def test_records_with_a_true_checksum_and_a_false_header(tmp_path, header):
    import hashlib

    body = b"probgen record\n" + json.dumps(header).encode() + b"\n" + struct.pack("<d", 1.0)
    path = tmp_path / "a.record"
    path.write_bytes(body + hashlib.sha256(body).digest())
    with pytest.raises(pg.StoreError, match="does not hold"):
        read_record(path)


def test_netcdf_files_are_data_too(store, tmp_path):
    import h5py

    path = tmp_path / "run.nc"
    pg.load(store).to_netcdf(path, engine="h5netcdf")
    assert pg.load(path)["posterior"]["mu"].shape == (2, 30)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused(path)
    path.write_bytes(b"not HDF5 at all")
    refused(path)
    with h5py.File(path, "w") as file:
        file.create_group("posterior").create_dataset("mu", shape=(4, 10**12), dtype="f8", chunks=(1, 10**6))
    refused(path, "declare")
    with h5py.File(path, "w") as file:
        file["posterior"] = h5py.ExternalLink("/etc/passwd", "/")
    refused(path, "is a link")
    with h5py.File(path, "w") as file:
        file["again"] = file["/"]  # a group that holds itself
    refused(path, "under two names")
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["s"] = np.arange(5.0)
    layout = h5py.VirtualLayout((5,), "f8")
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "s", (5,))
    with h5py.File(path, "w") as file:
        file.create_group("posterior").create_virtual_dataset("mu", layout)
    refused(path, "in another file")
    with pytest.raises(pg.StoreError, match="does not exist"):
        pg.load(tmp_path / "none.zarr")
