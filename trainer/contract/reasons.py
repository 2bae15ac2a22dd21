"""Reasons: why a run, attempt or job is in its state, each with a sentence and advice."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a run, attempt or job is in the state it is in."""

    requested = "requested"
    finished = "finished"
    waiting_for_device = "waiting_for_device"
    waiting_for_data = "waiting_for_data"
    preempted = "preempted"
    outside_hours = "outside_hours"
    device_wanted = "device_wanted"
    device_hot = "device_hot"
    budget_spent = "budget_spent"
    backing_off = "backing_off"
    terminated = "terminated"
    crashed = "crashed"
    stalled = "stalled"
    no_progress = "no_progress"
    out_of_memory = "out_of_memory"
    host_out_of_memory = "host_out_of_memory"
    non_finite_loss = "non_finite_loss"
    disk_full = "disk_full"
    io_error = "io_error"
    data_changed = "data_changed"
    data_unusable = "data_unusable"
    host_restarted = "host_restarted"
    gpu_lost = "gpu_lost"
    superseded = "superseded"
    device_missing = "device_missing"
    environment_changed = "environment_changed"
    no_checkpoint = "no_checkpoint"
    journal_damaged = "journal_damaged"
    job_failed = "job_failed"
    internal_error = "internal_error"
    copied = "copied"
    too_many_open_files = "too_many_open_files"
    not_permitted = "not_permitted"
    file_missing = "file_missing"
    network_failed = "network_failed"
    software_missing = "software_missing"
    compile_failed = "compile_failed"
    rank_lost = "rank_lost"
    ranks_differ = "ranks_differ"
    waiting_for_engine = "waiting_for_engine"
    engine_unreachable = "engine_unreachable"
    engine_refused = "engine_refused"
    engine_cancelled = "engine_cancelled"
    node_failed = "node_failed"
    time_limit = "time_limit"

    @property
    def sentence(self) -> str:
        return _SENTENCES[self][0]

    @property
    def noun(self) -> str:
        """The cause as a noun phrase: 'attempt 3 after a crash'."""
        return _NOUNS[self]

    @property
    def advice(self) -> str:
        """What to do while the run continues or will continue by itself."""
        return _SENTENCES[self][1]

    @property
    def advice_once_stopped(self) -> str:
        """What to do once nothing continues by itself."""
        return _ADVICE_ONCE_STOPPED.get(self, self.advice)


