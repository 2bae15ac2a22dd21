"""The stages of the GPU day: `python -m tests.bench.gpu_stages NAME [--small]`.

A stage prints its results in lines that begin with "> ".
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.bench import bars, training
from tests.bench.compare import Contender, interleave
from trainer.contract.plan import make_plan
from trainer.contract.shape import shape_of
from trainer.contract.spec import RunSpec, resolve

SMALL = "--small" in sys.argv
ROWS = (8,) if SMALL else (8, 32)
WARM_UP, PAIRS = (1, 2) if SMALL else (6, 24)
CUDA = torch.device("cuda", 0)
RATES = training.RATES


def say(line: str) -> None:
    print(f"> {line}", flush=True)


def preset(rows: int, **changes: Any) -> RunSpec:
    """Depth 12, 65,536 tokens a step; SMALL: depth 2."""
    body: dict[str, Any] = {"name": "day", "preset": "rtx4070-d12", **changes}
    body["batch"] = {"tokens": rows * 2048 * (1 if rows > 8 else 4), "device_batch_size": rows}
    if SMALL:
        model = {"depth": 2, "aspect_ratio": 64, "head_dim": 64, "vocab_size": 512}
        body["model"] = {**model, "sequence_len": 256}
        body["batch"] = {"tokens": rows * 256 * 2, "device_batch_size": rows}
    return resolve(body)


def milliseconds(call: Callable[[], object], repeats: int = 10, warm: int = 3) -> float:
    """Median time of a call on the device, in milliseconds."""
    for _ in range(warm):
        call()
    times = []
    for _ in range(repeats):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        call()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended))
    return statistics.median(times)


# --- the GPU -------------------------------------------------------------------------------------


def card() -> None:
    """The GPU, its software, the daemon's view of it, speed of memory and matrix products."""
    from server.machine import devices
    from trainer.model import attention
    from trainer.runtime import compiler, device

    found = torch.cuda.get_device_properties(0)
    say(f"{found.name}, {found.total_memory / 1e9:.1f} GB, {found.major}.{found.minor}, "
        f"torch {torch.__version__}, CUDA {torch.version.cuda}, {os.cpu_count()} CPUs")  # fmt: skip
    say(f"attention by {attention.sdpa_kernel(shape_of(preset(8).model), torch.bfloat16, CUDA)}, "
        f"compiler {compiler.missing(CUDA) or 'there'}")  # fmt: skip
    say(f"the daemon sees {devices.discover()[0]}; sensors {device.Sensors.open(CUDA).read()}")
    size = 512 if SMALL else 8192
    a, b = (torch.randn(size, size, device=CUDA, dtype=torch.bfloat16) for _ in "ab")
    source = torch.empty(size * size * 32, dtype=torch.uint8, device=CUDA)
    target = torch.empty_like(source)
    product, copy = milliseconds(lambda: a @ b), milliseconds(lambda: target.copy_(source))
    say(f"{2 * size**3 / product / 1e9:.0f} TFLOP/s of bf16 products, "
        f"{2 * source.numel() / copy / 1e6:.0f} GB/s of copies")  # fmt: skip


# --- side by side --------------------------------------------------------------------------------


