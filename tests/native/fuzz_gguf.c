/* libFuzzer entry: the input is a model file, see load_all.h. Built with clang when REDIS_INFER_FUZZ is on:
 *
 *     CC=clang cmake -B build/fuzz -DREDIS_INFER_FUZZ=ON -DREDIS_INFER_TESTS=ON && cmake --build build/fuzz --target fuzz_gguf
 *     build/fuzz/tests/native/fuzz_gguf --seeds DIR     writes the files to start from
 *     build/fuzz/tests/native/fuzz_gguf DIR -max_len=16384
 *
 * The seeds are small valid models, one per architecture and tokenizer kind, so that the search begins behind
 * the checks that random bytes never pass. */
#include "gguf_writer.h"
#include "load_all.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    load_all(data, bytes);
    return 0;
}

static void put_sentencepiece_vocab(struct gguf_writer *w, int n)
{
    static const char *const spellings[] = {"<unk>", "<s>", "</s>", "<0x0A>", "\xe2\x96\x81the", "a"};
    static const int32_t types[] = {2, 3, 3, 6, 1, 4};
    enum { N = sizeof types / sizeof *types };
    gw_str(w, "tokenizer.ggml.model", "llama");
    gw_array(w, "tokenizer.ggml.tokens", GGUF_STRING, (uint64_t)n, "", 0);
    for (int i = 0; i < n; i++) gw_put_str(&w->kv, spellings[i % N], strlen(spellings[i % N]));
    gw_array(w, "tokenizer.ggml.token_type", GGUF_I32, (uint64_t)n, "", 0);
    for (int i = 0; i < n; i++) gw_put_u32(&w->kv, (uint32_t)types[i % N]);
}

static int write_seeds(const char *folder)
{
    static const char *const architectures[] = {"llama", "qwen2", "qwen3"};
    for (int i = 0; i < 6; i++) {
        struct random_model o = random_model_defaults(architectures[i % 3]);
        o.n_vocab = 12, o.n_embd = 32, o.n_layer = 1, o.n_head = 2, o.n_head_kv = 1, o.n_ff = 32;
        o.type = i % 2 ? TYPE_Q4_0 : TYPE_Q5_1, o.embedding_type = TYPE_Q8_0, o.vector_type = TYPE_BF16;
        o.tied = i < 3, o.rope_freqs = i == 0, o.o_bias = i == 4, o.seed = (uint64_t)i;
        o.no_vocab = i >= 3;
        struct gguf_writer w = {.version = i == 5 ? 2 : 3};
        random_model_put(&w, &o);
        if (o.no_vocab) put_sentencepiece_vocab(&w, o.n_vocab);
        size_t bytes;
        unsigned char *file = gw_finish(&w, &bytes);
        if (load_all(file, bytes) != 3) abort(); /* a seed that is refused would be of little use */
        char path[4096];
        snprintf(path, sizeof path, "%s/seed%d.gguf", folder, i);
        FILE *f = fopen(path, "wb");
        if (!f || fwrite(file, 1, bytes, f) != bytes || fclose(f)) return perror(path), 1;
        free(file);
    }
    return 0;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    if (*argc == 3 && strcmp((*argv)[1], "--seeds") == 0) exit(write_seeds((*argv)[2]));
    return 0;
}
