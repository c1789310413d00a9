"""MovieLens-100K (Harper & Konstan 2015): ratings, users and films, with their directors from Freebase.

Read where pip puts the archive that carries it: the data are for research use, and GroupLens asks that they be not
passed on, so nothing of them is kept in this repository. https://grouplens.org/datasets/movielens/100k/
"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from regear.core.errors import DataError
from regear.core.packages import fetched

PACKAGE = "recbole==1.2.1"
DIGEST = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
FOLDER = "recbole/dataset_example/ml-100k"
NAME = "ml-100k"
DIRECTED = "film.film.directed_by"


@dataclass(frozen=True)
class MovieLens:
    """`ratings` (user, item, rating 1 to 5, time), `users` (user, age, gender, occupation), `items` (item, title, year,
    decade, genre: list, director: list of Freebase ids, empty where unknown)."""

    ratings: pl.DataFrame
    users: pl.DataFrame
    items: pl.DataFrame


def movielens() -> MovieLens:
    """The data from the archive that carries them, fetched by pip once.

    Raises:
        BackendError: pip could not fetch it.
        DataError: the archive was changed, or its files have another shape.
    """
    return read(fetched(PACKAGE, digest=DIGEST) / FOLDER)


def read(folder: Path) -> MovieLens:
    """The data from a folder of `ml-100k.{inter,user,item,link,kg}`.

    Raises:
        DataError: a file or column is missing, or a value has another form.
    """
    ratings = _table(folder, "inter", ("user_id", "item_id", "rating", "timestamp"))
    users = _table(folder, "user", ("user_id", "age", "gender", "occupation"))
    items = _table(folder, "item", ("item_id", "movie_title", "release_year", "class"))
    year = pl.col("release_year").cast(pl.Int32, strict=False)
    genre = pl.col("class").str.split(" ").list.eval(pl.element().filter(~pl.element().is_in(["", "unknown"])))
    films = items.select(
        "item",
        title="movie_title",
        year=year,
        decade=pl.format("{}s", year // 10 * 10),
        genre=genre,
    ).join(_directors(folder), on="item", how="left")
    try:
        return MovieLens(
            ratings.select(
                "user", "item", pl.col("rating").cast(pl.Float64), time=pl.col("timestamp").cast(pl.Float64)
            ),
            users.select("user", pl.col("age").cast(pl.Int32), "gender", "occupation"),
            films,
        )
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"{folder} holds {NAME} in another form: {str(error).splitlines()[0]}; wanted {PACKAGE}"
        ) from None


def _directors(folder: Path) -> pl.DataFrame:
    links = _table(folder, "link", ("item_id", "entity_id"))
    triples = _table(folder, "kg", ("head_id", "relation_id", "tail_id"))
    made = triples.filter(pl.col("relation_id") == DIRECTED).select(entity_id="head_id", director="tail_id")
    return links.join(made, on="entity_id").group_by("item").agg(pl.col("director").unique().sort())


def _table(folder: Path, kind: str, columns: tuple[str, ...]) -> pl.DataFrame:
    """A tab-separated file whose header cells are `name:type`; user and item ids are renamed, all cells are text."""
    path = folder / f"{NAME}.{kind}"
    if not path.is_file():
        raise DataError(f"no file {path}; wanted the files of {PACKAGE}")
    frame = pl.read_csv(path, separator="\t", quote_char=None, infer_schema_length=0)
    frame = frame.rename({name: name.partition(":")[0] for name in frame.columns})
    lost = [name for name in columns if name not in frame.columns]
    if lost:
        raise DataError(f"{path} has no column {', '.join(lost)}; found {', '.join(frame.columns)}, wanted {PACKAGE}")
    names = {"user_id": "user", "item_id": "item"}
    return frame.rename({old: new for old, new in names.items() if old in frame.columns})
