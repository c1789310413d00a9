"""Multiple-choice items from the lm-eval wheel."""

import pytest

from regear.core.errors import RecipeError
from regear.tasks.choice import MMLU_ITEM, load


def test_mmlu_items_are_whole():
    """Reads the user's copy, or fetches the wheel's archive once."""
    items = load("mmlu")
    assert len(items) == 281
    assert len({item.id for item in items}) == len(items)
    assert all(len(item.options) == 4 and all(item.options) and 0 <= item.answer < 4 for item in items)
    algebra = next(item for item in items if "characteristic of the ring 2Z" in item.question)
    assert algebra.options == ("0", "3", "12", "30")
    assert algebra.answer == 0
    assert algebra.prompt.endswith("\nAnswer:")


def test_the_pattern_reads_one_item_and_not_the_next_ones_answer():
    text = "Q: One?\n(A) a b (B) c (C) d (D) e\nA: Let's think. The answer is (C).\n\nQ: Two?\n(A) 1 (B) 2 (C) 3 (D) 4\nA: so. The answer is (A)."
    found = [(m["question"], m["a"], m["d"], m["answer"]) for m in MMLU_ITEM.finditer(text)]
    assert found == [("One?", "a b", "e", "C"), ("Two?", "1", "4", "A")]


def test_unknown_task():
    with pytest.raises(RecipeError, match="did you mean 'mmlu'"):
        load("mmul")
