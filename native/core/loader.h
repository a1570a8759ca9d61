/* What loading any model takes: hyperparameters and tensors out of a GGUF file, each checked.
 *
 * The rule: what a forward pass does not compute exactly is refused by name and value. So loading works by lists of
 * what is known. Every tensor of the file must be one that a model takes, in the shape that the hyperparameters
 * say; every metadata key of the architecture must be one whose meaning is implemented, is for people
 * only, or has the value that changes nothing. A file that is merely unusual is refused with the key's or the tensor's
 * name rather than computed wrongly.
 *
 * Ownership: the loader owns `used` until loader_free; `floats` is the model's, which takes it over. The
 * file stays the caller's. Functions return -1 with *l->err filled. One thread at a time. */
#ifndef INFER_LOADER_H
#define INFER_LOADER_H

#include <stdbool.h>

#include "error.h"
#include "gguf.h"
#include "kernels.h"

enum {
    LOADER_MAX_DIM = 1 << 24, /* of any hyperparameter: products of two fit in 64 bits, sums in an int */
    LOADER_MAX_HEAD_DIM = 1024,
    LOADER_MAX_CONTEXT = 1 << 28,
};

struct loader {
    struct gguf *g;
    const char *arch; /* general.architecture: keys begin with it, messages name it */
    struct infer_error *err;

    /* of the tensors taken so far */
    bool *used;              /* [gguf_n_tensors]: the model has a place for it */
    float *floats;           /* vectors, widened: room for all of the file's */
    size_t n_floats;
    size_t weight_bytes, n_parameters;
};

/* Refuses files that are no model, or a part of one. */
int loader_check_file(const struct loader *l);

/* general.name, fit for people: one line of whole characters; "" if there is none. */
void loader_title(const struct loader *l, char *title, size_t size);

/* ---- metadata: <arch>.<suffix> ---- */

enum key_rule {
    KEY_READ,        /* read as a hyperparameter, or for people and tools only */
    KEY_ZERO,        /* only as 0 (or false): then it means "off" */
    KEY_ZERO_OR_ONE, /* a factor: 0 is "not set", 1 changes nothing */
    KEY_TRUE,
    KEY_ROPE_FACTOR, /* the same, where the reason is RoPE scaling */
    KEY_ROPE_TYPE,   /* "none"; "linear" with a factor of 1 is the same */
};

struct known_key {
    const char *suffix;
    enum key_rule rule;
};

/* Checks every key of the architecture against the list; one that is not in it is refused. */
int loader_check_keys(const struct loader *l, const struct known_key *known, size_t n);

bool loader_has(const struct loader *l, const char *suffix);
/* An integer in 1..max. A missing key gives `otherwise`, or is an error if that is 0. */
int loader_dim(const struct loader *l, const char *suffix, int otherwise, int max, int *v);
/* A positive finite number. A missing key gives `otherwise`, or is an error if that is 0. */
int loader_positive(const struct loader *l, const char *suffix, float otherwise, float *v);
/* -1, and the error that the key's value breaks this rule (a sentence's end), or is missing. */
int loader_refuse(const struct loader *l, const char *suffix, const char *rule);

/* ---- tensors ---- */

enum need { REQUIRED, OPTIONAL };

/* Before the first is taken. n_layer is checked against what the file can hold. */
int loader_begin_tensors(struct loader *l, int n_layer);
/* A matrix, used in place. w->data stays NULL if it is optional and missing. */
int loader_matrix(struct loader *l, const char *name, enum need need, int n_out, int n_in, struct weight *w);
/* A norm or a bias, widened. *v stays NULL if it is optional and missing. */
int loader_vector(struct loader *l, const char *name, enum need need, int n, const float **v);
/* The rows of a matrix whose number is the file's to say. */
int loader_rows(const struct loader *l, const char *name, int *n);
/* Refuses a file with a tensor that was not taken. */
int loader_end_tensors(const struct loader *l, int n_layer);

void loader_free(struct loader *l);

/* "Q4_1", or the type that holds most of the weight bytes: for people. */
const char *loader_quantization(const struct gguf *g);

#endif
