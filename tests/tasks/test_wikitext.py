import bz2

from hypothesis import given
from hypothesis import strategies as st

from regear.tasks.text import builtin_documents
from regear.tasks.wikitext import articles, prose


def test_prose_keeps_what_a_reader_reads():
    text = """{{Infobox|name=Aa {{nested|x}}}}
'''Aa''' ({{IPA|a}}; or ''Åa'') is a [[river]] of [[North Holland|the north]].<ref name="a">A book, p. 3</ref>
[[File:Aa.jpg|thumb|The [[Aa]] seen from the [[bridge|old bridge]]]]
It runs {{convert|80|km|mi}} &amp; more<ref name="a"/>, says [http://example.org a page].<!-- sure? -->

== Course ==
* It begins in a '''bog'''.
{| class="wikitable"
! a !! b
|-
| {| inner |}
|}
After the table.

== See also ==
* [[Other rivers]]
"""
    assert prose(text) == (
        "Aa (or Åa) is a river of the north.\n\nIt runs 80 km & more, says a page.\n\n"
        "Course\nIt begins in a bog.\n\nAfter the table."
    )


unseen = st.recursive(
    st.sampled_from(["{{x}}", "{{x|y=z}}", "<!-- x -->", "<ref>x</ref>", "[[Category:X]]", "[[File:x.jpg|thumb|y]]"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: "{{x|" + "".join(parts) + "}}")
        | inner.map(lambda one: f"[[File:x.jpg|{one} of [[y]]]]")
    ),
)


@given(st.lists(unseen, max_size=4).map("".join))
def test_what_is_not_read_goes_however_deep_it_is_nested(markup):
    assert prose(f"Before{markup} and after.") == "Before and after."


def test_articles_leave_out_redirects_and_lists(tmp_path):
    page = "<page><title>{}</title><revision><text>{}</text></revision></page>"
    pages = [("A", "First."), ("B", "#REDIRECT [[A]]"), ("List of A", "x"), ("A (disambiguation)", "x"), ("C", "Last.")]
    dump = f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.8/">{"".join(page.format(*p) for p in pages)}</mediawiki>'
    (tmp_path / "dump.xml.bz2").write_bytes(bz2.compress(dump.encode()))
    assert list(articles(tmp_path / "dump.xml.bz2")) == [("A", "First."), ("C", "Last.")]


def test_the_built_in_articles_are_prose():
    found = [d.text for d in builtin_documents("training") if "is a modern Japanese martial art" in d.text[:99]]
    assert len(found) == 1
    markup = [sign for sign in ("{{", "[[", "<ref", "'''", "|", "==", "http") if sign in found[0]]
    assert not markup
