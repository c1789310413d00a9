"""Compiled products against numpy: values, every instruction set here, threads, and what stands beside a row."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regear import _native

KINDS = {np.float32: (_native.Weight32, 1e-5), np.float64: (_native.Weight64, 1e-13)}
SETS = (0, 1, 2)


def at(x):
    assert x.flags.c_contiguous
    return x.__array_interface__["data"][0]


def laid(weight, sets=2):
    return KINDS[weight.dtype.type][0](at(weight), *weight.shape, sets)


def multiplied(made, x, threads=1):
    found = np.full((len(x), made.outputs), np.nan, x.dtype)
    made.multiply(at(x), at(found), len(x), threads)
    return found


def drawn(rows, inputs, outputs, kind=np.float32, seed=0):
    generator = np.random.default_rng(seed)
    return (generator.normal(size=shape).astype(kind) for shape in ((rows, inputs), (outputs, inputs)))


@given(
    st.integers(1, 45), st.integers(1, 70), st.integers(1, 140), st.sampled_from([np.float32, np.float64]),
    st.sampled_from(SETS), st.integers(1, 3), st.integers(0, 99),
)  # fmt: skip
def test_products_are_those_of_numpy(rows, inputs, outputs, kind, sets, threads, seed):
    x, weight = drawn(rows, inputs, outputs, kind, seed)
    found = multiplied(laid(weight, sets), x, threads)
    exact = x.astype(np.float64) @ weight.astype(np.float64).T
    bound = KINDS[kind][1] * (np.abs(x).astype(np.float64) @ np.abs(weight).astype(np.float64).T)
    assert (np.abs(found - exact) <= bound).all()


@pytest.mark.parametrize("sets", SETS)
@pytest.mark.parametrize("inputs", [1, 1023, 1024, 1025, 3000])
def test_long_sums_are_added_up_part_by_part(sets, inputs):
    x, weight = drawn(31, inputs, 67)
    np.testing.assert_allclose(multiplied(laid(weight, sets), x), x @ weight.T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("sets", SETS)
@pytest.mark.parametrize("inputs", [40, 1500])
def test_a_row_is_the_same_to_the_bit_whatever_stands_beside_it(kind, sets, inputs):
    x, weight = drawn(40, inputs, 150, kind)
    made = laid(weight, sets)
    whole = multiplied(made, x)
    for first, last in ((0, 1), (3, 5), (7, 15), (10, 27), (39, 40), (1, 40)):
        np.testing.assert_array_equal(multiplied(made, x[first:last]), whole[first:last])


def test_threads_change_nothing():
    x, weight = drawn(20, 300, 1000)
    made = laid(weight)
    whole = multiplied(made, x)
    for threads in (2, 3, 8, 500):
        np.testing.assert_array_equal(multiplied(made, x, threads), whole)


def test_no_rows_are_no_work():
    _, weight = drawn(0, 5, 7)
    assert multiplied(laid(weight), np.empty((0, 5), np.float32)).shape == (0, 7)


def test_the_copy_is_its_own():
    x, weight = drawn(3, 50, 60)
    made, wanted = laid(weight), x @ weight.T
    weight[:] = np.nan
    np.testing.assert_allclose(multiplied(made, x), wanted, rtol=1e-4, atol=1e-4)


def test_a_weight_that_holds_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        _native.Weight32(0, 0, 3)


def test_many_weights_lie_beside_each_other_and_go_one_by_one():
    generator, kept = np.random.default_rng(0), {}
    for number in range(60):  # 1 MB each: over the end of a piece of memory, with gaps
        weight = generator.normal(size=(256, 1024)).astype(np.float32)
        kept[number] = (laid(weight), weight)
        if number % 3 == 0:
            del kept[number]
    x = generator.normal(size=(2, 1024)).astype(np.float32)
    for made, weight in kept.values():
        np.testing.assert_allclose(multiplied(made, x), x @ weight.T, rtol=1e-3, atol=1e-3)


def test_several_callers_share_the_threads():
    x, weight = drawn(9, 500, 2000)
    made, wrong = laid(weight), []
    whole = multiplied(made, x)

    def call():
        wrong.extend(i for i in range(200) if not np.array_equal(multiplied(made, x, 3), whole))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_threads_are_there_after_a_fork():
    import multiprocessing

    x, weight = drawn(9, 500, 2000)
    made = laid(weight)
    whole = multiplied(made, x, 2)
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    child = context.Process(target=lambda: answer.put(multiplied(made, x, 2)))
    child.start()
    np.testing.assert_array_equal(answer.get(timeout=30), whole)
    child.join()
