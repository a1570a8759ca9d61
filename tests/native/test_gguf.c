/* The GGUF reader: what it reads, and what it refuses with which words. */
#include "gguf.h"

#include <unistd.h>

#include "check.h"
#include "gguf_writer.h"

static struct infer_error err;

struct opened {
    unsigned char *file;
    size_t bytes;
    struct gguf *g;
};

static struct opened open_writer(struct gguf_writer *w)
{
    struct opened o;
    err = (struct infer_error){0};
    o.file = gw_finish(w, &o.bytes);
    o.g = gguf_open_memory(o.file, o.bytes, &err);
    return o;
}

static void close_all(struct opened *o)
{
    gguf_close(o->g);
    free(o->file);
}

static void check_refused(struct opened o, const char *a, const char *b, int line)
{
    CHECKF(!o.g, "line %d: accepted, but should be refused for %s %s", line, a, b);
    CHECKF(o.g || (strstr(err.message, a) && strstr(err.message, b)), "line %d: message lacks %s or %s: %s", line, a, b,
           err.message);
    close_all(&o);
}

static void integers_of_any_width_convert_when_they_fit(void)
{
    struct gguf_writer w = {0};
    static const struct { enum gguf_value_type type; int64_t value; size_t size; bool fits; } ints[] = {
        {GGUF_U8, 200, 1, true}, {GGUF_I8, 100, 1, true}, {GGUF_I8, -100, 1, false}, {GGUF_U16, 60000, 2, true},
        {GGUF_I16, -1, 2, false}, {GGUF_U32, 0xffffffff, 4, true}, {GGUF_I32, 0x7fffffff, 4, true},
        {GGUF_I32, -5, 4, false}, {GGUF_U64, 0xffffffff, 8, true}, {GGUF_U64, 0x100000000, 8, false},
        {GGUF_I64, 7, 8, true}, {GGUF_I64, INT64_MIN, 8, false}, {GGUF_U64, -1, 8, false},
    };
    enum { N = sizeof ints / sizeof *ints };
    char key[16];
    for (int i = 0; i < N; i++) {
        snprintf(key, sizeof key, "k%d", i);
        gw_scalar(&w, key, ints[i].type, &ints[i].value, ints[i].size);
    }
    gw_f32(&w, "float", 2.5f);
    gw_bool(&w, "bool", true);
    gw_str(&w, "str", "12");
    struct opened o = open_writer(&w);
    REQUIRE(o.g);
    for (int i = 0; i < N; i++) {
        uint32_t v = 42;
        snprintf(key, sizeof key, "k%d", i);
        CHECKF(gguf_u32(o.g, key, &v) == ints[i].fits, "%s", key);
        CHECKF(v == (ints[i].fits ? (uint32_t)ints[i].value : 42), "%s is %u", key, v);
    }
    uint32_t u;
    CHECK(!gguf_u32(o.g, "float", &u) && !gguf_u32(o.g, "bool", &u) && !gguf_u32(o.g, "str", &u));
    CHECK(!gguf_u32(o.g, "missing", &u) && !gguf_has(o.g, "missing") && gguf_has(o.g, "str"));
    close_all(&o);
}

static void floats_truth_values_and_strings_are_read(void)
{
    struct gguf_writer w = {0};
    double d = -0.25;
    gw_f32(&w, "f", 1e-5f);
    gw_scalar(&w, "d", GGUF_F64, &d, sizeof d);
    gw_bool(&w, "yes", true);
    gw_bool(&w, "no", false);
    gw_str(&w, "s", "text");
    gw_str(&w, "empty", "");
    struct opened o = open_writer(&w);
    REQUIRE(o.g);
    float f;
    bool b;
    struct gguf_string s;
    CHECK(gguf_f32(o.g, "f", &f) && f == 1e-5f);
    CHECK(gguf_f32(o.g, "d", &f) && f == -0.25f);
    CHECK(!gguf_f32(o.g, "yes", &f) && !gguf_f32(o.g, "s", &f));
    CHECK(gguf_bool(o.g, "yes", &b) && b);
    CHECK(gguf_bool(o.g, "no", &b) && !b);
    CHECK(!gguf_bool(o.g, "f", &b));
    CHECK(gguf_str(o.g, "s", &s) && gguf_string_is(s, "text") && !gguf_string_is(s, "tex") && !gguf_string_is(s, "texts"));
    CHECK(gguf_str(o.g, "empty", &s) && s.len == 0);
    CHECK(!gguf_str(o.g, "f", &s) && !gguf_str(o.g, "te", &s));
    close_all(&o);
}

