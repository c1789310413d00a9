"""A text's group is the one it names, else that of its prompt, else that of a prompt it goes on from."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regear.engine.drafters import routes
from regear.engine.drafters.routes import Routes


def group(found, prompt, named=None):
    return found.group(named, np.array(prompt, np.int32))


class Naive:
    """Prompts as tuples, compared one by one."""

    def __init__(self, most):
        self.groups, self.most = {}, most  # last used last

    def group(self, prompt):
        begun = [old for old in self.groups if prompt[: len(old)] == old and 2 * len(old) >= len(prompt)]
        known = max(begun, key=len, default=None)
        found = self.groups[known] if begun else prompt
        for one in (known, prompt):
            if one is not None:
                self.groups.pop(one, None)
                self.groups[one] = found
        while len(self.groups) > self.most:
            del self.groups[next(iter(self.groups))]
        return found


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9), max_size=40), st.integers(1, 12))
def test_equals_a_comparison_with_all_prompts(prompts, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routes, "PROMPTS", most)
        found, naive, names = Routes(), Naive(most), {}
        for i, prompt in enumerate(prompts):
            key, wanted = group(found, prompt), naive.group(tuple(prompt))
            assert names.setdefault(wanted, key) == key
            if i % 7 == 6:
                found = Routes(json.loads(json.dumps(found.state())))
        assert len(set(names.values())) == len(names)
        assert len(found.groups) <= most


def test_a_conversation_stays_in_its_group_as_long_as_half_of_it_is_known():
    found, first = Routes(), list(range(10))
    key = group(found, first)
    assert group(found, [*first, *range(90, 100)]) == key
    assert group(found, [*first, *range(90, 100), *range(50, 70)]) == key  # goes on from the longer one
    assert group(found, [*first, *range(60, 71)]) != key  # 21 tokens
    assert group(found, first[:9]) != key
    assert group(found, [*first[:9], 99]) != key


def test_named_groups_are_told_apart_and_apart_from_prompts():
    found = Routes()
    names = ["1", 1, 1.5, ("1",), True, "prompt:", "", b"1"]
    keys = [group(found, [1, 2], name) for name in names] + [group(found, [1, 2])]
    assert len(set(keys)) == len(keys)
    assert keys[0] == group(Routes(), [7, 8, 9], "1")  # whatever the prompt
    assert all(keys)


def test_texts_without_a_prompt_are_one_group():
    found = Routes()
    key = group(found, [])
    assert key == group(found, [])
    assert key != group(found, [0])
    assert len(found.state()) == 1


def test_a_long_prompt_takes_no_time_and_little_memory():
    found = Routes()
    long = np.arange(200_000) % 1000
    assert group(found, long) == group(found, np.append(long, 5))
    assert sum(map(len, found.groups)) < 200
