r"""Prompts in the syntax of compel, which InvokeAI uses, written in the syntax of this program.

``cat++`` and ``(a cat)1.2`` have weights there, 1.1 or 0.9 for each sign, and brackets without a weight mean nothing
(compel's `prompt_parser.py`, and tests/test_prompt_parser.py of InvokeAI 2.2). Here they are ``(cat:1.21)``,
``(a cat:1.2)`` and nothing; what is text there and syntax here gets a backslash.
"""

from __future__ import annotations

import re

_TOKEN = re.compile(
    r"(?P<escape>\\.)|(?P<open>\()|(?P<close>\)(?P<weight>\++|-+|\d*\.?\d+)?)"
    r"|(?P<word>[^\s()\[\]\\,+-](?:[^\s()\[\]\\,]*[^\s()\[\]\\,+-])?)(?P<sign>\++|-+)(?=[\s,.;:!?)]|$)"
    r"|(?P<text>[^\s()\[\]\\]+|\s+)|(?P<syntax>.)",
    re.DOTALL,
)
_COMBINATION = re.compile(r"(?<=\))\.(?:blend|and|swap)\(|\.swap\(")
_UP, _DOWN = 1.1, 0.9  # weight of a sign


def translate(prompt: str) -> str:
    """Return a prompt of compel in this program's syntax.

    One that combines prompts (`blend`, `and`, `swap`) stays as it is: generation refuses it, and says why.
    """
    if _COMBINATION.search(prompt):
        return prompt
    groups: list[list[str]] = [[]]  # texts of the prompt, and of each bracket that is open
    for match in _TOKEN.finditer(prompt):
        if match["open"]:
            groups.append([])
        elif match["close"] and len(groups) > 1:
            inner = "".join(groups.pop())
            groups[-1].append(_weighted(inner, _factor(match["weight"])))
        elif match["close"]:
            groups[-1].append(f"\\{match[0]}")
        elif match["word"]:
            groups[-1].append(_weighted(_escape(match["word"], depth=1), _factor(match["sign"])))
        else:
            groups[-1].append(match["escape"] or _escape(match[0], len(groups) - 1))
    return "\\(".join("".join(texts) for texts in groups)


def _factor(weight: str | None) -> float:
    """Return the weight of ``++``, ``--`` or a number; 1 without any."""
    if not weight:
        return 1.0
    if weight[0] in "+-":
        return float((_UP if weight[0] == "+" else _DOWN) ** len(weight))
    return float(weight)


def _weighted(text: str, weight: float) -> str:
    return text if weight == 1 or not text else f"({text}:{round(weight, 4):g})"


def _escape(text: str, depth: int) -> str:
    """Return text with a backslash before what would be syntax here; a colon is so inside of brackets."""
    return re.sub(r"[\[\]\\:]" if depth else r"[\[\]\\]", r"\\\g<0>", text)
