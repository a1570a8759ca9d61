/* Streaming text: from the pieces of tokens to whole characters, ended by stop texts.
 *
 * Tokens end anywhere: inside a UTF-8 character, inside a stop text. A text_out
 * collects the bytes of a generation and says how many are final and may be shown.
 *
 * Bytes that are no UTF-8 become U+FFFD, one for each maximal part of a character
 * that is cut short and one for each byte that can begin none: what Python's
 * bytes.decode("utf-8", "replace") gives. Stop texts are looked for after that replacement,
 * as if the text came byte by byte: the result does not depend on where
 * tokens end.
 *
 * A text_out belongs to one request and is used by one thread at a time. */
#ifndef INFER_TEXT_H
#define INFER_TEXT_H

#include <stddef.h>

struct text_stop {
    const char *text;
    size_t len; /* > 0 */
};

struct text_out {
    char *bytes;     /* valid UTF-8 in [0, len - partial) */
    size_t len, cap; /* bytes held, allocation */
    size_t partial;  /* bytes at the end that begin a character: 0 to 3 */
    size_t ready;    /* bytes[0..ready) is final: whole characters, no part of a stop text */
    const struct text_stop *stops; /* the caller's, outlives this */
    int n_stops;
};

void text_init(struct text_out *t, const struct text_stop *stops, int n_stops);
void text_free(struct text_out *t);

/* Appends a piece. Returns 1 when a stop text is complete: the first to be so, the longest of those
 * that end together; the text is then cut before it and is final. 0 otherwise, -1 when out of
 * memory (the text is as before). Not called again after 1. */
int text_append(struct text_out *t, const char *piece, size_t len);

/* No more pieces: everything held becomes ready; an incomplete last character becomes U+FFFD.
 * Calling it again, or after a stop text, changes nothing. -1: out of memory. */
int text_finish(struct text_out *t);

#endif
