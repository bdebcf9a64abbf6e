"""A display that keeps the lines that a run says."""

from training.progress_display import NoProgress


class Lines(NoProgress):
    """Keeps them in `lines`."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)
