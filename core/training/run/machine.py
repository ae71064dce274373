"""What this machine is and what suits it: threads, workers, precision, peak rates.

Every function only looks; those that change something (`use_threads`, `use_fast_matmul`, `keep_memory`) say so in their
names.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

# Dense peak rates in TFLOP/s as NVIDIA's data sheets give them (without sparsity, accumulation in float32):
# name pattern -> (float16, bfloat16, TF32, float32); None where the card has no such unit. The pattern must match the
# whole device name, so that a laptop or cut-down variant with other clocks is "unknown" instead of wrong.
PEAKS: dict[str, tuple[float, float | None, float | None, float]] = {
    r"(GB200|GB200 .*)": (2500, 2500, 1250, 80),
    r"B200( .*)?": (2250, 2250, 1125, 75),
    r"H200 NVL": (835.5, 835.5, 417.5, 60),
    r"(H200|H200 SXM.*|GH200 .*)": (989.4, 989.4, 494.7, 66.9),
    r"H100 NVL": (835.5, 835.5, 417.5, 60),
    r"H100 PCIe": (756, 756, 378, 51.2),
    r"H100( SXM5.*| 80GB HBM3)": (989.4, 989.4, 494.7, 66.9),
    r"A100.*": (312, 312, 156, 19.5),
    r"A40": (149.7, 149.7, 74.8, 37.4),
    r"A30": (165, 165, 82, 10.3),
    r"A10G": (70, 70, 35, 35),
    r"A10": (125, 125, 62.5, 31.2),
    r"RTX A6000": (154.8, 154.8, 77.4, 38.7),
    r"L40S": (362.05, 362.05, 183, 91.6),
    r"L40": (181.05, 181.05, 90.5, 90.5),
    r"L4": (121, 121, 60, 30.3),
    r"RTX 6000 Ada Generation": (364.2, 364.2, 182.1, 91.1),
    r"RTX 5090": (209.5, 209.5, 104.8, 104.8),
    r"RTX 4090": (165.2, 165.2, 82.6, 82.6),
    r"RTX 4080": (97.5, 97.5, 48.7, 48.7),
    r"RTX 3090": (71, 71, 35.6, 35.6),
    r"V100-SXM2.*": (125, None, None, 15.7),
    r"V100-PCIE.*": (112, None, None, 14),
    r"T4": (65, None, None, 8.1),
}


def usable_cores() -> int:
    """Logical cores this process may use: its affinity, cut to the container's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return max(1, cores)


def physical_cores() -> int:
    """Physical cores behind `usable_cores()`; two hyper-threads of one core slow each other's matrix units down.

    A shared virtual machine often names every hyper-thread a core of its own; then this is the logical number.
    """
    siblings = set()
    if hasattr(os, "sched_getaffinity"):
        for core in os.sched_getaffinity(0):
            try:
                siblings.add(Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text())
            except OSError:
                return usable_cores()
    return min(len(siblings), usable_cores()) if siblings else usable_cores()


def default_threads(processes: int = 1) -> int:
    """Threads for PyTorch's operators: OMP_NUM_THREADS when set, else the physical cores over `processes` of this host.

    Two logical cores stay two threads: on a two-core machine the pair is usually all there is.
    """
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    if chosen.isdigit() and int(chosen) > 0:
        return int(chosen)
    cores = physical_cores()
    if cores == 1:
        cores = min(2, usable_cores())
    return max(1, cores // processes)


def default_workers(processes: int = 1, most: int = 8) -> int:
    """Data-loader processes: none on up to two cores (they would fight the training for them), at most `most`."""
    cores = usable_cores() // processes
    return 0 if cores <= 2 else min(most, cores - 1)


def default_precision(device: str | torch.device) -> str:
    """`"bf16-mixed"` where the GPU computes in bfloat16, else `"32-true"` (also on every CPU and on Apple's GPUs)."""
    # Emulated bfloat16 (before Ampere) is slower than float32.
    if torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16-mixed"
    return "32-true"


def peak_flops(device_name: str, precision: str) -> float | None:
    """Dense peak rate in FLOP/s of the units that `precision` (Lightning's names) uses, or None when not known.

    "32-true" means TF32 when `torch.get_float32_matmul_precision()` allows it. Never guessed: a card that is not in
    `PEAKS`, a CPU and an unlisted precision (float64, float8) give None.
    """
    name = re.sub(r"^(NVIDIA |GeForce |Tesla |Quadro )+", "", device_name.strip())
    row = next((row for pattern, row in PEAKS.items() if re.fullmatch(pattern, name)), None)
    if row is None:
        return None
    half, bfloat, tf32, single = row
    kind = str(precision).split("-")[0]
    if kind == "32":
        fast = torch.get_float32_matmul_precision() != "highest"
        peak = tf32 if fast and tf32 is not None else single
    else:
        peak = {"16": half, "bf16": bfloat}.get(kind)
    return None if peak is None else peak * 1e12


def default_device() -> torch.device:
    """The device that Lightning's `accelerator: auto` chooses on this machine."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")


def device_name(device: str | torch.device) -> str:
    """The name a person knows the device by, e.g. "NVIDIA H100 80GB HBM3" or "Intel(R) Xeon(R) Processor"."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"Apple GPU ({platform.machine()})"
    try:
        text = Path("/proc/cpuinfo").read_text()
        return re.sub(r"\s+", " ", re.search(r"^model name\s*:\s*(.+)$", text, re.M)[1])  # type: ignore[index]
    except (OSError, TypeError):
        return platform.processor() or platform.machine() or "CPU"


def peak_memory(device: str | torch.device) -> float | None:
    """Highest memory use so far in 1e9 bytes: PyTorch's allocations on a GPU, else the process; None if unknown."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def use_threads(count: int) -> None:
    """Set the number of threads of PyTorch's operators for this process."""
    torch.set_num_threads(count)


def keep_memory() -> bool:
    """Lets glibc keep freed memory for the next operation; returns whether that applies.

    By default it hands every large block back to the system, and each training step pays for thousands of page faults
    again: 8 % of the time of a small model's step (`docs/notebook.md`). Peak memory stays the same.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    trim_threshold, mmap_threshold, most = -1, -3, 2**30
    return bool(mallopt(mmap_threshold, most) and mallopt(trim_threshold, most))


def use_fast_matmul(device: str | torch.device) -> bool:
    """Lets float32 matrix products on CUDA use TF32 (precision "high"); returns whether that applies."""
    if torch.device(device).type != "cuda":
        return False
    torch.set_float32_matmul_precision("high")
    return True


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    found = {"python": platform.python_version()}
    for package in ("torch", "lightning", "triune"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    # The index's number lacks the build ("+cpu", "+cu130").
    found["torch"] = torch.__version__
    return found


def describe(device: str | torch.device | None = None) -> dict[str, Any]:
    """`{"device", "cores", "threads", "versions": {...}}` of this process, for `summary.json`."""
    device = default_device() if device is None else torch.device(device)
    return {
        "device": device_name(device),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
