"""Captions as LlamaGen (arXiv 2406.06525) gives them to T5: lower case, cleaned twice.

The rules, their order and their quirks are those that its text models were trained with, so a
quirk is kept: `free shipping!` becomes `!`. Where an expression would take the square of the
length of a hostile caption, it is written otherwise, with the same result.
"""

import functools
import html
import re
import warnings
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_plus

from lgpl.lazy import needs

KINDS = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
DASHES = "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40"
DASHES += "\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"

# (what is found, what takes its place), one after the other. First the signs of a web page:
SIGNS = (
    (r"@\w+", ""),  # nicknames
    (r"[\u31c0-\u9fff]+", ""),  # CJK, from the strokes to the unified ideographs
    (rf"[\{DASHES}]+", "-"),
    (r"[`´«»“”¨]", '"'),
    (r"[‘’]", "'"),
    (r"&quot;?", ""),  # what was escaped twice
    (r"&amp", ""),
    (r"\d{1,3}(?:\.\d{1,3}){3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),  # article numbers
    (r"\\n", " "),  # a backslash and an n
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"(?<!\S)\S+\.(?:{KINDS})", ""),  # file names
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    (r"(?<!\s)\s+\.\s+", " "),
)
HYPHENS = re.compile("[-_]")
MOST_HYPHENS = 3  # more join words, as in this-is-my-cute-cat
# ... then the words of a shop:
WORDS = (
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # jc6640
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # jc6640vc
    (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 6640vc231
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{KINDS})(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d[a-zA-Z\d]*\b", " "),  # j2d1a2a
    (r"\b\d+(?:\.\d*)?[xх×]\d+(?:\.\d*)?\b", ""),  # 12x18.5, with either alphabet's x
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"(?s)^[\"'](.+)[\"']$", r"\1"),  # before the ends are stripped, so not always
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)

MOST_OPEN = 100  # tags that are never closed, from each of which a parser reads to the end

HOST = re.compile(r"[a-zA-Z0-9.\-]+")
START = re.compile(r"\b[a-zA-Z0-9.\-]")
TOP_LEVEL = re.compile(r"\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)")
SCHEMES = tuple(re.compile(rf"\b{name}:(?:/{{1,3}}|[a-zA-Z0-9%])") for name in ("https?", "www"))


def clean(caption: str) -> str:
    """A caption as LlamaGen's text models know it; it may be empty. Raises a UserError where a
    package is missing, and a ValueError where the caption's markup cannot be read."""
    return _clean_once(_clean_once(caption))


def _clean_once(text: str) -> str:
    fix_text, text_of = _packages()
    text = unquote_plus(text).strip().lower().replace("<person>", "person")
    for scheme in SCHEMES:
        text = without_addresses(text, scheme)
    text = _replaced(text_of(text), SIGNS)
    if len(HYPHENS.findall(text)) > MOST_HYPHENS:
        text = HYPHENS.sub(" ", text)
    text = html.unescape(html.unescape(fix_text(text))).strip()
    return _replaced(text, WORDS).strip()


def without_addresses(text: str, scheme: re.Pattern[str]) -> str:
    """A text without `scheme` and without host names, such as `www.example.com/a`.

    A host name reaches to the last top-level domain that is not part of a mail address. Looked for
    from every letter of `a.a.a.a`, it would take the square of the length.
    """
    ends = {found.start(): found.end() for found in TOP_LEVEL.finditer(text)}
    kept, done = [], 0
    for run in HOST.finditer(text):
        cuts = []
        domains = [dot for dot in range(run.start(), run.end()) if dot in ends]
        if domains and (start := START.search(text, max(done, run.start()), domains[-1])):
            cuts.append((start.start(), ends[domains[-1]]))
        if found := scheme.search(text, run.start(), run.end() + 4):  # at the end of the run
            cuts.append(found.span())
        for first, last in cuts:
            if first >= done:
                kept.append(text[done:first])
                done = last
    return "".join([*kept, text[done:]])


def _replaced(text: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


@functools.cache
def _packages() -> tuple[Callable[[str], str], Callable[[str], str]]:
    """ftfy's repair of wrong encodings, and the text of a piece of HTML."""
    for package in ("ftfy", "beautifulsoup4"):
        needs("The caption style llamagen", package, "text")
    import bs4
    from ftfy import fix_text

    # A caption may be a path or an address, which the package takes for a mistake.
    warnings.filterwarnings("ignore", category=bs4.MarkupResemblesLocatorWarning)

    def text_of(markup: str) -> str:
        if markup.count("<", markup.rfind(">") + 1) > MOST_OPEN:
            raise ValueError("markup of tags that are never closed")
        try:
            parsed: Any = bs4.BeautifulSoup(markup, features="html.parser")
        except bs4.exceptions.ParserRejectedMarkup as error:
            raise ValueError("markup that is no HTML") from error
        return parsed.text

    return fix_text, text_of
