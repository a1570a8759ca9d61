"""What transformers says: a decoder of a GGUF file as a float32 PyTorch model.

The weights are dequantized by the ``gguf`` package and put into the model class of
transformers, so that nothing here is computed by code of this project. Needs the extra
``redis-infer[golden]`` (torch, transformers) and memory for all weights in float32.

transformers reads GGUF files itself, but not every type and tensor that matters here
(``rope_freqs``), and it may load weights in another precision: hence an own way.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import numpy.typing as npt

from .results import FloatArray, TokenArray

if TYPE_CHECKING:
    import torch

TOP = 20
"""How many of the likeliest tokens of each position a :class:`Reference` keeps."""

_LOGITS_ROWS = 256  # rows of the vocabulary's size that are in memory at once

_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class NoReferenceError(ValueError):
    """transformers has no exact counterpart of the file."""


@dataclass(frozen=True)
class Reference:
    """The reference's predictions for a text of n tokens. Row i predicts token i + 1."""

    logprobs: FloatArray
    """[n-1] log p(token[i+1] | token[0..i])."""
    top_ids: TokenArray
    """[n-1, TOP] The likeliest tokens, best first."""
    top_logprobs: FloatArray
    """[n-1, TOP]"""


class ReferenceModel:
    """A decoder (llama, qwen2 or qwen3) in float32.

    Raises:
        NoReferenceError: an architecture or variant that transformers can't compute exactly.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        reader = gguf.GGUFReader(path)
        self._metadata = {
            name: field.contents()
            for name, field in reader.fields.items()
            if not name.startswith(("GGUF.", "tokenizer."))
        }
        self._architecture: str = self._metadata["general.architecture"]
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._model = self._build()

    def hidden_states(self, tokens: npt.ArrayLike) -> torch.Tensor:
        """[n, n_embd] The final normalized hidden state of each token."""
        import torch

        ids = torch.from_numpy(np.asarray(tokens).astype(np.int64))[None]
        with torch.inference_mode():
            hidden: torch.Tensor = self._model.model(input_ids=ids, use_cache=False)[0][0]
        return hidden

    def logits(self, tokens: npt.ArrayLike) -> FloatArray:
        """[n, n_vocab] Row i is about the token after token i."""
        import torch

        with torch.inference_mode():
            rows: FloatArray = self._model.lm_head(self.hidden_states(tokens)).numpy()
        return rows

    def predict(self, tokens: TokenArray) -> Reference:
        """The predictions for a text of at least 2 tokens."""
        import torch

        hidden = self.hidden_states(tokens)[:-1]
        targets = torch.from_numpy(np.asarray(tokens)[1:].astype(np.int64))[:, None]
        chosen, ids, values = [], [], []
        with torch.inference_mode():
            for rows, target in zip(
                torch.split(hidden, _LOGITS_ROWS), torch.split(targets, _LOGITS_ROWS), strict=True
            ):
                logits = self._model.lm_head(rows)
                log_sum = torch.logsumexp(logits.double(), -1, keepdim=True)
                top = logits.topk(min(TOP, logits.shape[-1]), -1)
                chosen.append((logits.gather(-1, target) - log_sum)[:, 0].float())
                ids.append(top.indices)
                values.append((top.values - log_sum).float())
        return Reference(
            torch.cat(chosen).numpy(),
            torch.cat(ids).numpy().astype(np.uint32),
            torch.cat(values).numpy(),
        )

    # ---- building ----

    def _build(self) -> Any:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        causal_lm: Any = AutoModelForCausalLM

        get = self._get
        if self._architecture not in ("llama", "qwen2", "qwen3"):
            raise NoReferenceError(f"no reference for the architecture '{self._architecture}'")
        if get("rope.scaling.type", "none") != "none":
            raise NoReferenceError(f"no reference for RoPE scaling '{get('rope.scaling.type')}'")
        n_embd, n_head = get("embedding_length"), get("attention.head_count")
        n_head_kv = get("attention.head_count_kv", n_head)
        head_dim = get("attention.key_length", n_embd // n_head)
        if {get("attention.value_length", head_dim), get("rope.dimension_count", head_dim)} != {
            head_dim
        }:
            raise NoReferenceError(
                f"no reference for heads of {head_dim} with values or rotation of another size"
            )
        config = AutoConfig.for_model(
            self._architecture,
            vocab_size=int(self._tensors["token_embd.weight"].shape[1]),
            hidden_size=n_embd,
            intermediate_size=get("feed_forward_length"),
            num_hidden_layers=get("block_count"),
            num_attention_heads=n_head,
            num_key_value_heads=n_head_kv,
            head_dim=head_dim,
            rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
            max_position_embeddings=get("context_length"),
            tie_word_embeddings="output.weight" not in self._tensors,
            attention_bias=self._architecture == "llama" and "blk.0.attn_q.bias" in self._tensors,
        )
        with torch.device("meta"):  # no memory and no random weights: the file's are assigned below
            model = causal_lm.from_config(config, dtype=torch.float32).eval()

        state = {}
        for name in self._tensors:
            if name == "rope_freqs.weight":
                continue
            values = self._dequantized(name)
            if self._architecture == "llama" and name.startswith("blk."):
                if ".attn_q." in name:
                    values = _paired_by_halves(values, n_head)
                elif ".attn_k." in name:
                    values = _paired_by_halves(values, n_head_kv)
            state[self._transformers_name(name)] = torch.from_numpy(values)
        state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
        model.load_state_dict(state, strict=True, assign=True)

        # Set here and not by the configuration, because GGUF holds the frequencies' divisors
        # and not the settings that they were computed from.
        frequencies = get("rope.freq_base", 10000.0) ** (
            -np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
        )
        if "rope_freqs.weight" in self._tensors:
            frequencies /= self._dequantized("rope_freqs.weight")
        rotary = model.model.rotary_emb
        rotary.inv_freq = torch.from_numpy(frequencies.astype(np.float32))
        rotary.attention_scaling = 1.0
        return model

    def _get(self, key: str, *default: Any) -> Any:
        name = f"{self._architecture}.{key}"
        if name not in self._metadata and not default:
            raise NoReferenceError(f"the file has no '{name}'")
        return self._metadata.get(name, *default)

    def _dequantized(self, name: str) -> FloatArray:
        tensor = self._tensors[name]
        values: FloatArray = gguf.dequantize(tensor.data, tensor.tensor_type)
        return np.array(values, np.float32)  # a copy of its own: the file's is read-only

    def _transformers_name(self, name: str) -> str:
        if name in _OUTER:
            return _OUTER[name]
        parts = name.split(".")
        if len(parts) == 4 and parts[0] == "blk" and parts[2] in _IN_LAYER:
            return f"model.layers.{parts[1]}.{_IN_LAYER[parts[2]]}.{parts[3]}"
        raise NoReferenceError(f"no reference for the tensor '{name}'")


def _paired_by_halves(rows: FloatArray, n_head: int) -> FloatArray:
    """Undoes the order that GGUF gives the Q and K rows of llama models.

    There, the rows that rotate together lie next to each other; in transformers, half a
    head apart.
    """
    half = rows.shape[0] // n_head // 2
    return np.ascontiguousarray(
        rows.reshape(n_head, half, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
    )