_SENTENCES: dict[Reason, tuple[str, str]] = {
    Reason.requested: ("As requested.", ""),
    Reason.finished: ("It reached the last step of its plan.", "Extend it to train further."),
    Reason.waiting_for_device: (
        "Another run is using the device.",
        "It starts by itself when the device is free.",
    ),
    Reason.preempted: (
        "A run of higher priority needed the device.",
        "It resumes by itself when the device is free; raise its priority to keep the device.",
    ),
    Reason.outside_hours: (
        "It is outside the hours of the run or of its device.",
        "It resumes by itself when they begin; change the hours to train now.",
    ),
    Reason.device_wanted: (
        "Another program uses the device.",
        "It resumes by itself when that program has ended.",
    ),
    Reason.device_hot: (
        "The device is hotter than its policy allows.",
        "It resumes by itself when the device has cooled; raise the ceiling to train now.",
    ),
    Reason.budget_spent: (
        "Its budget is spent: a checkpoint was saved.",
        "Raise or remove its budget, then resume.",
    ),
    Reason.waiting_for_data: ("Its data is being prepared.", "It starts by itself when ready."),
    Reason.backing_off: (
        "The last attempt failed; the next one starts after a back-off.",
        "Nothing to do: it restarts by itself.",
    ),
    Reason.terminated: (
        "A signal from another process stopped the trainer.",
        "It saved a checkpoint first and restarts by the run's recovery policy.",
    ),
    Reason.crashed: (
        "The trainer ended without finishing.",
        "It restarts by itself; the last lines of its log name the cause.",
    ),
    Reason.stalled: (
        "The trainer reported nothing for longer than its stall timeout and was stopped.",
        "It restarts by itself; the stack dump in the log shows where it hung.",
    ),
    Reason.no_progress: (
        "Several consecutive attempts ended without a new step.",
        "Fix the cause named in the last lines of the log, then resume.",
    ),
    Reason.out_of_memory: (
        "The device ran out of memory.",
        "Resume with a lower overrides.device_batch_size; the batch in tokens does not change.",
    ),
    Reason.host_out_of_memory: (
        "The host ran out of memory (the device did not).",
        "Close other programs, or give the trainer's control group more memory.",
    ),
    Reason.non_finite_loss: (
        "The loss became NaN or infinite; that step did not change the weights.",
        "Lower the learning rate, check the data, or resume with recovery.on_non_finite: rewind.",
    ),
    Reason.disk_full: (
        "The disk is full.",
        "Free some space: it then continues by itself.",
    ),
    Reason.io_error: (
        "A file could not be read from or written to the disk.",
        "Check the disk (dmesg, SMART) and that it is mounted and writable; the last verified "
        "checkpoint is kept.",
    ),
    Reason.data_changed: (
        "A file of the corpus has changed or disappeared since the run started.",
        "Restore the original file and resume; a changed corpus needs a new run.",
    ),
    Reason.data_unusable: (
        "The corpus or tokenizer could not be prepared.",
        "Fix the problem that the message names, then resume.",
    ),
    Reason.host_restarted: (
        "The machine restarted during the run.",
        "It resumes by itself unless recovery.on_reboot is wait.",
    ),
    Reason.gpu_lost: (
        "The GPU reported a hardware fault or disappeared.",
        "Check the Xid in the event; reseat, cool or reset the GPU, then resume.",
    ),
    Reason.superseded: ("A newer attempt replaced it.", ""),
    Reason.device_missing: (
        "The run's device is not on this machine.",
        "traind doctor lists the available devices.",
    ),
    Reason.environment_changed: (
        "The software or machine differs from the one the run was started on.",
        "Resume to continue as approximate, or restore the earlier versions.",
    ),
    Reason.no_checkpoint: (
        "No verified checkpoint is left to resume from.",
        "Restore an undamaged copy of a checkpoint to the directory that the message names, "
        "then resume; nothing there was overwritten.",
    ),
    Reason.journal_damaged: (
        "A journal was damaged or replaced; the records before the damage are kept.",
        "The weights are not affected; the file is kept unchanged for inspection.",
    ),
    Reason.job_failed: ("The job ended without finishing.", "Its log names the cause."),
    Reason.internal_error: (
        "The daemon failed while handling it.",
        "The message and the daemon's log name the cause; fix it, then resume.",
    ),
    Reason.copied: (
        "This data directory is a copy, and the original may still train this run.",
        "Resume it to train it here.",
    ),
    Reason.too_many_open_files: (
        "No more files could be opened: the limit of open files was reached.",
        "Raise the limit (ulimit -n, LimitNOFILE= in the service's unit) or close other programs.",
    ),
    Reason.not_permitted: (
        "The trainer's user has no permission to read or write a file.",
        "Give the daemon's user access to the file that the message names, then resume.",
    ),
    Reason.file_missing: (
        "A required file is missing.",
        "Restore the file that the message names, or mount its disk, then resume.",
    ),
    Reason.network_failed: (
        "A server could not be reached.",
        "Check the network and its proxy; a download continues where it stopped.",
    ),
    Reason.software_missing: (
        "A package or program that the trainer needs is missing or cannot run.",
        "Install the software that the message names (see traind doctor), then resume.",
    ),
    Reason.compile_failed: (
        "The model could not be compiled.",
        "Resume with overrides.compile false (exactness becomes approximate), or repair the "
        "compiler: traind doctor checks it.",
    ),
    Reason.rank_lost: (
        "One rank of this run ended or did not answer.",
        "It restarts by itself from the newest checkpoint; the message names the rank, and its log "
        "in the attempt's ranks/ directory the cause.",
    ),
    Reason.ranks_differ: (
        "The weights of one device differ: its memory or processor failed silently.",
        "These weights were not saved. It restarts by itself from the newest checkpoint; "
        "test the device that the message names.",
    ),
    Reason.waiting_for_engine: (
        "Its job waits in the cluster's queue.",
        "It starts by itself when the cluster starts the job.",
    ),
    Reason.engine_unreachable: (
        "The cluster's scheduler does not answer.",
        "The job may still be running. It continues by itself when the scheduler answers.",
    ),
    Reason.engine_refused: (
        "The cluster did not accept the job.",
        "Fix the problem that the message names by resuming with another place.",
    ),
    Reason.engine_cancelled: (
        "Its job was cancelled on the cluster, by scancel or an administrator.",
        "Resume submits a new job, which continues from the newest checkpoint.",
    ),
    Reason.node_failed: (
        "A cluster node failed during the job.",
        "It is submitted again by itself and continues from the newest checkpoint.",
    ),
    Reason.time_limit: (
        "Its job reached the time limit.",
        "It is submitted again by itself and continues from the newest checkpoint.",
    ),
}

