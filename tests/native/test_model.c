/* Models: every variant loads with the shapes that the writer gave, and whatever the
 * forward pass does not compute is refused by name and value. */
#include "model.h"

#include "check.h"
#include "gguf_writer.h"

static struct infer_error err;

/* A loaded model and the bytes it points into. */
struct loaded {
    unsigned char *file;
    struct model *m; /* NULL: refused, err says why */
};

static struct loaded load_bytes(unsigned char *file, size_t bytes)
{
    struct loaded l = {.file = file};
    err = (struct infer_error){0};
    struct gguf *g = gguf_open_memory(file, bytes, &err);
    if (!g) return l;
    l.m = model_load(g, &err);
    if (!l.m) gguf_close(g);
    return l;
}

static struct loaded load(const struct random_model *o)
{
    size_t bytes;
    unsigned char *file = random_model_bytes(o, &bytes);
    return load_bytes(file, bytes);
}

static struct loaded load_writer(struct gguf_writer *w)
{
    size_t bytes;
    unsigned char *file = gw_finish(w, &bytes);
    return load_bytes(file, bytes);
}

static void unload(struct loaded *l)
{
    model_free(l->m);
    free(l->file);
}

/* Refused, with all of these in the message. */
static void check_refused(struct loaded l, const char *a, const char *b, int line)
{
    if (l.m) CHECKF(false, "line %d: loaded, but should be refused for %s %s", line, a, b);
    else CHECKF(strstr(err.message, a) && strstr(err.message, b), "line %d: message lacks %s or %s: %s", line, a, b, err.message);
    unload(&l);
}

static void each_architecture_loads_with_its_rope_order(void)
{
    static const struct { const char *name; enum rope_order order; } archs[] = {
        {"llama", ROPE_INTERLEAVED}, {"qwen2", ROPE_NEOX}, {"qwen3", ROPE_NEOX}};
    for (int i = 0; i < 3; i++) {
        struct random_model o = random_model_defaults(archs[i].name);
        struct loaded l = load(&o);
        CHECKF(l.m, "%s: %s", archs[i].name, err.message);
        if (l.m) {
            const struct hparams *hp = &l.m->hp;
            CHECK(strcmp(hp->architecture, archs[i].name) == 0);
            CHECK(strcmp(hp->name, "random") == 0);
            CHECK(hp->rope_order == archs[i].order);
            CHECK(hp->n_vocab == 320 && hp->n_embd == 64 && hp->n_layer == 2 && hp->n_head == 4 && hp->n_head_kv == 2);
            CHECK(hp->n_ff == 96 && hp->n_ctx_train == 2048 && hp->k_dim == 16 && hp->v_dim == 16 && hp->n_rot == 16);
            CHECK(hp->n_q == 64 && hp->n_k == 32 && hp->n_v == 32);
            CHECK(hp->norm_eps == 1e-5f && hp->rope_base == 10000.0f);
            CHECK(l.m->tied && l.m->output.data == l.m->embedding.data && !l.m->rope_freqs);
            for (int j = 0; j < hp->n_layer; j++) {
                const struct layer *y = &l.m->layers[j];
                CHECK((y->bq != NULL) == (i == 1) && (y->bk != NULL) == (i == 1) && (y->bv != NULL) == (i == 1));
                CHECK((y->q_norm != NULL) == (i == 2) && (y->k_norm != NULL) == (i == 2) && !y->bo);
                CHECK(y->wq.n_out == 64 && y->wk.n_out == 32 && y->wv.n_out == 32 && y->wo.n_in == 64);
                CHECK(y->down.n_in == 96 && y->down.n_out == 64 && y->gate.n_out == 96 && y->gate.row_bytes == 256);
            }
        }
        unload(&l);
    }
}

/* The writer draws one value after another from the seed, so a vector's values can be
 * found again only through the file: compare with the tensor's own bytes. */
