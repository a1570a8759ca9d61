/* Error codes and their formatting. Pure functions, any thread. */
#include "error.h"

#include <stdarg.h>
#include <stdio.h>

int infer_fail(struct infer_error *err, enum infer_code code, const char *fmt, ...)
{
    if (!err) return -1;
    err->code = code;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->message, sizeof err->message, fmt, ap);
    va_end(ap);
    /* names from files and clients end up in messages; a reply is one line */
    for (char *c = err->message; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f) *c = '?';
    return -1;
}

const char *infer_code_name(enum infer_code code)
{
    switch (code) {
    case INFER_OK: return "OK";
    case INFER_ERR: return "ERR";
    case INFER_BADTOKENS: return "BADTOKENS";
    case INFER_CONTEXT: return "CONTEXT";
    case INFER_BUSY: return "BUSY";
    case INFER_NOMODEL: return "NOMODEL";
    case INFER_CANCELLED: return "CANCELLED";
    }
    return "ERR";
}
