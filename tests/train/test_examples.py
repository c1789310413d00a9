"""Only what the assistant wrote is trained on, whatever the columns."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regear.tasks.text import Window
from regear.train.examples import Examples
from regear.train.overlap import shared_windows
from tests.tiny import byte_tokenizer

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }};{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
MARKED = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }};"
    "{% endgeneration %}{% else %}{{ m.content }};{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# Thinking is cut out of every turn but the last, as some reasoning templates do.
REWRITING = "{% for m in messages %}<{{ m.role }}>{{ m.content if loop.last else m.content[:1] }};{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
CHAT = [
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "first"},
    {"role": "user", "content": "two?"},
    {"role": "assistant", "content": "second"},
]


def examples(template=None, sequence=200, **options):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return Examples(tokenizer, sequence, **options)


def shown(made, found):
    """The text with what is trained on in brackets."""
    text = ""
    for id_, target, before in zip(found.ids, found.targets, [False, *found.targets], strict=False):
        text += "]" * (before and not target) + "[" * (target and not before) + made.tokenizer.decode([id_])
    return text + "]" * found.targets[-1]


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_only_assistant_turns_train(template):
    made = examples(template)
    (found,) = made.of({"messages": CHAT}, "messages")
    assert shown(made, found) == "<user>one?;<assistant>[first;]<user>two?;<assistant>[second;]"
    assert found.whole


def test_a_template_that_rewrites_earlier_turns_is_refused_not_mismasked():
    with pytest.raises(ValueError, match="up to message 2 otherwise than inside the whole"):
        list(examples(REWRITING).of({"messages": CHAT}, "messages"))


def test_only_the_completion_trains():
    made = examples(PLAIN)
    (found,) = made.of({"prompt": "2+2=", "completion": "4"}, "completion")
    assert shown(made, found) == "2+2=[4<end>]"
    (found,) = made.of({"prompt": CHAT[:3], "completion": CHAT[3:]}, "completion")
    assert shown(made, found) == "<user>one?;<assistant>first;<user>two?;<assistant>[second;]"


def test_pairs_share_their_prompt_given_or_implied():
    made = examples(PLAIN, pairs=True)
    worse = [{"role": "assistant", "content": "no"}]
    given_ = list(made.of({"prompt": CHAT[:3], "chosen": CHAT[3:], "rejected": worse}, "preference"))
    implied = list(made.of({"chosen": CHAT, "rejected": [*CHAT[:3], *worse]}, "preference"))
    assert given_ == implied
    assert [shown(made, x)[-10:] for x in given_] == ["[second;]"[-10:].rjust(10, ">"), "stant>[no;]"[-10:]]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30), st.integers(2, 20))
def test_a_pair_too_long_keeps_one_prompts_end_and_both_answers_beginning(prompt, chosen, rejected, sequence):
    made = examples(sequence=sequence, pairs=True, end=False)
    row = {"prompt": "p" * prompt, "chosen": "c" * chosen, "rejected": "r" * rejected}
    found = list(made.of(row, "preference"))
    kept = [sum(not t for t in x.targets) for x in found]
    assert kept[0] == kept[1] >= min(prompt, sequence // 2)
    for one, length in zip(found, (chosen, rejected), strict=True):
        assert len(one.ids) <= sequence
        assert sum(one.targets) >= min(length, sequence - sequence // 2)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "list of"),
        ({"messages": "hello"}, "list of"),
        ({"messages": CHAT[:1]}, "no assistant turn"),
        ({"prompt": CHAT[:2], "completion": CHAT[3:]}, "must end before the assistant's turn"),
        ({"prompt": CHAT[:1], "completion": "x"}, "prompt is list"),
        ({"prompt": "x", "completion": ""}, "completion is empty"),
        ({"chosen": "x", "rejected": "y"}, "add a prompt column"),
        ({"chosen": CHAT[:2], "rejected": CHAT[2:]}, "begin with the same messages"),
        ({"prompt": "x", "chosen": "y", "rejected": "y"}, "are the same"),
    ],
)
def test_rows_that_cannot_train_say_why(row, message):
    layout = "messages" if "messages" in row else "completion" if "completion" in row else "preference"
    with pytest.raises(ValueError, match=message):
        list(examples(PLAIN).of(row, layout))


def test_chat_without_a_template_is_refused():
    with pytest.raises(ValueError, match="no chat template"):
        list(examples().of({"messages": CHAT}, "messages"))


def test_a_long_text_is_cut_and_ends_once():
    made = examples(sequence=4)
    pieces = list(made.of({"text": "abcdefg"}, "text"))
    assert [made.tokenizer.decode(x.ids) for x in pieces] == ["abcd", "efg<end>"]
    assert [made.tokenizer.decode(x.ids) for x in examples(sequence=9, end=False).of({"text": "ab"}, "text")] == ["ab"]


def test_shared_passages_are_found_whatever_the_line_breaks():
    text = " ".join(f"word{i}" for i in range(400))
    windows = [Window(text[i : i + 600], "k") for i in range(0, 1800, 600)] + [Window("other " * 100, "k")]
    assert shared_windows([text[600:1000].replace(" ", "\n")], windows) == 1
    assert shared_windows([text], windows) == 3
    assert shared_windows([text[600:690]], windows) == 0