static void vectors_are_widened_and_matrices_used_in_place(void)
{
    static const enum tensor_type types[] = {TYPE_F32, TYPE_F16, TYPE_BF16};
    for (int i = 0; i < 3; i++) {
        struct random_model o = random_model_defaults("qwen3");
        o.vector_type = types[i];
        o.qkv_bias = o.o_bias = o.rope_freqs = true;
        struct loaded l = load(&o);
        REQUIRE(l.m);
        const struct layer *y = &l.m->layers[1];
        const struct { const char *name; const float *got; int n; } vectors[] = {
            {"output_norm.weight", l.m->output_norm, 64}, {"rope_freqs.weight", l.m->rope_freqs, 8},
            {"blk.1.attn_norm.weight", y->attn_norm, 64}, {"blk.1.ffn_norm.weight", y->ffn_norm, 64},
            {"blk.1.attn_q.bias", y->bq, 64}, {"blk.1.attn_k.bias", y->bk, 32}, {"blk.1.attn_v.bias", y->bv, 32},
            {"blk.1.attn_output.bias", y->bo, 64}, {"blk.1.attn_q_norm.weight", y->q_norm, 16},
            {"blk.1.attn_k_norm.weight", y->k_norm, 16}};
        for (size_t v = 0; v < sizeof vectors / sizeof *vectors; v++) {
            const struct gguf_tensor *t = gguf_tensor(l.m->gguf, vectors[v].name);
            REQUIRE(t && vectors[v].got && t->dim[0] == (uint64_t)vectors[v].n);
            for (int k = 0; k < vectors[v].n; k++) {
                float want;
                uint16_t half;
                memcpy(&half, (const char *)t->data + 2 * k, 2);
                if (t->type == TYPE_F32) memcpy(&want, (const char *)t->data + 4 * k, 4);
                else want = t->type == TYPE_F16 ? f16_to_f32(half) : bf16_to_f32(half);
                CHECKF(vectors[v].got[k] == want, "%s[%d]", vectors[v].name, k);
            }
        }
        CHECK(l.m->layers[0].wk.data == gguf_tensor(l.m->gguf, "blk.0.attn_k.weight")->data);
        CHECK(l.m->layers[1].up.data == gguf_tensor(l.m->gguf, "blk.1.ffn_up.weight")->data);
        unload(&l);
    }
}

static void variants_of_shape_load(void)
{
    struct random_model o = random_model_defaults("qwen3");
    o.k_dim = 48, o.v_dim = 24, o.n_rot = 32, o.tied = false; /* heads apart from n_embd, part of a head rotated */
    struct loaded l = load(&o);
    CHECKF(l.m, "%s", err.message);
    if (l.m) {
        CHECK(l.m->hp.k_dim == 48 && l.m->hp.v_dim == 24 && l.m->hp.n_rot == 32);
        CHECK(l.m->hp.n_q == 192 && l.m->hp.n_k == 96 && l.m->hp.n_v == 48);
        CHECK(l.m->layers[0].wo.n_in == 96 && !l.m->tied && l.m->output.data != l.m->embedding.data);
    }
    unload(&l);

    o = random_model_defaults("llama"); /* SmolLM2's proportions: 9 heads of 3 groups, 576 wide */
    o.n_embd = 576, o.n_head = 9, o.n_head_kv = 3, o.type = TYPE_Q4_1, o.embedding_type = TYPE_Q8_0;
    l = load(&o);
    CHECKF(l.m, "%s", err.message);
    if (l.m) CHECK(l.m->hp.k_dim == 64 && l.m->hp.n_k == 192);
    unload(&l);

    o = random_model_defaults("llama"); /* head size does not follow from n_embd at all */
    o.n_embd = 96, o.n_head = 5, o.n_head_kv = 1, o.k_dim = o.v_dim = 32;
    l = load(&o);
    CHECKF(l.m, "%s", err.message);
    unload(&l);
}

static void every_tensor_type_loads_and_names_the_model(void)
{
    for (uint32_t t = 0; t < TYPE_COUNT; t++) {
        if (!tensor_type_supported(t)) continue;
        struct random_model o = random_model_defaults("llama");
        o.n_embd = 256, o.n_ff = 512, o.type = (enum tensor_type)t, o.embedding_type = TYPE_F16, o.n_vocab = 260;
        struct loaded l = load(&o);
        CHECKF(l.m, "%s: %s", tensor_type_name(t), err.message);
        if (l.m) {
            const struct weight *w = &l.m->layers[1].down;
            CHECK(w->type == (enum tensor_type)t && w->row_bytes == tensor_row_bytes(w->type, 512));
            CHECKF(strcmp(model_quantization(l.m), tensor_type_name(t)) == 0, "%s", model_quantization(l.m));
        }
        unload(&l);
    }
}

