"""What is worth knowing of a program that XLA has compiled for a GPU or a TPU: calls, collectives, memory, bytes moved."""

from __future__ import annotations

import collections
import re
import zlib

import traffic


def report(executable, platform):
    """Returns what is worth knowing of a program that is compiled for a platform, "gpu" or "tpu"."""
    text = executable.as_text()
    memory = executable.memory_analysis()
    calls = re.findall(r'custom_call_target="([^"]*)"', text)
    collectives = re.findall(
        r"\b(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(", text
    )
    return {
        "fused_kernels": sum("triton_kernel_call" in call for call in calls),
        "kernels": dict(collections.Counter(kernel_names(text))),
        "other_calls": dict(collections.Counter(call for call in calls if "triton_kernel_call" not in call)),
        "collectives": dict(collections.Counter(collectives)),
        "gathered_bytes": traffic.bytes_of_results(text, "all-gather") if platform == "tpu" else None,
        "during_exchanges": during_exchanges(text),
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "float64": "f64[" in text,
        "hbm_bytes": traffic.hbm_bytes(text) if platform == "tpu" else None,
        "written_bytes": traffic.written_bytes(text) if platform == "gpu" else None,
    }


def during_exchanges(text):
    """Returns what a program does, by names of instructions in their order, while halos are on their way between devices."""
    entry, found, open_exchanges = text[text.index("\nENTRY ") :], [], 0
    for name, operation in re.findall(r"^\s+(?:ROOT )?%?([\w.-]+) = .*?[\]})] ([a-z-]+)\(", entry, re.M):
        if operation in ("collective-permute-start", "collective-permute-done"):
            open_exchanges += 1 if operation.endswith("start") else -1
        elif open_exchanges and operation in ("fusion", "custom-call", "dot", "while", "copy"):
            found.append(name)
    return found


def kernel_names(text):
    """Returns the names of the fused kernels that a program calls, by their PTX: calls carry it compressed, in escaped bytes."""
    configs = re.findall(r'custom_call_target="triton_kernel_call".*backend_config="((?:[^"\\]|\\.)*)"', text)
    calls = (zlib.decompress(config.encode("latin1").decode("unicode_escape").encode("latin1")) for config in configs)
    return [re.search(rb"\.entry (\w+)\(", call)[1].decode() for call in calls]
