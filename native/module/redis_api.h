/* The part of Redis' module interface (API version 1) that this module uses.
 *
 * Redis hands a module no symbols to link against: each function is asked for by
 * name when the module is loaded, and lands in a pointer named like it. Types
 * whose inside is Redis' own stay opaque; the few structures that both sides
 * read are laid out here as Redis 7.0 to 8.x expect them.
 *
 * redis_api.c owns the pointers. They are set once by redis_api_init, on the main
 * thread and before any other thread exists, and are only read afterwards.
 *
 * Which functions a thread without Redis' lock may call: Alloc and Free,
 * UnblockClient, EventLoopAddOneShot, and Log with a NULL context. Nothing else: no thread of ours takes that lock. */
#ifndef REDIS_INFER_REDIS_API_H
#define REDIS_INFER_REDIS_API_H

#include <stddef.h>
#include <stdint.h>

typedef struct RedisModuleCtx RedisModuleCtx;
typedef struct RedisModuleKey RedisModuleKey;
typedef struct RedisModuleString RedisModuleString;
typedef struct RedisModuleCommand RedisModuleCommand;
typedef struct RedisModuleCallReply RedisModuleCallReply;
typedef struct RedisModuleBlockedClient RedisModuleBlockedClient;
typedef struct RedisModuleInfoCtx RedisModuleInfoCtx;
typedef struct RedisModuleUser RedisModuleUser;

enum { REDISMODULE_OK = 0, REDISMODULE_ERR = 1 };
enum { REDISMODULE_APIVER_1 = 1 };

enum { /* OpenKey, StringDMA */
    REDISMODULE_READ = 1,
    REDISMODULE_OPEN_KEY_NOTOUCH = 1 << 16,  /* LRU and LFU stay; this and the next: 7.2, ignored before */
    REDISMODULE_OPEN_KEY_NONOTIFY = 1 << 17, /* a miss is no event */
    REDISMODULE_OPEN_KEY_NOSTATS = 1 << 18,  /* neither hit nor miss */
    REDISMODULE_OPEN_KEY_NOEXPIRE = 1 << 19, /* a key that has expired is missing, but is not deleted now */
};

enum { REDISMODULE_NO_EXPIRE = -1 }; /* GetExpire */

enum { /* KeyType */
    REDISMODULE_KEYTYPE_EMPTY,
    REDISMODULE_KEYTYPE_STRING,
    REDISMODULE_KEYTYPE_LIST,
    REDISMODULE_KEYTYPE_HASH,
    REDISMODULE_KEYTYPE_SET,
    REDISMODULE_KEYTYPE_ZSET,
    REDISMODULE_KEYTYPE_MODULE,
    REDISMODULE_KEYTYPE_STREAM,
};

enum { /* CallReplyType */
    REDISMODULE_REPLY_STRING,
    REDISMODULE_REPLY_ERROR,
    REDISMODULE_REPLY_INTEGER,
    REDISMODULE_REPLY_ARRAY,
};
enum { REDISMODULE_POSTPONED_LEN = -1 };  /* ReplyWithArray, with ReplySetArrayLength after the elements */
enum { REDISMODULE_ACL_LOG_KEY = 2 };     /* ACLAddLogEntry */

enum { /* GetContextFlags */
    REDISMODULE_CTX_FLAGS_LUA = 1 << 0,
    REDISMODULE_CTX_FLAGS_SLAVE = 1 << 3,
    REDISMODULE_CTX_FLAGS_READONLY = 1 << 4,
    REDISMODULE_CTX_FLAGS_CLUSTER = 1 << 5,
    REDISMODULE_CTX_FLAGS_EVICT = 1 << 9, /* a full memory is made room in */
    REDISMODULE_CTX_FLAGS_OOM = 1 << 10,  /* also while keys are being evicted */
    REDISMODULE_CTX_FLAGS_DENY_BLOCKING = 1 << 21,
};

