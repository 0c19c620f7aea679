"""Contract files, ``*.ollama.toml``: what a service promises; read, judged clause by clause, written."""

from __future__ import annotations

SUFFIX = ".ollama.toml"
"""How the name of a contract file ends."""
