"""The reader of MovieLens-100K, on a made-up copy of its files and, where it can be had, on the data."""

import polars as pl
import pytest

from regear.core.errors import BackendError, DataError
from regear.tasks.movielens import movielens, read

FILES = {
    "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n7\t3\t4\t20\n7\t1\t2\t10\n8\t3\t5\t15\n",
    "user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n7\t30\tF\tartist\t00001\n8\t17\tM\tnone\t00002\n",
    "item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    '1\tA "quoted\t1989\tComedy Drama\n2\tB\tunkonwn\tunknown\n3\tC\t1990\tDrama\n',
    "link": "item_id:token\tentity_id:token\n1\tm.1\n3\tm.3\n",
    "kg": "head_id:token\trelation_id:token\ttail_id:token\n"
    "m.1\tfilm.film.directed_by\tm.x\nm.1\tfilm.film.directed_by\tm.a\nm.x\tfilm.director.film\tm.1\nm.3\tfilm.film.genre\tm.g\n",
}


@pytest.fixture
def folder(tmp_path):
    for kind, text in FILES.items():
        (tmp_path / f"ml-100k.{kind}").write_text(text)
    return tmp_path


def test_a_small_copy_is_read(folder):
    data = read(folder)
    assert data.ratings.rows() == [("7", "3", 4.0, 20.0), ("7", "1", 2.0, 10.0), ("8", "3", 5.0, 15.0)]
    assert data.users.rows() == [("7", 30, "F", "artist"), ("8", 17, "M", "none")]
    assert data.items.rows() == [
        ("1", 'A "quoted', 1989, "1980s", ["Comedy", "Drama"], ["m.a", "m.x"]),
        ("2", "B", None, None, [], None),
        ("3", "C", 1990, "1990s", ["Drama"], None),
    ]


def test_a_missing_file_or_column_is_named(folder):
    (folder / "ml-100k.link").write_text("item:token\tentity_id:token\n1\tm.1\n")
    with pytest.raises(DataError, match=r"ml-100k.link has no column item_id; found item, entity_id"):
        read(folder)
    (folder / "ml-100k.link").unlink()
    with pytest.raises(DataError, match=r"no file .*ml-100k.link"):
        read(folder)


def test_a_value_of_another_form_is_refused(folder):
    (folder / "ml-100k.user").write_text(FILES["user"].replace("30", "thirty"))
    with pytest.raises(DataError, match="another form"):
        read(folder)


def test_the_data_are_those_published():
    try:
        data = movielens()
    except BackendError as error:
        pytest.skip(f"MovieLens-100K cannot be fetched: {error}")
    assert (len(data.ratings), len(data.users), len(data.items)) == (100_000, 943, 1682)
    assert dict(data.users["gender"].value_counts().iter_rows()) == {"M": 670, "F": 273}
    directors = data.items["director"].explode().drop_nulls()
    assert (len(directors), directors.n_unique()) == (1727, 1131)
    assert data.ratings["rating"].is_between(1, 5).all()
    assert data.items["genre"].explode().drop_nulls().n_unique() == 18
    assert isinstance(data.items.schema["director"], pl.List)
