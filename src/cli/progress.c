/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One line on a terminal, drawn again in its own place and wiped at the end; or a JSON object now and then. Nothing else is
 * ever written to stdout or stderr from here, and an interrupted command leaves no half line.
 */
#include "cli/progress.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "base/name.h"

#define BAR_CELLS 24

void progress_begin(struct progress *progress, bool json, const char *point, const char *disk, uint64_t now_ns)
{
    *progress = (struct progress){.json = json,
                                  .bar = !json && isatty(STDERR_FILENO),
                                  .point = point,
                                  .disk = disk,
                                  .started_ns = now_ns,
                                  .last_ns = now_ns};
}

/* The rate of the last moment counts a fifth: it neither jumps nor lags for long. */
static void update_rate(struct progress *progress, uint64_t now_ns, uint64_t done_bytes)
{
    uint64_t passed_ns = now_ns - progress->last_ns;
    if (passed_ns == 0)
        return;
    double rate = (double)(done_bytes - progress->last_bytes) * (double)NS_PER_S / (double)passed_ns;
    progress->rate = progress->last_bytes == 0 ? rate : progress->rate * 0.8 + rate * 0.2;
    progress->last_ns = now_ns;
    progress->last_bytes = done_bytes;
}

static void show_json(const struct progress *progress, uint64_t done_bytes, uint64_t total_bytes, uint64_t data_bytes,
                      double left_s)
{
    json_t *line = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I}", "event", "progress", "disk", progress->disk, "done",
                             (json_int_t)done_bytes, "total", (json_int_t)total_bytes, "data", (json_int_t)data_bytes,
                             "rate", (json_int_t)progress->rate);
    if (line && progress->point)
        json_object_set_new(line, "point", json_string(progress->point));
    if (line && left_s >= 0)
        json_object_set_new(line, "eta", json_integer((json_int_t)left_s));
    json_dumpf(line, stdout, JSON_COMPACT);
    putchar('\n');
    fflush(stdout);
    json_decref(line);
}

static void show_bar(const struct progress *progress, uint64_t done_bytes, uint64_t total_bytes, double left_s)
{
    char bar[BAR_CELLS + 1], done[16], total[16], rate[16], left[32] = "";
    double part = total_bytes ? (double)done_bytes / (double)total_bytes : 1;
    unsigned full = (unsigned)(part * BAR_CELLS);
    memset(bar, ' ', BAR_CELLS);
    memset(bar, '#', full);
    bar[BAR_CELLS] = '\0';
    if (left_s >= 0 && left_s < 360000)
        snprintf(left, sizeof left, "%u:%02u:%02u left", (unsigned)left_s / 3600, (unsigned)left_s / 60 % 60,
                 (unsigned)left_s % 60);
    fprintf(stderr, "\r%-12s %3.0f%% [%s] %s of %s, %s/s  %s\033[K", progress->disk, part * 100, bar,
            size_format(done, done_bytes), size_format(total, total_bytes), size_format(rate, (uint64_t)progress->rate),
            left);
    fflush(stderr);
}

void progress_show(struct progress *progress, uint64_t now_ns, uint64_t done_bytes, uint64_t total_bytes,
                   uint64_t data_bytes)
{
    bool last = done_bytes == total_bytes;
    update_rate(progress, now_ns, done_bytes);
    double left_s = progress->rate > 0 ? (double)(total_bytes - done_bytes) / progress->rate : -1;
    if (progress->json && (last || now_ns - progress->shown_ns >= PROGRESS_JSON_NS)) {
        progress->shown_ns = now_ns;
        show_json(progress, done_bytes, total_bytes, data_bytes, left_s);
    }
    if (progress->bar)
        show_bar(progress, done_bytes, total_bytes, left_s);
}

void progress_end(struct progress *progress)
{
    if (progress->bar)
        fprintf(stderr, "\r\033[K");
}
