"""Prints samples as they are generated, without repeats if the stream has gaps."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from server.cli import output
from trainer.contract.text import clean, clean_lines

if TYPE_CHECKING:
    from server.client import Client
    from server.schemas.jobs import JobView


class TokenPrinter:
    """Prints prompts in bold, each followed by the model's text.

    printed: for each prompt begun, the text printed so far.
    """

    def __init__(self, prompts: list[str]) -> None:
        self.prompts = prompts
        self.printed: list[str] = []

    def listen(self, traind: Client, job: JobView) -> None:
        """Print the stream until it ends; nothing without a stream."""
        from server.client import ApiError

        try:
            with suppress(ApiError), output.stderr().status("sample: waiting …") as status:
                for message in traind.tokens(job.id):
                    if message.event == "token":
                        status.stop()
                        self.token(message.data["prompt"], message.data["text"])
        except KeyboardInterrupt:
            output.note(f"\nthe job continues: traind job {clean(job.id)}")
            raise

    def token(self, index: int, text: str) -> None:
        if not max(0, len(self.printed) - 1) <= index < len(self.prompts):
            return
        while len(self.printed) <= index:
            self._write("\n" if self.printed else "")
            self._write(self.prompts[len(self.printed)], "bold")
            self.printed.append("")
        self.printed[index] += text
        self._write(text)

    def rest(self, samples: list[dict[str, Any]]) -> None:
        """Print the part of the job's result that has not been printed."""
        for index, made in enumerate(samples):
            text = str(made.get("text", ""))
            printed = self.printed[index] if index < len(self.printed) else ""
            self.token(index, text[len(printed) :] if text.startswith(printed) else "")
        self._write("\n")

    def _write(self, text: str, style: str = "default") -> None:
        output.stdout().print(output.styled(clean_lines(text), style), end="", soft_wrap=True)
