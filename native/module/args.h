/* Reading command arguments: one parser for the options of every command.
 *
 * A command describes its options in a table; the parser fills the command's own
 * structure and refuses, by name and value, whatever is unknown, repeated,
 * malformed, out of range or cut short. Defaults are what the structure held before.
 *
 * The same tables and the same walk answer which arguments are keys, so that
 * what Redis checks against a user's ACL is what the command uses.
 *
 * Values that are strings point into the arguments and live as long as the command
 * function runs. Main thread. */
#ifndef REDIS_INFER_ARGS_H
#define REDIS_INFER_ARGS_H

#include <stdbool.h>

#include "reply.h"

struct arg_string { /* one argument; data NULL: not given */
    const char *data;
    size_t len;
    int pos; /* in argv */
};

struct arg_strings { /* n consecutive arguments */
    RedisModuleString **items;
    int n;
};

enum option_type {
    OPTION_FLAG,   /* bool */
    OPTION_INT,    /* int, in [min, max] */
    OPTION_BYTES,  /* long long, in [min, max] */
    OPTION_UINT64, /* uint64_t, any */
    OPTION_FLOAT,  /* float, in [min, max] */
    OPTION_STRING, /* struct arg_string */
    OPTION_TEXTS,  /* count in [min, max], then so many non-empty arguments: struct arg_strings */
};

struct option {
    const char *name; /* upper case */
    enum option_type type;
    size_t offset;    /* of the value in the command's structure */
    double min, max;
};

struct option_set { /* options, and the structure that takes their values */
    const struct option *table; /* ended by a NULL name; at most 64 */
    void *values;
    uint64_t given;             /* out: a bit per entry of the table that was present */
};

/* Reads argv[from..argc) by the tables of all sets, which share no name. -1 and *err on the
 * first fault; what stood before it has been stored. */
int args_options(struct option_set *sets, int n_sets, RedisModuleString **argv, int argc, int from,
                 struct reply_error *err);

/* The beginning that commands with a prompt share: model numkeys key [key ...] */
struct arg_prompt {
    struct arg_string model;
    RedisModuleString **keys;
    int n_keys, first_key; /* first_key: position in argv */
    int next;              /* position of the first option */
};
int args_prompt(RedisModuleString **argv, int argc, struct arg_prompt *p, struct reply_error *err);

struct arg_string args_string(RedisModuleString **argv, int pos);

#endif
