/* Random BERT models as GGUF files:
 *
 *     struct random_bert o = random_bert_defaults();
 *     o.type = TYPE_Q8_0;
 *     random_bert_put(&w, &o);
 *
 * The caller owns what gw_finish gives. One thread. */
#ifndef INFER_BERT_WRITER_H
#define INFER_BERT_WRITER_H

#include "gguf_writer.h"

struct random_bert {
    enum tensor_type type, embedding_type;
    int n_vocab, n_embd, n_layer, n_head, n_ff, n_ctx;
    uint32_t pooling;
    bool no_biases, no_types;
    uint64_t seed;
};

static inline struct random_bert random_bert_defaults(void)
{
    return (struct random_bert){.type = TYPE_F32, .embedding_type = TYPE_F32, .n_vocab = 100, .n_embd = 64, .n_layer = 2,
                                .n_head = 2, .n_ff = 96, .n_ctx = 160, .pooling = 1, .seed = 1};
}

static inline void random_bert_put(struct gguf_writer *w, const struct random_bert *o)
{
    uint64_t seed = o->seed;
    char name[64];
    float std = 1.0f / sqrtf((float)o->n_embd);
    gw_str(w, "general.architecture", "bert");
    gw_str(w, "general.name", "random");
    gw_u32(w, "bert.block_count", (uint32_t)o->n_layer);
    gw_u32(w, "bert.context_length", (uint32_t)o->n_ctx);
    gw_u32(w, "bert.embedding_length", (uint32_t)o->n_embd);
    gw_u32(w, "bert.feed_forward_length", (uint32_t)o->n_ff);
    gw_u32(w, "bert.attention.head_count", (uint32_t)o->n_head);
    gw_f32(w, "bert.attention.layer_norm_epsilon", 1e-12f);
    gw_bool(w, "bert.attention.causal", false);
    gw_u32(w, "bert.pooling_type", o->pooling);
    random_matrix(w, "token_embd.weight", o->embedding_type, o->n_vocab, o->n_embd, 1.0f, &seed);
    random_matrix(w, "position_embd.weight", o->embedding_type, o->n_ctx, o->n_embd, 0.5f, &seed);
    if (!o->no_types) random_matrix(w, "token_types.weight", o->embedding_type, 2, o->n_embd, 0.5f, &seed);
    random_vector(w, "token_embd_norm.weight", TYPE_F32, o->n_embd, 1.0f, 0.3f, &seed);
    random_vector(w, "token_embd_norm.bias", TYPE_F32, o->n_embd, 0.0f, 0.3f, &seed);
    for (int i = 0; i < o->n_layer; i++) {
#define NAME(suffix) (snprintf(name, sizeof name, "blk.%d.%s", i, suffix), name)
        random_matrix(w, NAME("attn_q.weight"), o->type, o->n_embd, o->n_embd, std, &seed);
        random_matrix(w, NAME("attn_k.weight"), o->type, o->n_embd, o->n_embd, std, &seed);
        random_matrix(w, NAME("attn_v.weight"), o->type, o->n_embd, o->n_embd, std, &seed);
        random_matrix(w, NAME("attn_output.weight"), o->type, o->n_embd, o->n_embd, std, &seed);
        random_matrix(w, NAME("ffn_up.weight"), o->type, o->n_ff, o->n_embd, std, &seed);
        random_matrix(w, NAME("ffn_down.weight"), o->type, o->n_embd, o->n_ff, 1.0f / sqrtf((float)o->n_ff), &seed);
        if (!o->no_biases) {
            random_vector(w, NAME("attn_q.bias"), TYPE_F32, o->n_embd, 0.0f, 0.5f, &seed);
            random_vector(w, NAME("attn_k.bias"), TYPE_F32, o->n_embd, 0.0f, 0.5f, &seed);
            random_vector(w, NAME("attn_v.bias"), TYPE_F32, o->n_embd, 0.0f, 0.5f, &seed);
            random_vector(w, NAME("attn_output.bias"), TYPE_F32, o->n_embd, 0.0f, 0.5f, &seed);
            random_vector(w, NAME("ffn_up.bias"), TYPE_F32, o->n_ff, 0.0f, 0.5f, &seed);
            random_vector(w, NAME("ffn_down.bias"), TYPE_F32, o->n_embd, 0.0f, 0.5f, &seed);
        }
        random_vector(w, NAME("attn_output_norm.weight"), TYPE_F32, o->n_embd, 1.0f, 0.3f, &seed);
        random_vector(w, NAME("attn_output_norm.bias"), TYPE_F32, o->n_embd, 0.0f, 0.3f, &seed);
        random_vector(w, NAME("layer_output_norm.weight"), TYPE_F32, o->n_embd, 1.0f, 0.3f, &seed);
        random_vector(w, NAME("layer_output_norm.bias"), TYPE_F32, o->n_embd, 0.0f, 0.3f, &seed);
#undef NAME
    }
}

static inline unsigned char *random_bert_bytes(const struct random_bert *o, size_t *bytes)
{
    struct gguf_writer w = {0};
    random_bert_put(&w, o);
    return gw_finish(&w, bytes);
}

#endif