enum { /* Register*Config */
    REDISMODULE_CONFIG_DEFAULT = 0,
    REDISMODULE_CONFIG_IMMUTABLE = 1 << 0,
    REDISMODULE_CONFIG_MEMORY = 1 << 7,
};

/* ---- command descriptions (SetCommandInfo), version 1 ---- */

typedef enum {
    REDISMODULE_ARG_TYPE_STRING,
    REDISMODULE_ARG_TYPE_INTEGER,
    REDISMODULE_ARG_TYPE_DOUBLE,
    REDISMODULE_ARG_TYPE_KEY,
    REDISMODULE_ARG_TYPE_PATTERN,
    REDISMODULE_ARG_TYPE_UNIX_TIME,
    REDISMODULE_ARG_TYPE_PURE_TOKEN,
    REDISMODULE_ARG_TYPE_ONEOF,
    REDISMODULE_ARG_TYPE_BLOCK,
} RedisModuleCommandArgType;

enum {
    REDISMODULE_CMD_ARG_OPTIONAL = 1 << 0,
    REDISMODULE_CMD_ARG_MULTIPLE = 1 << 1,
};

typedef enum {
    REDISMODULE_KSPEC_BS_INVALID,
    REDISMODULE_KSPEC_BS_UNKNOWN,
    REDISMODULE_KSPEC_BS_INDEX,
    REDISMODULE_KSPEC_BS_KEYWORD,
} RedisModuleKeySpecBeginSearchType;

typedef enum {
    REDISMODULE_KSPEC_FK_OMITTED,
    REDISMODULE_KSPEC_FK_UNKNOWN,
    REDISMODULE_KSPEC_FK_RANGE,
    REDISMODULE_KSPEC_FK_KEYNUM,
} RedisModuleKeySpecFindKeysType;

enum { /* what a command does with a key */
    REDISMODULE_CMD_KEY_RO = 1 << 0,
    REDISMODULE_CMD_KEY_RW = 1 << 1,
    REDISMODULE_CMD_KEY_OW = 1 << 2,
    REDISMODULE_CMD_KEY_ACCESS = 1 << 4,
    REDISMODULE_CMD_KEY_UPDATE = 1 << 5,
    REDISMODULE_CMD_KEY_INCOMPLETE = 1 << 9,
};

typedef struct RedisModuleCommandArg {
    const char *name;
    RedisModuleCommandArgType type;
    int key_spec_index; /* of a KEY; -1 otherwise */
    const char *token;
    const char *summary;
    const char *since;
    int flags;
    const char *deprecated_since;
    struct RedisModuleCommandArg *subargs; /* ends with a zeroed element, as all these arrays do */
    const char *display_text;
} RedisModuleCommandArg;

typedef struct {
    const char *since;
    const char *changes;
} RedisModuleCommandHistoryEntry;

typedef struct {
    const char *notes;
    uint64_t flags;
    RedisModuleKeySpecBeginSearchType begin_search_type;
    union {
        struct {
            int pos;
        } index;
        struct {
            const char *keyword;
            int startfrom;
        } keyword;
    } bs;
    RedisModuleKeySpecFindKeysType find_keys_type;
    union {
        struct {
            int lastkey, keystep, limit;
        } range;
        struct {
            int keynumidx, firstkey, keystep;
        } keynum;
    } fk;
} RedisModuleCommandKeySpec;

typedef struct { /* sizes let Redis walk arrays of a module built with other versions of them */
    int version;
    size_t sizeof_historyentry, sizeof_keyspec, sizeof_arg;
} RedisModuleCommandInfoVersion;

typedef struct {
    const RedisModuleCommandInfoVersion *version;
    const char *summary, *complexity, *since;
    RedisModuleCommandHistoryEntry *history;
    const char *tips;
    int arity;
    RedisModuleCommandKeySpec *key_specs;
    RedisModuleCommandArg *args;
} RedisModuleCommandInfo;

