/* Tests of the module's reader for one field of a JSON object. */
#include "json_field.h"

#include <stdlib.h>
#include <string.h>

#include "check.h"

/* Reads from memory of exactly the text's size, so that a sanitizer sees a byte too many. */
static const char *read_field(const char *json, size_t len, const char *name, char *out, size_t *out_len)
{
    char *exact = malloc(len ? len : 1), *room = malloc(len ? len : 1);
    memcpy(exact, json, len);
    const char *fault = json_string_field(exact, len, name, strlen(name), room, out_len);
    if (!fault) memcpy(out, room, *out_len);
    free(exact);
    free(room);
    return fault;
}

static void check_value(const char *json, const char *name, const char *want, size_t want_len)
{
    char out[1024];
    size_t len;
    const char *fault = read_field(json, strlen(json), name, out, &len);
    CHECKF(!fault, "%s: %s", json, fault);
    if (!fault) CHECKF(len == want_len && memcmp(out, want, len) == 0, "%s: '%.*s'", json, (int)len, out);
}

static void check_fault(const char *json, const char *want)
{
    char out[1024];
    size_t len;
    const char *fault = read_field(json, strlen(json), "tokens", out, &len);
    CHECKF(fault && strstr(fault, want), "%s: %s", json, fault ? fault : "(read)");
}

#define VALUE(json, want) check_value(json, "tokens", want, sizeof(want) - 1)

static void the_field_is_found_among_others(void)
{
    VALUE("{\"tokens\":\"k\"}", "k");
    VALUE(" {\n\t\"path\" : \"a.c\" , \"tokens\" :\"c:tok:a.c#1\", \"n\":1}\r\n", "c:tok:a.c#1");
    VALUE("{\"a\":{\"tokens\":\"not this\"},\"b\":[\"tokens\",{\"tokens\":[]}],\"tokens\":\"this\"}", "this");
    VALUE("{\"tokens\":\"\"}", "");
    VALUE("{\"t\":1,\"token\":2,\"tokens2\":3,\"tokens\":\"k\"}", "k");
    check_value("{\"\":\"nameless\"}", "", "nameless", 8);
}

static void every_kind_of_value_is_skipped(void)
{
    VALUE("{\"a\":0,\"b\":-1.5e+3,\"c\":2E-7,\"d\":0.25,\"e\":true,\"f\":false,\"g\":null,\"h\":[],\"i\":{},"
          "\"j\":[1,[2,[3]],{\"x\":[{}]}],\"tokens\":\"k\"}",
          "k");
}

static void escapes_are_decoded_in_values_and_names(void)
{
    VALUE("{\"tokens\":\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"}", "\"\\/\b\f\n\r\t");
    VALUE("{\"tokens\":\"\\u0041\\u00e9\\u20AC\\uD83D\\ude00\"}", "A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
    VALUE("{\"tokens\":\"a\\u0000b\"}", "a\0b");
    VALUE("{\"t\\u006fkens\":\"k\"}", "k");
    VALUE("{\"tokens\":\"caf\xc3\xa9 \xff\"}", "caf\xc3\xa9 \xff");
    VALUE("{\"x\":\"}]\\\"{[\",\"tokens\":\"k\"}", "k");
}

static void what_is_not_there_or_no_string_is_told(void)
{
    check_fault("{}", "lack");
    check_fault("{\"a\":{\"tokens\":\"k\"}}", "lack");
    check_fault("{\"Tokens\":\"k\"}", "lack");
    check_fault("{\"tokens\":1}", "string");
    check_fault("{\"tokens\":null}", "string");
    check_fault("{\"tokens\":[\"k\"]}", "string");
    check_fault("{\"tokens\":\"a\",\"tokens\":\"b\"}", "twice");
    check_fault("{\"tokens\":\"a\",\"t\\u006fkens\":\"b\"}", "twice");
}