static void arrays_are_read_in_order(void)
{
    struct gguf_writer w = {0};
    static const int32_t ints[] = {3, -1, 4};
    gw_array(&w, "ints", GGUF_I32, 3, ints, sizeof ints);
    gw_strings(&w, "strings", 4, (const char *const[]){"a", "", "ccc", ""});
    gw_strings(&w, "none", 0, NULL);
    struct opened o = open_writer(&w);
    REQUIRE(o.g);
    struct gguf_array a;
    struct gguf_string s;
    size_t cursor = 0;
    CHECK(gguf_arr(o.g, "ints", &a) && a.type == GGUF_I32 && a.len == 3 && a.bytes == 12 && !memcmp(a.data, ints, 12));
    CHECK(!gguf_array_next_string(&a, &cursor, &s));
    REQUIRE(gguf_arr(o.g, "strings", &a));
    CHECK(a.type == GGUF_STRING && a.len == 4);
    cursor = 0;
    CHECK(gguf_array_next_string(&a, &cursor, &s) && gguf_string_is(s, "a"));
    CHECK(gguf_array_next_string(&a, &cursor, &s) && gguf_string_is(s, ""));
    CHECK(gguf_array_next_string(&a, &cursor, &s) && gguf_string_is(s, "ccc"));
    CHECK(gguf_array_next_string(&a, &cursor, &s) && gguf_string_is(s, ""));
    CHECK(!gguf_array_next_string(&a, &cursor, &s));
    cursor = 0;
    CHECK(gguf_arr(o.g, "none", &a) && a.len == 0 && !gguf_array_next_string(&a, &cursor, &s));
    close_all(&o);
}

static void values_are_described_for_messages(void)
{
    struct gguf_writer w = {0};
    int64_t negative = INT64_MIN;
    char text[64];
    gw_scalar(&w, "negative", GGUF_I64, &negative, 8);
    gw_f32(&w, "float", 0.5f);
    gw_bool(&w, "bool", true);
    gw_str(&w, "str", "yarn");
    gw_strings(&w, "arr", 2, (const char *const[]){"a", "b"});
    struct opened o = open_writer(&w);
    REQUIRE(o.g);
    gguf_describe(o.g, "negative", text, sizeof text);
    CHECKF(strcmp(text, "-9223372036854775808") == 0, "%s", text);
    gguf_describe(o.g, "float", text, sizeof text);
    CHECKF(strcmp(text, "0.5") == 0, "%s", text);
    gguf_describe(o.g, "bool", text, sizeof text);
    CHECKF(strcmp(text, "true") == 0, "%s", text);
    gguf_describe(o.g, "str", text, sizeof text);
    CHECKF(strcmp(text, "'yarn'") == 0, "%s", text);
    gguf_describe(o.g, "arr", text, sizeof text);
    CHECKF(strcmp(text, "an array of 2") == 0, "%s", text);
    gguf_describe(o.g, "missing", text, sizeof text);
    CHECKF(strcmp(text, "") == 0, "%s", text);
    close_all(&o);
}

static void tensors_are_found_with_shape_and_data(void)
{
    for (int variant = 0; variant < 4; variant++) {
        struct gguf_writer w = {.version = variant & 1 ? 2 : 3, .alignment = variant & 2 ? 4096 : 0};
        float a[6] = {1, 2, 3, 4, 5, 6};
        unsigned char q[2 * 34];
        memset(q, 7, sizeof q);
        gw_str(&w, "general.architecture", "test");
        gw_tensor(&w, "matrix", TYPE_F32, 2, (uint64_t[]){3, 2}, a, sizeof a);
        gw_tensor(&w, "a.quantized", TYPE_Q8_0, 4, (uint64_t[]){32, 1, 1, 2}, q, sizeof q);
        struct opened o = open_writer(&w);
        CHECKF(o.g, "%s", err.message);
        REQUIRE(o.g);
        const struct gguf_tensor *t = gguf_tensor(o.g, "matrix");
        REQUIRE(t && gguf_n_tensors(o.g) == 2 && gguf_tensor_at(o.g, 0) == t);
        CHECK(t->n_dims == 2 && t->dim[0] == 3 && t->dim[1] == 2 && t->dim[2] == 1 && t->dim[3] == 1);
        CHECK(t->type == TYPE_F32 && t->bytes == sizeof a && memcmp(t->data, a, sizeof a) == 0);
        t = gguf_tensor(o.g, "a.quantized");
        REQUIRE(t && gguf_tensor_at(o.g, 1) == t);
        CHECK(t->n_dims == 4 && t->bytes == sizeof q && memcmp(t->data, q, sizeof q) == 0);
        CHECK(((size_t)((const unsigned char *)t->data - o.file)) % (variant & 2 ? 4096 : 32) == 0);
        CHECK(!gguf_tensor(o.g, "matri") && !gguf_tensor(o.g, "matrix2") && !gguf_tensor(o.g, ""));
        CHECK(gguf_file_bytes(o.g) == o.bytes);
        close_all(&o);
    }
}

