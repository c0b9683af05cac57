"""The text that a web page's reader came for, and the charset that the page itself declares.

Three habits of resiliparse do not suit Korean pages and are worked around: it drops a text of one Hangul syllable
between two tags (a particle after a link), drops every list near the root of the page, and keeps lines of links.
"""

from __future__ import annotations

import re
from collections import defaultdict
from itertools import accumulate
from typing import Any

DECLARED = re.compile(rb"""<(?:meta|\?xml)\b[^>]*?\b(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.I)
LONE, JOINER = re.compile(r">(\s*[\u0800-\ud7ff\uf900-\uffff])(?=\s*<)"), "\u2060"  # beside it, till it is safe
BODY = re.compile(r"<body\b[^>]*>", re.I)
ESCAPED_TWICE = re.compile(r"(</?(?:pre|code|tt|samp|kbd)\b)|&amp;(?=(?:[a-z]{2,6}|#x?[0-9a-f]{2,6});)", re.I)
NESTED, DEEP = re.compile(r"<(/?)(?:div|[ou]l|dl|table)\b", re.I), 500  # where finding the main text takes minutes
BLOCKS = {"p", "td", "div", "dl", "ol", "ul", "section", "body", "html"}
LINKS, LINK_SHARE = 3, 0.6  # a block with as many links, and this share of its letters in them, only leads elsewhere
BULLET, NO_LETTERS = re.compile(r"^( *)• ", re.M), re.compile(r"\W+")


def declared(page: bytes) -> str | None:
    """The charset in a <meta> or XML declaration. Often wrong; a hint for `korean.decode`."""
    found = DECLARED.search(page, 0, 4096)
    return found[1].decode() if found else None


def extract(page: str) -> str:
    """The main text of a page, list items as "- item", code as it stands, entities decoded."""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    page = _unescape(LONE.sub(rf">\1{JOINER}", page.replace("\0", "")))
    begin = found.end() if (found := BODY.search(page)) else 0
    tree = HTMLTree.parse(f"{page[:begin]}<div><div><div>{page[begin:]}")
    if tree.body is not None:
        _drop_links(tree.body)
    sane = max(accumulate(-1 if end else 1 for end in NESTED.findall(page)), default=0) < DEEP
    text = extract_plain_text(tree, sane, sane, alt_texts=False, comments=False, post_meta=False)
    return BULLET.sub(r"\1- ", text.replace(JOINER, "")).strip("\n")


def _unescape(page: str) -> str:
    """Entities that were escaped twice, once; not in code, where a page means to show them."""
    in_code = False

    def once(found: re.Match[str]) -> str:
        nonlocal in_code
        if tag := found[1]:
            in_code = tag[1] != "/"
        return tag or ("&amp;" if in_code else "&")

    return ESCAPED_TWICE.sub(once, page) if "&amp;" in page else page


def _drop_links(body: Any) -> None:
    for node in body.query_selector_all("nav, footer, button, [role=navigation], [role=contentinfo]").values():
        node.decompose()
    links: dict[Any, list[int]] = defaultdict(list)
    for link in body.get_elements_by_tag_name("a").values():
        block = link.parent
        while block.tag not in BLOCKS:
            block = block.parent
        links[block].append(len(NO_LETTERS.sub("", link.text)))
    for block, letters in links.items():
        if len(letters) >= LINKS and sum(letters) > LINK_SHARE * len(NO_LETTERS.sub("", block.text)):
            block.decompose()
