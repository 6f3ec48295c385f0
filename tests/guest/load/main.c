// SPDX-License-Identifier: GPL-2.0-or-later
#include "load.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

void load_die(const char *format, ...)
{
    int error = errno;
    va_list arguments;
    va_start(arguments, format);
    fputs("guest_load: ", stderr);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, error ? ": %s\n" : "\n", strerror(error));
    _exit(1);
}

void load_say(const char *name, uint64_t n)
{
    char line[64];
    int length = snprintf(line, sizeof line, "%s %llu\n", name, (unsigned long long)n);
    if (write(STDOUT_FILENO, line, (size_t)length) != length)
        load_die("saying %s", name);
}

void load_pause(unsigned milliseconds)
{
    struct timespec pause = {.tv_sec = milliseconds / 1000, .tv_nsec = milliseconds % 1000 * 1000000L};
    nanosleep(&pause, NULL);
}

/* xorshift64* (Marsaglia 2003, Vigna 2016). */
uint64_t load_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1dULL;
}

void load_fill(uint64_t *buffer, size_t words, uint64_t seed)
{
    uint64_t state = seed * 0x9e3779b97f4a7c15ULL | 1;
    for (size_t i = 0; i < words; i++)
        buffer[i] = load_random(&state);
}

static uint64_t number(const char *text)
{
    char *end;
    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    if (errno || *end || end == text)
        load_die("not a number: %s", text);
    return value;
}

int main(int count, char **words)
{
    const char *what = count > 1 ? words[1] : "";
    if (strcmp(what, "files") == 0 && count == 5)
        load_files(words[2], words[3], (unsigned)number(words[4]));
    else if (strcmp(what, "check") == 0 && count == 4)
        load_check_files(words[2], number(words[3]));
    else if (strcmp(what, "ordered") == 0 && count == 5)
        load_ordered(words[2], words[3], words[4]);
    else if (strcmp(what, "blocks") == 0 && count == 5)
        load_blocks(words[2], words[3], (unsigned)number(words[4]));
    else
        load_die("guest_load files FOLDER NAME MILLISECONDS | check FOLDER LAST | ordered NAME DEVICE DEVICE | "
                 "blocks NAME DEVICE THREADS");
    return 0;
}
