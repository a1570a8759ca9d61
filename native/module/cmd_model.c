/* INFER.MODEL LOAD name path [CONTEXT tokens] [KVMEMORY bytes]
 * INFER.MODEL UNLOAD name
 * INFER.MODEL LIST
 * INFER.MODEL INFO name
 *
 * LOAD and UNLOAD wait, so they run as tasks (task.h) with their client blocked;
 * everything else is the main thread's. A task owns copies of its arguments. */
#include "args.h"
#include "commands.h"
#include "config.h"
#include "job.h"
#include "registry.h"
#include "task.h"

#include <limits.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* ---- describing a model ---- */

/* A map; of a model that is not ready, name and state only. */
static void reply_model(RedisModuleCtx *ctx, const struct model_entry *m)
{
    if (m->state != MODEL_READY) {
        RedisModule_ReplyWithMap(ctx, 2);
        reply_field_text(ctx, "name", m->name);
        reply_field_text(ctx, "state", model_state_name(m->state));
        return;
    }
    const struct engine_info *info = &m->engine->info;
    struct engine_stats stats;
    m->engine->ops->get_stats(m->engine, &stats);
    RedisModule_ReplyWithMap(ctx, 23);
    reply_field_text(ctx, "name", m->name);
    reply_field_text(ctx, "state", model_state_name(m->state));
    reply_field_text(ctx, "path", m->path);
    reply_field_text(ctx, "architecture", info->architecture);
    reply_field_text(ctx, "title", info->title);
    reply_field_text(ctx, "quantization", info->quantization);
    reply_field_text(ctx, "kernels", info->kernels);
    reply_field_integer(ctx, "parameters", (long long)info->n_parameters);
    reply_field_integer(ctx, "weight_bytes", (long long)info->weight_bytes);
    reply_field_integer(ctx, "context", info->n_ctx);
    reply_field_integer(ctx, "trained_context", info->n_ctx_train);
    reply_field_integer(ctx, "vocabulary", info->n_vocab);
    reply_field_integer(ctx, "embedding_size", info->n_embd);
    reply_field_integer(ctx, "layers", info->n_layer);
    reply_field_integer(ctx, "heads", info->n_head);
    reply_field_integer(ctx, "kv_heads", info->n_head_kv);
    reply_field_integer(ctx, "kv_bytes", (long long)stats.kv.arena_bytes);
    reply_field_integer(ctx, "kv_pages", stats.kv.pages_total);
    reply_field_integer(ctx, "kv_pages_active", stats.kv.pages_active);
    reply_field_integer(ctx, "kv_pages_cached", stats.kv.pages_cached);
    reply_field_integer(ctx, "kv_page_tokens", KV_PAGE);
    reply_field_integer(ctx, "running", stats.running);
    reply_field_integer(ctx, "queued", stats.queued);
}

/* ---- LOAD ---- */

struct load_task {
    struct task task;
    struct model_entry *model; /* dead after a failed load */
    struct engine_config config;
    char *model_dir, *path, *name;
    struct infer_error error;
};

struct load_args {
    int context;
    long long kv_memory;
};

static const struct option load_options[] = {
    {"CONTEXT", OPTION_INT, offsetof(struct load_args, context), 1, INT_MAX},
    {"KVMEMORY", OPTION_BYTES, offsetof(struct load_args, kv_memory), 1, 1e15},
    {0},
};

static void run_load(struct task *t)
{
    struct load_task *l = (struct load_task *)t;
    l->error.code = INFER_OK;
    registry_finish_load(l->model, l->model_dir, l->path, &l->config, &l->error);
}

static int reply_load(RedisModuleCtx *ctx, struct task *t)
{
    struct load_task *l = (struct load_task *)t;
    if (l->error.code != INFER_OK) return reply_error_core(ctx, &l->error);
    struct reply_error err;
    struct model_entry *m = registry_acquire(l->name, strlen(l->name), &err);
    if (!m) return reply_error(ctx, &err); /* someone has unloaded it since */
    reply_model(ctx, m);
    registry_release(m);
    return REDISMODULE_OK;
}

static void free_load(struct task *t)
{
    struct load_task *l = (struct load_task *)t;
    if (l->model_dir) RedisModule_Free(l->model_dir);
    if (l->path) RedisModule_Free(l->path);
    if (l->name) RedisModule_Free(l->name);
    RedisModule_Free(l);
}

