"""The plan tells what a healing takes, and refuses what cannot be done, before a weight is read."""

import json

import pytest
import torch

import regear
from regear.cli import main
from regear.core.errors import DataError, IncompatibleModel, RecipeError
from regear.healing.board import Board
from regear.healing.heal import build_recipe
from regear.healing.inputs import training_digest
from regear.healing.plan import epoch_of
from regear.train.parallel import own_device
from regear.train.stream import Stream
from tests.tiny import byte_tokenizer, make_model, make_text


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Recipe words for a short healing, and its training text."""
    place = tmp_path_factory.mktemp("texts")
    for seed, name in enumerate(("train", "evaluation", "elsewhere")):
        (place / f"{name}.txt").write_text(make_text(4500, seed=seed))
    uses = [
        f"{use}.{key}" for use in ("evaluation", "elsewhere") for key in (f"text=[{place}/{use}.txt]", "tokens=512")
    ]
    return [*uses, "train.tokens=512", "train.sequence=64", "train.batch=2"], place / "train.txt"


def plan(tiny, words, *changes, **options):
    return regear.plan(tiny("llama"), tiny("llama"), None, *words[0], *changes, **{"text": [words[1]], **options})


def test_no_weight_is_read_and_everything_is_told(tiny, words, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr("regear.healing.job.load_model", refuse)
    monkeypatch.setattr("regear.healing.source.load_model", refuse)
    found = plan(tiny, words)
    (stage,) = found["stages"]
    assert stage["steps"] == 4
    assert stage["tokens"] == found["tokens"] == 512
    assert stage["text_tokens"] == 4501  # a byte a token, and the end
    assert stage["epochs"] == pytest.approx(512 / 4501, abs=1e-3)
    assert stage["trained_parameters"] == 3 * (2 * 48 * 48 + 2 * 48 * 24)
    assert found["matrix_rate"] > 1e8
    assert stage["tokens_per_second"] == pytest.approx(
        found["efficiency"] * found["matrix_rate"] / stage["operations_per_token"]["total"], abs=1
    )
    assert found["warnings"] == []


def test_fewer_trained_layers_and_written_predictions_are_cheaper(tiny, words):
    costs = [
        plan(tiny, words, *changes)["stages"][0]["operations_per_token"]["total"]
        for changes in (["train.train=['*']"], [], ["train.train=['*layers.2.self_attn*']"])
    ]
    assert costs == sorted(costs, reverse=True)
    cached = plan(tiny, words, "teacher.cache=8")["stages"][0]
    assert cached["operations_per_token"]["teacher"] == 0
    assert cached["teacher_cache"]["bytes"] == 512 * (8 * 4 + 2)


def test_minutes_become_tokens_and_stages_are_told_apart(tiny, words):
    found = plan(tiny, words, "stages=[{objective: align, tokens: 256}, {objective: ce, minutes: 0.001}]")
    assert [stage["objective"] for stage in found["stages"]] == ["align", "ce"]
    assert [stage["operations_per_token"]["teacher"] > 0 for stage in found["stages"]] == [True, False]
    assert found["stages"][0]["tokens"] == 256
    assert found["stages"][1]["tokens"] % 128 == 0


def test_bfloat16_is_planned_at_its_own_rate_and_advised_against_where_it_is_slower(tiny, words, monkeypatch):
    for ratio, warnings in ((2.0, 0), (0.5, 1)):
        rates = {False: 1e11, True: ratio * 1e11}
        monkeypatch.setattr("regear.healing.plan.matrix_rate", lambda _, *, half, rates=rates: rates[half])
        changes = "stages=[{objective: kl, tokens: 256}, {objective: kl, tokens: 256, precision: bfloat16}]"
        found = plan(tiny, words, changes)
        one, two = found["stages"]
        assert (one["precision"], two["precision"]) == ("float32", "bfloat16")
        assert two["tokens_per_second"] == pytest.approx(ratio * one["tokens_per_second"], rel=0.01)
        assert two["memory_bytes"]["activations"] == one["memory_bytes"]["activations"] // 2
        assert found["matrix_rate"] == 1e11
        assert len([text for text in found["warnings"] if "more slowly than float32" in text]) == warnings


def test_watching_takes_its_time(tiny, words, monkeypatch):
    monkeypatch.setattr("regear.healing.plan.matrix_rate", lambda *_, **__: 1e8)
    seldom, often = (plan(tiny, words, f"held_out_every={every}", "held_out_windows=8") for every in (0, 1))
    extra = often["measuring_hours"] - seldom["measuring_hours"]
    assert extra == pytest.approx(seldom["measuring_hours"] * 4 * 8 * 512 / 2048, rel=0.05)  # 2 x (512 + 512) before
    assert often["hours"] - seldom["hours"] == pytest.approx(extra, abs=2e-4)


def test_text_read_too_often_is_said(tiny, words):
    (warning,) = plan(tiny, words, "train.tokens=50000")["warnings"]
    assert "about 4,501 tokens, read 11.1 times" in warning


@pytest.mark.parametrize(
    ("changes", "text", "error", "message"),
    [
        (["train.train=['*.nothing.*']"], None, RecipeError, "no parameter is named like"),
        (["train.betas=[0.9,1.0]"], None, RecipeError, "less than 1"),
        (["train.lr=.inf"], None, RecipeError, "finite"),
        ([], "absent.txt", DataError, "no training file"),
        (["train.objective={kind: align, layers: [3]}"], None, RecipeError, "wanted some of 0 to 2"),
        (["train.train='*'", "train.lora={rank: 2}"], None, RecipeError, r"add lm_head\.weight to train\.freeze"),
        (["teacher.cache=8", "train.tokens=null", "train.minutes=1"], None, RecipeError, "give train.tokens"),
        (["teacher.cache=8", "train.objective={kind: kl, temperature: 2}"], None, RecipeError, "temperature 1"),
    ],
)
def test_what_cannot_be_done_is_refused(tiny, words, changes, text, error, message):
    with pytest.raises(error, match=message):
        plan(tiny, words, *changes, **({"text": [text]} if text else {}))


def test_processes_must_share_the_batch(tiny, words, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(
        RecipeError, match=r"train\.batch: 2 rows cannot be shared by 4 processes; wanted a multiple of 4"
    ):
        plan(tiny, words)


def test_another_vocabulary_is_refused(tiny, words, tmp_path):
    other = make_model("llama", tmp_path / "other", vocab_size=300)
    with pytest.raises(IncompatibleModel, match="predicts 260 tokens and the teacher 300"):
        regear.plan(tiny("llama"), other, None, *words[0], text=[words[1]])


def test_long_files_are_counted_from_a_part_of_them(tmp_path, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": make_text(300, seed=i)}) + "\n" for i in range(200)))
    whole = tmp_path / "whole.txt"
    whole.write_text(make_text(200_000))
    stream = Stream([rows, whole], byte_tokenizer(), sequence=64, batch=1)
    monkeypatch.setattr("regear.healing.plan.COUNTED_TOKENS", 8_000)
    assert epoch_of(stream) == pytest.approx((200 * 301 + 200_000,) * 2, rel=0.02)


@pytest.mark.parametrize(
    ("row", "changes"),
    [
        ({"prompt": "one", "completion": "two"}, ["data.packing=false"]),
        ({"prompt": "one ", "chosen": "two", "rejected": "three"}, ["train.objective=dpo"]),
        ({"prompt": "one" * 7, "completion": "two" * 5}, []),  # two do not fit into a row
    ],
)
def test_an_epoch_is_every_row_once_however_much_of_it_is_padding(tiny, words, tmp_path, row, changes):
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps(row) + "\n") * 100)
    rows = 200 if "chosen" in row else 100
    found = plan(tiny, words, *changes, f"train.tokens={rows * 64}", text=[path])["stages"][0]
    assert found["epochs"] == pytest.approx(1, abs=0.05)
    assert found["text_tokens"] < rows * 45


def test_rows_of_which_nothing_is_left_are_refused_and_others_not_counted(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    turns = [[{"role": "user", "content": "x" * asked}, {"role": "assistant", "content": "yes"}] for asked in (100, 5)]
    long, short = (json.dumps({"messages": found}) + "\n" for found in turns)
    path = tmp_path / "rows.jsonl"

    def epoch(rows):
        path.write_text(rows)
        return epoch_of(Stream([path], tokenizer, sequence=64, batch=1))

    with pytest.raises(DataError, match="none of the rows has a token to train on within 64 tokens"):
        epoch(long * 20)
    assert epoch(long * 20 + short) == epoch(short)


def test_the_verb_and_the_dry_run_say_the_same(tiny, words, capsys):
    rest = [str(tiny("llama")), *words[0], "--teacher", str(tiny("llama")), "--text", str(words[1]), "--json"]
    printed = []
    for line in (["plan", *rest], ["heal", *rest, "--dry-run"]):
        assert main.run(line) == 0
        printed.append(json.loads(capsys.readouterr().out))
    measured = {"matrix_rate", "hours", "measuring_hours", "stages", "available_memory_bytes"}
    one, two = ({key: value for key, value in found.items() if key not in measured} for found in printed)
    assert one == two
    assert main.run([*line[:-2], "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("plan: 512 tokens in about")


def test_a_healing_taught_from_written_predictions_tells_its_plan_first_and_shows_its_steps(
    tiny, words, cache, tmp_path
):
    student = make_model("llama", tmp_path / "student", seed=1)
    told = []
    outputs = []
    for name, changes in (("online", []), ("cached", ["teacher.cache=260", "teacher.dtype=float32"])):
        found = regear.heal(
            student,
            tiny("llama"),
            tmp_path / name,
            *words[0],
            *changes,
            text=[words[1]],
            tensorboard=tmp_path / f"board-{name}",
            announce=told.append,
        )
        outputs.append(found)
    assert [plan["stages"][0]["steps"] for plan in told] == [4, 4]
    assert outputs[1]["kl"]["after"] == pytest.approx(outputs[0]["kl"]["after"], rel=1e-3)
    assert list((cache / "teacher").glob("*/*.parquet"))
    recorded = json.loads((tmp_path / "cached" / "regear.json").read_text())
    assert recorded["recipe"]["teacher"] == {"cache": 260, "dtype": "float32"}

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "board-online"))
    events.Reload()
    rows = [json.loads(x) for x in (tmp_path / "online.run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["event"] == "step"]
    assert [event.value for event in events.Scalars("stage 1/loss")] == pytest.approx(losses)


def test_without_tensorboard_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(RecipeError, match=r"pip install 'regear\[train\]'"):
        Board(tmp_path)


def test_a_plan_fits_every_family(tiny, family, words):
    torch.manual_seed(0)
    found = regear.plan(tiny(family), tiny(family), None, *words[0], text=[words[1]])
    assert found["stages"][0]["operations_per_token"]["forward"] > 0


def test_predictions_of_another_teacher_are_refused_before_measuring(tiny, words, tmp_path, monkeypatch):
    place = tmp_path / "place" / "sequence-64"
    place.mkdir(parents=True)
    (place / "cache.json").write_text('{"teacher": "another"}')
    changes = ["teacher.cache=8", f"teacher.place={place.parent}"]
    with pytest.raises(RecipeError, match=r"predictions of other .*teacher"):
        plan(tiny, words, *changes)
    monkeypatch.setattr("regear.healing.job.measure", None)
    with pytest.raises(RecipeError, match=r"predictions of other .*teacher"):
        regear.heal(tiny("llama"), tiny("llama"), tmp_path / "out", *words[0], *changes, text=[words[1]])
    assert not (tmp_path / "out.run").exists()


def test_two_training_files_of_one_name_are_told_apart(tmp_path):
    for folder, seed in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text(make_text(200, seed=seed))
    one, other = (tmp_path / folder / "x.txt" for folder in "ab")
    found = [training_digest(build_recipe(None, [], files)) for files in ([one, other], [other, other], [other, one])]
    assert len({json.dumps(digests) for digests in found}) == 3
    assert [name for name, _ in found[0]] == ["x.txt", "x.txt"]


def test_of_several_processes_one_says_the_plan(tiny, words, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    rest = [str(tiny("llama")), *words[0], "--teacher", str(tiny("llama")), "--text", str(words[1])]
    assert main.run(["plan", *rest]) == main.run(["heal", *rest, "--dry-run"]) == 0
    assert capsys.readouterr().out == ""


def test_a_device_that_training_does_not_know_is_one_line(tiny, words, monkeypatch):
    monkeypatch.setattr("regear.train.parallel.pick_device", torch.device)
    for device in ("mps", "xpu"):
        with pytest.raises(RecipeError, match=f"does not run on {device}; wanted --device cpu or cuda"):
            plan(tiny, words, device=device)


def test_a_process_takes_its_own_gpu_before_any_is_touched(monkeypatch):
    done = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", lambda number: done.append(number))
    monkeypatch.setattr("regear.train.parallel.pick_device", lambda name: done.append(name) or torch.device("cuda"))
    own_device("auto")
    assert done == [1, "auto"]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(RecipeError, match="process 3 of this machine has no GPU, of which there are 2"):
        own_device("auto")
