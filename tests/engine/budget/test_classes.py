from regear.engine.budget.classes import LONG, MEDIUM, SHORT, Classes


def test_a_text_starts_as_its_group_ended_and_is_raised_as_it_grows():
    classes = Classes()
    assert classes.start("short") == MEDIUM
    for _ in range(10):
        for group, length in (("short", 10), ("short", 11), ("short", 12), ("medium", 99), ("medium", 100)):
            classes.add(group, classes.start(group), length)
    for _ in range(5):
        classes.add("long", MEDIUM, 1000)
    classes.refresh()
    assert [classes.of(length) for length in (5, 12, 100, 1000)] == [SHORT, SHORT, MEDIUM, LONG]
    assert [classes.start(group) for group in ("short", "medium", "long")] == [SHORT, MEDIUM, LONG]
    for _ in range(10):
        classes.add("short", SHORT, 11)
    classes.add("short", SHORT, 1000)
    classes.refresh()
    assert classes.now(SHORT, 0) == SHORT
    assert classes.now(SHORT, 50) == LONG
    assert classes.now(SHORT, 2000) == LONG
