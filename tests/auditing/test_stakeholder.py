"""The plain report as its reader sees it: the answer first, exact counts, one rule for names, and nothing unexplained."""

import re

import pytest

from regear.auditing import documents, report
from regear.auditing.exposure import OTHERS
from regear.auditing.suppress import export
from regear.auditing.unmeasured import not_measured
from regear.auditing.verdict import decide

MARGIN = 0.02


def group(where, effect, ci, n=200, **more):
    word = decide(*ci, MARGIN)
    return {
        "slice": where, "metric": "ndcg@10", "n": n, "clusters": n, "before": 0.2, "after": 0.2 + effect, "effect": effect,
        "ci": list(ci), "margin": MARGIN, "verdict": word, "reason": None, "units_needed": None if word != "undetermined" else 10 * n,
        "differential": None,
    } | more  # fmt: skip


def seen(name, before, after, word, **more):
    effect = after - before
    ends = (effect - 0.002, effect + 0.002) if word != "undetermined" else (-0.1, 0.1)
    return {
        "slice": {"director": name}, "metric": "visibility", "n": 80, "clusters": 80, "before": before, "after": after,
        "effect": effect, "ci": list(ends), "margin": 0.2 * before, "verdict": word, "reason": None, "units_needed": None,
        "differential": None,
    } | more  # fmt: skip


def recommender(verdicts=None, directors=None, **more):
    """People of a recommender of whom nobody is surely hurt, and directors of whom some are."""
    if verdicts is None:
        verdicts = [
            group({"activity": "1 least"}, -0.029, (-0.07, 0.007)),
            group({"activity": "2"}, -0.001, (-0.05, 0.05)),
            group({"activity": "3"}, 0.001, (-0.01, 0.01)),
            group({"activity": "4"}, 0.03, (0.004, 0.06)),
        ]
    if directors is None:
        directors = [
            seen("d-lost", 0.02, 0.01, "harm"),
            seen("d-won", 0.02, 0.03, "no_harm"),
            seen("d-may", 0.02, 0.015, "undetermined"),
            seen(OTHERS, 0.2, 0.1, "harm"),
        ]
    dimensions = [("activity", True), ("occupation", False)]
    found = {
        "kind": "lists", "before": "before.parquet", "after": "after.parquet", "units": 900, "clusters": 900, "level": 0.95,
        "resamples": 200, "seed": 0, "inputs": {}, "versions": {}, "gate": "none", "gates": [], "discovered": [], "search": 3,
        "metrics": {"ndcg@10": {"lower_is_better": False, "margin": MARGIN, "margin_from": "spread"}},
        "dimensions": [{"name": n, "values": 4, "sensitive": False, "registered": r} for n, r in dimensions],
        "overall": [group({}, -0.003, (-0.022, 0.01), n=880)], "verdicts": verdicts, "not_measured": [],
        "nothing_useful": {"metric": "hit@10", "users": 880, "lost": 119, "lost_share": 0.135, "lost_ci": [0.108, 0.157],
                           "gained": 84, "gained_share": 0.095, "gained_ci": [0.072, 0.116]},
        "exposure": {"k": 10, "margin": 0.2, "users": 900, "dimensions": {
            "director": {"rows": directors, "distance": 0.1, "values": 4, "grouped": 932},
            "decade": {"rows": [seen("1990s", 0.5, 0.5, "no_harm", slice={"decade": "1990s"})], "distance": 0.0, "values": 1,
                       "grouped": 0}},
            "summary": {"provider": "director", "providers_down": {"providers": 512, "down": 389, "fall": 0.2, "by_chance": 0.33}}},
    }  # fmt: skip
    return found | more


def write(result):
    return documents.stakeholder(export(result | {"not_measured": not_measured(result)}))


def part(text, title):
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def bullets(text):
    return [line.removeprefix("- ") for line in text.splitlines() if line.startswith("- ")]


def cells(text, name):
    row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_first_sentence_says_what_was_compared():
    lead = write(recommender()).split("\n\n")[1]
    assert "the lists of a recommender before and after a change" in lead
    assert "before.parquet (before) with after.parquet (after), on the same 900 users" in lead


def test_makers_who_are_hurt_are_the_answer_where_no_user_is():
    told = bullets(part(write(recommender()), "Who is hurt?"))
    assert told[0].startswith("Yes. Hurt most: director=d-lost, seen less, from 2.00 to 1.00 of every 100 looks.")
    assert "Surely hurt in all: 1 group of items or makers and those seen least, taken as one." in told[0]
    assert told[1] == "No group of users is surely hurt by more than the limit (2 points of 100)."


