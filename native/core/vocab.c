/* Vocabulary: decodes every token of a GGUF tokenizer once, at load, into one
 * run of bytes, so that a piece is a pointer and a length afterwards.
 *
 * Memory: one allocation for the handle and its tables, one for the bytes; nothing points into
 * the file. vocab_load on any thread; immutable afterwards. */
#include "vocab.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* tokenizer.ggml.token_type */
enum token_type {
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,
    TOKEN_USER_DEFINED = 4, /* added text, spelled as it is */
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6,
};

enum spelling { SPELLING_BYTE_LEVEL, SPELLING_SENTENCEPIECE };

struct vocab {
    int n_vocab, n_ends;
    uint32_t *start; /* [n_vocab + 1]: piece i is bytes[start[i] .. start[i+1]) */
    uint32_t *ends;  /* [n_ends], ascending */
    char *bytes;
};

/* Control tokens that end a turn or a file, however the metadata name them: chat
 * models often give one as eos and finish their answers with another; code models go on with the next file. */
static const char *const end_spellings[] = {
    "</s>",              /* Llama 2, Mistral, TinyLlama */
    "<|endoftext|>",     /* GPT-2's, Qwen, SmolLM */
    "<|end_of_text|>",   /* Llama 3 */
    "<|eot_id|>",        /* Llama 3: turn */
    "<|eom_id|>",        /* Llama 3: message before a tool's answer */
    "<|im_end|>",        /* ChatML: Qwen, SmolLM2 */
    "<|end|>",           /* Phi */
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<EOT>",             /* CodeLlama */
    "<|file_sep|>",      /* Qwen coder: next file of a repository */
    "<|repo_name|>",
    "<|fim_pad|>",
    "<file_sep>",        /* StarCoder's, SmolLM2 */
    "<reponame>",
    "<repo_name>",
};

/* ---- spelling ---- */

/* GPT-2's printable alphabet: printable bytes of Latin-1 stand for themselves, the other 68
 * are, in order, U+0100 and up. Returns the byte that a code point stands for, or -1. */
static int byte_of_code_point(uint32_t cp)
{
    if ((cp >= 0x21 && cp <= 0x7e) || (cp >= 0xa1 && cp <= 0xac) || (cp >= 0xae && cp <= 0xff)) return (int)cp;
    if (cp < 0x100 || cp > 0x143) return -1;
    int n = (int)cp - 0x100;
    if (n <= 0x20) return n;                     /* 00..20 */
    if (n < 0x21 + (0xa0 - 0x7f + 1)) return n - 0x21 + 0x7f; /* 7f..a0 */
    return 0xad;
}

/* Length of the UTF-8 character at s[0..n) and its code point; 1 and an impossible code point if
 * it is none or longer than two bytes (the alphabet has no such). */
static size_t short_character(const unsigned char *s, size_t n, uint32_t *cp)
{
    if (s[0] < 0x80) {
        *cp = s[0];
        return 1;
    }
    if (n >= 2 && s[0] >= 0xc2 && s[0] <= 0xdf && (s[1] & 0xc0) == 0x80) {
        *cp = (uint32_t)(s[0] & 0x1f) << 6 | (s[1] & 0x3f);
        return 2;
    }
    *cp = UINT32_MAX;
    return 1;
}

/* Characters outside the alphabet stand for themselves. Never longer than the spelling. */
static size_t decode_byte_level(char *out, struct gguf_string s)
{
    const unsigned char *in = (const unsigned char *)s.data;
    size_t n = 0;
    for (size_t i = 0; i < s.len;) {
        uint32_t cp;
        size_t len = short_character(in + i, s.len - i, &cp);
        int byte = byte_of_code_point(cp);
        if (byte >= 0) {
            out[n++] = (char)byte;
        } else {
            memcpy(out + n, in + i, len);
            n += len;
        }
        i += len;
    }
    return n;
}

/* U+2581 is a space. Never longer than the spelling. */
static size_t decode_sentencepiece(char *out, struct gguf_string s)
{
    size_t n = 0;
    for (size_t i = 0; i < s.len;) {
        if (s.len - i >= 3 && memcmp(s.data + i, "\xe2\x96\x81", 3) == 0) {
            out[n++] = ' ';
            i += 3;
        } else {
            out[n++] = s.data[i++];
        }
    }
    return n;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
}

