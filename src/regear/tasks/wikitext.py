"""The prose of an encyclopaedia's dump: pages of MediaWiki XML without markup, tables, references and link lists."""

import bz2
import html
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

# Sections that are lists of names and links, always the last ones.
_END = re.compile(
    r"^==\s*(see also|references|notes|footnotes|citations|bibliography|further reading|external links|sources)\b.*",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)
_DROPPED = re.compile(
    r"<!--.*?-->|<ref[^>]*/>|<(ref|math|gallery|timeline|imagemap|source|pre)\b[^>]*>.*?</\1>|<[^<>]+>|__[A-Z]+__",
    re.IGNORECASE | re.DOTALL,
)
_MEASURE = re.compile(r"\{\{\s*(?:convert|cvt)\s*\|([^|{}]*)\|([^|{}]*)[^{}]*\}\}", re.IGNORECASE)
_INNERMOST = re.compile(r"\{\{[^{}]*\}\}")
_TABLE = re.compile(r"^:*\{\|(?:(?!^:*\{\|).)*?^\s*\|\}", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[\[(?!\s*:?(?:file|image|category|[a-z-]{2,12}):)(?:[^][|]*\|)?([^][]*)\]\]", re.IGNORECASE)
_OTHER_LINK = re.compile(r"\[\[[^][]*\]\]")
_OUTER_LINK = re.compile(r"\[(?:https?:)?//[^\s\]]+\s*([^\]]*)\]")
_EMPTY = re.compile(r" ?\((?:[\s,;:]|or)*\)")  # what a template for sounds or spellings leaves behind
_BEGUN_EMPTY = re.compile(r"\([\s,;:]+")


def articles(path: Path) -> Iterator[tuple[str, str]]:
    """Title and prose of every article of a `.xml.bz2` dump, in its order.

    Redirects, pages that only tell articles of one name apart, and lists are left out.
    """
    with bz2.open(path) as dump:
        for _, page in ElementTree.iterparse(dump):
            if not page.tag.endswith("}page"):
                continue
            title = page.findtext("{*}title") or ""
            text = page.findtext("{*}revision/{*}text") or ""
            page.clear()
            listed = title.startswith("List of") or title.endswith("(disambiguation)") or ":" in title
            if not listed and not text.lstrip().lower().startswith("#redirect"):
                yield title, prose(text)


def prose(text: str) -> str:
    """Wikitext as paragraphs of plain text, headings on lines of their own."""
    text = _DROPPED.sub("", _END.sub("", text))
    text = _repeated(_INNERMOST, "", _MEASURE.sub(r"\1 \2", text))
    text = _repeated(_LINK, r"\1", _repeated(_TABLE, "", text))
    text = _OUTER_LINK.sub(r"\1", _repeated(_OTHER_LINK, "", text))
    text = html.unescape(text).replace("'''", "").replace("''", "").replace("\xa0", " ")
    text = _BEGUN_EMPTY.sub("(", _EMPTY.sub("", text))
    lines = [re.sub(r"^[*#:;]+\s*|^=+\s*|\s*=+\s*$", "", line.strip()) for line in text.splitlines()]
    kept = [line for line in lines if not line.startswith(("|", "!", "{", "}"))]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(re.sub(r" {2,}", " ", line) for line in kept)).strip()


def _repeated(pattern: re.Pattern[str], by: str, text: str) -> str:
    """Substituted until nothing is left to do: innermost first, so that what is nested goes too."""
    while (found := pattern.sub(by, text)) != text:
        text = found
    return text
