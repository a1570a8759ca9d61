/* Vocabularies: spellings to bytes, and which tokens end a generation. */
#include "vocab.h"

#include "check.h"
#include "gguf_writer.h"

static struct infer_error err;

enum { NORMAL = 1, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE };

struct token {
    const char *spelling;
    int32_t type;
    const char *bytes; /* expected */
};

struct opened {
    unsigned char *file;
    struct gguf *g;
    struct vocab *v; /* NULL: refused */
};

static struct opened open_writer(struct gguf_writer *w, int n)
{
    struct opened o = {0};
    size_t bytes;
    err = (struct infer_error){0};
    o.file = gw_finish(w, &bytes);
    o.g = gguf_open_memory(o.file, bytes, &err);
    if (o.g) o.v = vocab_load(o.g, n, &err);
    return o;
}

static void close_all(struct opened *o)
{
    vocab_free(o->v);
    gguf_close(o->g);
    free(o->file);
}

static void put_tokens(struct gguf_writer *w, const char *model, const struct token *t, int n, bool types)
{
    const char *spelling[64];
    int32_t type[64];
    if (n > 64) abort();
    for (int i = 0; i < n; i++) spelling[i] = t[i].spelling, type[i] = t[i].type;
    gw_str(w, "tokenizer.ggml.model", model);
    gw_strings(w, "tokenizer.ggml.tokens", (uint64_t)n, spelling);
    if (types) gw_array(w, "tokenizer.ggml.token_type", GGUF_I32, (uint64_t)n, type, (size_t)n * sizeof *type);
}

static void check_pieces(const struct vocab *v, const struct token *t, int n)
{
    for (int i = 0; i < n; i++) {
        size_t len, want = strlen(t[i].bytes);
        const char *piece = vocab_piece(v, (uint32_t)i, &len);
        CHECKF(len == want && memcmp(piece, t[i].bytes, want) == 0, "token %d '%s' gives '%.*s'", i, t[i].spelling,
               (int)len, piece);
    }
}

static void byte_level_spellings_become_bytes(void)
{
    static const struct token t[] = {
        {"hello", NORMAL, "hello"},
        {"\xc4\xa0hello", NORMAL, " hello"},                                   /* Ġ */
        {"\xc4\x8a", NORMAL, "\n"},                                            /* Ċ */
        {"\xc4\x8d\xc4\x8a\xc4\x89", NORMAL, "\r\n\t"},                        /* č Ċ ĉ */
        {"\xc3\xb0\xc5\x81\xc4\xba\xc4\xac", NORMAL, "\xf0\x9f\x98\x8a"}, /* ðŁĺĬ: 😊 */
        {"\xc3\xa2\xc4\xa2\xc4\xbb", NORMAL, "\xe2\x80\x99"},                  /* âĢĻ: ’ */
        {"\xc5\x83", NORMAL, "\xad"},
        {"<|im_start|>", CONTROL, ""},
        {"<tool_call>", USER_DEFINED, "<tool_call>"},
        {" \xc4\xa0", USER_DEFINED, " \xc4\xa0"}, /* added text is spelled as it is */
        {"[PAD7]", UNUSED, ""},
        {"<unk>", UNKNOWN, ""},
        {"a\xe2\x96\x81\xc5\x84", NORMAL, "a\xe2\x96\x81\xc5\x84"}, /* characters outside the alphabet */
        {"", NORMAL, ""},
    };
    enum { N = sizeof t / sizeof *t };
    struct gguf_writer w = {0};
    put_tokens(&w, "gpt2", t, N, true);
    struct opened o = open_writer(&w, N);
    CHECKF(o.v, "%s", err.message);
    if (o.v) check_pieces(o.v, t, N);
    close_all(&o);
}

/* Each of the 256 bytes has one letter, as the writer builds GPT-2's alphabet (by counting, not by ranges). */
static void the_byte_alphabet_has_every_byte_once(void)
{
    struct gguf_writer w = {0};
    random_model_vocab(&w, 257);
    struct opened o = open_writer(&w, 257);
    REQUIRE(o.v);
    for (uint32_t id = 0; id < 256; id++) {
        size_t len;
        const char *piece = vocab_piece(o.v, id, &len);
        CHECKF(len == 1 && (unsigned char)*piece == id, "byte %u", id);
    }
    close_all(&o);
}

static void sentencepiece_spellings_become_bytes(void)
{
    static const struct token t[] = {
        {"<unk>", UNKNOWN, ""},
        {"<s>", CONTROL, ""},
        {"\xe2\x96\x81the", NORMAL, " the"},
        {"\xe2\x96\x81\xe2\x96\x81", NORMAL, "  "},
        {"a\xe2\x96\x81" "b", NORMAL, "a b"},
        {"\xc4\xa0", NORMAL, "\xc4\xa0"}, /* no GPT-2 alphabet here */
        {"<0x0A>", BYTE, "\n"},
        {"<0xfF>", BYTE, "\xff"},
        {"<0x41>", NORMAL, "<0x41>"},
        {"\xe2\x96", NORMAL, "\xe2\x96"},
    };
    enum { N = sizeof t / sizeof *t };
    struct gguf_writer w = {0};
    put_tokens(&w, "llama", t, N, true);
    struct opened o = open_writer(&w, N);
    CHECKF(o.v, "%s", err.message);
    if (o.v) check_pieces(o.v, t, N);
    close_all(&o);
}

