/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a daemon says to whoever runs it, which would be a line or more for each crash (linked with --wrap); with
 * FLEECE_SIM_LOG in the environment it is shown. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

void __wrap_log_info(const char *format, ...) __attribute__((format(printf, 1, 2)));
void __wrap_log_warning(const char *format, ...) __attribute__((format(printf, 1, 2)));
void __wrap_log_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void say(const char *format, va_list arguments) __attribute__((format(printf, 1, 0)));

static void say(const char *format, va_list arguments)
{
    if (!getenv("FLEECE_SIM_LOG"))
        return;
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
}

void __wrap_log_info(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say(format, arguments);
    va_end(arguments);
}

void __wrap_log_warning(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say(format, arguments);
    va_end(arguments);
}

void __wrap_log_error(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say(format, arguments);
    va_end(arguments);
}