static void sizes_are_summed_over_the_tensors(void)
{
    struct random_model o = random_model_defaults("llama");
    struct loaded l = load(&o);
    REQUIRE(l.m);
    size_t layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96 + 2 * 64;
    CHECK(l.m->n_parameters == 320 * 64 + 64 + 2 * layer);
    CHECK(l.m->weight_bytes == 4 * l.m->n_parameters);
    unload(&l);
}

/* ---- refusals ---- */


static void keys_that_change_results_are_refused_by_name_and_value(void)
{
    struct gguf_writer w = {0};
#define REFUSED(put, a, b) (random_model_put(&w, &llama), put, check_refused(load_writer(&w), a, b, __LINE__))
    struct random_model llama = random_model_defaults("llama");
    REFUSED(gw_str(&w, "llama.rope.scaling.type", "yarn"), "llama.rope.scaling.type", "'yarn'");
    REFUSED((gw_str(&w, "llama.rope.scaling.type", "linear"), gw_f32(&w, "llama.rope.scaling.factor", 4)),
            "llama.rope.scaling.factor", "4");
    REFUSED((gw_f32(&w, "llama.rope.scaling.factor", 32), gw_str(&w, "llama.rope.scaling.type", "longrope")),
            "scaling.type", "'longrope'");
    REFUSED(gw_f32(&w, "llama.rope.scale_linear", 0.5f), "llama.rope.scale_linear", "0.5");
    REFUSED(gw_u32(&w, "llama.attention.sliding_window", 4096), "llama.attention.sliding_window", "4096");
    REFUSED(gw_u32(&w, "llama.expert_count", 8), "llama.expert_count", "8");
    REFUSED(gw_f32(&w, "llama.logit_scale", 0.25f), "llama.logit_scale", "0.25");
    REFUSED(gw_f32(&w, "llama.embedding_scale", 12), "llama.embedding_scale", "12");
    REFUSED(gw_f32(&w, "llama.residual_scale", 0.22f), "llama.residual_scale", "0.22");
    REFUSED(gw_f32(&w, "llama.attention.scale", 0.0625f), "llama.attention.scale", "0.0625");
    REFUSED(gw_f32(&w, "llama.attn_logit_softcapping", 50), "softcapping", "50");
    REFUSED(gw_f32(&w, "llama.final_logit_softcapping", 30), "softcapping", "30");
    REFUSED(gw_bool(&w, "llama.attention.causal", false), "llama.attention.causal", "false");
    REFUSED(gw_bool(&w, "llama.use_parallel_residual", true), "use_parallel_residual", "true");
    REFUSED(gw_u32(&w, "llama.something_new", 3), "llama.something_new", "3");
    REFUSED(gw_str(&w, "general.type", "adapter"), "general.type", "'adapter'");
    REFUSED(gw_u32(&w, "split.count", 2), "split.count", "2");
#undef REFUSED
}

static void keys_in_values_that_change_nothing_are_accepted(void)
{
    struct gguf_writer w = {0};
    struct random_model o = random_model_defaults("llama");
    random_model_put(&w, &o);
    gw_str(&w, "general.type", "model");
    gw_str(&w, "llama.rope.scaling.type", "none");
    gw_f32(&w, "llama.rope.scaling.factor", 1);
    gw_f32(&w, "llama.logit_scale", 1);
    gw_u32(&w, "llama.expert_count", 0);
    gw_bool(&w, "llama.attention.causal", true);
    gw_u32(&w, "llama.vocab_size", 320);
    gw_str(&w, "llama.tensor_data_layout", "Meta AI original pth");
    gw_u32(&w, "qwen2.expert_count", 60); /* another architecture's: not ours to read */
    struct loaded l = load_writer(&w);
    CHECKF(l.m, "%s", err.message);
    unload(&l);
}

static void unknown_architectures_are_refused_by_name(void)
{
    struct gguf_writer w = {0};
    gw_str(&w, "general.architecture", "mamba");
    check_refused(load_writer(&w), "'mamba'", "qwen3", __LINE__);
    gw_u32(&w, "general.architecture", 1);
    check_refused(load_writer(&w), "general.architecture", "", __LINE__);
    gw_str(&w, "general.name", "x");
    check_refused(load_writer(&w), "general.architecture", "", __LINE__);
}