/* The byte of "<0xNN>", or -1. */
static int byte_of_spelling(struct gguf_string s)
{
    if (s.len != 6 || memcmp(s.data, "<0x", 3) != 0 || s.data[5] != '>') return -1;
    int high = hex_digit(s.data[3]), low = hex_digit(s.data[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

/* ---- loading ---- */

/* What the metadata say about the tokens, found and checked before anything is decoded. */
struct source {
    enum spelling spelling;
    struct gguf_array tokens;
    const unsigned char *types; /* [n_vocab] int32 or uint32, unaligned; NULL: not told */
};

static int find_source(const struct gguf *g, int n_vocab, struct source *src, struct infer_error *err)
{
    struct gguf_string model;
    struct gguf_array types;
    if (!gguf_str(g, "tokenizer.ggml.model", &model))
        return infer_fail(err, INFER_ERR, "the file has no tokenizer (no text in key 'tokenizer.ggml.model')");
    if (gguf_string_is(model, "gpt2")) src->spelling = SPELLING_BYTE_LEVEL;
    else if (gguf_string_is(model, "llama")) src->spelling = SPELLING_SENTENCEPIECE;
    else
        return infer_fail(err, INFER_ERR, "tokenizer.ggml.model is '%.*s', which is not supported; gpt2 and llama are",
                          (int)(model.len < 64 ? model.len : 64), model.data);
    if (!gguf_arr(g, "tokenizer.ggml.tokens", &src->tokens) || src->tokens.type != GGUF_STRING)
        return infer_fail(err, INFER_ERR, "the file has no list of texts in key 'tokenizer.ggml.tokens'");
    if (src->tokens.len != (uint64_t)n_vocab)
        return infer_fail(err, INFER_ERR,
                          "tokenizer.ggml.tokens has %" PRIu64 " tokens, the model's embedding %d rows",
                          src->tokens.len, n_vocab);
    src->types = NULL;
    if (gguf_has(g, "tokenizer.ggml.token_type")) {
        if (!gguf_arr(g, "tokenizer.ggml.token_type", &types) || (types.type != GGUF_I32 && types.type != GGUF_U32) ||
            types.len != (uint64_t)n_vocab)
            return infer_fail(err, INFER_ERR, "tokenizer.ggml.token_type is no list of %d 32-bit integers", n_vocab);
        src->types = types.data;
    }
    return 0;
}

static int token_type(const struct source *src, int id, struct gguf_string spelling)
{
    int32_t type;
    if (src->types) {
        memcpy(&type, src->types + 4 * (size_t)id, sizeof type);
        return type;
    }
    return src->spelling == SPELLING_SENTENCEPIECE && byte_of_spelling(spelling) >= 0 ? TOKEN_BYTE : TOKEN_NORMAL;
}

/* Writes a token's bytes; they are never more than its spelling's. Returns their number, or -1. */
static int64_t decode(const struct source *src, int id, struct gguf_string spelling, char *out,
                      struct infer_error *err)
{
    int type = token_type(src, id, spelling), byte;
    switch (type) {
    case TOKEN_UNKNOWN:
    case TOKEN_CONTROL:
    case TOKEN_UNUSED: return 0;
    case TOKEN_USER_DEFINED: memcpy(out, spelling.data, spelling.len); return (int64_t)spelling.len;
    case TOKEN_BYTE:
        if (src->spelling == SPELLING_BYTE_LEVEL) break; /* all of its tokens are bytes */
        if ((byte = byte_of_spelling(spelling)) < 0)
            return infer_fail(err, INFER_ERR, "token %d is a byte, but is spelled '%.*s', not <0xNN>", id,
                              (int)(spelling.len < 32 ? spelling.len : 32), spelling.data);
        *out = (char)byte;
        return 1;
    case TOKEN_NORMAL: break;
    default:
        return infer_fail(err, INFER_ERR, "token %d has type %d in tokenizer.ggml.token_type; 1 to 6 are valid", id,
                          type);
    }
    return (int64_t)(src->spelling == SPELLING_BYTE_LEVEL ? decode_byte_level(out, spelling)
                                                          : decode_sentencepiece(out, spelling));
}

static bool ends_by_spelling(const struct source *src, int id, struct gguf_string spelling)
{
    int type = token_type(src, id, spelling);
    if (type != TOKEN_CONTROL && type != TOKEN_USER_DEFINED) return false; /* "</s>" is also HTML */
    for (size_t i = 0; i < sizeof end_spellings / sizeof *end_spellings; i++)
        if (gguf_string_is(spelling, end_spellings[i])) return true;
    return false;
}

/* The ids that the metadata name, in id[]; their number, or -1. */
static const char *const end_keys[] = {
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
};
enum { N_END_KEYS = sizeof end_keys / sizeof *end_keys };

static int ends_by_metadata(const struct gguf *g, int n_vocab, uint32_t id[N_END_KEYS], struct infer_error *err)
{
    int n = 0;
    for (int i = 0; i < N_END_KEYS; i++) {
        if (!gguf_has(g, end_keys[i])) continue;
        if (!gguf_u32(g, end_keys[i], &id[n]) || id[n] >= (uint32_t)n_vocab) {
            char value[64];
            gguf_describe(g, end_keys[i], value, sizeof value);
            return infer_fail(err, INFER_ERR, "%s is %s; the vocabulary has %d tokens", end_keys[i], value, n_vocab);
        }
        n++;
    }
    return n;
}

struct vocab *vocab_load(const struct gguf *g, int n_vocab, struct infer_error *err)
{
    struct source src;
    uint32_t named[N_END_KEYS];
    int n_named;
    if (find_source(g, n_vocab, &src, err) || (n_named = ends_by_metadata(g, n_vocab, named, err)) < 0) return NULL;
    if (src.tokens.bytes > UINT32_MAX) {
        infer_fail(err, INFER_ERR, "tokenizer.ggml.tokens has %zu bytes, which is too many", src.tokens.bytes);
        return NULL;
    }

    size_t n = (size_t)n_vocab; /* the file holds as many strings, so this is bounded by its size */
    struct vocab *v = malloc(sizeof *v + (n + 1 + n) * sizeof(uint32_t));
    char *bytes = malloc(src.tokens.bytes + 1);
    if (!v || !bytes) {
        infer_fail(err, INFER_ERR, "out of memory for a vocabulary of %d tokens", n_vocab);
        goto fail;
    }
    *v = (struct vocab){.n_vocab = n_vocab, .start = (uint32_t *)(v + 1), .bytes = bytes};
    v->ends = v->start + n + 1;

    size_t used = 0, cursor = 0;
    struct gguf_string spelling;
    /* Lengths are read from the file again, which somebody may be overwriting. */
    int id = 0;
    for (; id < n_vocab && gguf_array_next_string(&src.tokens, &cursor, &spelling); id++) {
        if (spelling.len > src.tokens.bytes - used) break;
        v->start[id] = (uint32_t)used;
        int64_t len = decode(&src, id, spelling, bytes + used, err);
        if (len < 0) goto fail;
        used += (size_t)len;
        bool end = ends_by_spelling(&src, id, spelling);
        for (int i = 0; i < n_named; i++) end |= named[i] == (uint32_t)id;
        if (end) v->ends[v->n_ends++] = (uint32_t)id;
    }
    if (id < n_vocab || cursor < src.tokens.bytes) {
        infer_fail(err, INFER_ERR, "tokenizer.ggml.tokens changed while it was read: write a new file and rename it over the old one");
        goto fail;
    }
    v->start[n] = (uint32_t)used;
    return v;
fail:
    free(v);
    free(bytes);
    return NULL;
}

void vocab_free(struct vocab *v)
{
    if (!v) return;
    free(v->bytes);
    free(v);
}

const char *vocab_piece(const struct vocab *v, uint32_t id, size_t *len)
{
    if (id >= (uint32_t)v->n_vocab) {
        *len = 0;
        return "";
    }
    *len = v->start[id + 1] - v->start[id];
    return v->bytes + v->start[id];
}

bool vocab_is_end(const struct vocab *v, uint32_t id)
{
    for (int i = 0; i < v->n_ends; i++)
        if (v->ends[i] == id) return true;
    return false;
}

int vocab_end_ids(const struct vocab *v, const uint32_t **ids)
{
    *ids = v->ends;
    return v->n_ends;
}