def daemon() -> None:
    """The preset trained through the daemon, on 12 GB of this GPU: save, pause, resume, kill -9."""
    from tests.e2e.real_daemon import RealDaemon

    share = min(1.0, 12e9 / torch.cuda.get_device_properties(0).total_memory)
    spec = preset(8)
    body = {
        "name": "d12", "preset": "rtx4070-d12", "data": {"source": "builtin"},
        "horizon": {"steps": 5000}, "numerics": {"deterministic": True},
        "evaluate": {"bpb_every": 40, "eval_tokens": 262_144, "sample_every": 40,
                     "core_every": None, "prompts": ["def "]},
        "checkpoint": {"every_steps": 40, "keep_every": None},
    }  # fmt: skip
    if SMALL:
        body |= {"model": spec.model.model_dump(exclude_unset=True), "batch": {
            "tokens": spec.batch.tokens, "device_batch_size": 8}}  # fmt: skip
    limit = f"per_process_memory_fraction:{share:.4f}"
    with tempfile.TemporaryDirectory() as folder:
        traind = RealDaemon(Path(folder), PYTORCH_ALLOC_CONF=limit)
        try:
            began = time.monotonic()
            traind.client.create_run(body)
            traind.until("d12", lambda now: now.step >= 2)
            say(f"first steps after {time.monotonic() - began:.0f} s")
            far = traind.until("d12", lambda now: now.step >= (5 if SMALL else 45))
            say(f"step {far.step}: {far.tokens_per_second or 0:,.0f} tok/s")
            began = time.monotonic()
            traind.client.pause("d12")
            paused = traind.until_state("d12", "paused")
            saved = paused.last_checkpoint
            say(f"pause: {time.monotonic() - began:.1f} s, at step {paused.step}, checkpoint at "
                f"{saved.step if saved else None}")  # fmt: skip
            traind.client.resume("d12")
            back = traind.until("d12", lambda now: now.step > paused.step + 3)
            os.kill(traind.trainer_pid("d12"), signal.SIGKILL)
            again = traind.until("d12", lambda now: now.attempt == 3 and now.step > back.step)
            say(f"kill -9: on at step {again.step}, resume {again.exact_resume}")
        finally:
            traind.end()


def parity() -> None:
    """nanochat's own run continued on the GPU, compared with the CPU in float32."""
    from tests.reference import fixture
    from trainer.contract import schedule
    from trainer.contract.schedule import ExtendSchedule
    from trainer.interop.nanochat import read_nanochat
    from trainer.interop.nanochat_spec import spec_from_run
    from trainer.model.gpt import GPT
    from trainer.optim.optimizer import Optimizer
    from trainer.runtime import device
    from trainer.train.step import Stepper

    device.configure(CUDA, threads=4, deterministic=True)
    imported = read_nanochat(fixture.BASE, fixture.TAG, 60)
    assert imported.cursor is not None
    body = spec_from_run(imported, name="d4", corpus=Path("c"), tokenizer=Path("t"))
    body["numerics"] = {**body.get("numerics", {}), "precision": "fp32"}
    spec = resolve(body)
    plan = make_plan(spec)
    rewarm = ExtendSchedule(rewarm_steps=0)
    phase = schedule.extend_schedule(
        plan.schedule, 60, 120, rewarm, warmup_steps=40, warmdown_ratio=0.65
    )
    right: list[float] = []
    for where, compiled in (("cpu", False), ("cuda", False), ("cuda", True)):
        model = GPT(imported.shape, compute_dtype=torch.float32, device=where)
        model.load_state_dict(imported.model)
        optimizer = Optimizer(model, plan.hyperparameters)
        optimizer.load_state_dict(imported.optimizer_state())
        stepper = Stepper(model, optimizer, compile=compiled, deterministic=True, rows=4)
        batches = fixture.training_batches(imported.cursor.pq_idx, imported.cursor.rg_idx + 1)
        losses = []
        for step in range(60, 64 if SMALL else 120):
            taken = [next(batches)[0] for _ in range(fixture.MICRO_BATCHES)]
            decay = schedule.weight_decay_multiplier(phase, step)
            result = stepper.train_step(
                taken,
                lr_multiplier=schedule.lr_multiplier(phase, step),
                momentum=schedule.muon_momentum(phase, step),
                weight_decay=decay * plan.hyperparameters.weight_decay,
            )
            losses.append(result.loss.item())
        right = right or losses
        off = max(abs(a - b) for a, b in zip(losses, right, strict=True))
        how = "compiled" if stepper.compiler.active else f"eager ({stepper.compiler.reason})"
        say(f"{where} {how}: last loss {losses[-1]:.6f}, at most {off:.2e} from the CPU's")


