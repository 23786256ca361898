"""Programs and data on disk: what is found, what is read, and what the errors say."""

import json

import numpy as np
import pytest
import xarray

import probgen as pg
from probgen.program.files import find, gallery, load_data, load_module, load_program, match_arguments

PROGRAM = '''"""A coin."""
import numpyro, numpyro.distributions as dist

def model(heads, n=10):
    p = numpyro.sample("p", dist.Beta(1, 1))
    numpyro.sample("heads", dist.Binomial(n, p), obs=heads)
'''


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# -- the gallery -----------------------------------------------------------------------------------------------------


def test_the_gallery_has_titles_programs_and_data():
    entries = gallery()
    assert "eight_schools" in {entry.name for entry in entries}
    assert len({entry.name for entry in entries}) == len(entries) >= 31
    for entry in entries:
        assert entry.title, entry.name
        assert entry.program.is_file(), entry.name
        assert entry.data.is_file(), entry.name


@pytest.mark.parametrize(
    "name", ["eight_schools", "models/eight_schools", "kidiq-kidscore_momiq", "models/posteriordb/kidiq-kidscore_momiq"]
)
def test_gallery_models_are_found_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = find(name)
    columns, _ = match_arguments(load_program(name), load_data(entry.data))
    pg.Model(load_program(name), columns)


def test_the_first_model_is_the_one_that_was_published():
    entry = find("eight_schools")
    module = load_module(entry.program)
    model = pg.Model(module.model, load_data(entry.data), module.COORDS)
    assert model.sites["theta"].dims == ("school",)
    assert model.labels["school"] == tuple("ABCDEFGH")
    assert model.leaves["y"].tolist() == [28, 8, -3, 7, -1, 1, 18, 12]
    assert model.leaves["sigma"].tolist() == [15, 10, 16, 11, 9, 11, 10, 18]


def test_a_path_is_not_mistaken_for_a_gallery_model(tmp_path):
    with pytest.raises(pg.ModelError, match=r"no file, folder or gallery model .*mine/eight_schools"):
        find(tmp_path / "mine" / "eight_schools")


def test_a_collection_of_ones_own(tmp_path):
    write(tmp_path / "coins" / "coin.py", PROGRAM)
    write(tmp_path / "coins" / "data" / "euro.json", '{"heads": 3}')
    write(tmp_path / "coins" / "index.json", '{"euro-coin": {"model": "coin", "data": "euro"}}')
    entry = find(tmp_path / "coins" / "euro-coin")
    assert entry.program.name == "coin.py"
    assert load_data(entry.data) == {"heads": 3}
    with pytest.raises(pg.ModelError, match="Did you mean 'euro-coin'"):
        find(tmp_path / "coins" / "euro-coins")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("eight_school", "Did you mean 'eight_schools'"),
        ("nothing_like_it", "probgen models"),
        ("data.csv", "not a Python file"),
        ("empty", "has no model.py"),
    ],
)
def test_what_is_not_a_model(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data.csv", "x\n1\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(pg.ModelError, match=message):
        find(name)


# -- programs --------------------------------------------------------------------------------------------------------


def test_a_program_is_a_file_or_its_folder(tmp_path):
    file = write(tmp_path / "coin" / "model.py", PROGRAM)
    write(tmp_path / "coin" / "data.json", '{"heads": 7}')
    assert find(file).data == find(file.parent).data == tmp_path / "coin" / "data.json"
    assert find(file.parent).title == "A coin."
    assert load_program(file.parent).__name__ == "model"


def test_a_program_may_import_its_neighbours(tmp_path):
    write(tmp_path / "neighbour_of_model.py", "prior = 3.0\n")
    file = write(tmp_path / "mine.py", "from neighbour_of_model import prior\n\ndef model():\n    return prior\n")
    assert load_program(file)() == 3.0


def test_a_file_without_model_names_what_it_has(tmp_path):
    file = write(tmp_path / "mine.py", "def program(y):\n    pass\n")
    with pytest.raises(pg.ModelError, match=r"`model` is missing in .*mine.py; it defines program"):
        load_program(file)
    file = write(tmp_path / "other.py", "model = 3\n")
    with pytest.raises(pg.ModelError, match="`model` is not callable"):
        load_program(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ny = x / 0\ndef model(): pass\n", r"ZeroDivisionError in line 2 \(y = x / 0\)"),
        ("def model(:\n    pass\n", r"SyntaxError in line 1 \(def model\(:\)"),
        ("import no_such_module_here\n", r"ModuleNotFoundError in line 1"),
        ("import sys\nsys.exit(3)\n", r"SystemExit in line 2"),
    ],
)
def test_an_exception_while_importing_shows_the_line(text, message, tmp_path):
    with pytest.raises(pg.ModelError, match=message):
        load_program(write(tmp_path / "mine.py", text))


