"""Regular expressions as data: the TOML file beside a module that bears its name.

A list is alternatives, <<NAME>> stands for an earlier entry, and line feeds in an entry are for the eye only.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path


def read_patterns(module: str, **entries: str) -> dict[str, str]:
    """The file of a module, `chatbaker.text.NAME`: {entry: source of a regular expression}, with those given first."""
    file = Path(__file__).with_name(f"{module.rpartition('.')[2]}.toml")
    for name, value in tomllib.loads(file.read_text(encoding="utf-8")).items():
        text = "|".join(value) if isinstance(value, list) else value.replace("\n", "")
        entries[name] = re.sub(r"<<(\w+)>>", lambda found: entries[found[1]], text)
    return entries