static void many_tensors_and_keys_are_all_found(void)
{
    struct gguf_writer w = {0};
    char name[32];
    for (int i = 0; i < 3000; i++) {
        float v = (float)i;
        snprintf(name, sizeof name, "t%d", i * 7919 % 3000);
        gw_tensor(&w, name, TYPE_F32, 1, (uint64_t[]){1}, &v, sizeof v);
        snprintf(name, sizeof name, "k%d", i * 7919 % 3000);
        gw_u32(&w, name, (uint32_t)i);
    }
    struct opened o = open_writer(&w);
    REQUIRE(o.g);
    for (int i = 0; i < 3000; i++) {
        float v;
        uint32_t u;
        snprintf(name, sizeof name, "t%d", i * 7919 % 3000);
        const struct gguf_tensor *t = gguf_tensor(o.g, name);
        REQUIRE(t);
        memcpy(&v, t->data, sizeof v);
        CHECK(v == (float)i);
        snprintf(name, sizeof name, "k%d", i * 7919 % 3000);
        CHECK(gguf_u32(o.g, name, &u) && u == (uint32_t)i);
    }
    for (size_t i = 1; i < gguf_n_keys(o.g); i++) {
        struct gguf_string a = gguf_key_at(o.g, i - 1), b = gguf_key_at(o.g, i);
        int order = memcmp(a.data, b.data, a.len < b.len ? a.len : b.len);
        CHECK(order < 0 || (order == 0 && a.len < b.len));
    }
    close_all(&o);
}

static void a_file_on_disk_is_mapped(void)
{
    char path[] = "/tmp/test_gguf_XXXXXX";
    struct random_model m = random_model_defaults("llama");
    int fd = mkstemp(path);
    REQUIRE(fd >= 0);
    close(fd);
    CHECK(!gguf_open(path, &err));
    CHECKF(strstr(err.message, path) && strstr(err.message, "empty"), "%s", err.message);
    CHECK(write_random_model(path, &m) == 0);
    struct gguf *g = gguf_open(path, &err);
    CHECKF(g, "%s", err.message);
    if (g) CHECK(gguf_tensor(g, "blk.1.ffn_up.weight") != NULL);
    gguf_close(g);
    unlink(path);
    CHECK(!gguf_open(path, &err));
    CHECKF(strstr(err.message, path) && strstr(err.message, "No such file"), "%s", err.message);
    CHECK(!gguf_open("/tmp", &err));
    CHECKF(strstr(err.message, "/tmp"), "%s", err.message);
}

/* ---- refusals ---- */

static void other_magic_and_versions_are_refused(void)
{
    static const unsigned char ggml[32] = "lmgg";
    CHECK(!gguf_open_memory(ggml, sizeof ggml, &err));
    CHECKF(strstr(err.message, "not a GGUF file") && strstr(err.message, "6c6d6767"), "%s", err.message);
    CHECK(!gguf_open_memory("GG", 2, &err));
    CHECKF(strstr(err.message, "not a GGUF file") && strstr(err.message, "4747"), "%s", err.message);
    struct gguf_writer w = {.version = 1};
    check_refused(open_writer(&w), "version 1", "2 and 3", __LINE__);
    w.version = 4;
    check_refused(open_writer(&w), "version 4", "2 and 3", __LINE__);
    w.version = 3u << 24;
    check_refused(open_writer(&w), "big-endian", "", __LINE__);
}

