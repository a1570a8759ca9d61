/* Token arrays as Redis holds them: packed little-endian uint32, at any alignment. Pure, any thread. */
#ifndef INFER_TOKENS_H
#define INFER_TOKENS_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"

/* Copies n tokens to `to`, reading `data` exactly once: it may change under a second look, so ids are checked
 * as copied. -1 with INFER_BADTOKENS if one is not below n_vocab; `what` names the source in the message. */
static inline int tokens_read(uint32_t *to, const void *data, size_t n, uint32_t n_vocab, const char *what,
                              struct infer_error *err)
{
    const unsigned char *in = data;
    uint32_t largest = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t id = (uint32_t)in[4 * i] | (uint32_t)in[4 * i + 1] << 8 | (uint32_t)in[4 * i + 2] << 16 |
                      (uint32_t)in[4 * i + 3] << 24;
        to[i] = id;
        largest = id > largest ? id : largest;
    }
    if (largest < n_vocab) return 0;
    size_t bad = 0;
    while (to[bad] < n_vocab) bad++;
    return infer_fail(err, INFER_BADTOKENS, "%s holds token %u at position %zu, outside the vocabulary of %u", what,
                      to[bad], bad, n_vocab);
}

#endif
