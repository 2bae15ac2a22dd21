"""Prints samples as they are generated, without repeats when the stream has gaps."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from server.cli import output
from server.text import clean, clean_lines

if TYPE_CHECKING:
    from server.client import Client
    from server.schemas.jobs import JobView


class TokenPrinter:
    """Prompts in bold, each followed by what the model wrote.

    printed: for each prompt begun, the text printed so far.
    """

    def __init__(self, prompts: list[str]) -> None:
        self.prompts = prompts
        self.printed: list[str] = []

    def listen(self, traind: Client, job: JobView) -> None:
        """Print what comes until the stream ends; without a stream, nothing."""
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
        """Print what the job's result has beyond the text printed so far."""
        for index, made in enumerate(samples):
            text = str(made.get("text", ""))
            printed = self.printed[index] if index < len(self.printed) else ""
            self.token(index, text[len(printed) :] if text.startswith(printed) else "")
        self._write("\n")

    def _write(self, text: str, style: str = "default") -> None:
        output.stdout().print(output.styled(clean_lines(text), style), end="", soft_wrap=True)
