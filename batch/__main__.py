"""Entry point of `python -m batch`, which is the same as `hubhead score`."""

from batch.commands.score import score
from serving.commands.main import run

if __name__ == "__main__":
    run(score, "python -m batch")