def resume() -> None:
    """A run that is paused and killed, compared bit for bit with an uninterrupted twin."""
    from tests.trainer.lab import Lab, write_corpus
    from trainer.contract import commands, journal

    body = {
        "name": "bits",
        "model": {"depth": 4, "aspect_ratio": 64, "head_dim": 64, "sequence_len": 512,
                  "vocab_size": 300},
        "batch": {"tokens": 8192, "device_batch_size": 8}, "horizon": {"steps": 60},
        "evaluate": {"bpb_every": None, "sample_every": None},
        "checkpoint": {"every_steps": 20, "every_seconds": None},
    }  # fmt: skip
    root = Path(tempfile.mkdtemp())
    write_corpus(root / "corpus", documents=3000)

    def attempt(lab: Any, stop: str | None = None, at: int = 0) -> None:
        directory = lab.order(device="cuda:0")
        outbox, mark = directory / "outbox.jsonl", f'"kind":"step","step":{at},'.encode()
        with (directory / "trainer.log").open("wb") as log:
            command = [sys.executable, "-P", "-m", "trainer", str(directory)]
            process = subprocess.Popen(command, stdout=log, stderr=log)
        while stop and process.poll() is None:
            if outbox.exists() and mark in outbox.read_bytes():
                break
            time.sleep(0.005)
        if stop == "pause":
            inbox = journal.Writer.reopen(directory / "inbox.jsonl")
            inbox.append(commands.Pause(id="c").model_dump(), durable=True)
            inbox.close()
        elif stop == "kill":
            process.kill()
        process.wait()  # the day ends a stage at its time limit
        lab.close_attempt(directory)

    for deterministic in (True,) if SMALL else (True, False):
        numerics = {"deterministic": deterministic, "compile": True, "precision": "bf16"}
        labs = []
        for name in ("twin", "other"):
            copied = json.loads(json.dumps({**body, "numerics": numerics}))
            lab = Lab(root / f"{name}-{deterministic}", None, copied)  # type: ignore[arg-type]
            lab.prepare(root / "corpus")
            labs.append(lab)
        twin, other = labs
        attempt(twin)
        attempt(other, "pause", 17)
        attempt(other, "kill", 31)
        attempt(other)
        verdicts = [event["verdict"] for event in other.events("resume_checked")]
        same = twin.weights_sha256(60) == other.weights_sha256(60)
        say(f"deterministic {deterministic}: weights {'equal' if same else 'DIFFER'}, {verdicts}")


def cards() -> None:
    """The tests that need a GPU."""
    files = sorted(Path("tests/trainer").rglob("test_*.py"))
    marked = [str(file) for file in files if 'needs("gpu")' in file.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *marked]
    done = subprocess.run(
        [*command, "-k", "on_a_card or on_request"], capture_output=True, text=True
    )
    print(done.stdout[-6000:])
    say((done.stdout.strip().splitlines() or ["no output"])[-1])
    if done.returncode not in (0, 5):
        sys.exit(1)


def warm() -> None:
    """Fill the compilers' caches for the stages that have the GPU exclusively."""
    for name, make in (("ours", training.ours), ("the plain reference", training.opponent)):
        for rows in ROWS:
            began = time.monotonic()
            try:
                make(preset(rows), "cuda")()
            except torch.OutOfMemoryError:
                say(f"{name} at {rows} rows does not fit beside the other stages")
                continue
            say(f"{name} at {rows} rows: first step after {time.monotonic() - began:.0f} s")
            torch._dynamo.reset()
            torch.cuda.empty_cache()


# --- alone on the GPU ----------------------------------------------------------------------------


def step() -> None:
    """Time and memory against the reference at equal rows, and a profile of the time."""
    for rows in ROWS:
        spec = preset(rows)
        calls, peaks = {}, {}
        try:
            for name, make in (("plain", training.opponent), ("ours", training.ours)):
                base = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                calls[name] = make(spec, "cuda")
                for _ in range(3):
                    calls[name]()
                peaks[name] = torch.cuda.max_memory_allocated() - base
            found = interleave(
                Contender(calls["ours"]), Contender(calls["plain"]), warm_up=WARM_UP, pairs=PAIRS
            )
        except torch.OutOfMemoryError:
            say(f"at {rows} rows both beside each other do not fit this card")
            continue
        seconds = statistics.median(found.ours)
        say(found.line(f"d12 step at {rows} rows"))
        say(f"{make_plan(spec).batch.tokens / seconds:,.0f} tok/s, MFU {_mfu(spec, seconds)}, "
            f"memory {peaks['ours'] / 1e9:.2f} GB, plain {peaks['plain'] / 1e9:.2f}")  # fmt: skip
        if rows == ROWS[0] and not SMALL:
            bars.at_least("d12 step on this GPU", found.ratio, 1.35)
            bars.at_most("d12 peak device memory", peaks["ours"] / peaks["plain"], 0.8)
        for name, call in calls.items():
            _where_time_goes(f"{name} at {rows} rows", call)
        calls.clear()
        torch._dynamo.reset()
        torch.cuda.empty_cache()


