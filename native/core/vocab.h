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

/* n_vocab is the model's; a token list of another length is an error. */
struct vocab *vocab_load(const struct gguf *g, int n_vocab, struct infer_error *err);
void vocab_free(struct vocab *v);

/* The bytes that a token adds to the text; control tokens add none. Not terminated. */
const char *vocab_piece(const struct vocab *v, uint32_t id, size_t *len);

/* Ends generation: eos, eot, eom of the metadata, and control tokens that are
 * known ends of a turn or file by their spelling (<|im_end|>, <|eot_id|>, <|endoftext|>, </s>, ...). */
bool vocab_is_end(const struct vocab *v, uint32_t id);

/* The ids of vocab_is_end, for describing the model. Returns the count. */
int vocab_end_ids(const struct vocab *v, const uint32_t **ids);

/* ---- streaming text: whole UTF-8 characters and stop texts over token borders ---- */

struct text_stop {
    const char *text;
    size_t len; /* > 0 */
};

/* Collects a generation's bytes and says how many may be shown. Bytes that may
 * still become part of a stop text, or that are the beginning of an
 * incomplete UTF-8 character, are held back. Bytes that can never become valid UTF-8
 * are replaced by U+FFFD when shown. */
struct text_out {
    char *bytes;     /* the text so far, valid UTF-8 up to `ready` */
    size_t len, cap; /* bytes held, allocation */
    size_t ready;    /* bytes[0..ready) is final: whole characters, no part of a stop text */
    const struct text_stop *stops; /* the caller's, outlives this */
    int n_stops;
};

void text_init(struct text_out *t, const struct text_stop *stops, int n_stops);
void text_free(struct text_out *t);

/* Appends a piece. Returns 1 when a stop text is complete (the text is then cut
 * before the earliest one and is final), 0 otherwise, -1 when out of memory. */
int text_append(struct text_out *t, const char *piece, size_t len);

/* No more pieces: everything held becomes ready; an incomplete last character becomes U+FFFD. -1: out of memory. */
int text_finish(struct text_out *t);

#endif
