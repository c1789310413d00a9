"""Catalogues of translated messages: gettext's `.po` files, and the parallel ones that Django brings along."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from regear.core.errors import DataError
from regear.core.packages import fetched

DJANGO = "Django==5.2.19"
DJANGO_SHA256 = "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00"
SOURCE = "en"  # the language of Django's message ids
CONTEXT = "\x04"  # between context and id, as gettext joins them
FIELD = re.compile(r'(?:(msgctxt|msgid_plural|msgid|msgstr(?:\[\d+\])?)\s+)?"(.*)"')
ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}

Catalogues = Mapping[str, Mapping[str, str]]  # language → message id → text


def read_po(path: Path) -> dict[str, str]:
    """Message id → translation, in the file's order; `context\\x04id` where a message has a context.

    Left out is what gettext leaves out (empty, fuzzy and obsolete messages), and messages with plural forms, of which
    languages have different numbers.

    Raises:
        DataError: not a `.po` file in UTF-8.
    """
    try:
        entries = list(_entries(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path} ({error}); wanted a .po file in UTF-8") from None
    found = {}
    for entry in entries:
        if entry.get("msgid") and entry.get("msgstr") and not entry.keys() & {"fuzzy", "msgid_plural"}:
            context = entry["msgctxt"] + CONTEXT if "msgctxt" in entry else ""
            found[context + entry["msgid"]] = entry["msgstr"]
    return found


def _entries(text: str) -> Iterator[dict[str, str]]:
    entry: dict[str, str] = {}
    field = ""
    for number, line in enumerate(map(str.strip, text.split("\n")), 1):
        if line.startswith(("#", "msgctxt", "msgid")) and any(name.startswith("msgstr") for name in entry):
            yield entry
            entry, field = {}, ""
        if line.startswith("#,") and "fuzzy" in line:
            entry["fuzzy"] = ""
        if not line or line.startswith("#"):
            continue
        match = FIELD.fullmatch(line)
        if match is None or not (match[1] or field):
            raise ValueError(f"line {number} is none of gettext's")
        field = match[1] or field
        entry[field] = entry.get(field, "") + re.sub(r"\\(.)", lambda m: ESCAPES.get(m[1], m[1]), match[2])
    yield entry


def django(*, contrib: bool = False) -> dict[str, dict[str, str]]:
    """Django's own messages in every language it has, the source language (English) first.

    Args:
        contrib: also those of its bundled applications (admin, auth, …); ids then begin with the application's name.
    """
    return read_locales(fetched(DJANGO, digest=DJANGO_SHA256) / "django", contrib=contrib)


def read_locales(folder: Path, *, contrib: bool = False) -> dict[str, dict[str, str]]:
    """The catalogues `conf/locale/*/LC_MESSAGES/django.po` of a folder laid out as Django's; see `django`.

    Raises:
        DataError: there are none.
    """
    found: dict[str, dict[str, str]] = {SOURCE: {}}
    places = [folder / "conf", *(sorted((folder / "contrib").iterdir()) if contrib else [])]
    for place in places:
        prefix = f"{place.name}/" if contrib else ""
        for path in sorted(place.glob("locale/*/LC_MESSAGES/django.po")):
            messages = read_po(path)
            if messages:
                named = {prefix + name: text for name, text in messages.items()}
                found.setdefault(path.parts[-3], {}).update(named)
                found[SOURCE].update({prefix + name: name.rpartition(CONTEXT)[2] for name in messages})
    if len(found) == 1:
        raise DataError(f"{folder} holds no conf/locale/*/LC_MESSAGES/django.po; wanted {DJANGO}")
    return found


def complete(catalogues: Catalogues, least: int) -> list[str]:
    """Languages with at least so many messages."""
    return [language for language, messages in catalogues.items() if len(messages) >= least]


def aligned(catalogues: Catalogues, languages: Sequence[str] | None = None) -> dict[str, list[str]]:
    """The messages that all these languages have (by default all of them), in one order, language by language.

    Raises:
        DataError: an unknown language, or no message in common.
    """
    chosen = list(catalogues) if languages is None else list(languages)
    unknown = [language for language in chosen if language not in catalogues]
    if unknown:
        raise DataError(f"no catalogue in {', '.join(unknown)}; there are: {', '.join(sorted(catalogues))}")
    shared = set.intersection(*(set(catalogues[language]) for language in chosen))
    if not shared:
        raise DataError(f"no message stands in all of {', '.join(chosen)}; choose fewer languages")
    order = sorted(shared)
    return {language: [catalogues[language][name] for name in order] for language in chosen}