static void tensors_that_have_no_place_are_refused(void)
{
    static const char *const names[] = {"blk.0.ffn_gate.bias", "blk.0.ffn_gate_inp.weight", "blk.1.attn_q_norm.weight",
                                        "blk.2.attn_norm.weight", "output.bias", "blk.00.attn_q.bias", "x"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct gguf_writer w = {0};
        struct random_model o = random_model_defaults("llama");
        float zeros[64] = {0};
        random_model_put(&w, &o);
        gw_tensor(&w, names[i], TYPE_F32, 1, (uint64_t[]){64}, zeros, sizeof zeros);
        check_refused(load_writer(&w), names[i], "llama", __LINE__);
    }
}

/* Writes the model's file again without the tensor, or under other dimensions or another type. */
static struct loaded load_changed(const struct random_model *o, const char *name, bool drop, int dim, uint64_t size,
                                  int type)
{
    struct loaded from = load(o);
    struct gguf_writer w = {0}, all = {0};
    if (!from.m) return from;
    random_model_put(&all, o);
    w.n_kv = all.n_kv;
    gw_put(&w.kv, all.kv.p, all.kv.len);
    for (size_t i = 0; i < gguf_n_tensors(from.m->gguf); i++) {
        struct gguf_tensor t = *gguf_tensor_at(from.m->gguf, i);
        char full[65];
        snprintf(full, sizeof full, "%.*s", (int)t.name.len, t.name.data);
        if (strcmp(full, name) == 0) {
            if (drop) continue;
            if (size) t.dim[dim] = size;
            if (type >= 0) t.type = (enum tensor_type)type;
        }
        gw_tensor(&w, full, t.type, (uint32_t)t.n_dims, t.dim, t.data, t.bytes);
    }
    size_t bytes;
    free(gw_finish(&all, &bytes));
    unload(&from);
    return load_writer(&w);
}

static void missing_tensors_are_refused_by_name(void)
{
    static const char *const names[] = {"token_embd.weight", "output_norm.weight", "blk.0.attn_norm.weight",
        "blk.1.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight", "blk.0.attn_output.weight",
        "blk.1.ffn_norm.weight", "blk.0.ffn_gate.weight", "blk.0.ffn_up.weight", "blk.1.ffn_down.weight",
        "blk.0.attn_q_norm.weight", "blk.1.attn_k_norm.weight"};
    struct random_model o = random_model_defaults("qwen3");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        check_refused(load_changed(&o, names[i], true, 0, 0, -1), names[i], "missing", __LINE__);
}

static void wrong_shapes_are_refused_by_name(void)
{
    struct random_model o = random_model_defaults("qwen2");
    o.tied = false, o.rope_freqs = true;
    check_refused(load_changed(&o, "blk.1.attn_q.weight", false, 1, 32, -1), "blk.1.attn_q.weight", "[64, 32, 1, 1]", __LINE__);
    check_refused(load_changed(&o, "blk.0.ffn_down.weight", false, 0, 64, -1), "blk.0.ffn_down.weight", "[96, 64]", __LINE__);
    check_refused(load_changed(&o, "output.weight", false, 1, 319, -1), "output.weight", "[64, 320]", __LINE__);
    check_refused(load_changed(&o, "blk.0.attn_k.bias", false, 0, 16, -1), "blk.0.attn_k.bias", "[32, 1]", __LINE__);
    check_refused(load_changed(&o, "rope_freqs.weight", false, 0, 4, -1), "rope_freqs.weight", "[8, 1]", __LINE__);
    check_refused(load_changed(&o, "token_embd.weight", false, 0, 32, -1), "token_embd.weight", "[64, 320]", __LINE__);
    /* 64 x 4 bytes are as many as 2 x 32 weights of Q8_0 and some left */
    check_refused(load_changed(&o, "output_norm.weight", false, 0, 0, TYPE_Q8_0), "output_norm.weight", "Q8_0", __LINE__);
}