# -- data ------------------------------------------------------------------------------------------------------------


def test_every_format_gives_the_same_columns(tmp_path):
    x, k, names = np.array([1.0, np.nan, 3.0]), np.array([1, 2, 3]), ["a", "b", "c"]
    (tmp_path / "d.json").write_text(json.dumps({"x": [1.0, None, 3.0], "k": [1, 2, 3], "names": names}))
    (tmp_path / "d.csv").write_text("x, k, names\n1.0, 1, a\n, 2, b\n3.0, 3, c\n")
    np.savez(tmp_path / "d.npz", x=x, k=k, names=np.array(names))
    data = xarray.Dataset({"x": ("names", x), "k": ("names", k)}, coords={"names": names})
    data.to_netcdf(tmp_path / "d.nc", engine="h5netcdf")
    for suffix in ("json", "csv", "npz", "nc"):
        columns = load_data(tmp_path / f"d.{suffix}")
        assert set(columns) == {"x", "k", "names"}, suffix
        np.testing.assert_array_equal(columns["x"], x)
        assert columns["x"].dtype == float, suffix
        np.testing.assert_array_equal(columns["k"], k)
        assert columns["k"].dtype.kind == "i", suffix
        assert columns["names"].tolist() == names, suffix


def test_single_numbers_stay_python_values(tmp_path):
    (tmp_path / "d.json").write_text('{"n": 5, "flag": true, "rate": 0.5, "X": [[1, 2], [3, 4]]}')
    np.savez(tmp_path / "d.npz", n=5, flag=True, rate=0.5, X=[[1, 2], [3, 4]])
    xarray.Dataset({"n": 5, "rate": 0.5, "X": (("i", "j"), [[1, 2], [3, 4]])}).to_netcdf(tmp_path / "d.nc")
    for suffix in ("json", "npz", "nc"):
        columns = load_data(tmp_path / f"d.{suffix}")
        assert type(columns["n"]) is int, suffix
        assert type(columns["rate"]) is float, suffix
        assert columns["X"].shape == (2, 2), suffix


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.xlsx", "", r"suffix '.xlsx'. Give a file in one of: .json, .csv, .npz, .nc"),
        ("d.json", "{", "cannot be read as json"),
        ("d.json", "[1, 2]", "holds a list, expected an object"),
        ("d.json", "{}", "has no columns"),
        ("d.json", '{"x": [[1, 2], [3]]}', "column 'x' of .* is not a regular array"),
        ("d.csv", "", "cannot be read as csv"),
        ("d.npz", "no zip", "cannot be read as npz"),
        ("d.nc", "no netcdf", "cannot be read as nc"),
    ],
)
def test_what_is_not_data(name, content, message, tmp_path):
    with pytest.raises(pg.DataError, match=message):
        load_data(write(tmp_path / name, content))


def test_pickles_are_not_opened(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.array([{"any": "object"}]))
    with pytest.raises(pg.DataError, match="cannot be read as npz"):
        load_data(tmp_path / "d.npz")


def test_a_missing_data_file(tmp_path):
    with pytest.raises(pg.DataError, match=r"data file .*d.json does not exist"):
        load_data(tmp_path / "d.json")


# -- columns and arguments -------------------------------------------------------------------------------------------


def program(sigma, y=None, *, size: int = 3):
    """Stands for a program; only its signature matters."""


def test_columns_go_to_arguments():
    data, ignored = match_arguments(program, {"sigma": 1, "y": 2, "size": 3, "school": 4})
    assert data == {"sigma": 1, "y": 2, "size": 3}
    assert ignored == {"school": 4}
    assert match_arguments(lambda **columns: None, {"a": 1}) == ({"a": 1}, {})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sgima": 1}, "needs the argument 'sigma', .* Did you mean 'sgima'"),
        ({"Sigma": 1}, "Did you mean 'Sigma'"),
        ({"dose": 1, "y": 2}, "Choose from: dose"),
        ({"y": 2}, "Add it to the data"),
    ],
)
def test_a_missing_column_is_named(columns, message):
    with pytest.raises(pg.DataError, match=message):
        match_arguments(program, columns)
