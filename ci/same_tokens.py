"""Whether another build of the module generates the same tokens as the installed one.

    python ci/same_tokens.py REDIS_SERVER MODULE

Made for a server and a module of another processor, which an emulator runs: see ci/aarch64.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from redis_infer import Infer, models
from redis_infer.server import Server

N_TOKENS = 20
PROMPTS = [
    "The capital of France is",
    "fn add(a: i32, b: i32) -> i32 {",
    "Once upon a time there was",
]


def generate(prompts: list[str], **server: Any) -> tuple[str, list[list[int]]]:
    """The kernels' name, and what each prompt is continued with."""
    model = models.pull(models.DEFAULT_MODEL)
    with (
        Server(model_dir=model.parent, threads=1, startup_timeout_s=120, **server) as running,
        running.client(socket_timeout=None) as client,
    ):
        infer = Infer(client)
        infer.load("m", model)
        made = [infer.generate("m", p, max_tokens=N_TOKENS, ignore_eos=True) for p in prompts]
        return client.info("infer")["infer_kernels"], [r.tokens.tolist() for r in made]


def main() -> int:
    redis_server, module = sys.argv[1:]
    own, expected = generate(PROMPTS)
    failed = False
    # Every level of the emulated processor; the full set of prompts for the best one.
    for cpu, prompts in (
        ("max", PROMPTS),  # i8mm
        ("cortex-a76", PROMPTS[:1]),  # dot products
        ("cortex-a72", PROMPTS[:1]),  # NEON alone
    ):
        os.environ["QEMU_CPU"] = cpu
        kernels, tokens = generate(prompts, redis_server=redis_server, module=module)
        same = tokens == expected[: len(prompts)]
        print(f"{cpu}, {kernels}: {len(prompts)} x {N_TOKENS} tokens", end=" ")
        print(f"as {own}" if same else f"are {tokens}, but {own} made {expected}")
        failed |= not same
    return failed


if __name__ == "__main__":
    sys.exit(main())
