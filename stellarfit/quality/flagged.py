"""Sections of the page on what went wrong: flags, how often they are set; why stars failed."""

import re
from collections import Counter

import numpy as np

from ..flags import BAD, HARMLESS, SENTENCES
from .section import Section, Table
from .stars import Stars, count_text, stars_text

_MOST_REASONS = 20
# Numbers and quoted names differ from star to star, what is wrong does not.
_OWN = re.compile(r"'[^']*'|\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def flag_section(stars: Stars) -> Section:
    """How often each flag is set, and what it means."""
    title = "Flags"
    if lacking := stars.lacks("result_flags"):
        return Section(title, lacking)
    num = max(len(stars), 1)
    counts = {flag: int(((stars.flags & int(flag)) != 0).sum()) for flag in SENTENCES}
    known = int(np.bitwise_or.reduce([int(flag) for flag in SENTENCES]))
    rows = [
        [f"{str(flag.name).lower()}: {SENTENCES[flag]}", count_text(count),
         f"{100 * count / num:.3g}%",
         "bad" if flag & BAD else "harmless" if flag & HARMLESS else "warn"]
        for flag, count in sorted(counts.items(), key=lambda item: -item[1])
        if count
    ]  # fmt: skip
    text = []
    if rows:
        text.append(
            "Bits of result_flags that are set for some star. A star with a bad one should not "
            "be used without a look (flag_bad); one that warns says what to know (flag_warn); a "
            "harmless one says nothing against the labels. A star may have several."
        )
        tables = [Table("Flags by how often they are set",
                        ["flag", "stars", "share", "kind"], rows)]  # fmt: skip
    else:
        text.append("No star has a flag.")
        tables = []
    never = [str(flag.name).lower() for flag, count in counts.items() if not count]
    if rows and never:
        text.append(f"Never set: {', '.join(never)}.")
    if (unknown := int((stars.flags & ~known != 0).sum())) > 0:
        text.append(f"{stars_text(unknown)} with a bit that this version does not know.")
    return Section(title, text, tables=tables)


def failure_section(stars: Stars) -> Section:
    """Why stars have no result, like reasons together."""
    title = "Stars without a result"
    rows = np.flatnonzero(stars.failed)
    if not len(rows):
        return Section(
            title, ["Every star has a result."] if len(stars) else ["There are no stars."]
        )
    found = stars.file.read_rows(["reason", "source"], rows)
    if "reason" not in found:
        return Section(
            title, [f"{stars_text(len(rows))} failed; the catalogue has no column reason."]
        )
    reasons = [str(reason) for reason in found["reason"]]
    kinds = Counter(_OWN.sub("…", reason) for reason in reasons)
    first = {_OWN.sub("…", reason): i for i, reason in reversed(list(enumerate(reasons)))}
    sources = found.get("source")
    table = Table(
        "Reasons, by how often they occur",
        ["reason", "stars", "for example", "file"],
        [
            [kind, count_text(count), reasons[first[kind]],
             "" if sources is None else str(sources[first[kind]])]
            for kind, count in kinds.most_common(_MOST_REASONS)
        ],
        (2, 3),
    )  # fmt: skip
    text = [f"{stars_text(len(rows))} could not be read or fitted; … stands for what differs."]
    if len(kinds) > _MOST_REASONS:
        text.append(f"{len(kinds) - _MOST_REASONS} rarer kinds of reason are not listed.")
    return Section(title, text, tables=[table])
