/* The models and the runtime: see registry.h. Owns the entries, their engines and the runtime. */
#include "registry.h"

#include "config.h"
#include "kernels.h"
#include "model_path.h"
#include "platform.h"
#include "task.h"

#include <ctype.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed; /* a use was let go, or stopping */
    struct model_entry *models;
    struct runtime *runtime; /* from the first load on */
    bool stopping;
    pthread_mutex_t runtime_lock; /* held while the runtime is created or resized; taken before `lock` */
} registry = {.lock = PTHREAD_MUTEX_INITIALIZER,
              .changed = PTHREAD_COND_INITIALIZER,
              .runtime_lock = PTHREAD_MUTEX_INITIALIZER};

static void lock(void)
{
    pthread_mutex_lock(&registry.lock);
}

static void unlock(void)
{
    pthread_mutex_unlock(&registry.lock);
}

const char *model_state_name(enum model_state s)
{
    switch (s) {
    case MODEL_LOADING: return "loading";
    case MODEL_READY: return "ready";
    case MODEL_UNLOADING: return "unloading";
    }
    return "?";
}

/* ---- the list (locked by the caller) ---- */

static struct model_entry *find(const char *name, size_t len)
{
    for (struct model_entry *m = registry.models; m; m = m->next)
        if (strlen(m->name) == len && memcmp(m->name, name, len) == 0) return m;
    return NULL;
}

static void take_off(struct model_entry *m)
{
    struct model_entry **p = &registry.models;
    while (*p != m) p = &(*p)->next;
    *p = m->next;
    free(m->path);
    free(m);
}

static struct model_entry *find_any(const char *name, size_t len, struct reply_error *err)
{
    struct model_entry *m = find(name, len);
    if (!m)
        reply_fail(err, "NOMODEL", "no model '%s' is loaded: load it with INFER.MODEL LOAD", quote(name, len).text);
    return m;
}

static struct model_entry *find_ready(const char *name, size_t len, struct reply_error *err)
{
    struct model_entry *m = find_any(name, len, err);
    if (!m || m->state == MODEL_READY) return m;
    reply_fail(err, "NOMODEL", "model '%s' is not ready: it is %s", m->name, model_state_name(m->state));
    return NULL;
}

/* ---- loading ---- */

/* Names go into INFO fields and error lines: letters, digits and . _ - only. */
static bool is_name(const char *name, size_t len)
{
    if (len == 0 || len > MODEL_NAME_MAX) return false;
    for (size_t i = 0; i < len; i++)
        if (!isalnum((unsigned char)name[i]) && !memchr("._-", name[i], 3)) return false;
    return true;
}

struct model_entry *registry_begin_load(const char *name, size_t len, struct reply_error *err)
{
    if (!is_name(name, len)) {
        reply_fail(err, "ERR", "'%s' is no model name: use 1 to %d letters, digits and . _ -", quote(name, len).text,
                   MODEL_NAME_MAX);
        return NULL;
    }
    lock();
    struct model_entry *m = find(name, len);
    if (m) {
        reply_fail(err, "ERR", "there is a model '%s' already (%s): INFER.MODEL UNLOAD it first", m->name,
                   model_state_name(m->state));
        unlock();
        return NULL;
    }
    m = calloc(1, sizeof *m);
    if (m) {
        memcpy(m->name, name, len);
        m->state = MODEL_LOADING;
        struct model_entry **end = &registry.models;
        while (*end) end = &(*end)->next;
        *end = m;
    } else {
        reply_fail(err, "ERR", "out of memory");
    }
    unlock();
    return m;
}

/* With runtime_lock. */
static void apply_threads(void)
{
    struct infer_error err;
    int threads = config.threads;
    if (runtime_set_threads(registry.runtime, threads, &err) < 0)
        RedisModule_Log(NULL, "warning", "infer.threads %d could not be applied: %s", threads, err.message);
}

/* Loads are the only ones to create the runtime, and it lives until registry_stop. */
static int need_runtime(const struct kernels *kernels, struct infer_error *err)
{
    pthread_mutex_lock(&registry.runtime_lock);
    if (!registry.runtime) {
        int threads = config.threads;
        struct runtime *rt = runtime_create(threads, kernels->scratch_bytes, err);
        lock();
        registry.runtime = rt;
        unlock();
        if (rt && config.threads != threads) apply_threads(); /* whoever set it meanwhile saw no runtime */
    }
    bool ok = registry.runtime != NULL;
    pthread_mutex_unlock(&registry.runtime_lock);
    return ok ? 0 : -1;
}

