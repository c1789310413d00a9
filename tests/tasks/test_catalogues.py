"""Gettext catalogues: a tiny one in every shape, and Django's against the standard library's reading of its `.mo`."""

import gettext

import pytest

from regear.core.errors import DataError
from regear.tasks import catalogues
from regear.tasks.catalogues import aligned, complete, read_locales, read_po

PO = r"""# Someone, 2020
msgid ""
msgstr ""
"Language: xx\n"
"Content-Type: text/plain; charset=UTF-8\n"

#: where.py:1
msgid "Yes"
msgstr "Oui"
msgid "No"
msgstr "Non"

msgctxt "month"
msgid "May"
msgstr "mai"

#, python-format
msgid ""
"Two lines\n"
"and \"quotes\" \\ %(x)s"
msgstr ""
"Deux lignes\n"
"et \"guillemets\" \\ %(x)s"

#, fuzzy, python-format
#| msgid "Old"
msgid "Guess"
msgstr "Devine"

msgid "Nothing yet"
msgstr ""

msgid "%d day"
msgid_plural "%d days"
msgstr[0] "%d jour"
msgstr[1] "%d jours"

#~ msgid "Gone"
#~ msgstr "Parti"
"""


def test_a_catalogue_of_every_shape(tmp_path):
    path = tmp_path / "django.po"
    path.write_text(PO, encoding="utf-8")
    assert read_po(path) == {
        "Yes": "Oui",
        "No": "Non",
        "month\x04May": "mai",
        'Two lines\nand "quotes" \\ %(x)s': 'Deux lignes\net "guillemets" \\ %(x)s',
    }


@pytest.mark.parametrize("content", [b'"before any field"\n', b"msgid unquoted\n", b'msgid "a"\nmsgstr "\xff"\n'])
def test_what_is_no_catalogue_is_refused(content, tmp_path):
    path = tmp_path / "django.po"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"wanted a \.po file"):
        read_po(path)


def locales(folder):
    """Two languages and an application, laid out as Django's."""
    for place, language, messages in (
        ("conf", "de", {"Yes": "Ja", "No": "Nein", "Maybe": "Vielleicht"}),
        ("conf", "hi", {"No": "नहीं", "Yes": "हाँ"}),
        ("contrib/admin", "de", {"Yes": "Jawohl"}),
        ("contrib/admin", "hi", {"Yes": "जी"}),
    ):
        path = folder / place / "locale" / language / "LC_MESSAGES" / "django.po"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(f'msgid "{a}"\nmsgstr "{b}"\n' for a, b in messages.items()), encoding="utf-8")
    return folder


def test_messages_are_aligned_by_id(tmp_path):
    found = read_locales(locales(tmp_path))
    assert aligned(found) == {"en": ["No", "Yes"], "de": ["Nein", "Ja"], "hi": ["नहीं", "हाँ"]}
    assert complete(found, 3) == ["en", "de"]
    more = aligned(read_locales(tmp_path, contrib=True), ["de", "hi"])
    assert more == {"de": ["Jawohl", "Nein", "Ja"], "hi": ["जी", "नहीं", "हाँ"]}
    with pytest.raises(DataError, match="no catalogue in xx"):
        aligned(found, ["de", "xx"])
    with pytest.raises(DataError, match="no message stands in all of"):
        aligned({"a": {"x": "1"}, "b": {"y": "2"}})
    with pytest.raises(DataError, match="wanted Django"):
        read_locales(tmp_path / "conf")


def test_djangos_own_catalogues():
    """291 messages stand in 54 of its 98 languages; what is read equals what gettext reads from the compiled files."""
    folder = catalogues.fetched(catalogues.DJANGO, digest=catalogues.DJANGO_SHA256) / "django"
    found = catalogues.django()
    many = complete(found, 310)
    assert (len(found), len(many) - 1, len(aligned(found, many)["en"])) == (98, 54, 291)
    for language in ("hi", "ja", "fr", "ar", "pl"):
        with open(folder / "conf" / "locale" / language / "LC_MESSAGES" / "django.mo", "rb") as file:
            compiled = gettext.GNUTranslations(file)
        for name, text in found[language].items():
            context, _, word = name.rpartition("\x04")
            assert text == (compiled.pgettext(context, word) if context else compiled.gettext(word))