/* ---- server events ---- */

typedef struct RedisModuleEvent {
    uint64_t id, dataver;
} RedisModuleEvent;

enum { REDISMODULE_EVENT_SHUTDOWN = 5, REDISMODULE_EVENT_CRON_LOOP = 8 };

/* ---- callbacks ---- */

typedef int (*RedisModuleCmdFunc)(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
typedef void (*RedisModuleFreePrivdataFunc)(RedisModuleCtx *ctx, void *privdata);
typedef void (*RedisModuleDisconnectFunc)(RedisModuleCtx *ctx, RedisModuleBlockedClient *bc);
typedef void (*RedisModuleEventCallback)(RedisModuleCtx *ctx, RedisModuleEvent event, uint64_t subevent, void *data);
typedef void (*RedisModuleEventLoopOneShotFunc)(void *user_data);
typedef uint64_t RedisModuleTimerID;
typedef void (*RedisModuleTimerProc)(RedisModuleCtx *ctx, void *data);
typedef void (*RedisModuleInfoFunc)(RedisModuleInfoCtx *ctx, int for_crash_report);
typedef RedisModuleString *(*RedisModuleConfigGetStringFunc)(const char *name, void *privdata);
typedef int (*RedisModuleConfigSetStringFunc)(const char *name, RedisModuleString *value, void *privdata,
                                              RedisModuleString **err);
typedef long long (*RedisModuleConfigGetNumericFunc)(const char *name, void *privdata);
typedef int (*RedisModuleConfigSetNumericFunc)(const char *name, long long value, void *privdata,
                                               RedisModuleString **err);
typedef int (*RedisModuleConfigGetBoolFunc)(const char *name, void *privdata);
typedef int (*RedisModuleConfigSetBoolFunc)(const char *name, int value, void *privdata, RedisModuleString **err);
typedef int (*RedisModuleConfigApplyFunc)(RedisModuleCtx *ctx, void *privdata, RedisModuleString **err);

/* ---- functions: X(returns, name, (arguments)) ---- */

/* In every Redis since 7.0: the module does not load without them. */
#define REDIS_API_REQUIRED(X)                                                                                     \
    X(void, SetModuleAttribs, (RedisModuleCtx *, const char *name, int version, int api_version))                 \
    X(int, IsModuleNameBusy, (const char *name))                                                                  \
    X(void *, Alloc, (size_t))                                                                                    \
    X(void *, Calloc, (size_t, size_t))                                                                           \
    X(void, Free, (void *))                                                                                       \
    X(char *, Strdup, (const char *))                                                                             \
    X(void, Log, (RedisModuleCtx *, const char *level, const char *format, ...))                                  \
    X(int, GetContextFlags, (RedisModuleCtx *))                                                                   \
    X(unsigned long long, GetClientId, (RedisModuleCtx *))                                                        \
    X(void, GetRandomBytes, (unsigned char *, size_t))                                                            \
    /* commands */                                                                                                \
    X(int, CreateCommand, (RedisModuleCtx *, const char *name, RedisModuleCmdFunc, const char *flags,             \
                           int first_key, int last_key, int key_step))                                            \
    X(RedisModuleCommand *, GetCommand, (RedisModuleCtx *, const char *name))                                     \
    X(int, CreateSubcommand, (RedisModuleCommand *parent, const char *name, RedisModuleCmdFunc,                   \
                              const char *flags, int first_key, int last_key, int key_step))                      \
    X(int, SetCommandInfo, (RedisModuleCommand *, const RedisModuleCommandInfo *))                                \
    X(int, IsKeysPositionRequest, (RedisModuleCtx *))                                                             \
    X(void, KeyAtPosWithFlags, (RedisModuleCtx *, int pos, int flags))                                            \
    X(int, WrongArity, (RedisModuleCtx *))                                                                        \
    /* arguments */                                                                                               \
    X(const char *, StringPtrLen, (const RedisModuleString *, size_t *len))                                       \
    X(int, StringToLongLong, (const RedisModuleString *, long long *))                                            \
    X(int, StringToDouble, (const RedisModuleString *, double *))                                                 \
    X(RedisModuleString *, CreateString, (RedisModuleCtx *, const char *, size_t))                                \
    X(RedisModuleString *, CreateStringFromString, (RedisModuleCtx *, const RedisModuleString *))                 \
    X(void, FreeString, (RedisModuleCtx *, RedisModuleString *))                                                  \
    /* keys */                                                                                                    \
    X(RedisModuleKey *, OpenKey, (RedisModuleCtx *, RedisModuleString *name, int mode))                           \
    X(void, CloseKey, (RedisModuleKey *))                                                                         \
    X(int, KeyType, (RedisModuleKey *))                                                                           \
    X(long long, GetExpire, (RedisModuleKey *)) /* milliseconds left; REDISMODULE_NO_EXPIRE */                    \
    X(char *, StringDMA, (RedisModuleKey *, size_t *len, int mode))                                               \
    X(RedisModuleCallReply *, Call, (RedisModuleCtx *, const char *command, const char *format, ...))             \
    X(int, CallReplyType, (RedisModuleCallReply *))                                                               \
    X(const char *, CallReplyStringPtr, (RedisModuleCallReply *, size_t *len))                                    \
    X(size_t, CallReplyLength, (RedisModuleCallReply *))                                                          \
    X(RedisModuleCallReply *, CallReplyArrayElement, (RedisModuleCallReply *, size_t index))                      \
    X(void, FreeCallReply, (RedisModuleCallReply *))                                                              \
    X(int, AvoidReplicaTraffic, (void))                                                                           \
    /* users */                                                                                                   \
    X(RedisModuleString *, GetCurrentUserName, (RedisModuleCtx *)) /* not where the client has no user */         \
    X(RedisModuleUser *, GetModuleUserFromUserName, (RedisModuleString *name))                                    \
    X(int, FreeModuleUser, (RedisModuleUser *))                                                                   \
    X(int, ACLCheckCommandPermissions, (RedisModuleUser *, RedisModuleString **argv, int argc))                   \
    X(int, ACLAddLogEntry, (RedisModuleCtx *, RedisModuleUser *, RedisModuleString *object, int reason))          \
    /* replies */                                                                                                 \
    X(int, ReplyWithError, (RedisModuleCtx *, const char *))                                                      \
    X(int, ReplyWithSimpleString, (RedisModuleCtx *, const char *))                                               \
    X(int, ReplyWithLongLong, (RedisModuleCtx *, long long))                                                      \
    X(int, ReplyWithDouble, (RedisModuleCtx *, double))                                                           \
    X(int, ReplyWithCString, (RedisModuleCtx *, const char *))                                                    \
    X(int, ReplyWithStringBuffer, (RedisModuleCtx *, const char *, size_t))                                       \
    X(int, ReplyWithArray, (RedisModuleCtx *, long))                                                              \
    X(int, ReplyWithMap, (RedisModuleCtx *, long))                                                                \
    X(void, ReplySetArrayLength, (RedisModuleCtx *, long))                                                        \
    /* blocked clients */                                                                                         \
    X(RedisModuleBlockedClient *, BlockClient, (RedisModuleCtx *, RedisModuleCmdFunc reply,                       \
                                                RedisModuleCmdFunc timeout, RedisModuleFreePrivdataFunc,          \
                                                long long timeout_ms))                                            \
    X(int, UnblockClient, (RedisModuleBlockedClient *, void *privdata))                                           \
    X(int, AbortBlock, (RedisModuleBlockedClient *))                                                              \
    X(void *, GetBlockedClientPrivateData, (RedisModuleCtx *))                                                    \
    X(RedisModuleBlockedClient *, GetBlockedClientHandle, (RedisModuleCtx *))                                     \
    X(void, SetDisconnectCallback, (RedisModuleBlockedClient *, RedisModuleDisconnectFunc))                       \
    /* other threads */                                                                                           \
    X(RedisModuleCtx *, GetDetachedThreadSafeContext, (RedisModuleCtx *))                                         \
    X(void, FreeThreadSafeContext, (RedisModuleCtx *))                                                            \
    X(int, EventLoopAddOneShot, (RedisModuleEventLoopOneShotFunc, void *user_data))                               \
    X(RedisModuleTimerID, CreateTimer, (RedisModuleCtx *, long long period_ms, RedisModuleTimerProc, void *data)) \
    X(int, StopTimer, (RedisModuleCtx *, RedisModuleTimerID, void **data))                                        \
    X(int, GetSelectedDb, (RedisModuleCtx *))                                                                     \
    X(int, SelectDb, (RedisModuleCtx *, int db))                                                                  \
    /* configuration, INFO, events */                                                                             \
    X(int, RegisterBoolConfig, (RedisModuleCtx *, const char *name, int def, unsigned flags,                      \
                                RedisModuleConfigGetBoolFunc, RedisModuleConfigSetBoolFunc,                       \
                                RedisModuleConfigApplyFunc, void *privdata))                                      \
    X(int, RegisterNumericConfig, (RedisModuleCtx *, const char *name, long long def, unsigned flags,             \
                                   long long min, long long max, RedisModuleConfigGetNumericFunc,                 \
                                   RedisModuleConfigSetNumericFunc, RedisModuleConfigApplyFunc, void *privdata))  \
    X(int, RegisterStringConfig, (RedisModuleCtx *, const char *name, const char *def, unsigned flags,            \
                                  RedisModuleConfigGetStringFunc, RedisModuleConfigSetStringFunc,                 \
                                  RedisModuleConfigApplyFunc, void *privdata))                                    \
    X(int, LoadConfigs, (RedisModuleCtx *))                                                                       \
    X(void, LatencyAddSample, (const char *event, long long milliseconds))                                        \
    X(int, RegisterInfoFunc, (RedisModuleCtx *, RedisModuleInfoFunc))                                             \
    X(int, InfoAddSection, (RedisModuleInfoCtx *, const char *name))                                              \
    X(int, InfoBeginDictField, (RedisModuleInfoCtx *, const char *name))                                          \
    X(int, InfoEndDictField, (RedisModuleInfoCtx *))                                                              \
    X(int, InfoAddFieldCString, (RedisModuleInfoCtx *, const char *field, const char *value))                     \
    X(int, InfoAddFieldULongLong, (RedisModuleInfoCtx *, const char *field, unsigned long long value))            \
    X(int, SubscribeToServerEvent, (RedisModuleCtx *, RedisModuleEvent, RedisModuleEventCallback))

/* Newer ones: NULL where the server has none. */
#define REDIS_API_OPTIONAL(X)                                                                                     \
    X(int, SetCommandACLCategories, (RedisModuleCommand *, const char *categories)) /* 7.2 */                     \
    X(void, SetContextUser, (RedisModuleCtx *, const RedisModuleUser *))            /* 7.0.6 */                   \
    X(unsigned, ClusterKeySlot, (RedisModuleString *key))                           /* 7.4 */

#define REDIS_API_DECLARE(returns, name, args) extern returns(*RedisModule_##name) args;
REDIS_API_REQUIRED(REDIS_API_DECLARE)
REDIS_API_OPTIONAL(REDIS_API_DECLARE)
#undef REDIS_API_DECLARE

/* Looks every function up and introduces the module. REDISMODULE_ERR if the
 * server lacks a required function (*missing is its name then) or has a module
 * of that name (*missing is NULL). */
int redis_api_init(RedisModuleCtx *ctx, const char *module_name, int version, const char **missing);

#endif
