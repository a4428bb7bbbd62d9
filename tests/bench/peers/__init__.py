"""hubhead beside the scripts and servers that users would write instead: `python -m tests.bench.peers`."""
