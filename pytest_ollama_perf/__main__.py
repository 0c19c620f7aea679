"""``python -m pytest_ollama_perf`` is the command ``pytest-ollama-perf``."""

import sys

from pytest_ollama_perf.cli import main

sys.exit(main())
