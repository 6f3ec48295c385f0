/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* One write per line, so that lines of several threads stay whole. */
static void log_line(int priority, const char *format, va_list args)
{
    char text[1024];
    vsnprintf(text, sizeof text, format, args);
    if (getenv("JOURNAL_STREAM"))
        fprintf(stderr, "<%d>%s\n", priority, text);
    else
        fprintf(stderr, "fleeced: %s\n", text);
}

#define LOG_FUNCTION(name, priority)      \
    void name(const char *format, ...)    \
    {                                     \
        va_list args;                     \
        va_start(args, format);           \
        log_line(priority, format, args); \
        va_end(args);                     \
    }

LOG_FUNCTION(log_error, 3)
LOG_FUNCTION(log_warning, 4)
LOG_FUNCTION(log_info, 6)
