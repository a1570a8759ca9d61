"""From a BERT embedding model as transformers keeps it (a folder with ``config.json``,
``model.safetensors`` and ``vocab.txt``) to a GGUF file, vocabulary included.

Names, keys and the spelling of the vocabulary are those of llama.cpp's conversion, so that the
file works in both. Types are chosen for the accuracy of the vectors (``docs/benchmarks.md``): the
matrices of V, where rounding costs most, and the embeddings in F16; the others in Q8_0. (Rounding
in Q and K shifts the weights of attention only, and vectors hardly at all.)
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

_Type = gguf.GGMLQuantizationType

_TENSORS = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
_LAYER_TENSORS = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_LEFT_OUT = ("pooler.", "embeddings.position_ids", "cls.")
_QUANTIZED = (
    "attn_q.weight",
    "attn_k.weight",
    "attn_output.weight",
    "ffn_up.weight",
    "ffn_down.weight",
)

_POOLING = {
    "pooling_mode_mean_tokens": gguf.PoolingType.MEAN,
    "pooling_mode_cls_token": gguf.PoolingType.CLS,
}

_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3


class ConversionError(ValueError):
    """The folder holds no BERT model that can be converted; the message says why."""


def convert(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    kind: str = "mixed",
) -> Path:
    """Writes the GGUF file and returns its path.

    Args:
        folder: the model as ``transformers`` or ``sentence-transformers`` keeps it.
        name: for people; default: the folder's name.
        kind: "mixed", or "f16" or "f32" for all matrices.

    Raises:
        ConversionError: the folder is not that of a BERT model, or the model has something that the
            format or the engine cannot express; the message names it.
    """
    source, target = Path(folder), Path(path)
    if kind not in ("mixed", "f16", "f32"):
        raise ValueError(f"kind is {kind!r}: 'mixed', 'f16' and 'f32' are possible")
    config = _read_json(source / "config.json")
    _check(config)
    writer = gguf.GGUFWriter(target, "bert")
    writer.add_name(name or source.name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(_pooling(source))
    _add_vocabulary(writer, source, config)
    for tensor, data in _tensors(source / "model.safetensors"):
        _add_tensor(writer, tensor, data, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _check(config: Mapping[str, Any]) -> None:
    wanted = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
    }
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise ConversionError(f"config.json has {key} {config[key]!r}: only {value!r} is known")


def _pooling(folder: Path) -> gguf.PoolingType:
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return gguf.PoolingType.MEAN
    pooling = _read_json(path)
    modes = {key for key in pooling if key.startswith("pooling_mode_") and pooling[key]}
    if len(modes) != 1 or not modes <= set(_POOLING):
        raise ConversionError(
            f"{path} pools by {', '.join(sorted(modes)) or 'nothing'}: "
            f"one of {', '.join(_POOLING)} is needed"
        )
    return _POOLING[modes.pop()]


def _add_vocabulary(writer: gguf.GGUFWriter, folder: Path, config: Mapping[str, Any]) -> None:
    """As llama.cpp spells it: U+2581 before what begins a word, no ``##`` before the rest."""
    words = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    if words and not words[-1]:
        words.pop()
    if len(words) != config["vocab_size"]:
        raise ConversionError(
            f"vocab.txt has {len(words)} lines, config.json a vocab_size of {config['vocab_size']}"
        )
    options = _read_json(folder / "tokenizer_config.json")
    if not options.get("do_lower_case", True):
        raise ConversionError(
            "tokenizer_config.json has do_lower_case false: a GGUF file cannot tell cased "
            "from uncased models"
        )
    ids = {word: i for i, word in enumerate(words)}
    special = {
        name: _text_of(options.get(f"{name}_token", f"[{name.upper()}]"))
        for name in ("unk", "sep", "cls", "pad", "mask")
    }
    missing = [word for word in special.values() if word not in ids]
    if missing:
        raise ConversionError(f"vocab.txt lacks {', '.join(map(str, missing))}")
    spelled, types = [], []
    for word in words:
        if word in special.values():
            types.append(_UNKNOWN if word == special["unk"] else _CONTROL)
        else:
            types.append(_NORMAL)
        if word.startswith("[") and word.endswith("]"):
            spelled.append(word)
        else:
            spelled.append(word[2:] if word.startswith("##") else "\u2581" + word)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(spelled)
    writer.add_token_types(types)
    writer.add_token_type_count(config.get("type_vocab_size", 2))
    writer.add_bos_token_id(ids[special["cls"]])
    writer.add_eos_token_id(ids[special["sep"]])
    writer.add_unk_token_id(ids[special["unk"]])
    writer.add_sep_token_id(ids[special["sep"]])
    writer.add_pad_token_id(ids[special["pad"]])
    writer.add_uint32("tokenizer.ggml.cls_token_id", ids[special["cls"]])
    writer.add_mask_token_id(ids[special["mask"]])


def _text_of(token: Any) -> Any:
    """The text of a special token: older transformers keep it with its options, in an object."""
    return token.get("content") if isinstance(token, dict) else token


def _add_tensor(writer: gguf.GGUFWriter, source: str, data: Array, kind: str) -> None:
    source = source.removeprefix("bert.")
    if source.startswith(_LEFT_OUT):
        return
    base, _, part = source.rpartition(".")
    target = _TENSORS.get(base)
    if target is None and base.startswith("encoder.layer."):
        number, _, rest = base.removeprefix("encoder.layer.").partition(".")
        if rest in _LAYER_TENSORS:
            target = f"blk.{number}.{_LAYER_TENSORS[rest]}"
    if target is None or part not in ("weight", "bias"):
        raise ConversionError(f"model.safetensors has a tensor '{source}', which BERT has not")
    target = f"{target}.{part}"
    values = data.astype(np.float32)
    if values.ndim == 1 or kind == "f32":
        writer.add_tensor(target, values)
    elif kind == "mixed" and target.endswith(_QUANTIZED) and values.shape[1] % 32 == 0:
        writer.add_tensor(target, gguf.quantize(values, _Type.Q8_0), raw_dtype=_Type.Q8_0)
    else:
        writer.add_tensor(target, values.astype(np.float16))


# ---- safetensors: a length, a JSON header, raw little-endian arrays -----------------------------
# https://github.com/huggingface/safetensors#format

_DTYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I64": "<i8", "I32": "<i4"}


def _tensors(path: Path) -> Iterator[tuple[str, Array]]:
    try:
        data = np.memmap(path, dtype=np.uint8, mode="r")
        (length,) = struct.unpack("<Q", data[:8].tobytes())
        header = json.loads(data[8 : 8 + length].tobytes())
    except (OSError, ValueError, struct.error) as error:
        raise ConversionError(f"{path} is no safetensors file: {error}") from error
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        raw = data[begin:end]
        if entry["dtype"] == "BF16":
            wide = raw.view("<u2").astype(np.uint32) << 16
            values: Array = wide.view(np.float32)
        elif entry["dtype"] in _DTYPES:
            values = raw.view(_DTYPES[entry["dtype"]])
        else:
            raise ConversionError(f"tensor '{name}' of {path.name} has type {entry['dtype']}")
        yield name, values.reshape(entry["shape"])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ConversionError(f"{path} holds no JSON object")
    return value
