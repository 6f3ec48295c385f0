/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sentences are made where the error is found, in a buffer of the caller's: nothing here can fail, or need memory. */
#include "base/error.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int error_set(struct error *err, int code, const char *format, ...)
{
    assert(code > 0);
    if (err) {
        va_list args;
        va_start(args, format);
        vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
        err->code = code;
    }
    return -code;
}

int error_prefix(struct error *err, const char *format, ...)
{
    char said[LIMIT_ERROR_BYTES];
    memcpy(said, err->text, sizeof said);
    va_list args;
    va_start(args, format);
    int n = vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    if (n >= 0 && (size_t)n < sizeof err->text)
        snprintf(err->text + n, sizeof err->text - (size_t)n, ": %s", said);
    return -err->code;
}

const char *error_name(int code)
{
    const char *name = strerrordesc_np(code < 0 ? -code : code);
    return name ? name : "unknown error";
}