static void counts_beyond_the_file_are_refused_before_allocating(void)
{
    for (int which = 0; which < 2; which++) {
        struct gguf_writer w = {0};
        gw_str(&w, "general.architecture", "test");
        if (which) w.n_kv = 1ull << 60;
        else w.n_tensors = 1ull << 60;
        check_refused(open_writer(&w), "1152921504606846976", which ? "keys" : "tensors", __LINE__);
    }
}

static void duplicates_are_refused_by_name(void)
{
    struct gguf_writer w = {0};
    float v = 0;
    gw_u32(&w, "twice", 1);
    gw_u32(&w, "once", 1);
    gw_str(&w, "twice", "x");
    check_refused(open_writer(&w), "'twice'", "occurs twice", __LINE__);
    gw_tensor(&w, "same.weight", TYPE_F32, 1, (uint64_t[]){1}, &v, sizeof v);
    gw_tensor(&w, "other.weight", TYPE_F32, 1, (uint64_t[]){1}, &v, sizeof v);
    gw_tensor(&w, "same.weight", TYPE_F32, 1, (uint64_t[]){1}, &v, sizeof v);
    check_refused(open_writer(&w), "'same.weight'", "occurs twice", __LINE__);
}

static void metadata_values_out_of_the_format_are_refused(void)
{
    struct gguf_writer w = {0};
    unsigned char two = 2, inner[12] = {GGUF_U8};
    gw_array(&w, "nested", GGUF_ARRAY, 1, inner, sizeof inner);
    check_refused(open_writer(&w), "'nested'", "array of arrays", __LINE__);
    gw_scalar(&w, "odd", (enum gguf_value_type)13, &two, 1);
    check_refused(open_writer(&w), "'odd'", "type 13", __LINE__);
    gw_array(&w, "odds", (enum gguf_value_type)99, 1, &two, 1);
    check_refused(open_writer(&w), "'odds'", "type 99", __LINE__);
    gw_scalar(&w, "maybe", GGUF_BOOL, &two, 1);
    check_refused(open_writer(&w), "'maybe'", "2", __LINE__);
    gw_array(&w, "long", GGUF_U64, 1ull << 61, &two, 1); /* times 8 is 0 in 64 bits */
    check_refused(open_writer(&w), "'long'", "2305843009213693952", __LINE__);
    gw_array(&w, "texts", GGUF_STRING, 1ull << 62, &two, 1);
    check_refused(open_writer(&w), "'texts'", "4611686018427387904", __LINE__);
    gw_str(&w, "", "x");
    check_refused(open_writer(&w), "key of 0 bytes", "", __LINE__);
    char *long_key = malloc(65537);
    REQUIRE(long_key);
    memset(long_key, 'k', 65536);
    long_key[65536] = '\0';
    gw_str(&w, long_key, "x");
    check_refused(open_writer(&w), "key of 65536 bytes", "", __LINE__);
    free(long_key);
}

static void control_characters_do_not_reach_messages(void)
{
    struct gguf_writer w = {0};
    unsigned char two = 2;
    gw_scalar(&w, "a\r\n+OK\x7f", GGUF_BOOL, &two, 1);
    check_refused(open_writer(&w), "'a??+OK?'", "", __LINE__);
}

static void alignments_that_are_no_power_of_two_are_refused(void)
{
    static const uint32_t bad[] = {3, 33, 0xffffffff};
    struct gguf_writer w = {0};
    char text[16];
    for (int i = 0; i < 3; i++) {
        snprintf(text, sizeof text, "%u", bad[i]);
        gw_u32(&w, "general.alignment", bad[i]);
        check_refused(open_writer(&w), "general.alignment", text, __LINE__);
    }
    gw_u32(&w, "general.alignment", 0);
    check_refused(open_writer(&w), "general.alignment", "is 0", __LINE__);
    gw_str(&w, "general.alignment", "32");
    check_refused(open_writer(&w), "general.alignment", "'32'", __LINE__);
}

/* One tensor entry by hand. */
static struct opened one_tensor(const char *name, uint32_t n_dims, const uint64_t *dim, uint32_t type, uint64_t offset)
{
    struct gguf_writer w = {0};
    static const unsigned char data[64] = {0};
    gw_put_str(&w.table, name, strlen(name));
    gw_put_u32(&w.table, n_dims);
    for (uint32_t i = 0; i < n_dims; i++) gw_put_u64(&w.table, dim[i]);
    gw_put_u32(&w.table, type);
    gw_put_u64(&w.table, offset);
    gw_put(&w.data, data, sizeof data);
    w.n_tensors = 1;
    return open_writer(&w);
}

