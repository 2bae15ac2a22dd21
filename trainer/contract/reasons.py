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
    def advice(self) -> str:
        """What to do while the run goes on, or will by itself."""
        return _SENTENCES[self][1]

    @property
    def advice_once_stopped(self) -> str:
        """What to do when nothing goes on by itself any more."""
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
        "It comes back by itself when the device is free; raise its priority to keep the device.",
    ),
    Reason.outside_hours: (
        "It is outside the hours of the run or of its device.",
        "It comes back by itself when they begin; change the hours to train now.",
    ),
    Reason.device_wanted: (
        "Another program uses the device.",
        "It comes back by itself when that program has ended.",
    ),
    Reason.device_hot: (
        "The device is hotter than its policy allows.",
        "It comes back by itself when the device has cooled; raise the ceiling to train now.",
    ),
    Reason.budget_spent: (
        "Its budget is spent: a checkpoint was saved.",
        "Raise or remove its budget, then resume.",
    ),
    Reason.waiting_for_data: ("Its data is being prepared.", "It starts by itself when ready."),
    Reason.backing_off: (
        "The last attempt failed; the next one waits a little first.",
        "Nothing to do: it restarts by itself.",
    ),
    Reason.terminated: (
        "The trainer was asked to end by a signal from outside.",
        "It saved a checkpoint first and restarts by the run's recovery policy.",
    ),
    Reason.crashed: (
        "The trainer ended without finishing.",
        "It restarts by itself; the last lines of its log name the cause.",
    ),
    Reason.stalled: (
        "No step was seen for far longer than steps take, so the trainer was stopped.",
        "It restarts by itself; the stack dump in the log shows where it hung.",
    ),
    Reason.no_progress: (
        "Several attempts in a row ended without getting any further.",
        "Fix what the log's last lines name, then resume.",
    ),
    Reason.out_of_memory: (
        "The device ran out of memory.",
        "Resume with overrides.device_batch_size lower than now; the batch in tokens stays.",
    ),
    Reason.host_out_of_memory: (
        "The machine ran out of memory (the host's, not the device's).",
        "Close other programs, or give the trainer's control group more memory.",
    ),
    Reason.non_finite_loss: (
        "The loss became NaN or infinite; the weights were not touched by that step.",
        "Lower the learning rate, look at the data, or resume with recovery.on_non_finite: rewind.",
    ),
    Reason.disk_full: (
        "The disk is full.",
        "Free some space: it goes on by itself when there is room.",
    ),
    Reason.io_error: (
        "The disk refused to read or store a file.",
        "Check the disk (dmesg, SMART) and that it is mounted and writable; the last verified "
        "checkpoint is kept.",
    ),
    Reason.data_changed: (
        "A file of the corpus changed or is missing since the run began.",
        "Put the original file back and resume; a changed corpus would be another run.",
    ),
    Reason.data_unusable: (
        "The corpus or tokenizer could not be prepared.",
        "Correct what the message names, then resume.",
    ),
    Reason.host_restarted: (
        "The machine was restarted under it.",
        "It resumes by itself unless recovery.on_reboot is wait.",
    ),
    Reason.gpu_lost: (
        "The GPU reported a hardware fault or went away.",
        "Look at the Xid in the event; reseat, cool or reset the GPU, then resume.",
    ),
    Reason.superseded: ("A newer attempt took its place.", ""),
    Reason.device_missing: (
        "The device the run asks for is not on this machine.",
        "traind doctor lists the devices that are.",
    ),
    Reason.environment_changed: (
        "The software or machine differs from the one the run was started on.",
        "Resume to go on with exactness marked approximate, or restore the earlier versions.",
    ),
    Reason.no_checkpoint: (
        "No verified checkpoint is left to resume from.",
        "Put an undamaged copy of a checkpoint back into the directory that the message names, "
        "then resume; nothing there was overwritten.",
    ),
    Reason.journal_damaged: (
        "A report file was damaged or replaced; what came before the damage is kept.",
        "The weights are not affected; the file is kept as it is for inspection.",
    ),
    Reason.job_failed: ("The job ended without finishing.", "Its log names the cause."),
    Reason.internal_error: (
        "The daemon met an error in handling it.",
        "The message and the daemon's log name the cause; resume when it is removed.",
    ),
    Reason.copied: (
        "This data directory is a copy, and the original may still train this run.",
        "Resume it if it is to be trained here.",
    ),
    Reason.too_many_open_files: (
        "No further file could be opened: the limit of open files is reached.",
        "Raise the limit (ulimit -n, LimitNOFILE= in the service's unit) or close what holds them.",
    ),
    Reason.not_permitted: (
        "A file may not be read or written by the user of the trainer.",
        "Give the daemon's user access to the file that the message names, then resume.",
    ),
    Reason.file_missing: (
        "A file that is needed is not there.",
        "Put the file named in the message back, or mount its disk, then resume.",
    ),
    Reason.network_failed: (
        "A server could not be reached.",
        "Check the network and its proxy; a download continues where it stopped.",
    ),
    Reason.software_missing: (
        "The trainer's software cannot run here.",
        "Install what the message names (traind doctor shows what is there), then resume.",
    ),
    Reason.compile_failed: (
        "The compiler could not translate the model.",
        "Resume with overrides.compile false (exactness becomes approximate), or repair the "
        "compiler: traind doctor looks at it.",
    ),
    Reason.rank_lost: (
        "One of the processes that train this run together ended or did not answer.",
        "It restarts by itself from the newest checkpoint; the message names the rank, and its log "
        "in the attempt's ranks/ directory the cause.",
    ),
    Reason.ranks_differ: (
        "A device held other weights than the others: its memory or processor failed silently.",
        "Nothing of these weights was saved. It restarts by itself from the newest checkpoint; "
        "test the device that the message names.",
    ),
    Reason.waiting_for_engine: (
        "Its job waits in the cluster's queue.",
        "It starts by itself when the cluster starts the job.",
    ),
    Reason.engine_unreachable: (
        "The cluster's scheduler does not answer.",
        "Nothing is taken for dead meanwhile: it continues by itself when the scheduler answers.",
    ),
    Reason.engine_refused: (
        "The cluster did not accept the job.",
        "Correct what the message names by resuming with another place.",
    ),
    Reason.engine_cancelled: (
        "Its job was cancelled on the cluster, by scancel or an administrator.",
        "Resume submits a new job, which continues from the newest checkpoint.",
    ),
    Reason.node_failed: (
        "A node of the cluster failed under it.",
        "It is submitted again by itself and continues from the newest checkpoint.",
    ),
    Reason.time_limit: (
        "Its job reached the time limit.",
        "It is submitted again by itself and continues from the newest checkpoint.",
    ),
}

# Where the advice above counts on the run going on.
_ADVICE_ONCE_STOPPED: dict[Reason, str] = {
    Reason.backing_off: "Resume it when it should go on.",
    Reason.terminated: "It saved a checkpoint first; resume continues from there.",
    Reason.crashed: (
        "Look at the last lines of its log; resume continues from the newest checkpoint."
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
        "Raise the limit (ulimit -n, LimitNOFILE= in the service's unit) or close what holds "
        "them, then resume."
    ),
    Reason.file_missing: "Put the file back that the message names, then resume.",
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
