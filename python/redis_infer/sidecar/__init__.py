"""In Redis or beside it: INFER.GENERATE measured against Redis with a llama-server next to it.

``redis-infer bench sidecar`` runs it. Files, in the order of their use:

- ``peers``: the llama-server that is measured against.
- ``client``: the client in C that makes the requests of both ways, built where it is first used.
- ``synthetic``: a small model with a long context, and the text that prompts are made of.
- ``measure``: what is run, in which order, and what becomes of it; its result is plain data.
- ``report``, ``plots``: that data as a table, and as pictures.
"""

from __future__ import annotations


class BenchError(RuntimeError):
    """Something that the measurement needs is missing, or failed while it ran."""