int cmd_model_load(RedisModuleCtx *ctx, RedisModuleString **argv, int argc)
{
    enum { NAME = 2, PATH = 3, OPTIONS = 4 };
    if (argc < OPTIONS) return RedisModule_WrongArity(ctx);
    struct reply_error err;
    struct load_args a = {.context = 0, .kv_memory = config.kv_memory};
    struct option_set set = {load_options, &a, 0};
    if (job_may_block(ctx, "INFER.MODEL LOAD", &err) < 0) return reply_error(ctx, &err);
    if (args_options(&set, 1, argv, argc, OPTIONS, &err) < 0) return reply_error(ctx, &err);
    struct arg_string name = args_string(argv, NAME), path = args_string(argv, PATH);
    if (path.len == 0 || strlen(path.data) != path.len) {
        reply_fail(&err, "ERR", "'%s' is no path", quote(path.data, path.len).text);
        return reply_error(ctx, &err);
    }

    struct model_entry *m = registry_begin_load(name.data, name.len, &err);
    if (!m) return reply_error(ctx, &err);
    struct load_task *l = RedisModule_Calloc(1, sizeof *l);
    l->task.run = run_load;
    l->task.reply = reply_load;
    l->task.free = free_load;
    l->model = m;
    l->config = (struct engine_config){
        .n_ctx = a.context,
        .kv_bytes = (size_t)a.kv_memory,
        .kernels = config.kernels,
        .limits = &config.limits,
    };
    l->model_dir = RedisModule_Strdup(config_model_dir());
    l->path = RedisModule_Strdup(path.data);
    l->name = RedisModule_Strdup(m->name);
    if (task_start(ctx, &l->task, true, &err) < 0) {
        registry_abandon_load(m);
        free_load(&l->task);
        return reply_error(ctx, &err);
    }
    return REDISMODULE_OK;
}

/* ---- UNLOAD ---- */

struct unload_task {
    struct task task;
    struct model_entry *model;
};

static void run_unload(struct task *t)
{
    registry_finish_unload(((struct unload_task *)t)->model);
}

static int reply_unload(RedisModuleCtx *ctx, struct task *t)
{
    (void)t;
    return RedisModule_ReplyWithSimpleString(ctx, "OK");
}

static void free_unload(struct task *t)
{
    RedisModule_Free(t);
}

int cmd_model_unload(RedisModuleCtx *ctx, RedisModuleString **argv, int argc)
{
    if (argc != 3) return RedisModule_WrongArity(ctx);
    struct reply_error err;
    if (job_may_block(ctx, "INFER.MODEL UNLOAD", &err) < 0) return reply_error(ctx, &err);
    struct arg_string name = args_string(argv, 2);
    struct model_entry *m = registry_begin_unload(name.data, name.len, &err);
    if (!m) return reply_error(ctx, &err);
    struct unload_task *u = RedisModule_Calloc(1, sizeof *u);
    u->task.run = run_unload;
    u->task.reply = reply_unload;
    u->task.free = free_unload;
    u->model = m;
    if (task_start(ctx, &u->task, true, &err) < 0) {
        registry_abandon_unload(m);
        free_unload(&u->task);
        return reply_error(ctx, &err);
    }
    job_model_leaves(m); /* m is there as long as a job uses it, and looked at no further than that */
    return REDISMODULE_OK;
}

/* ---- LIST, INFO ---- */

static void reply_entry(const struct model_entry *m, void *ctx)
{
    reply_model(ctx, m);
}

int cmd_model_list(RedisModuleCtx *ctx, RedisModuleString **argv, int argc)
{
    (void)argv;
    if (argc != 2) return RedisModule_WrongArity(ctx);
    RedisModule_ReplyWithArray(ctx, REDISMODULE_POSTPONED_LEN);
    RedisModule_ReplySetArrayLength(ctx, registry_each(reply_entry, ctx));
    return REDISMODULE_OK;
}

int cmd_model_info(RedisModuleCtx *ctx, RedisModuleString **argv, int argc)
{
    if (argc != 3) return RedisModule_WrongArity(ctx);
    struct reply_error err;
    struct arg_string name = args_string(argv, 2);
    if (registry_show(name.data, name.len, reply_entry, ctx, &err) < 0) return reply_error(ctx, &err);
    return REDISMODULE_OK;
}
