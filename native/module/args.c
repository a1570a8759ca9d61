/* The option parser: see args.h. Owns nothing. Main thread. */
#include "args.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

struct arg_string args_string(RedisModuleString **argv, int pos)
{
    struct arg_string s = {.pos = pos};
    s.data = RedisModule_StringPtrLen(argv[pos], &s.len);
    return s;
}

static const struct option *find_option(struct option_set *sets, int n_sets, const struct arg_string *word,
                                        struct option_set **set)
{
    for (*set = sets; *set < sets + n_sets; ++*set)
        for (const struct option *o = (*set)->table; o->name; o++)
            if (strlen(o->name) == word->len && strncasecmp(o->name, word->data, word->len) == 0) return o;
    return NULL;
}

static int read_integer(const struct option *o, RedisModuleString *arg, long long *value, struct reply_error *err)
{
    if (RedisModule_StringToLongLong(arg, value) != REDISMODULE_OK || (double)*value < o->min ||
        (double)*value > o->max)
        return reply_fail(err, "ERR", "%s is '%s', not an integer from %.0f to %.0f", o->name,
                          quote_string(arg).text, o->min, o->max);
    return 0;
}

static int read_float(const struct option *o, RedisModuleString *arg, float *value, struct reply_error *err)
{
    double d;
    /* Written so that a NaN is out of range too. */
    if (RedisModule_StringToDouble(arg, &d) != REDISMODULE_OK || !(d >= o->min && d <= o->max))
        return reply_fail(err, "ERR", "%s is '%s', not a number from %g to %g", o->name, quote_string(arg).text,
                          o->min, o->max);
    *value = (float)d;
    return 0;
}

static int read_uint64(const struct option *o, RedisModuleString *arg, uint64_t *value, struct reply_error *err)
{
    size_t len;
    const char *s = RedisModule_StringPtrLen(arg, &len);
    char *end = NULL;
    errno = 0;
    /* strtoull would take signs and spaces. */
    bool digits = len > 0 && len <= 20 && s[0] >= '0' && s[0] <= '9';
    unsigned long long v = digits ? strtoull(s, &end, 10) : 0;
    if (!digits || errno || end != s + len)
        return reply_fail(err, "ERR", "%s is '%s', not an integer from 0 to 18446744073709551615", o->name,
                          quote_string(arg).text);
    *value = v;
    return 0;
}

static int read_texts(const struct option *o, RedisModuleString **argv, int argc, int *pos, struct arg_strings *texts,
                      struct reply_error *err)
{
    long long n;
    if (read_integer(o, argv[*pos], &n, err) < 0) return -1;
    if (n > argc - *pos - 1)
        return reply_fail(err, "ERR", "%s announces %lld texts, but %d arguments follow", o->name, n,
                          argc - *pos - 1);
    for (int i = 1; i <= n; i++)
        if (args_string(argv, *pos + i).len == 0)
            return reply_fail(err, "ERR", "text %d of %s is empty", i, o->name);
    *texts = (struct arg_strings){.items = argv + *pos + 1, .n = (int)n};
    *pos += (int)n;
    return 0;
}

int args_options(struct option_set *sets, int n_sets, RedisModuleString **argv, int argc, int from,
                 struct reply_error *err)
{
    for (int i = 0; i < n_sets; i++) sets[i].given = 0;
    for (int pos = from; pos < argc; pos++) {
        struct arg_string word = args_string(argv, pos);
        struct option_set *set;
        const struct option *o = find_option(sets, n_sets, &word, &set);
        if (!o)
            return reply_fail(err, "ERR", "unknown option '%s' (argument %d)", quote(word.data, word.len).text, pos);
        uint64_t bit = 1ull << (o - set->table);
        if (set->given & bit) return reply_fail(err, "ERR", "option %s is given twice", o->name);
        set->given |= bit;

        void *value = (char *)set->values + o->offset;
        if (o->type == OPTION_FLAG) {
            *(bool *)value = true;
            continue;
        }
        if (++pos == argc) return reply_fail(err, "ERR", "option %s lacks its value", o->name);
        long long integer;
        switch (o->type) {
        case OPTION_FLAG: break;
        case OPTION_INT:
            if (read_integer(o, argv[pos], &integer, err) < 0) return -1;
            *(int *)value = (int)integer;
            break;
        case OPTION_BYTES:
            if (read_integer(o, argv[pos], &integer, err) < 0) return -1;
            *(long long *)value = integer;
            break;
        case OPTION_UINT64:
            if (read_uint64(o, argv[pos], value, err) < 0) return -1;
            break;
        case OPTION_FLOAT:
            if (read_float(o, argv[pos], value, err) < 0) return -1;
            break;
        case OPTION_STRING: *(struct arg_string *)value = args_string(argv, pos); break;
        case OPTION_TEXTS:
            if (read_texts(o, argv, argc, &pos, value, err) < 0) return -1;
            break;
        }
    }
    return 0;
}

int args_prompt(RedisModuleString **argv, int argc, struct arg_prompt *p, struct reply_error *err)
{
    enum { MODEL = 1, NUMKEYS = 2, FIRST_KEY = 3 };
    long long n;
    int most = argc - FIRST_KEY;
    if (RedisModule_StringToLongLong(argv[NUMKEYS], &n) != REDISMODULE_OK || n < 0)
        return reply_fail(err, "ERR", "numkeys is '%s', not an integer from 0", quote_string(argv[NUMKEYS]).text);
    if (n > most) return reply_fail(err, "ERR", "numkeys is %lld, but %d arguments follow", n, most);
    *p = (struct arg_prompt){
        .model = args_string(argv, MODEL),
        .keys = argv + FIRST_KEY,
        .n_keys = (int)n,
        .first_key = FIRST_KEY,
        .next = FIRST_KEY + (int)n,
    };
    return 0;
}
