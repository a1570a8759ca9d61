/* What a server does with a model file, as one call for hostile input: opens the bytes as GGUF, reads every
 * key, string and tensor of it, and loads model and vocabulary. The outcome does not
 * matter; the sanitizers watch. Shared by test_hostile.c and fuzz_gguf.c. */
#ifndef INFER_LOAD_ALL_H
#define INFER_LOAD_ALL_H

#include <stdlib.h>
#include <string.h>

#include "bert_model.h"
#include "gguf.h"
#include "model.h"
#include "vocab.h"

static volatile unsigned load_all_sink; /* keeps the reads */

static inline unsigned touch(const void *p, size_t n)
{
    const unsigned char *c = p;
    unsigned sum = 0;
    for (size_t i = 0; i < n; i += 97) sum += c[i];
    return n ? sum + c[n - 1] : 0;
}

/* Which stage refused: 0 gguf, 1 model, 2 vocabulary, 3 none. An error always has a message. */
static inline int load_all(const void *data, size_t bytes)
{
    struct infer_error err = {0};
    unsigned sum = 0;
    struct gguf *g = gguf_open_memory(data, bytes, &err);
    if (!g) {
        if (err.code == INFER_OK || !err.message[0]) abort();
        return 0;
    }
    for (size_t i = 0; i < gguf_n_keys(g); i++) {
        struct gguf_string k = gguf_key_at(g, i), s;
        struct gguf_array a;
        char key[128], text[40];
        uint32_t u;
        float f;
        bool b;
        size_t cursor = 0;
        if (k.len >= sizeof key) continue;
        memcpy(key, k.data, k.len);
        key[k.len] = '\0';
        gguf_describe(g, key, text, sizeof text);
        if (gguf_str(g, key, &s)) sum += touch(s.data, s.len);
        if (gguf_u32(g, key, &u)) sum += u;
        if (gguf_f32(g, key, &f)) sum += f > 0;
        if (gguf_bool(g, key, &b)) sum += b;
        if (gguf_arr(g, key, &a)) {
            sum += touch(a.data, a.bytes);
            while (gguf_array_next_string(&a, &cursor, &s)) sum += touch(s.data, s.len);
        }
    }
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        sum += touch(t->name.data, t->name.len) + touch(t->data, t->bytes);
        if (t->bytes != tensor_row_bytes(t->type, (int64_t)t->dim[0]) * t->dim[1] * t->dim[2] * t->dim[3]) abort();
    }

    int stage = 1;
    struct gguf_string arch;
    if (gguf_str(g, "general.architecture", &arch) && gguf_string_is(arch, "bert")) {
        struct bert_model *b = bert_model_load(g, &err);
        if (!b) {
            gguf_close(g);
            if (err.code == INFER_OK || !err.message[0]) abort();
            return 1;
        }
        for (int i = 0; i < b->hp.n_layer; i++) {
            const struct bert_layer *y = &b->layers[i];
            sum += touch(y->out_norm.b, (size_t)b->hp.n_embd * sizeof(float));
            sum += touch(y->down.data, y->down.row_bytes * (size_t)y->down.n_out);
        }
        bert_model_free(b);
        load_all_sink = sum;
        return 3; /* it has no vocabulary to read here */
    }
    struct model *m = model_load(g, &err);
    if (!m) {
        gguf_close(g);
    } else {
        struct vocab *v = vocab_load(m->gguf, m->hp.n_vocab, &err);
        stage = v ? 3 : 2;
        for (int id = 0; v && id < m->hp.n_vocab; id++) {
            size_t len;
            const char *piece = vocab_piece(v, (uint32_t)id, &len);
            sum += touch(piece, len) + vocab_is_end(v, (uint32_t)id);
        }
        for (int i = 0; i < m->hp.n_layer; i++) {
            const struct layer *y = &m->layers[i];
            sum += touch(y->attn_norm, (size_t)m->hp.n_embd * sizeof(float));
            sum += touch(y->down.data, y->down.row_bytes * (size_t)y->down.n_out);
        }
        sum += (unsigned)strlen(model_quantization(m));
        vocab_free(v);
        model_free(m);
    }
    if (stage != 3 && (err.code == INFER_OK || !err.message[0])) abort();
    load_all_sink = sum;
    return stage;
}

#endif
