"""
The tables of the reference that are made from the code: ``python -m tests.support.pages``.

A page holds ``<!-- table: name -->`` and ``<!-- end -->``; what stands between is written here, and
a test holds the pages to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mesh_middleware.consul import entries, providers
from mesh_middleware.consul import intentions as fields
from mesh_middleware.intentions import ABOUT, headers, paths, policy, program, wire

DOCS = Path(__file__).parents[2] / "docs"
PAGES = (
    "reference/reasons.md",
    "reference/intention_fields.md",
    "explanation/how_a_request_is_judged.md",
)
_PLACE = re.compile(r"<!-- table: (\w+) -->\n(.*?)<!-- end -->", re.DOTALL)


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _fields(known: Mapping[str, str]) -> str:
    return table(("field", "meaning"), [(f"`{name}`", text) for name, text in known.items()])


def _words() -> dict[str, str]:
    tables = (paths.WORDS, headers.WORDS, wire.WORDS, program.WORDS, policy.WORDS)
    return {name: text for words in tables for name, text in words.items()}


def _reasons() -> str:
    rows = [
        (f"[`{reason}`](#{reason})", str(about.status), about.cause, about.remedy)
        for reason, about in ABOUT.items()
    ]
    return table(("reason", "status", "cause", "way out"), rows)


def tables() -> dict[str, str]:
    """Every table by its name."""
    jwt = {
        **{f"JWT.{name}": text for name, text in fields.JWT_FIELDS.items()},
        **{f"Providers.{name}": text for name, text in fields.PROVIDER_FIELDS.items()},
        **{f"VerifyClaims.{name}": text for name, text in fields.CLAIM_FIELDS.items()},
    }
    return {
        "reasons": _reasons(),
        "readings": table(("word", "reading"), [(f"`{k}`", v) for k, v in _words().items()]),
        "intention": _fields(fields.INTENTION_FIELDS),
        "permission": _fields(fields.PERMISSION_FIELDS),
        "http": _fields(fields.HTTP_FIELDS),
        "header": _fields(fields.HEADER_FIELDS),
        "jwt": _fields(jwt),
        "provider": _fields(
            providers.PROVIDER_FIELDS
            | {f"Remote.{name}": text for name, text in providers.REMOTE_FIELDS.items()}
        ),
        "normalization": _fields(entries.NORMALIZATION_FIELDS),
        "source": table(
            ("in `Sources`", "becomes"),
            [(f"`{name}`", f"`{field}`") for name, field in fields.SOURCE_FIELDS.items()],
        ),
    }


def filled(text: str) -> str:
    """Put the tables of today's code into a page."""
    made = tables()

    def put(found: re.Match[str]) -> str:
        return f"<!-- table: {found[1]} -->\n{made[found[1]]}<!-- end -->"

    return _PLACE.sub(put, text)


if __name__ == "__main__":
    for name in PAGES:
        page = DOCS / name
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