static void ids_past_the_vocabulary_are_empty(void)
{
    struct gguf_writer w = {0};
    random_model_vocab(&w, 300);
    struct opened o = open_writer(&w, 300);
    REQUIRE(o.v);
    size_t len = 1;
    CHECK(vocab_piece(o.v, 300, &len) && len == 0);
    len = 1;
    CHECK(vocab_piece(o.v, UINT32_MAX, &len) && len == 0);
    CHECK(!vocab_is_end(o.v, 300) && !vocab_is_end(o.v, UINT32_MAX));
    close_all(&o);
}

static void ends_are_those_of_the_metadata_and_known_control_tokens(void)
{
    static const struct token t[] = {
        {"a", NORMAL, "a"}, {"<|im_end|>", CONTROL, ""}, {"</s>", NORMAL, "</s>"}, {"<|endoftext|>", CONTROL, ""},
        {"<|im_start|>", CONTROL, ""}, {"stop", CONTROL, ""}, {"<|eot_id|>", USER_DEFINED, "<|eot_id|>"},
        {"x", NORMAL, "x"}, {"<|file_sep|>", CONTROL, ""},
    };
    enum { N = sizeof t / sizeof *t };
    static const uint32_t want[] = {1, 3, 5, 6, 7, 8};
    struct gguf_writer w = {0};
    put_tokens(&w, "gpt2", t, N, true);
    gw_u32(&w, "tokenizer.ggml.eos_token_id", 3);
    gw_u32(&w, "tokenizer.ggml.eot_token_id", 5);
    gw_u32(&w, "tokenizer.ggml.eom_token_id", 7);
    gw_u32(&w, "tokenizer.ggml.bos_token_id", 0);
    struct opened o = open_writer(&w, N);
    REQUIRE(o.v);
    const uint32_t *ids;
    CHECK(vocab_end_ids(o.v, &ids) == 6 && memcmp(ids, want, sizeof want) == 0);
    for (uint32_t id = 0; id < N; id++) {
        bool end = false;
        for (size_t i = 0; i < sizeof want / sizeof *want; i++) end |= want[i] == id;
        CHECKF(vocab_is_end(o.v, id) == end, "'%s'", t[id].spelling);
    }
    close_all(&o);
}

static void without_token_types_byte_spellings_still_count(void)
{
    static const struct token t[] = {{"<0x0A>", 0, "\n"}, {"\xe2\x96\x81x", 0, " x"}};
    struct gguf_writer w = {0};
    put_tokens(&w, "llama", t, 2, false);
    struct opened o = open_writer(&w, 2);
    CHECKF(o.v, "%s", err.message);
    if (o.v) check_pieces(o.v, t, 2);
    close_all(&o);
}

static void check_refused(struct gguf_writer *w, int n, const char *a, const char *b, int line)
{
    struct opened o = open_writer(w, n);
    CHECKF(!o.v, "line %d: accepted, but should be refused for %s %s", line, a, b);
    CHECKF(o.v || (strstr(err.message, a) && strstr(err.message, b)), "line %d: message lacks %s or %s: %s", line, a, b,
           err.message);
    close_all(&o);
}

static void vocabularies_that_do_not_fit_are_refused(void)
{
    static const struct token t[] = {{"a", NORMAL, ""}, {"b", NORMAL, ""}}, odd[] = {{"a", 9, ""}},
                              byte[] = {{"<0xZZ>", BYTE, ""}};
    struct gguf_writer w = {0};
    gw_str(&w, "tokenizer.ggml.model", "bert");
    check_refused(&w, 2, "tokenizer.ggml.model", "'bert'", __LINE__);
    gw_str(&w, "general.name", "x");
    check_refused(&w, 2, "no tokenizer", "tokenizer.ggml.model", __LINE__);
    gw_str(&w, "tokenizer.ggml.model", "gpt2");
    check_refused(&w, 2, "tokenizer.ggml.tokens", "", __LINE__);
    put_tokens(&w, "gpt2", t, 2, true);
    check_refused(&w, 3, "2 tokens", "3 rows", __LINE__);
    put_tokens(&w, "gpt2", t, 2, false);
    gw_array(&w, "tokenizer.ggml.token_type", GGUF_I32, 1, (int32_t[]){1}, 4);
    check_refused(&w, 2, "token_type", "2 32-bit", __LINE__);
    put_tokens(&w, "gpt2", t, 2, false);
    gw_array(&w, "tokenizer.ggml.token_type", GGUF_U8, 2, "\1\1", 2);
    check_refused(&w, 2, "token_type", "32-bit", __LINE__);
    put_tokens(&w, "gpt2", odd, 1, true);
    check_refused(&w, 1, "token 0", "type 9", __LINE__);
    put_tokens(&w, "llama", byte, 1, true);
    check_refused(&w, 1, "token 0", "<0xZZ>", __LINE__);
    put_tokens(&w, "gpt2", t, 2, true);
    gw_u32(&w, "tokenizer.ggml.eos_token_id", 2);
    check_refused(&w, 2, "tokenizer.ggml.eos_token_id", "is 2", __LINE__);
    put_tokens(&w, "gpt2", t, 2, true);
    gw_str(&w, "tokenizer.ggml.eos_token_id", "b");
    check_refused(&w, 2, "tokenizer.ggml.eos_token_id", "'b'", __LINE__);
}

int main(void)
{
    RUN(byte_level_spellings_become_bytes);
    RUN(the_byte_alphabet_has_every_byte_once);
    RUN(sentencepiece_spellings_become_bytes);
    RUN(ids_past_the_vocabulary_are_empty);
    RUN(ends_are_those_of_the_metadata_and_known_control_tokens);
    RUN(without_token_types_byte_spellings_still_count);
    RUN(vocabularies_that_do_not_fit_are_refused);
    return check_result();
}