def test_people_who_are_hurt_come_before_makers():
    verdicts = [group({"activity": "1 least"}, -0.1, (-0.12, -0.08)), group({"activity": "2"}, -0.06, (-0.08, -0.04))]
    told = bullets(part(write(recommender(verdicts)), "Who is hurt?"))
    assert told[0].startswith("Yes. Hurt most: activity=1 least, 10 fewer points of 100")
    assert "2 groups of users, 1 group of items or makers and those seen least" in told[0]
    assert told[1].startswith("activity=1 least: worse on how well lists match")
    assert "No group of users" not in " ".join(told)


def test_nobody_hurt_is_not_answered_with_yes():
    verdicts, directors = [group({"activity": "2"}, 0.0, (-0.01, 0.01))], [seen("d", 0.02, 0.02, "no_harm")]
    text = write(recommender(verdicts, directors))
    assert bullets(part(text, "Who is hurt?"))[0].startswith(
        "We found no group of users or of items that is surely hurt"
    )
    assert "do not launch" not in text


def test_comparisons_are_counted_exactly_and_each_outcome_apart():
    small = group({"activity": "5"}, -0.1, (-0.4, 0.2), n=4)
    told = part(
        write(recommender([*recommender()["verdicts"], small, small | {"slice": {"activity": "6"}}])), "Who is hurt?"
    )
    assert "Of 6 comparisons of groups of users: surely hurt 0" in told
    numbers = re.search(r"no loss beyond the limit (\d+), we cannot tell (\d+) .*hurt (\d+)\), withheld (\d+)", told)
    assert sum(int(numbers[place]) for place in (1, 2, 4)) == 6
    assert int(numbers[4]) >= 2
    assert "About" not in told


def test_withheld_groups_that_look_the_same_are_counted_each():
    few = [group({"gender": name}, -0.1, (-0.4, 0.2), n=4) for name in "xyz"]
    dimensions = [{"name": "gender", "values": 4, "sensitive": True, "registered": True}]
    text = write(recommender([group({"gender": "f"}, 0.0, (-0.01, 0.01), n=400), *few], dimensions=dimensions))
    assert cells(text, "gender")[1] == "4"
    assert "Of 4 comparisons of groups of users" in text


def test_ranges_are_rounded_so_that_they_stay_true():
    rows = [group({"activity": "1"}, 0.031, (0.01234, 0.05678)), group({"activity": "2"}, -0.07, (-0.09999, -0.05678))]
    text = write(recommender(rows))
    assert cells(text, "activity=1")[3] == "+1.2 to +5.7"
    assert cells(text, "activity=2")[3] == "-10 to -5.6"


def test_the_same_groups_are_possibly_hurt_and_advised_on():
    text = write(recommender())
    hurt, todo = part(text, "Who is hurt?"), part(text, "What to do?")
    assert re.search(r"Possibly hurt, not proven \(the best guess is [^)]*\): activity=1 least\.", hurt)
    assert "it takes so many users of the group: activity=1 least, about 2,000 (here 200)." in todo
    assert "activity=2" not in hurt + todo
    assert "cannot tell (1) the best guess is no loss beyond the limit" in todo
    assert "Possibly seen less, not proven (by the same rule): director=d-may." in hurt
    assert "For those possibly seen less (director=d-may)" in todo


def test_one_table_holds_every_group_worst_first():
    text = part(write(recommender()), "By how much?")
    names = [name for name in re.findall(r"^\| (\S[^|]*?) \|", text, re.MULTILINE) if name.startswith("activity")]
    assert names == ["activity=1 least", "activity=2", "activity=3", "activity=4"]
    assert cells(text, "activity=1 least") == [
        "activity=1 least", "200", "-2.9", "-7 to +0.7", "possibly hurt, not proven", "about 2,000"
    ]  # fmt: skip
    assert cells(text, "activity=3")[4:] == ["surely no loss beyond the limit", "–"]
    assert cells(text, "activity=4")[4] == "surely better"
    assert "needed to tell whether a loss is beyond the limit" in text
    assert "a loss of up to 2 points of 100 counts as none" in text
    assert len(bullets(text)) < 6


def test_surely_hurt_groups_lead_the_table_even_where_others_may_have_lost_more():
    verdicts = [group({"activity": "may"}, -0.09, (-0.2, 0.02)), group({"activity": "sure"}, -0.06, (-0.08, -0.04))]
    text = part(write(recommender(verdicts)), "By how much?")
    assert text.index("| activity=sure |") < text.index("| activity=may |")
    assert cells(text, "activity=sure")[4] == "surely worse, beyond the limit"


def test_long_tables_keep_the_worst_and_say_where_the_others_are(tmp_path):
    verdicts = [group({"activity": f"a{i:02}"}, -0.001 * i, (-0.05 - 0.001 * i, 0.03)) for i in range(40)]
    directors = [seen(f"d{i:02}", 0.02, 0.01 - 0.0001 * i, "harm") for i in range(30)]
    paths = report.write(recommender(verdicts, directors), tmp_path)
    text = part(paths["stakeholder"].read_text(), "By how much?")
    assert "| activity=a39 |" in text
    assert "| activity=a24 |" not in text
    assert "| director=d29 |" in text
    assert "| director=d14 |" not in text
    assert 'The first 15 of 40 groups; the others stand in report.html under "Every slice".' in text
    assert 'The first 15 of 30; the others stand in report.html under "Visibility by' in text
    page = paths["html"].read_text()
    assert "activity=a00" in page
    assert "<h2>Every slice</h2>" in page
    assert "<h2>Visibility by director</h2>" in page


