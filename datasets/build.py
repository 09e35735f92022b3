"""Build datasets of the recipes beside this file: `python datasets/build.py mixed --size full`, or `all`.

The same as `l4s-gym datasets build`, with these recipes from wherever it is called.
"""

from __future__ import annotations

import sys
from pathlib import Path

from l4s_gym.cli import main

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    given = sys.argv[1:]
    if not any(word.partition("=")[0] == "--recipes" for word in given):
        given = ["--recipes", str(HERE), *given]
    sys.exit(main(["datasets", "build", *given]))
