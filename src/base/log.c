/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A line is one write, so that lines of several threads stay whole. Nothing is kept back for a crash to lose. */
#include "base/log.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* $JOURNAL_STREAM is inherited by everybody whom a service starts; it holds "device:inode" of what leads to the journal. */
static bool stderr_is_journal(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    uintmax_t device, inode;
    struct stat st;
    return stream && sscanf(stream, "%ju:%ju", &device, &inode) == 2 && fstat(STDERR_FILENO, &st) == 0 &&
           st.st_dev == device && st.st_ino == inode;
}

/* One write per line, so that lines of several threads stay whole. */
static void log_line(int priority, const char *format, va_list args)
{
    char text[1024];
    vsnprintf(text, sizeof text, format, args);
    if (stderr_is_journal())
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
