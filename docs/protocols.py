"""Write docs/evaluation/options.md, the options of every protocol, from their declarations.

python docs/protocols.py
"""

from __future__ import annotations

from pathlib import Path

from simdino.evaluate import PROTOCOLS, Protocol
from simdino.evaluate.layouts import data_path
from simdino.keywords import Keyword, keywords

PAGE = Path(__file__).parent / "evaluation" / "options.md"
HEAD = """# Options of protocols

`simdino evaluate NAME ENCODER` and `sd.evaluate.NAME(encoder, data, ...)` take the same options; in Python
`--leave-one-out` is `leave_one_out=True`. ENCODER is a run folder, a file of weights, `timm:NAME` or `hf:NAME`. This
page is made from the declarations by `docs/protocols.py`.
"""


def row(keyword: Keyword) -> str:
    """The line of an option in its table."""
    default = keyword.option.default or ("" if keyword.default in (None, ()) else f"`{keyword.default}`")
    allowed = " or ".join(keyword.choices) or str(keyword.option.range or "")
    return f"| `{keyword.word}` | {keyword.option.text} | {allowed} | {default} |"


def table(found: list[Keyword]) -> list[str]:
    """The table of some options."""
    return ["", "| option | what it says | values | default |", "|---|---|---|---|", *map(row, found)]


def section(protocol: Protocol) -> list[str]:
    """What a protocol is, an example, and its options."""
    data = "" if protocol.layout.required else " Unless given, what the run was trained on."
    told = [f"\n## {protocol.name}\n", protocol.text, "", f"    simdino evaluate {protocol.example}", ""]
    return [*told, f"`--data`: {protocol.layout.text}{data}", *table([*keywords(protocol.function).values()])]


def page() -> str:
    """The whole page."""
    sections = [line for protocol in PROTOCOLS.values() for line in section(protocol)]
    both = [*keywords(Protocol.run).values(), *keywords(data_path).values()]
    every = ["\n## All protocols\n", "The last three are of protocols that read labelled images.", *table(both)]
    return "\n".join([HEAD.rstrip(), *sections, *every]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