static void what_is_no_json_is_refused(void)
{
    static const char *const texts[] = {
        "{", "{\"", "{\"tokens", "{\"tokens\"", "{\"tokens\":", "{\"tokens\":\"", "{\"tokens\":\"k\"", "{\"tokens\":\"k\",",
        "{\"tokens\":\"k\",}", "{\"tokens\":\"k\"}}", "{\"tokens\":\"k\"} x", "{\"tokens\" \"k\"}", "{tokens:\"k\"}",
        "{\"tokens\":\"\\x\"}", "{\"tokens\":\"\\u12g4\"}", "{\"tokens\":\"\\u12", "{\"tokens\":\"\\", "{\"tokens\":\"a\nb\"}",
        "{\"a\":01,\"tokens\":\"k\"}", "{\"a\":+1,\"tokens\":\"k\"}", "{\"a\":1.,\"tokens\":\"k\"}", "{\"a\":.5,\"tokens\":\"k\"}",
        "{\"a\":1e,\"tokens\":\"k\"}", "{\"a\":-,\"tokens\":\"k\"}", "{\"a\":nul,\"tokens\":\"k\"}", "{\"a\":NaN,\"tokens\":\"k\"}",
        "{\"a\":[1,],\"tokens\":\"k\"}", "{\"a\":[1 2],\"tokens\":\"k\"}", "{\"a\":[1},\"tokens\":\"k\"}", "{\"a\":{1:2},\"tokens\":\"k\"}",
        "{\"a\":{\"b\"},\"tokens\":\"k\"}", "{\"a\":,\"tokens\":\"k\"}", "{,\"tokens\":\"k\"}", "{\"a\":1 \"tokens\":\"k\"}",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) check_fault(texts[i], "valid JSON");
    check_fault("", "no JSON object");
    check_fault("[\"tokens\"]", "no JSON object");
    check_fault("\"tokens\"", "no JSON object");
    check_fault("{\"tokens\":\"\\ud800\"}", "surrogate");
    check_fault("{\"tokens\":\"\\ud800\\n\"}", "surrogate");
    check_fault("{\"tokens\":\"\\ud800\\ud800\"}", "surrogate");
    check_fault("{\"tokens\":\"\\udc00\"}", "surrogate");
}

static void nesting_has_a_limit(void)
{
    for (int depth = JSON_MAX_DEPTH - 1; depth <= JSON_MAX_DEPTH + 1; depth++) {
        char text[1024] = "{\"a\":";
        for (int i = 0; i < depth; i++) strcat(text, i % 2 ? "[" : "{\"x\":");
        strcat(text, "1");
        for (int i = depth - 1; i >= 0; i--) strcat(text, i % 2 ? "]" : "}");
        strcat(text, ",\"tokens\":\"k\"}");
        if (depth <= JSON_MAX_DEPTH) VALUE(text, "k");
        else check_fault(text, "deep");
    }
    size_t n = 1 << 20;
    char *hostile = malloc(n), *out = malloc(n);
    size_t len;
    memset(hostile, '[', n);
    memcpy(hostile, "{\"a\":", 5);
    CHECK(json_string_field(hostile, n, "tokens", 6, out, &len) != NULL);
    free(hostile);
    free(out);
}

/* Every text cut short and with every byte changed: a sanitizer watches. */
static void damaged_texts_do_no_harm(void)
{
    static const char text[] = "{\"a\":[1.5e3,{\"b\":\"\\uD83D\\ude00\"},null],\"tokens\":\"x\\u20acy\\n\",\"z\":{\"q\":[]}}";
    char out[sizeof text], changed[sizeof text];
    size_t len;
    for (size_t i = 0; i < sizeof text - 1; i++) CHECK(read_field(text, i, "tokens", out, &len) != NULL);
    for (size_t i = 0; i < sizeof text - 1; i++)
        for (int c = 0; c < 256; c++) {
            memcpy(changed, text, sizeof text);
            changed[i] = (char)c;
            (void)read_field(changed, sizeof text - 1, "tokens", out, &len);
        }
}

int main(void)
{
    RUN(the_field_is_found_among_others);
    RUN(every_kind_of_value_is_skipped);
    RUN(escapes_are_decoded_in_values_and_names);
    RUN(what_is_not_there_or_no_string_is_told);
    RUN(what_is_no_json_is_refused);
    RUN(nesting_has_a_limit);
    RUN(damaged_texts_do_no_harm);
    return check_result();
}
