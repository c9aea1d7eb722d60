"""The records of the paper's experiments, and the page that is made from them."""

import json

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import results
from common import records
from common.records import Record

mpl.use("agg")


@pytest.fixture(scope="module")
def tables():
    return results.all_tables()


@pytest.mark.parametrize("page", results.PAGES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_what_the_records_give(page, tables):
    text = page.read_text()
    assert results.with_tables(text, tables) == text, "run examples/paper/results.py"


def test_every_table_is_on_a_page(tables):
    text = "".join(page.read_text() for page in results.PAGES)
    for name in set(tables) - {"readme"}:
        assert f"<!-- table: {name} -->" in text, name


def test_every_picture_is_drawn_from_a_record(tmp_path):
    results.draw_all(tmp_path)
    plt.close("all")
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in results.PICTURES.iterdir()}
    text = "".join(page.read_text() for page in results.RESULTS)
    for name in drawn:
        assert f"images/results/{name})" in text, name


@pytest.mark.parametrize("path", sorted(records.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_a_record_is_of_a_whole_run_and_says_what_made_it(path):
    contents = json.loads(path.read_text())
    assert not contents.get("short")
    assert {"python", "jax", "jaxlib", "optax", "p2t_jax"} <= set(contents["versions"])
    assert path.stat().st_size < 300_000


def test_with_tables_replaces_what_stands_between_the_markers():
    page = (
        "one\n<!-- table: w -->\n\n<!-- end -->\ntwo\n<!-- table: x -->\n\nold\n\n<!-- end -->\n"
        "six\n<!-- table: y -->\n<!-- end -->\n"
    )
    new = results.with_tables(page, {"w": "| 0 |", "x": "| 1 |", "y": "| 2 |"})
    assert "old" not in new
    parts = ["one", "| 0 |", "two", "| 1 |", "six", "| 2 |"]
    assert sorted(parts, key=new.index) == parts
    assert results.with_tables(new, {"w": "| 0 |", "x": "| 1 |", "y": "| 2 |"}) == new
    with pytest.raises(KeyError, match="no table y; there are w, x"):
        results.with_tables(page, {"w": "", "x": ""})


def test_a_record_is_read_as_it_was_saved(tmp_path):
    runs = [{"optimizer": "Adam", "seed": s, "batches": [0, 5], "accuracy": [0.1, s / 10]}
            for s in (1, 0)]  # fmt: skip
    record = Record({"experiment": "x", "runs": runs, "measured": {"a": 1.5}})
    record.save("x", tmp_path)
    again = Record.load("x", tmp_path)
    assert again.contents == record.contents
    assert again.last("Adam").tolist() == [0.0, 0.1]  # by seed
    assert again.best("Adam").tolist() == [0.1, 0.1]
    assert again.curves("Adam")[0].tolist() == [0, 5]
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert records.spread(Record.load("y", tmp_path).last("Adam")) == "not run"


def test_of_two_records_the_newer_run_counts():
    def record(value, **runs):
        entries = [{"optimizer": n, "seed": 0, "accuracy": [a]} for n, a in runs.items()]
        return Record({"runs": entries, "measured": value})

    merged = record({"a": 1, "b": 1}, A=0.1, B=0.1).merged(record({"b": 2, "c": 2}, B=0.2, C=0.2))
    assert {run["optimizer"]: run["accuracy"] for run in merged.contents["runs"]} == {
        "A": [0.1], "B": [0.2], "C": [0.2],
    }  # fmt: skip
    assert merged.contents["measured"] == {"a": 1, "b": 2, "c": 2}


floats = st.floats(-1e6, 1e6, allow_subnormal=False)


@given(hnp.arrays(np.float64, hnp.array_shapes(max_dims=3), elements=floats))
def test_an_array_in_a_record_is_right_to_16_bits_and_zeros_stay_zeros(array):
    again = records.unpack_array(json.loads(json.dumps(records.pack_array(array))))
    assert again.shape == array.shape
    np.testing.assert_allclose(again, array, atol=np.abs(array).max() / 32767)
    np.testing.assert_array_equal(again == 0, array == 0)


def test_a_spread_is_the_mean_and_the_extremes():
    assert records.spread([0.5]) == "50.00%"
    assert records.spread([0.2, 0.3]) == "25.00% (20.00%-30.00%)"
