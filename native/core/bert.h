/* The embedding engine: BERT models, many texts at once.
 *
 * A step takes whole texts, one of each waiting request in turn, up to BERT_STEP_TOKENS tokens (or one longer text):
 * so a request of one text does not wait for a request of thousands that came before. It serves requests for
 * vectors (embed.h) only, and keeps nothing between them. */
#ifndef INFER_BERT_H
#define INFER_BERT_H

#include "embed.h"
#include "gguf.h"

enum { BERT_STEP_TOKENS = 512 };

/* Loads a BERT model from g, which is the engine's from now on, also on failure. Any thread. INFER_CONTEXT when n_ctx is
 * more than the model's own. (engine_load picks the engine that a file needs.) */
struct engine *bert_load(struct gguf *g, const struct engine_config *config, struct infer_error *err);

#endif
