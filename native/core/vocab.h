/* Vocabulary: from token ids to bytes, and which ids end a generation.
 *
 * Handles the two kinds of GGUF tokenizers: byte-level BPE ("gpt2": pieces are
 * spelled in the printable alphabet of GPT-2) and SentencePiece ("llama": U+2581
 * for a space, <0xNN> for a byte). Text to tokens is not done here: prompts
 * arrive as tokens.
 *
 * One allocation holds the decoded pieces. Immutable after vocab_load: any thread. */
#ifndef INFER_VOCAB_H
#define INFER_VOCAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"
#include "gguf.h"

struct vocab;

/* n_vocab is the model's; a token list of another length is an error. Needs g only during the call. */
struct vocab *vocab_load(const struct gguf *g, int n_vocab, struct infer_error *err);
void vocab_free(struct vocab *v);

/* The bytes that a token adds to the text. Control, unknown and unused tokens add none, nor do ids past the
 * vocabulary. Not terminated. */
const char *vocab_piece(const struct vocab *v, uint32_t id, size_t *len);

/* Ends generation: eos, eot, eom of the metadata, and control or user-defined tokens that are
 * known ends of a turn or file by their spelling (<|im_end|>, <|eot_id|>, <|endoftext|>, </s>, ...). */
bool vocab_is_end(const struct vocab *v, uint32_t id);

/* The ids of vocab_is_end, ascending, for describing the model. Returns the count. */
int vocab_end_ids(const struct vocab *v, const uint32_t **ids);

#endif
