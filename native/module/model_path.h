/* Which files may be loaded: regular files inside infer.model-dir, however the
 * path leads there. Any thread; may wait for the disk. */
#ifndef REDIS_INFER_MODEL_PATH_H
#define REDIS_INFER_MODEL_PATH_H

#include <limits.h>

#include "error.h"

/* Resolves `path` (absolute, or relative to `dir`) to the file's real path. -1
 * and *err if it has a `..`, leads outside `dir` (by itself or through a symbolic link), or is
 * no regular file. Tells nothing about files outside `dir`, not even whether they exist. */
int model_path_resolve(const char *dir, const char *path, char resolved[PATH_MAX], struct infer_error *err);

#endif