_NOUNS: dict[Reason, str] = {
    Reason.requested: "a pause",
    Reason.finished: "the end of its plan",
    Reason.waiting_for_device: "a wait for the device",
    Reason.waiting_for_data: "a wait for its data",
    Reason.preempted: "a run of higher priority",
    Reason.outside_hours: "the end of its hours",
    Reason.device_wanted: "another program on the device",
    Reason.device_hot: "a device that was too hot",
    Reason.budget_spent: "the end of its budget",
    Reason.backing_off: "a back-off",
    Reason.terminated: "a signal",
    Reason.crashed: "a crash",
    Reason.stalled: "a stall",
    Reason.no_progress: "attempts without progress",
    Reason.out_of_memory: "running out of memory",
    Reason.host_out_of_memory: "running out of host memory",
    Reason.non_finite_loss: "a loss that was not finite",
    Reason.disk_full: "a full disk",
    Reason.io_error: "an input/output error",
    Reason.data_changed: "a change of the corpus",
    Reason.data_unusable: "a failed preparation of the data",
    Reason.host_restarted: "a restart of the machine",
    Reason.gpu_lost: "a lost GPU",
    Reason.superseded: "a newer attempt",
    Reason.device_missing: "a missing device",
    Reason.environment_changed: "a change of the environment",
    Reason.no_checkpoint: "a search for a usable checkpoint",
    Reason.journal_damaged: "a damaged journal",
    Reason.job_failed: "a failed job",
    Reason.internal_error: "an error in the daemon",
    Reason.copied: "a copy of the data directory",
    Reason.too_many_open_files: "too many open files",
    Reason.not_permitted: "a missing permission",
    Reason.file_missing: "a missing file",
    Reason.network_failed: "a network failure",
    Reason.software_missing: "missing software",
    Reason.compile_failed: "a failed compilation",
    Reason.rank_lost: "a lost rank",
    Reason.ranks_differ: "ranks that differed",
    Reason.waiting_for_engine: "a wait in the cluster's queue",
    Reason.engine_unreachable: "an unreachable scheduler",
    Reason.engine_refused: "a refusal by the cluster",
    Reason.engine_cancelled: "a cancellation on the cluster",
    Reason.node_failed: "a node failure",
    Reason.time_limit: "the time limit of its job",
}

# Replaces advice above that assumes the run continues by itself.
_ADVICE_ONCE_STOPPED: dict[Reason, str] = {
    Reason.backing_off: "Resume to continue.",
    Reason.terminated: "It saved a checkpoint first; resume continues from there.",
    Reason.crashed: (
        "Check the last lines of its log; resume continues from the newest checkpoint."
    ),
    Reason.stalled: (
        "The stack dump in the log shows where it hung; resume continues from the newest "
        "checkpoint."
    ),
    Reason.host_out_of_memory: (
        "Close other programs, or give the trainer's control group more memory, then resume."
    ),
    Reason.disk_full: "Free some space, then resume.",
    Reason.io_error: (
        "Check the disk (dmesg, SMART) and that it is mounted and writable, then resume; the last "
        "verified checkpoint is kept."
    ),
    Reason.host_restarted: "Resume continues from the newest checkpoint.",
    Reason.too_many_open_files: (
        "Raise the limit (ulimit -n, LimitNOFILE= in the service's unit) or close other "
        "programs, then resume."
    ),
    Reason.file_missing: "Restore the file that the message names, then resume.",
    Reason.network_failed: "Check the network and its proxy, then resume.",
    Reason.rank_lost: (
        "The log of the rank that the message names, in the attempt's ranks/ directory, has the "
        "cause; resume continues from the newest checkpoint."
    ),
    Reason.node_failed: "Resume submits a new job, which continues from the newest checkpoint.",
    Reason.time_limit: (
        "Resume with another place: a longer time_limit, or more save_seconds for the checkpoint."
    ),
    Reason.ranks_differ: (
        "Test the device that the message names, or take it out; resume continues from the newest "
        "checkpoint."
    ),
}
