/* Confinement of model files: see model_path.h. */
#include "model_path.h"

#include "reply.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static bool has_parent_component(const char *path)
{
    while (*path) {
        size_t n = strcspn(path, "/");
        if (n == 2 && path[0] == '.' && path[1] == '.') return true;
        path += n;
        path += *path == '/';
    }
    return false;
}

static bool is_inside(const char *path, const char *dir)
{
    size_t n = strlen(dir);
    while (n > 0 && dir[n - 1] == '/') n--; /* "/" holds everything */
    return strncmp(path, dir, n) == 0 && path[n] == '/';
}

int model_path_resolve(const char *dir, const char *path, char resolved[PATH_MAX], struct infer_error *err)
{
    struct quoted name = quote(path, strlen(path));
    char real_dir[PATH_MAX], joined[PATH_MAX];
    if (!*dir)
        return infer_fail(err, INFER_ERR,
                          "infer.model-dir is not set, so no model can be loaded: set it in redis.conf or on the "
                          "command line of the server");
    if (!realpath(dir, real_dir))
        return infer_fail(err, INFER_ERR, "infer.model-dir '%s': %s", quote(dir, strlen(dir)).text, strerror(errno));
    if (has_parent_component(path))
        return infer_fail(err, INFER_ERR, "path '%s' has a '..': give a path inside infer.model-dir", name.text);

    if (*path == '/') {
        if (!is_inside(path, dir) && !is_inside(path, real_dir))
            return infer_fail(err, INFER_ERR, "path '%s' is outside infer.model-dir", name.text);
        if (snprintf(joined, sizeof joined, "%s", path) >= PATH_MAX) errno = ENAMETOOLONG;
        else errno = 0;
    } else {
        if (snprintf(joined, sizeof joined, "%s/%s", real_dir, path) >= PATH_MAX) errno = ENAMETOOLONG;
        else errno = 0;
    }
    if (errno || !realpath(joined, resolved))
        return infer_fail(err, INFER_ERR, "model file '%s': %s", name.text, strerror(errno));
    if (!is_inside(resolved, real_dir) && strcmp(resolved, real_dir) != 0)
        return infer_fail(err, INFER_ERR, "path '%s' leads outside infer.model-dir through a symbolic link",
                          name.text);

    struct stat st;
    if (stat(resolved, &st) < 0)
        return infer_fail(err, INFER_ERR, "model file '%s': %s", name.text, strerror(errno));
    if (!S_ISREG(st.st_mode)) return infer_fail(err, INFER_ERR, "model file '%s' is no regular file", name.text);
    return 0;
}
