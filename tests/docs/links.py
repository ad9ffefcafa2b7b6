"""Fails on a link in a document that leads to no file of the repository."""

import argparse
import re
import sys
from pathlib import Path

LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")


def broken_links(root, document):
    text = document.read_text(encoding="utf-8")
    for match in LINK.finditer(text):
        target = match.group(1).split("#")[0]
        if not target or re.match(r"[a-z]+:", target):
            continue
        if not (document.parent / target).exists():
            line = text.count("\n", 0, match.start()) + 1
            yield f"{document.relative_to(root)}:{line}: leads to {target}, which does not exist"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="the repository")
    root = parser.parse_args().root
    folders = ("kernels", "vision", "llm", "app", "resources", "tests", "packaging")
    documents = [*root.glob("*.md"), *(d for f in folders for d in (root / f).rglob("*.md"))]
    broken = [sentence for document in documents for sentence in broken_links(root, document)]
    print("\n".join(broken) if broken else f"{len(documents)} documents: every link leads somewhere")
    return 1 if broken or not documents else 0


if __name__ == "__main__":
    sys.exit(main())