def _mfu(spec: RunSpec, seconds: float) -> str:
    from trainer.runtime import device

    flops, horizon = device.peak(CUDA, torch.bfloat16).value, make_plan(spec).horizon
    rate = make_plan(spec).batch.tokens / seconds
    causal = rate * horizon.flops_per_token_causal / flops
    return f"{rate * horizon.flops_per_token / flops:.1%} ({causal:.1%} of causal work)"


def _where_time_goes(name: str, call: Callable[[], object]) -> None:
    from torch.profiler import ProfilerActivity, profile

    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(3):
        call()
    cpu, wall = (time.process_time() - cpu) / 3, (time.perf_counter() - wall) / 3
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    events = sorted(seen.key_averages(), key=lambda e: -e.self_device_time_total)
    busy = sum(e.self_device_time_total for e in events) / 1e3
    say(f"{name}: host {cpu * 1e3:.0f} ms, wall {wall * 1e3:.0f} ms, device busy {busy:.0f} ms, "
        f"{sum(e.count for e in events)} launches")  # fmt: skip
    for event in events[:12]:
        say(f"  {event.self_device_time_total / 1e3:8.2f} ms {event.count:5} x {event.key[:70]}")


def _bench(rows: int, **kind: Any) -> tuple[Any, Any, list[list[Any]]]:
    """(model, stepper, steps' batches)."""
    from trainer.model.gpt import GPT
    from trainer.optim.optimizer import Optimizer
    from trainer.train.step import Stepper

    spec = preset(rows)
    model = GPT(shape_of(spec.model), compute_dtype=torch.bfloat16, device="cuda")
    model.init_weights(0)
    optimizer = Optimizer(model, make_plan(spec).hyperparameters)
    stepper = Stepper(model, optimizer, compile=True, deterministic=False, rows=rows, **kind)
    pinned = [
        [(t.pin_memory(), y.pin_memory()) for t, y in training.batches(spec, seed)]
        for seed in range(3)
    ]
    return model, stepper, pinned


def memory() -> None:
    """Peak memory of a step and of a pause's loss, and if that loss is the next step's exactly."""
    _, stepper, (data, *_) = _bench(8)
    for _ in range(2):
        stepper.train_step(data, **RATES).loss.item()
    torch.cuda.set_sync_debug_mode("warn")
    stepper.train_step(data, **RATES)  # the log warns of synchronizations
    torch.cuda.set_sync_debug_mode("default")
    does = {
        "train_step": lambda: stepper.train_step(data, **RATES).loss.item(),
        "loss_only": lambda: stepper.loss_only(data).item(),
    }
    for name, call in does.items():
        torch.cuda.reset_peak_memory_stats()
        call()
        say(f"{name}: {torch.cuda.max_memory_allocated() / 1e9:.2f} GB allocated, "
            f"{torch.cuda.max_memory_reserved() / 1e9:.2f} GB reserved, "
            f"{make_plan(preset(8)).memory.total / 1e9:.2f} GB planned")  # fmt: skip
    same = does["loss_only"]() == does["train_step"]()
    say(f"loss_only is the next step's loss to the bit: {same}")


def determinism() -> None:
    """Bit equality of three repeated steps, and the cost of determinism."""
    from trainer.runtime import device

    for deterministic in (True, False):
        if deterministic:
            device.configure(CUDA, threads=4, deterministic=True)
        else:
            torch.set_deterministic_debug_mode("default")
        torch._dynamo.reset()
        sums: set[tuple[float, ...]] = set()
        stepper, steps = None, []
        for _ in range(2):
            model, stepper, steps = _bench(8)  # the same weights each time
            for name, weights in model.named_parameters():
                if "c_proj" in name:  # starts at zero: give attention something to compute
                    draw = torch.Generator("cuda").manual_seed(len(name))
                    weights.data.normal_(0, 0.02, generator=draw)
            model.bank.refresh()
            for data in steps:
                stepper.train_step(data, **RATES)
            sums.add(tuple(p.detach().double().sum().item() for p in model.parameters()))
        assert stepper is not None
        each, train = itertools.cycle(steps), partial(stepper.train_step, **RATES)
        took = milliseconds(lambda: train(next(each)), 6)  # noqa: B023
        say(f"deterministic {deterministic}: repeats {len(sums) == 1}, {took:.1f} ms a step")