static void tensors_that_cannot_be_are_refused_by_name(void)
{
    static const uint64_t d16[] = {16}, d17[] = {17}, d0[] = {0}, d48[] = {48}, d5[] = {1, 1, 1, 1, 1};
    static const uint64_t wrap[] = {1ull << 32, 1ull << 32}, quarter[] = {1ull << 62}, quantized[] = {1ull << 63, 2};
    struct opened o = one_tensor("t", 1, d16, TYPE_F32, 0);
    CHECKF(o.g, "%s", err.message); /* 64 bytes: the base of the cases below is good */
    close_all(&o);
    check_refused(one_tensor("t", 1, d17, TYPE_F32, 0), "'t'", "68 bytes", __LINE__);
    check_refused(one_tensor("t", 1, d16, TYPE_F32, 32), "'t'", "ends past", __LINE__);
    check_refused(one_tensor("t", 1, d16, TYPE_F32, 16), "'t'", "alignment 32", __LINE__);
    check_refused(one_tensor("t", 1, d16, TYPE_F32, ~0ull - 31), "'t'", "18446744073709551584", __LINE__);
    check_refused(one_tensor("t", 1, d16, TYPE_F32, 1ull << 63), "'t'", "9223372036854775808", __LINE__);
    check_refused(one_tensor("t", 1, d0, TYPE_F32, 0), "'t'", "size 0", __LINE__);
    check_refused(one_tensor("t", 0, d0, TYPE_F32, 0), "'t'", "0 dimensions", __LINE__);
    check_refused(one_tensor("t", 5, d5, TYPE_F32, 0), "'t'", "5 dimensions", __LINE__);
    check_refused(one_tensor("t", 1, d48, TYPE_Q4_0, 0), "'t'", "multiples of 32", __LINE__);
    check_refused(one_tensor("t", 2, wrap, TYPE_F32, 0), "'t'", "too large", __LINE__);
    check_refused(one_tensor("t", 1, quarter, TYPE_F32, 0), "'t'", "too large", __LINE__);
    check_refused(one_tensor("t", 2, quantized, TYPE_Q2_K, 0), "'t'", "too large", __LINE__);
    check_refused(one_tensor("t", 1, d16, 23, 0), "'t'", "IQ4_XS (23)", __LINE__);
    check_refused(one_tensor("t", 1, d16, 777, 0), "'t'", "unknown (777)", __LINE__);
    check_refused(one_tensor("", 1, d16, TYPE_F32, 0), "name of 0 bytes", "", __LINE__);
    check_refused(one_tensor("a name of sixty-five bytes, which is one more than GGUF's limit !", 1, d16, TYPE_F32, 0),
                  "name of 65 bytes", "", __LINE__);
}

static void tensors_that_overlap_are_refused_by_name(void)
{
    struct gguf_writer w = {0};
    float v[16] = {0};
    gw_tensor(&w, "first", TYPE_F32, 1, (uint64_t[]){16}, v, sizeof v);
    gw_tensor(&w, "second", TYPE_F32, 1, (uint64_t[]){16}, v, sizeof v);
    memset(w.table.p + w.table.len - 8, 32, 1); /* second's offset: 32 instead of 64 */
    check_refused(open_writer(&w), "'first'", "'second'", __LINE__);
}

int main(void)
{
    RUN(integers_of_any_width_convert_when_they_fit);
    RUN(floats_truth_values_and_strings_are_read);
    RUN(arrays_are_read_in_order);
    RUN(values_are_described_for_messages);
    RUN(tensors_are_found_with_shape_and_data);
    RUN(many_tensors_and_keys_are_all_found);
    RUN(a_file_on_disk_is_mapped);
    RUN(other_magic_and_versions_are_refused);
    RUN(counts_beyond_the_file_are_refused_before_allocating);
    RUN(duplicates_are_refused_by_name);
    RUN(metadata_values_out_of_the_format_are_refused);
    RUN(control_characters_do_not_reach_messages);
    RUN(alignments_that_are_no_power_of_two_are_refused);
    RUN(tensors_that_cannot_be_are_refused_by_name);
    RUN(tensors_that_overlap_are_refused_by_name);
    return check_result();
}
