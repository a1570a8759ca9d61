/* The loaded models by name, and the runtime that all of them share.
 *
 * A model is loading, ready or unloading. Whoever works with a ready one holds a
 * use of it (registry_acquire, registry_release); unloading ends the engine's
 * requests and waits for the last use before the memory goes.
 *
 * Threads: begin_*, acquire, release, each, show and stop are the main thread's; finish_*
 * are called by a task (task.h), because they wait: for the disk, for a step of the engine,
 * for the main thread to let the last use go. One mutex guards the list; it is
 * never held across any of that. */
#ifndef REDIS_INFER_REGISTRY_H
#define REDIS_INFER_REGISTRY_H

#include "llm.h"
#include "reply.h"

enum { MODEL_NAME_MAX = 64 };

enum model_state { MODEL_LOADING, MODEL_READY, MODEL_UNLOADING };
const char *model_state_name(enum model_state s); /* "loading", "ready", "unloading" */

struct model_entry {
    char name[MODEL_NAME_MAX + 1];
    enum model_state state;
    struct engine *engine; /* while READY */
    char *path;            /* of its file, resolved; while READY */
    /* the registry's own */
    int uses;
    struct model_entry *next;
};

/* Reserves the name. NULL and *err if it is taken or no name. */
struct model_entry *registry_begin_load(const char *name, size_t len, struct reply_error *err);
/* Loads the file and makes the entry ready, or takes it off the list: then it is gone. */
int registry_finish_load(struct model_entry *m, const char *model_dir, const char *path,
                         const struct engine_config *c, struct infer_error *err);

/* Instead of finish_load, when no task could be started. Main thread. */
void registry_abandon_load(struct model_entry *m);

/* From here on nobody acquires it. NULL and *err (NOMODEL) if there is none that is ready. */
struct model_entry *registry_begin_unload(const char *name, size_t len, struct reply_error *err);
/* Ends its requests, frees it, and takes it off the list. */
void registry_finish_unload(struct model_entry *m);
/* Instead of finish_unload, when no task could be started: it is ready again. Main thread. */
void registry_abandon_unload(struct model_entry *m);

/* NULL and *err (NOMODEL) if there is no model of that name that is ready. */
struct model_entry *registry_acquire(const char *name, size_t len, struct reply_error *err);
void registry_release(struct model_entry *m);

/* Calls fn for each entry, in the order of loading, and returns their number. The list is locked meanwhile. */
int registry_each(void (*fn)(const struct model_entry *m, void *arg), void *arg);
/* Calls fn likewise for the entry of that name, whatever its state. -1 and *err (NOMODEL) if there is none. */
int registry_show(const char *name, size_t len, void (*fn)(const struct model_entry *m, void *arg), void *arg,
                  struct reply_error *err);

/* infer.threads has changed: gives the runtime, if there is one, so many threads between two steps. */
void registry_apply_threads(RedisModuleCtx *ctx);
/* 0: no model has been loaded yet. */
int registry_threads(void);
int registry_threads_now(void); /* those of the last step: see runtime_threads_now */

/* Before anything else. */
void registry_start(void);

/* The end: cancels everything, waits for every thread. Engines are freed if nothing of theirs
 * is in use (the module goes), or left to the end of the process (the server shuts down). */
void registry_stop(void);

#endif
