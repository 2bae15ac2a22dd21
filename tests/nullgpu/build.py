"""Build the stubs for the CUDA build of torch in an environment: `python -m tests.nullgpu.build`.

Functions that torch links and `driver/` does not define are added: those of cuBLAS succeed and do
nothing, those of the driver and the runtime return "not supported" and print their name.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

SOURCES = Path(__file__).parent / "driver"
NOT_SUPPORTED = 801  # cudaErrorNotSupported


class CannotBuild(Exception):
    """The environment has no known CUDA build of torch, or gcc fails."""


def build(site_packages: Path, out: Path) -> None:
    """Build the shared libraries into `out`; takes about two seconds."""
    cuda, torch = site_packages / "nvidia" / "cu13", site_packages / "torch"
    if not (cuda / "include").is_dir():
        raise CannotBuild(f"no CUDA 13 build of torch in {site_packages}")
    out.mkdir(parents=True, exist_ok=True)
    compile = partial(_compile, out, cuda / "include")
    asked = (torch / "include/c10/cuda/driver_api.h").read_text()
    driver, nvml = (set(re.findall(rf"_\(({kind}\w+)", asked)) for kind in ("cu[A-Z]", "nvml"))
    compile("libcuda.so.1", "cuda.c", driver, beside="card.c")
    (out / "libcuda.so").unlink(missing_ok=True)
    (out / "libcuda.so").symlink_to("libcuda.so.1")  # Triton links its launchers to it
    compile("libnvidia-ml.so.1", "nvml.c", nvml, beside="card.c")
    real = cuda / "lib"
    linked = _linked(torch / "lib") & _symbols(real / "libcudart.so.13")
    compile("libcudart.so.13", "cudart.c", linked)
    for library, flags in (("libcublas.so.13", ["-DCUBLAS"]), ("libcublasLt.so.13", [])):
        compile(library, "cublas.c", _symbols(real / library), flags=flags, missing=_succeeds)


def _compile(
    out: Path,
    include: Path,
    library: str,
    source: str,
    names: set[str],
    *,
    beside: str | None = None,
    flags: Sequence[str] = (),
    missing: Callable[[str], str] | None = None,
) -> None:
    """Compile one library of `source`, with `missing` functions for those of `names` that it lacks.

    beside: the source of the GPU; without it the GPU is that of libcuda.so.1.
    """
    gcc = ["gcc", "-O2", "-w", "-fPIC", f"-I{SOURCES}", f"-I{include}", *flags]
    compiled, extra = out / f"{library}.o", out / f"{library}.c"
    _run([*gcc, "-c", str(SOURCES / source), "-o", str(compiled)])
    absent = sorted(names - _symbols(compiled, "--defined-only"))
    extra.write_text("#include <stdio.h>\n" + "\n".join(map(missing or _not_supported, absent)))
    link = ["-shared", f"-Wl,-soname,{library}", "-lpthread", "-ldl"]
    if beside:
        link.insert(0, str(SOURCES / beside))
    else:  # NVIDIA's own libraries have a version on each symbol
        versions = out / f"{library}.map"
        versions.write_text(f"{library} {{ global: *; }};\n")
        link += [f"-Wl,--version-script={versions}", "-Wl,-rpath,$ORIGIN"]
        link += [f"-L{out}", "-l:libcuda.so.1"]
    _run([*gcc, "-o", str(out / library), str(compiled), str(extra), *link])


def _succeeds(name: str) -> str:
    return f"int {name}(void) {{ return 0; }}"


def _not_supported(name: str) -> str:
    return f'int {name}(void) {{ fputs("null GPU: {name}\\n", stderr); return {NOT_SUPPORTED}; }}'


def _linked(folder: Path) -> set[str]:
    """Functions of the CUDA runtime that torch's libraries import."""
    names: set[str] = set()
    for library in folder.glob("*.so*"):
        names |= _symbols(library, "-D", "--undefined-only")
    return {name for name in names if re.match(r"(cuda[A-Z]|__cuda)", name)}


def _symbols(file: Path, *flags: str) -> set[str]:
    flags = flags or ("-D", "--defined-only")
    lines = _run(["nm", *flags, str(file)]).splitlines()
    return {words[-1].split("@")[0] for line in lines if (words := line.split())[-2] in "TtUW"}


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CannotBuild(f"{' '.join(command[:3])} … fails: {done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]))