def test_pooled_makers_are_said_to_be_pooled_and_not_ranked():
    text = write(recommender())
    assert "The 932 values of director that are seen least are compared only as one: the 3 seen most" in text
    assert "went from 20.00 to 10.00 of every 100 looks, surely at least 9.8 less" in text
    assert f"director={OTHERS}" not in text


def test_pooled_makers_without_numbers_are_told_without_them():
    small = [seen("d-few", 0.001, 0.0, "undetermined", n=3, clusters=3)]
    text = write(recommender(directors=[*small, seen(OTHERS, 0.2, 0.1, "harm", n=60)]))
    assert "20.00 to 10.00" not in text
    assert "By director, surely seen less: those seen least, as one; numbers withheld." in text


def test_who_gained_is_as_sure_as_who_lost():
    text = write(recommender())
    assert cells(part(text, "By how much?"), "director=d-lost") == [
        "director=d-lost",
        "2.00",
        "1.00",
        "0.8",
        "80 users",
    ]
    assert cells(part(text, "Who gains?"), "director=d-won") == ["director=d-won", "2.00", "3.00", "0.8", "80 users"]
    assert "surely lost at least" in part(text, "By how much?")
    assert "surely gained at least" in part(text, "Who gains?")


def test_where_gains_are_withheld_the_reader_is_told():
    rows = [
        seen("big", 0.7, 0.9, "no_harm"),
        seen("mid", 0.3, 0.1, "harm"),
        seen("few", 0.001, 0.0, "undetermined", n=2),
    ]
    gains = part(write(recommender(directors=rows)), "Who gains?")
    assert "may have gone to 2 other groups by director whose numbers are withheld" in gains


def test_the_reader_learns_who_counts_and_why():
    text = part(write(recommender()), "By how much?")
    assert "20 of the 900 users are left out: this measure is not known for them" in text
    assert "The sure figures count all 900 users: for the others the group was absent both times" in text
    assert "389 of the 512 makers (values of director) that stood in anyone's list before" in text
    assert "No certainty was computed for these figures of all items and makers" in text
    assert "Of every 100 such users surely 10.8 to 15.7 lose all that was useful" in text


def test_what_is_sure_together_is_said_set_by_set():
    text = part(write(recommender()), "How sure are we?")
    assert "There are 3 sets, each sure by itself: (1) the 5 comparisons of users" in text
    assert "(2) the 5 comparisons of visibility" in text
    assert "All 3 sets at once would be true in at least 85 of 100" in text


def test_one_set_is_told_as_one():
    text = write(recommender(kind="tables", exposure=None, nothing_useful=None))
    assert "There is one set: the 5 comparisons of units" in text


def test_no_dimension_that_was_asked_for_is_missing():
    text = write(recommender())
    assert cells(text, "decade") == ["decade", "1", "0", "0", "0", "1", "0"]
    assert cells(text, "activity") == ["activity", "4", "0", "1", "1", "2", "0"]
    assert cells(text, "director") == ["director", "3", "1", "1", "0", "1", "0"]
    assert "No group is surely hurt by activity and decade; that alone does not say that none is hurt." in text
    assert "Groups by occupation, one by one: nobody asked for them; only the search" in text
    assert "but activity, director and decade." in text


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        ("spread", "the tool's default, nobody chose it: a tenth of how much users differed"),
        ("given", "chosen by whoever ran this audit"),
        ("usual", "the tool's default for this measure"),
    ],
)
def test_the_limit_is_a_number_with_an_author(origin, words):
    metrics = {"ndcg@10": {"lower_is_better": False, "margin": MARGIN, "margin_from": origin}}
    text = part(write(recommender(metrics=metrics)), "What the words mean")
    assert f"in the first 10 places: a loss of up to 2 points of 100 counts as none ({words}" in text
    assert "The limit of visibility: a loss of up to 20% of what a group had" in text
    assert "no gate was set here, so whether to launch is left to those who read this" in text


def test_labels_and_useful_are_explained_and_no_code_names_are_left():
    text = write(recommender())
    assert (
        'A label such as activity=1 least means: the group whose column activity in your own data says "1 least"'
        in text
    )
    assert '"Useful" is an item that the user is known to have wanted' in text
    assert "@10" not in text


def test_makers_get_room_rather_than_interests():
    todo = part(write(recommender()), "What to do?")
    assert "For director=d-lost: do not launch as it is. First give these items more room in the lists" in todo
    assert "interests" not in todo
