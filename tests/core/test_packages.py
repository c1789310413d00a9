"""Archives from packages: what is kept of them, and what is refused."""

import zipfile

import pytest

from regear.core import packages
from regear.core.errors import DataError
from regear.core.files import sha256


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel that stands in for what pip brings."""
    path = tmp_path / "thing-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as bundle:
        for name in ("thing/data/one.txt", "thing/data/two.txt", "thing/code.py"):
            bundle.writestr(name, name)
    monkeypatch.setattr(packages, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(packages, "_download", lambda *_, **__: path)
    return path


def kept(place):
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


def test_of_a_wheel_only_what_is_named_is_kept(wheel):
    place = packages.fetched("thing==1", only="thing/data/o", digest=sha256(wheel))
    assert kept(place) == ["thing/data/one.txt"]


def test_all_of_a_wheel_is_kept_otherwise(wheel):
    assert len(kept(packages.fetched("thing==1"))) == 3


def test_another_digest_is_refused_and_nothing_stays(wheel, tmp_path):
    with pytest.raises(DataError, match="the archive was changed"):
        packages.fetched("thing==1", digest="0" * 64)
    assert not [path for path in kept(tmp_path / "home") if not path.endswith(".lock")]
