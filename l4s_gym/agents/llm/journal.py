"""What is said and logged while the LLM agent is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from l4s_gym.agents.training import Say

LOGS: Final = "logs"


class Journal:
    """The lines that the user is told, and TensorBoard's file.

    Args:
        out: Folder of the run.
        say: Told what happens, line by line; None: nobody wants to know.
        main: Whether this process is the one that speaks and writes for all.
    """

    def __init__(self, out: Path, say: Say | None, *, main: bool) -> None:
        self.out, self._say, self._main = out, say, main
        self._writer: Any = None

    def say(self, text: str) -> None:
        """Tell the user, once and not from each process."""
        if self._say is not None and self._main:
            self._say(text)

    @contextmanager
    def open(self, step: int) -> Iterator[None]:
        """TensorBoard's file, where TensorBoard is installed, from a step on."""
        if self._main:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self.say("tensorboard is not installed: no logs for it are written (pip install tensorboard)")
            else:
                self._writer = SummaryWriter(str(self.out / LOGS), purge_step=step)
        try:
            yield
        finally:
            if self._writer is not None:
                self._writer.close()
            self._writer = None

    def log(self, part: str, figures: Mapping[str, Any], step: int) -> None:
        """Log what is a number, if there is a file."""
        if self._writer is not None:
            for name, value in figures.items():
                if isinstance(value, float):
                    self._writer.add_scalar(f"{part}/{name}", value, step)

    def evaluated(self, step: int, steps: int, loss: float, held_out: Mapping[str, Any], left_s: float) -> None:
        """Log and tell what a look at the held-out episodes has shown, if there are any."""
        self.log("held_out", held_out, step)
        text = f"step {step}/{steps}, loss {loss:.4f}"
        if held_out:
            recall = " ".join("-" if value is None else f"{value:.3f}" for value in held_out["recall"].values())
            text += (
                f"; held out: cross-entropy {held_out['cross_entropy']:.4f}, accuracy {held_out['accuracy']:.4f} "
                f"(majority {held_out['majority']:.4f}), macro-F1 {held_out['macro_f1']:.3f}, recall {recall}"
            )
            if "valid" in held_out:
                text += f", valid answers {100 * held_out['valid']:.2f} %"
        self.say(f"{text}; {left_s:.0f} s left")
