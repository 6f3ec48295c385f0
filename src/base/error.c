/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Sentences are made where the error is found, in a buffer of the caller's: nothing here can fail, or need memory. One that
 * is too long, for a path may have 4095 bytes, loses its middle: what it is about stands at the beginning, why at the end.
 */
#include "base/error.h"

#include <assert.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static bool inside_character(char byte)
{
    return ((unsigned char)byte & 0xc0) == 0x80;
}

/* Into text[LIMIT_ERROR_BYTES]. */
static void fit(char *text, const char *whole)
{
    static const char gap[] = "...";
    size_t length = strlen(whole), head = LIMIT_ERROR_BYTES / 2, tail;
    if (length < LIMIT_ERROR_BYTES) {
        memcpy(text, whole, length + 1);
        return;
    }
    tail = length - (LIMIT_ERROR_BYTES - head - sizeof gap);
    while (head > 0 && inside_character(whole[head]))
        head--;
    while (inside_character(whole[tail]))
        tail++;
    memcpy(text, whole, head);
    memcpy(text + head, gap, sizeof gap - 1);
    memcpy(text + head + sizeof gap - 1, whole + tail, length - tail + 1);
}

int error_set(struct error *err, int code, const char *format, ...)
{
    assert(code > 0);
    if (err) {
        char whole[LIMIT_ERROR_WHOLE_BYTES];
        va_list args;
        va_start(args, format);
        vsnprintf(whole, sizeof whole, format, args);
        va_end(args);
        fit(err->text, whole);
        err->code = code;
    }
    return -code;
}

int error_prefix(struct error *err, const char *format, ...)
{
    char whole[LIMIT_ERROR_WHOLE_BYTES];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(whole, sizeof whole - LIMIT_ERROR_BYTES - 2, format, args);
    va_end(args);
    if (n < 0)
        return -err->code;
    size_t used = strlen(whole);
    snprintf(whole + used, sizeof whole - used, ": %s", err->text);
    fit(err->text, whole);
    return -err->code;
}

const char *error_name(int code)
{
    const char *name = strerrordesc_np(code < 0 ? -code : code);
    return name ? name : "unknown error";
}