static void useless_hyperparameters_are_refused(void)
{
    static const struct { const char *suffix; double value; } bad[] = {
        {"block_count", 0}, {"block_count", 4e9}, {"block_count", 1000}, {"context_length", 0},
        {"embedding_length", 0}, {"embedding_length", 4294967295.0}, {"feed_forward_length", 0},
        {"attention.head_count", 0}, {"attention.head_count", 3}, {"attention.head_count", 4294967295.0},
        {"attention.head_count_kv", 0}, {"attention.head_count_kv", 3}, {"attention.head_count_kv", 8},
        {"attention.key_length", 0}, {"attention.key_length", 1 << 20}, {"attention.value_length", 0},
        {"rope.dimension_count", 0}, {"rope.dimension_count", 7}, {"rope.dimension_count", 18},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct random_model o = random_model_defaults("llama");
        struct gguf_writer w = {0};
        char key[64];
        uint32_t v = (uint32_t)bad[i].value;
        o.k_dim = o.v_dim = o.n_rot = 16;
        random_model_put(&w, &o);
        snprintf(key, sizeof key, "llama.%s", bad[i].suffix);
        /* the value lies behind the key's text and its type */
        unsigned char *at = memmem(w.kv.p, w.kv.len, key, strlen(key));
        while (at && at + strlen(key) + 4 < w.kv.p + w.kv.len && at[strlen(key)] != GGUF_U32) /* head_count_kv */
            at = memmem(at + 1, w.kv.len - (size_t)(at + 1 - w.kv.p), key, strlen(key));
        REQUIRE(at);
        memcpy(at + strlen(key) + 4, &v, sizeof v);
        struct loaded l = load_writer(&w);
        CHECKF(!l.m, "%s = %g was accepted", key, bad[i].value);
        CHECKF(l.m || strstr(err.message, bad[i].suffix) || strstr(err.message, "has shape"), "%s: %s", key, err.message);
        unload(&l);
    }
    static const float bad_floats[] = {0, -1, NAN, INFINITY};
    for (size_t i = 0; i < sizeof bad_floats / sizeof *bad_floats; i++) {
        struct random_model o = random_model_defaults("llama");
        o.norm_eps = bad_floats[i];
        check_refused(load(&o), "layer_norm_rms_epsilon", "positive", __LINE__);
        o = random_model_defaults("llama");
        o.rope_base = bad_floats[i];
        check_refused(load(&o), "rope.freq_base", "positive", __LINE__);
    }
}

static void layers_that_differ_are_refused(void)
{
    struct random_model o = random_model_defaults("llama");
    struct gguf_writer w = {0};
    random_model_put(&w, &o);
    uint32_t per_layer[2] = {2, 1};
    unsigned char *at = memmem(w.kv.p, w.kv.len, "llama.attention.head_count_kv", 29);
    REQUIRE(at);
    at[0] = 'x'; /* the scalar key becomes another architecture's */
    gw_array(&w, "llama.attention.head_count_kv", GGUF_U32, 2, per_layer, sizeof per_layer);
    check_refused(load_writer(&w), "llama.attention.head_count_kv", "an array of 2", __LINE__);
}

static void rope_factors_must_be_positive(void)
{
    struct random_model o = random_model_defaults("llama");
    struct gguf_writer w = {0};
    float factors[8] = {1, 1, 1, 0, 1, 1, 1, 1};
    random_model_put(&w, &o);
    gw_tensor(&w, "rope_freqs.weight", TYPE_F32, 1, (uint64_t[]){8}, factors, sizeof factors);
    check_refused(load_writer(&w), "rope_freqs.weight", "0 at 3", __LINE__);
}

int main(int argc, char **argv)
{
    if (argc > 1) { /* a file to describe: for people */
        struct gguf *g = gguf_open(argv[1], &err);
        struct model *m = g ? model_load(g, &err) : NULL;
        if (!m) return printf("%s\n", err.message), 1;
        printf("%s %s: %zu parameters, %zu bytes, %d layers, vocabulary %d\n", m->hp.architecture,
               model_quantization(m), m->n_parameters, m->weight_bytes, m->hp.n_layer, m->hp.n_vocab);
        model_free(m);
        return 0;
    }
    RUN(each_architecture_loads_with_its_rope_order);
    RUN(vectors_are_widened_and_matrices_used_in_place);
    RUN(variants_of_shape_load);
    RUN(every_tensor_type_loads_and_names_the_model);
    RUN(sizes_are_summed_over_the_tensors);
    RUN(keys_that_change_results_are_refused_by_name_and_value);
    RUN(keys_in_values_that_change_nothing_are_accepted);
    RUN(unknown_architectures_are_refused_by_name);
    RUN(tensors_that_have_no_place_are_refused);
    RUN(missing_tensors_are_refused_by_name);
    RUN(wrong_shapes_are_refused_by_name);
    RUN(useless_hyperparameters_are_refused);
    RUN(layers_that_differ_are_refused);
    RUN(rope_factors_must_be_positive);
    return check_result();
}
