/* Hostile model files: a valid one is cut at every length, and every byte and 64-bit
 * word of its header, metadata and tensor table is overwritten. Each result must load or be refused; that it
 * does neither wrongly is what the sanitizers (asan preset) see: the buffer is
 * allocated to the byte. */
#include "bert_writer.h"
#include "check.h"
#include "gguf_writer.h"
#include "load_all.h"

/* A small qwen3 model with every kind of metadata value beside its own. *table_end: where the data begin. */
static unsigned char *valid_file(size_t *bytes, size_t *table_end)
{
    struct gguf_writer w = {0};
    struct random_model o = random_model_defaults("qwen3");
    o.n_vocab = 12, o.n_embd = 32, o.n_layer = 1, o.n_head = 2, o.n_head_kv = 1, o.n_ff = 32;
    o.type = TYPE_Q4_0, o.embedding_type = TYPE_Q8_0, o.vector_type = TYPE_F16, o.rope_freqs = true;
    w.alignment = 64;
    random_model_put(&w, &o);
    static const unsigned char zeros[8] = {0};
    gw_scalar(&w, "test.u8", GGUF_U8, zeros, 1);
    gw_scalar(&w, "test.i16", GGUF_I16, zeros, 2);
    gw_scalar(&w, "test.i64", GGUF_I64, zeros, 8);
    gw_scalar(&w, "test.f64", GGUF_F64, zeros, 8);
    gw_bool(&w, "test.bool", true);
    gw_array(&w, "test.bools", GGUF_BOOL, 3, zeros, 3);
    gw_array(&w, "test.empty", GGUF_STRING, 0, zeros, 0);
    unsigned char *file = gw_finish(&w, bytes);
    struct infer_error err;
    struct gguf *g = gguf_open_memory(file, *bytes, &err);
    if (!g) abort();
    *table_end = (size_t)((const unsigned char *)gguf_tensor_at(g, 0)->data - file);
    gguf_close(g);
    return file;
}

static void the_file_itself_loads(void)
{
    size_t bytes, table_end;
    unsigned char *file = valid_file(&bytes, &table_end);
    CHECK(load_all(file, bytes) == 3);
    free(file);
}

static void a_file_cut_at_any_length_is_refused(void)
{
    size_t bytes, table_end;
    unsigned char *file = valid_file(&bytes, &table_end);
    /* the last tensor's padding may go: its data are whole without it */
    struct gguf *g = gguf_open_memory(file, bytes, NULL);
    const struct gguf_tensor *last = gguf_tensor_at(g, gguf_n_tensors(g) - 1);
    size_t needed = (size_t)((const unsigned char *)last->data + last->bytes - file);
    gguf_close(g);
    for (size_t n = 0; n <= bytes; n++) {
        unsigned char *cut = malloc(n ? n : 1);
        if (!cut) abort();
        memcpy(cut, file, n);
        int stage = load_all(cut, n);
        CHECKF(stage == (n < needed ? 0 : 3), "cut at %zu of %zu: refused at stage %d", n, bytes, stage);
        free(cut);
    }
    free(file);
}

static void any_byte_may_be_overwritten(void)
{
    static const unsigned char values[] = {0x00, 0x01, 0x7f, 0x80, 0xfe, 0xff};
    size_t bytes, table_end, loaded = 0;
    unsigned char *file = valid_file(&bytes, &table_end);
    for (size_t i = 0; i < table_end; i++) {
        unsigned char was = file[i];
        for (size_t k = 0; k < sizeof values + 8; k++) {
            if (k < sizeof values) file[i] = values[k];
            else file[i] = (unsigned char)(was ^ 1u << (k - sizeof values));
            loaded += load_all(file, bytes) == 3;
        }
        file[i] = was;
    }
    /* most change a name or a value beyond use, but the model's own name, say, may be anything */
    CHECKF(loaded > 0 && loaded < 14 * table_end / 2, "%zu of %zu loaded", loaded, 14 * table_end);
    free(file);
}

static void any_word_may_be_overwritten(void)
{
    static const uint64_t values[] = {0, 1, 0x7fffffff, 0xffffffff, 1ull << 32, 1ull << 40, 1ull << 61, 1ull << 62,
                                      (1ull << 63) - 1, 1ull << 63, ~0ull - 31, ~0ull};
    size_t bytes, table_end;
    unsigned char *file = valid_file(&bytes, &table_end);
    for (size_t i = 4; i + 8 <= table_end; i++) {
        uint64_t was;
        memcpy(&was, file + i, 8);
        for (size_t k = 0; k < sizeof values / sizeof *values + 4; k++) {
            size_t n = sizeof values / sizeof *values;
            uint64_t v = k < n ? values[k] : k == n ? was + 1 : k == n + 1 ? was - 1 : k == n + 2 ? was * 2 : bytes - i;
            memcpy(file + i, &v, 8);
            load_all(file, bytes);
        }
        memcpy(file + i, &was, 8);
    }
    CHECK(load_all(file, bytes) == 3);
    free(file);
}

/* Several places at once, from a fixed seed. */
static void many_bytes_may_be_overwritten(void)
{
    size_t bytes, table_end;
    unsigned char *file = valid_file(&bytes, &table_end), *copy = malloc(bytes);
    uint64_t seed = 7;
    if (!copy) abort();
    for (int round = 0; round < 20000; round++) {
        memcpy(copy, file, bytes);
        for (uint64_t n = 1 + random_u64(&seed) % 4; n > 0; n--) {
            size_t at = random_u64(&seed) % (table_end - 8);
            uint64_t v = random_u64(&seed) >> random_u64(&seed) % 64;
            memcpy(copy + at, &v, 1u << random_u64(&seed) % 4);
        }
        load_all(copy, bytes);
    }
    free(copy);
    free(file);
    CHECK(true);
}

static void the_same_holds_for_an_embedding_model(void)
{
    static const unsigned char values[] = {0x00, 0x01, 0x7f, 0x80, 0xff};
    struct random_bert o = random_bert_defaults();
    o.type = TYPE_Q8_0, o.n_vocab = 4, o.n_embd = 32, o.n_layer = 1, o.n_ff = 32, o.n_ctx = 4;
    size_t bytes, loaded = 0;
    unsigned char *file = random_bert_bytes(&o, &bytes);
    struct gguf *g = gguf_open_memory(file, bytes, NULL);
    size_t table_end = (size_t)((const unsigned char *)gguf_tensor_at(g, 0)->data - file);
    gguf_close(g);
    CHECK(load_all(file, bytes) == 3);
    for (size_t i = 0; i < table_end; i++) {
        unsigned char was = file[i];
        for (size_t k = 0; k < sizeof values; k++) {
            file[i] = values[k];
            loaded += load_all(file, bytes) == 3;
        }
        file[i] = was;
    }
    CHECKF(loaded > 0 && loaded < sizeof values * table_end / 2, "%zu of %zu loaded", loaded, sizeof values * table_end);
    free(file);
}

int main(void)
{
    RUN(the_file_itself_loads);
    RUN(a_file_cut_at_any_length_is_refused);
    RUN(any_byte_may_be_overwritten);
    RUN(any_word_may_be_overwritten);
    RUN(many_bytes_may_be_overwritten);
    RUN(the_same_holds_for_an_embedding_model);
    return check_result();
}
