"""Many requests through one engine: in their order, few at a time, none left behind."""

import pytest

from regear.engine.local import Limits, LocalEngine
from regear.engine.stream import in_order
from regear.engine.types import Request
from regear.models.load import load_model


@pytest.fixture
def engine(tiny):
    return LocalEngine(load_model(tiny("llama")), limits=Limits(rows=3))


def test_answers_come_in_order_and_requests_are_taken_as_there_is_room(engine):
    taken = []

    def asked():
        for i in range(9):
            taken.append(i)
            yield Request([i + 1], 1 + (7 * i) % 5)

    for number, found in enumerate(in_order(engine, asked(), ahead=4)):
        assert len(found.token_ids) == 1 + (7 * number) % 5
        assert len(taken) <= number + 4
    assert number == 8
    assert not engine.done


def test_ending_early_cancels_the_rest(engine):
    answers = in_order(engine, (Request([i + 1], 50) for i in range(6)))
    next(answers)
    answers.close()
    assert not engine.table.count
    assert not engine.scheduler.queue
    assert not engine.done