def save() -> None:
    """Cost of a checkpoint for the steps during it."""
    from trainer.checkpoint.background_writer import Saver
    from trainer.checkpoint.store import FileEntry, Manifest

    model, stepper, (data, *_) = _bench(ROWS[-1])

    def describe(step: int, files: dict[str, FileEntry]) -> Manifest:
        return Manifest(
            run_id="bench", attempt=1, step=step, tokens_seen=0, parent=None, why="cadence",
            files=files, spec_sha256="", data_identity="", fingerprint={}, unix_seconds=0.0,
        )  # fmt: skip

    def seconds(call: Callable[[], object]) -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    train = lambda: stepper.train_step(data, **RATES).loss.item()  # noqa: E731
    tensors = (dict(model.state_dict()), stepper.optimizer.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(Path(folder), CUDA)
        stepper.before_update = saver.fence_update
        saver.prepare(*tensors)
        alone = statistics.median(seconds(train) for _ in range(8))
        for turn in range(3):
            stall = seconds(
                partial(saver.begin, turn, *tensors, {}, partial(describe, turn), "cadence")
            )
            first = seconds(train)
            (saved,) = saver.wait()
            say(f"save {turn}: begin {stall * 1e3:.1f} ms, the step after it {first * 1e3:.1f} ms "
                f"(alone {alone * 1e3:.1f}), written in {saved.seconds:.1f} s, "
                f"{saver.pinning_refused or 'pinned'}, {saved.error or 'verified'}")  # fmt: skip


def races() -> None:
    """Each attention backend at the training shape: time, and error against the float32 mask."""
    from trainer.model import attention
    from trainer.runtime import autotune

    shape, rows = shape_of(preset(8).model), 8
    operands = attention._operands(shape, rows, torch.bfloat16, CUDA)
    for window in (shape.sequence_len, shape.sequence_len // 4):
        right = attention._first_row_in_float32(attention.bind("masked", window), operands)
        for name in attention.candidates(CUDA, torch.bfloat16, window, shape.sequence_len):
            way = autotune.as_called(attention.bind(name, window), True)
            run = partial(attention._there_and_back, way, operands)
            try:
                agrees = autotune.agree([t[:1] for t in run()], right)
                say(f"{name}, window {window}: {milliseconds(run):.3f} ms, agrees: {agrees}")
            except Exception as error:  # errors of Triton and of the compiler have no common base
                say(f"{name}, window {window}: {type(error).__name__}: {error}"[:200])
        torch._dynamo.reset()


def variants() -> None:
    """fp8 and traind's own kernels, each against the compiler's bf16."""
    from trainer.contract.peaks import fp8_missing
    from trainer.model import relu2

    if SMALL:
        relu2.TILES = relu2.TILES[:1]  # each is compiled
    spec = preset(ROWS[-1])
    kinds: dict[str, dict[str, Any]] = {}
    if why := fp8_missing("this card", torch.cuda.get_device_capability()):
        say(f"fp8: {why}")
    else:
        kinds["fp8"] = {"fp8": True}
    won, why = relu2.choose(
        relu2.RACE, shape_of(spec.model), ROWS[-1], torch.bfloat16, CUDA, compiled=True
    )
    say(f"kernels triton, the race: {won} ({why})")
    if won != relu2.COMPILED:
        kinds[f"relu2 {won}"] = {"relu2_tile": won}
    for name, kind in kinds.items():
        both = (Contender(training.ours(spec, "cuda", **k)) for k in (kind, {}))
        found = interleave(*both, warm_up=WARM_UP, pairs=PAIRS)
        say(found.line(f"d12 {name} at {ROWS[-1]}, to bf16"))
        torch._dynamo.reset()


STAGES = {f.__name__: f for f in (card, daemon, parity, resume, cards, warm, step, memory,
                                  determinism, save, races, variants)}  # fmt: skip

if __name__ == "__main__":
    STAGES[sys.argv[1]]()
