"""Print a Python example of a page: `python -m tests.support.docs.example PAGE NUMBER`, counted from 1."""

from __future__ import annotations

import sys

from tests.support.docs.markdown import code_blocks

if __name__ == "__main__":
    print(code_blocks(sys.argv[1], "python")[int(sys.argv[2]) - 1], end="")
