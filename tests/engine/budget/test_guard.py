from itertools import pairwise

from regear.engine.budget.guard import LONGEST, Guard


def rests(saved, steps=4000, texts=4):
    """The kinds of steps where every asked step saves so much."""
    guard, kinds = Guard(), []
    for _ in range(steps):
        kinds.append(guard.next(texts))
        if kinds[-1] in ("guess", "try"):
            guard.judge(saved)
    return kinds


def test_what_pays_is_asked_and_a_step_without_guesses_timed_now_and_then():
    kinds = rests(0.1)
    assert set(kinds) == {"guess", "time"}
    assert 0.01 < kinds.count("time") / len(kinds) < 0.03


def test_what_does_not_pay_rests_ever_longer_and_is_tried_again():
    kinds = rests(-0.1)
    asked = [i for i, kind in enumerate(kinds) if kind in ("guess", "try")]
    gaps = [after - before for before, after in pairwise(asked) if after > before + 2]
    assert gaps[:3] == sorted(gaps[:3])
    assert max(gaps) > LONGEST
    assert len(asked) < 0.02 * len(kinds)


def test_a_crowd_is_judged_by_fewer_steps():
    first = [rests(-0.1, texts=texts).index("rest") for texts in (4, 32, 128)]
    assert first[0] > first[1] > first[2]
    assert first[2] < 8


def test_noise_around_a_gain_is_no_loss():
    guard = Guard()
    for i in range(200):
        guard.next(4)
        guard.judge(1.0 if i % 3 == 0 else -0.45)
    assert guard.pause == 32
    assert not guard.rest


def test_a_rest_ends_where_the_crowd_is_another():
    guard = Guard()
    while guard.next(32) != "rest":
        guard.judge(-1.0)
    assert guard.next(30) == "rest"
    assert guard.next(15) == "try"
