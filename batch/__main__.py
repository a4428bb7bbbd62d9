"""`python -m batch` is `hubhead score`."""

from batch.cli import score
from serving.command import run

if __name__ == "__main__":
    run(score, "python -m batch")
