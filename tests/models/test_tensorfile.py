"""Files are read without mapping them, refused when damaged, and written as safetensors itself would."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from regear.core.errors import CheckpointError
from regear.models.store import Store
from regear.models.tensorfile import DTYPES, TensorFile, layout_of, whole, write_tensors

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6).filter(lambda n: n != "__metadata__")
shapes = st.lists(st.integers(0, 4), max_size=3)


@given(st.dictionaries(names, st.tuples(st.sampled_from(list(DTYPES.values())), shapes), min_size=1, max_size=8))
def test_bytes_are_those_of_safetensors(tmp_path_factory, wanted):
    path = tmp_path_factory.mktemp("file") / "x.safetensors"
    tensors = {name: torch.ones(shape).to(dtype) for name, (dtype, shape) in wanted.items()}
    write_tensors(path, layout_of(tensors), whole(tensors))
    assert path.read_bytes() == save(tensors, metadata={"format": "pt"})
    for name, tensor in TensorFile(path).all().items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, tensors[name])


def test_a_tensor_in_pieces_is_the_same_file(tmp_path):
    tensors = {"a": torch.randn(7, 3).bfloat16(), "b": torch.randn(5)}
    write_tensors(tmp_path / "pieces", layout_of(tensors), lambda name: tensors[name].split(2))
    assert (tmp_path / "pieces").read_bytes() == save(tensors, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="fewer than its shape"):
        write_tensors(tmp_path / "short", layout_of(tensors), lambda name: tensors[name].split(2)[:-1])
    assert not list(tmp_path.glob("*short*"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-1],
        lambda raw: raw + b"\0",
        lambda raw: raw[:20],
        lambda raw: b"",
        lambda raw: (1 << 40).to_bytes(8, "little") + raw[8:],
        lambda raw: raw[:8] + b"[" + raw[9:],
        lambda raw: raw.replace(b"[3,2]", b"[3,3]"),
        lambda raw: raw.replace(b"[3,2]", b"[-3,-2]"[:5]),
        lambda raw: raw.replace(b"[0,24]", b"[4,24]"),
        lambda raw: raw.replace(b'"shape"', b'"shaqe"'),
    ],
)
def test_damaged_files_are_refused_in_one_line(damage, tmp_path):
    save_file({"x": torch.randn(3, 2), "y": torch.randn(4)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    path = tmp_path / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"damaged or truncated.*again") as caught:
        TensorFile(path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def store(tmp_path):
    torch.manual_seed(0)
    tensors = {"table": torch.randn(100, 8).bfloat16(), "scalar": torch.tensor(3.0)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    return Store(tmp_path), tensors


def test_only_the_rows_asked_for_are_read(store, monkeypatch):
    found, tensors = store
    rows = torch.tensor([3, 99, 4, 3, 0, 50])
    read = []
    plain = Store.rows
    monkeypatch.setattr(Store, "rows", lambda self, name, a=0, b=None: read.append((a, b)) or plain(self, name, a, b))
    assert torch.equal(found.gather("table", rows), tensors["table"][rows])
    assert sorted(read) == [(0, 1), (3, 5), (50, 51), (99, 100)]
    pieces = list(found.pieces("table", limit=48))
    assert [len(piece) for piece in pieces] == [3] * 33 + [1]
    assert torch.equal(torch.cat(pieces), tensors["table"])
    assert [float(piece) for piece in found.pieces("scalar")] == [3.0]


def test_damage_in_a_row_nobody_asked_for_is_not_noticed_and_elsewhere_is(tmp_path):
    table = torch.zeros(10, 2)
    table[7, 1] = float("nan")
    save_file({"table": table}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({}))
    found = Store(tmp_path)
    assert found.rows("table", 0, 7).sum() == 0
    with pytest.raises(CheckpointError, match="table holds NaN"):
        list(found.pieces("table", limit=8))


def test_load_file_reads_what_is_written(tmp_path):
    tensors = {"é": torch.randn(2, 2), 'quote"': torch.zeros(0, 3)}
    write_tensors(tmp_path / "x.safetensors", layout_of(tensors), whole(tensors))
    assert {k: v.shape for k, v in load_file(tmp_path / "x.safetensors").items()} == {
        k: v.shape for k, v in tensors.items()
    }
