"""What cannot be counted is refused in one line that names the first ids."""

import polars as pl
import pytest

from regear.core.errors import DataError, RecipeError
from tests.auditing.test_compare import audited

COUNT = 40
GOOD = pl.DataFrame(
    {"id": list(range(COUNT)), "m": [float(i % 3) for i in range(COUNT)], "g": ["a", "b"] * (COUNT // 2)}
)


def changed(column, values):
    """The good table with other values in its first rows."""
    rest = GOOD[column].to_list()[len(values) :] if column in GOOD.columns else [1.0] * (COUNT - len(values))
    return GOOD.with_columns(pl.Series(column, [*values, *rest], strict=False))


NAN, INF = float("nan"), float("inf")
TABLES = {
    "nan": (changed("m", [1.0, NAN]), GOOD, "1 units have NaN or infinity as m.*: 1$"),
    "infinity": (GOOD, changed("m", [INF] * 7), "7 units have NaN or infinity .*: 0, 1, 2, 3, 4|0, 1, 10"),
    "one side": (GOOD, changed("m", [None]), "1 units have m on one side only.*: 0$"),
    "twice": (changed("id", [5]), GOOD, "1 ids stand more than once in the table before.*: 5$"),
    "unmatched": (GOOD, GOOD.slice(3), "3 ids are in the table before only.*: 0, 1, 2$"),
    "more after": (GOOD.slice(2), GOOD, "2 ids are in the table after only.*: 0, 1$"),
    "no id": (GOOD.drop("id"), GOOD, "the table before has no column `id`; found m, g"),
    "null id": (GOOD, changed("id", [None, None]), "the table after has 2 rows without an id"),
    "empty": (GOOD, GOOD.clear(), "the table after has no rows"),
    "missing": (GOOD, GOOD.drop("m"), "the table after has no column 'm'"),
    "words": (GOOD, GOOD.with_columns(pl.col("m").cast(pl.String)), "column 'm' holds String; wanted numbers"),
    "kinds": (GOOD, GOOD.with_columns(pl.col("id").cast(pl.Float64)), "found Int64 before and Float64 after"),
    "null cluster": (changed("cluster", [None, None]), GOOD, "2 units have no cluster.*: 0, 1$"),
    "lists": (GOOD.with_columns(g=pl.concat_list("m", "m")), GOOD, "attribute 'g' holds List"),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_that_cannot_be_paired_are_refused(case):
    before, after, message = TABLES[case]
    with pytest.raises(DataError, match=message) as caught:
        audited(before, after, "m", by=("g",))
    assert "\n" not in str(caught.value)


def test_ids_of_other_types_that_read_alike_are_the_same_units():
    assert audited(GOOD, GOOD.with_columns(pl.col("id").cast(pl.String)), "m", by=("g",))[0].n == COUNT


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (["g", "g"], "dimension 'g' named more than once"),
        (["g*g"], "dimension 'g' named more than once"),
        (["id"], "found 'id' as a dimension"),
        (["cluster"], "found 'cluster' as a dimension"),
        (["gg"], r"no attribute 'gg'.*did you mean"),
        (["a0"], "has a name that the audit uses itself"),
        (["many"], "'many' has 300 values; wanted at most 200"),
    ],
)
def test_dimensions_that_are_none_are_refused(by, message):
    count = 300
    frame = pl.DataFrame(
        {
            "id": range(count),
            "m": [0.0, 1.0] * 150,
            "g": ["a", "b"] * 150,
            "many": [f"v{i}" for i in range(count)],
            "a0": ["x"] * count,
        }
    )
    with pytest.raises(RecipeError, match=message):
        audited(frame, frame, "m", by=by)


@pytest.mark.parametrize(
    ("metric", "message"),
    [("g", "metric 'g' holds String"), ("mm", "no metric 'mm'"), (["m", "m"], "metric 'm' named more than once")],
)
def test_metrics_that_are_none_are_refused(metric, message):
    with pytest.raises(RecipeError, match=message):
        audited(GOOD, GOOD, metric, by=("g",))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([None, 1.0], "1 units have no finite weight 'w'.*: 0$"),
        ([1.0, -2.0], "1 units have a negative weight 'w'.*: 1$"),
    ],
)
def test_weights_that_do_not_weigh_are_refused(values, message):
    with pytest.raises(DataError, match=message):
        audited(changed("w", values), GOOD, "m", by=("g",), weight="w")


def test_a_negative_denominator_is_refused():
    with pytest.raises(DataError, match=r"1 units have a negative denominator in m/d.*: 0$"):
        audited(changed("d", [-1.0]), changed("d", []), "m/d", by=("g",))


@pytest.mark.parametrize("value", ["0", "-1", "nan", "much"])
def test_margins_that_allow_nothing_are_refused(value):
    with pytest.raises(RecipeError, match="wanted a positive number"):
        audited(GOOD, GOOD, "m", by=("g",), margin={"m": value})


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"id": [0, 0, 1], "age": [1, 2, 3]}, "1 ids stand more than once in the table of attributes.*: 0$"),
        ({"who": [0], "age": [1]}, "the table of attributes has no column `id`"),
        ({"id": ["x"], "age": [1]}, "no id of the table of attributes is in the table before"),
    ],
)
def test_attributes_that_fit_no_unit_are_refused(tmp_path, attributes, message):
    import regear

    paths = [tmp_path / "t.parquet", tmp_path / "who.parquet"]
    GOOD.write_parquet(paths[0])
    pl.DataFrame(attributes).write_parquet(paths[1])
    with pytest.raises(DataError, match=message):
        regear.audit(paths[0], paths[0], metric=["m"], by=["age"], attributes=paths[1])


@pytest.mark.parametrize(("name", "text"), [("t.jsonl", ""), ("t.csv", ""), ("t.jsonl", "{broken"), ("t.txt", "id\n1")])
def test_files_that_are_no_tables_are_refused_in_one_line(tmp_path, name, text):
    import regear

    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=r"wanted|no rows") as caught:
        regear.audit(tmp_path / name, tmp_path / name, metric=["m"], by=["g"])
    assert "\n" not in str(caught.value)
