"""Reports the background verification of a large corpus during training."""

from __future__ import annotations

from trainer.contract import events, units
from trainer.data.background_check import HashingProgress
from trainer.train.session import Session


def report(session: Session) -> None:
    """Send a notice at each quarter of the corpus. Raises DataChanged for a file that has changed:
    the run pauses, with the file's name."""
    found = session.corpus_check.poll() if session.corpus_check else None
    if found is None:
        return
    session.reporter.emit(
        events.Notice(
            level="info",
            code="corpus_hashing",
            message=_sentence(found),
            step=session.state.step,
            data={"done_bytes": found.done_bytes, "total_bytes": found.total_bytes},
        )
    )
    if found.finished and found.touched:
        session.reporter.emit(_touched(found.touched, session.state.step))


def _sentence(found: HashingProgress) -> str:
    total = units.num_bytes(found.total_bytes)
    if found.finished:
        return f"all {total} of the corpus are hashed: a change of any byte is detected from now on"
    share = found.done_bytes / max(1, found.total_bytes)
    return (
        f"{units.num_bytes(found.done_bytes)} of {total} of the corpus are hashed "
        f"({units.percent(share)}), in the background while the run trains"
    )


def _touched(paths: list[str], step: int) -> events.Notice:
    return events.Notice(
        level="warning",
        code="corpus_touched",
        message=f"{len(paths):,} files of the corpus were touched after the run was prepared and "
        "before they were hashed. Their sizes and samples are the same, so they count as "
        f"unchanged; the first is {paths[0]}",
        step=step,
        data={"paths": paths[:100]},
    )