int registry_finish_load(struct model_entry *m, const char *model_dir, const char *path,
                         const struct engine_config *c, struct infer_error *err)
{
    char resolved[PATH_MAX];
    struct engine *e = NULL;
    if (model_path_resolve(model_dir, path, resolved, err) == 0 && need_runtime(c->kernels, err) == 0)
        e = engine_load(resolved, c, err);
    char *kept = e ? strdup(resolved) : NULL;

    /* Not under the lock: the conductor may be in a step. */
    if (e) runtime_add(registry.runtime, e);
    lock();
    bool usable = kept && !registry.stopping;
    if (usable) {
        m->engine = e;
        m->path = kept;
        m->state = MODEL_READY;
    } else {
        take_off(m);
    }
    unlock();
    if (e && !usable) {
        runtime_remove(registry.runtime, e);
        e->ops->free(e);
        infer_fail(err, INFER_ERR, kept ? "the server is shutting down" : "out of memory");
        free(kept);
    }
    return usable ? 0 : -1;
}

void registry_abandon_load(struct model_entry *m)
{
    lock();
    take_off(m);
    unlock();
}

/* ---- unloading ---- */

struct model_entry *registry_begin_unload(const char *name, size_t len, struct reply_error *err)
{
    lock();
    struct model_entry *m = find_ready(name, len, err);
    if (m) m->state = MODEL_UNLOADING;
    unlock();
    return m;
}

void registry_finish_unload(struct model_entry *m)
{
    runtime_remove(registry.runtime, m->engine);
    lock();
    /* Finished requests still wait for the main thread to answer their clients and let
     * the model go. A main thread that shuts the server down does not come to that any more. */
    while (m->uses > 0 && !registry.stopping) pthread_cond_wait(&registry.changed, &registry.lock);
    struct engine *unused = m->uses == 0 ? m->engine : NULL;
    unlock();
    if (!unused) return;
    unused->ops->free(unused);
    lock();
    take_off(m);
    unlock();
}

void registry_abandon_unload(struct model_entry *m)
{
    lock();
    m->state = MODEL_READY;
    unlock();
}

/* ---- using ---- */

struct model_entry *registry_acquire(const char *name, size_t len, struct reply_error *err)
{
    lock();
    struct model_entry *m = find_ready(name, len, err);
    if (m) m->uses++;
    unlock();
    return m;
}

void registry_release(struct model_entry *m)
{
    lock();
    m->uses--;
    pthread_cond_broadcast(&registry.changed);
    unlock();
}

int registry_each(void (*fn)(const struct model_entry *m, void *arg), void *arg)
{
    int n = 0;
    lock();
    for (struct model_entry *m = registry.models; m; m = m->next, n++) fn(m, arg);
    unlock();
    return n;
}

int registry_show(const char *name, size_t len, void (*fn)(const struct model_entry *m, void *arg), void *arg,
                  struct reply_error *err)
{
    lock();
    struct model_entry *m = find_any(name, len, err);
    if (m) fn(m, arg);
    unlock();
    return m ? 0 : -1;
}

/* ---- threads ---- */

/* Several may run when the setting changes quickly: whichever is last to get
 * the lock applies the newest value. */
static void run_resize(struct task *t)
{
    (void)t;
    pthread_mutex_lock(&registry.runtime_lock);
    apply_threads();
    pthread_mutex_unlock(&registry.runtime_lock);
}

static void free_resize(struct task *t)
{
    free(t);
}

void registry_apply_threads(RedisModuleCtx *ctx)
{
    lock();
    bool running = registry.runtime != NULL;
    unlock();
    if (!running) return;
    struct task *t = calloc(1, sizeof *t);
    struct reply_error err = {.line = "ERR out of memory"};
    if (t) {
        t->run = run_resize;
        t->free = free_resize;
        if (task_start(ctx, t, false, &err) == 0) return;
        free(t);
    }
    RedisModule_Log(ctx, "warning", "infer.threads %d could not be applied: %s", config.threads, err.line);
}

int registry_threads(void)
{
    lock();
    int n = registry.runtime ? runtime_threads(registry.runtime) : 0;
    unlock();
    return n;
}

int registry_threads_now(void)
{
    lock();
    int n = registry.runtime ? runtime_threads_now(registry.runtime) : 0;
    unlock();
    return n;
}

/* ---- the beginning and the end ---- */

void registry_start(void)
{
    registry.stopping = false; /* as MODULE UNLOAD left it where the library stayed in memory (musl) */
}

void registry_stop(void)
{
    lock();
    registry.stopping = true;
    pthread_cond_broadcast(&registry.changed);
    unlock();
    task_join_all(); /* from here on this thread is alone with the conductor */

    for (struct model_entry *m = registry.models; m; m = m->next)
        if (m->state == MODEL_READY) runtime_remove(registry.runtime, m->engine);
    if (registry.runtime) runtime_free(registry.runtime);
    registry.runtime = NULL;

    for (struct model_entry *m = registry.models, *next; m; m = next) {
        next = m->next;
        if (m->uses > 0) continue; /* by a request whose client waits: no reply will be built any more */
        m->engine->ops->free(m->engine);
        take_off(m);
    }
}
