// SPDX-License-Identifier: GPL-2.0-or-later
/* stamp: writes stamped records to live disks, and proves from an image which of them it holds; see usage below. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/name.h"
#include "check.h"
#include "image.h"
#include "sector.h"
#include "writer.h"

static const char usage_text[] =
    "stamp write URI... --log FILE [options]       write stamped records to these NBD exports, each writer for "
    "himself\n"
    "stamp dependent URI URI... --log FILE [...]   record n to the first export, when acknowledged to the next one\n"
    "  --seconds N         until then (0, the default: until SIGINT or SIGTERM)\n"
    "  --writers W         writers per disk, each with its own connection and slots (1)\n"
    "  --queue D           records in flight per writer (1)\n"
    "  --region OFF:LEN    where they write, on each disk (0:16M); suffixes K, M, G\n"
    "  --record BYTES      512 or 4096 (4096)\n"
    "  --rate R            records a second in all (0: as fast as it goes)\n"
    "  --flush-every K, --fua-every K\n"
    "  --until-disconnect  the server may vanish; that ends the run and is no failure\n"
    "stamp check IMAGE... --log FILE [--before NS] [--after NS] [--crashed]\n"
    "  proves that the images (files or NBD URIs, in the order of the run's disks) show one instant of the run that "
    "has\n"
    "  everything acknowledged before NS, and nothing issued after NS; --crashed: what a crash left, with everything\n"
    "  that was acknowledged\n"
    "stamp now             the clock that NS means: CLOCK_MONOTONIC, in nanoseconds\n"
    "Exit: 0 done and proved, 1 failed or wrong, 2 usage.\n";

enum exit_code { EXIT_DONE = 0, EXIT_WRONG = 1, EXIT_USAGE = 2 };

struct arguments {
    const char *log_path;
    struct writer_options writer;
    uint64_t before_ns, after_ns;
    bool crashed, before_given;
    char **names;
    int name_count;
};

static int usage_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
static int usage_error(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fputs("stamp: ", stderr);
    vfprintf(stderr, format, list);
    fputc('\n', stderr);
    va_end(list);
    return EXIT_USAGE;
}

static bool parse_number(const char *what, const char *text, uint64_t min, uint64_t max, uint64_t *value)
{
    char *end;
    errno = 0;
    *value = strtoull(text, &end, 10);
    if (errno == 0 && end != text && *end == '\0' && text[0] != '-' && *value >= min && *value <= max)
        return true;
    usage_error("--%s %s: must be a number from %" PRIu64 " to %" PRIu64, what, text, min, max);
    return false;
}

static bool parse_region(const char *text, struct log_plan *plan)
{
    char start[64];
    const char *colon = strchr(text, ':');
    struct error err;
    if (colon == NULL || (size_t)(colon - text) >= sizeof(start)) {
        usage_error("--region %s: must be OFFSET:LENGTH", text);
        return false;
    }
    memcpy(start, text, (size_t)(colon - text));
    start[colon - text] = '\0';
    if (size_parse("--region offset", start, &plan->region_start, &err) != 0 ||
        size_parse("--region length", colon + 1, &plan->region_bytes, &err) != 0) {
        usage_error("%s", err.text);
        return false;
    }
    if (plan->region_start % SECTOR_BYTES != 0) {
        usage_error("--region %s: the offset must be a multiple of 512", text);
        return false;
    }
    return true;
}

static bool parse_option(struct arguments *arguments, const char *name, const char *value)
{
    struct log_plan *plan = &arguments->writer.plan;
    uint64_t number = 0;
    if (strcmp(name, "log") == 0) {
        arguments->log_path = value;
    } else if (strcmp(name, "region") == 0) {
        return parse_region(value, plan);
    } else if (strcmp(name, "crashed") == 0) {
        arguments->crashed = true;
    } else if (strcmp(name, "until-disconnect") == 0) {
        arguments->writer.until_disconnect = true;
    } else if (strcmp(name, "seconds") == 0) {
        if (!parse_number(name, value, 0, 1000000, &number))
            return false;
        arguments->writer.duration_ns = number * 1000000000u;
    } else if (strcmp(name, "writers") == 0) {
        if (!parse_number(name, value, 1, LOG_WRITERS_MAX, &number))
            return false;
        plan->writers = (uint32_t)number;
    } else if (strcmp(name, "queue") == 0) {
        if (!parse_number(name, value, 1, LOG_QUEUE_MAX, &number))
            return false;
        plan->queue = (uint32_t)number;
    } else if (strcmp(name, "record") == 0) {
        if (!parse_number(name, value, 512, 4096, &number))
            return false;
        plan->record_bytes = (uint32_t)number;
    } else if (strcmp(name, "rate") == 0) {
        return parse_number(name, value, 0, 1000000000, &arguments->writer.rate);
    } else if (strcmp(name, "flush-every") == 0 || strcmp(name, "fua-every") == 0) {
        if (!parse_number(name, value, 0, UINT32_MAX, &number))
            return false;
        *(name[1] == 'l' ? &arguments->writer.flush_every : &arguments->writer.fua_every) = (uint32_t)number;
    } else if (strcmp(name, "before") == 0) {
        arguments->before_given = true;
        return parse_number(name, value, 0, UINT64_MAX, &arguments->before_ns);
    } else if (strcmp(name, "after") == 0) {
        return parse_number(name, value, 0, UINT64_MAX, &arguments->after_ns);
    }
    return true;
}

static int parse(struct arguments *arguments, int argc, char **argv)
{
    static const struct option options[] = {
        {"log", required_argument, NULL, 0},       {"seconds", required_argument, NULL, 0},
        {"writers", required_argument, NULL, 0},   {"queue", required_argument, NULL, 0},
        {"region", required_argument, NULL, 0},    {"record", required_argument, NULL, 0},
        {"rate", required_argument, NULL, 0},      {"flush-every", required_argument, NULL, 0},
        {"fua-every", required_argument, NULL, 0}, {"until-disconnect", no_argument, NULL, 0},
        {"before", required_argument, NULL, 0},    {"after", required_argument, NULL, 0},
        {"crashed", no_argument, NULL, 0},         {NULL, 0, NULL, 0}};
    int at, index;
    while ((at = getopt_long(argc, argv, "", options, &index)) != -1) {
        if (at != 0)
            return EXIT_USAGE; /* getopt has told */
        if (!parse_option(arguments, options[index].name, optarg))
            return EXIT_USAGE;
    }
    arguments->names = argv + optind;
    arguments->name_count = argc - optind;
    if (arguments->log_path == NULL)
        return usage_error("--log FILE is missing");
    if (arguments->name_count < 1 || arguments->name_count > LOG_DISKS_MAX)
        return usage_error("%d disks: must be 1 to %d", arguments->name_count, LOG_DISKS_MAX);
    return EXIT_DONE;
}

/* --- write */

static int command_write(struct arguments *arguments, bool dependent)
{
    struct writer_options *writer = &arguments->writer;
    struct log_plan *plan = &writer->plan;
    plan->disks = (uint32_t)arguments->name_count;
    plan->dependent = dependent;
    if (plan->record_bytes != 512 && plan->record_bytes != 4096)
        return usage_error("--record %u: must be 512 or 4096", plan->record_bytes);
    if (dependent && (plan->disks < 2 || plan->queue != 1))
        return usage_error("dependent writes need two disks or more, and a queue of 1");
    if (!log_plan_finish(plan))
        return usage_error("--region: %" PRIu64
                           " bytes are too small for %u writers with %u records of %u bytes in flight",
                           plan->region_bytes, plan->writers, plan->queue, plan->record_bytes);
    if (getrandom(&plan->run, sizeof(plan->run), 0) != (ssize_t)sizeof(plan->run))
        abort();
    writer->uris = (const char *const *)arguments->names;
    writer->log = log_create(arguments->log_path, plan);
    if (writer->log == NULL) {
        fprintf(stderr, "stamp: %s: %s\n", arguments->log_path, strerror(errno));
        return EXIT_WRONG;
    }
    struct writer_result result;
    int status = writer_run(writer, &result);
    if (log_finish(writer->log) != 0)
        status = EXIT_WRONG;
    if (result.error[0] != '\0')
        fprintf(stderr, "stamp: %s\n", result.error);
    double seconds = (double)result.elapsed_ns / 1e9;
    printf("%" PRIu64 " records (%.1f MiB) written by %u writers on %u disks in %.1f s, the slowest took %.2f ms; "
           "%" PRIu64 " failed%s\n",
           result.records, (double)result.bytes / 1048576, plan->writers * plan->disks, plan->disks, seconds,
           (double)result.slowest_ns / 1e6, result.failed, result.disconnected ? "; the connection was lost" : "");
    return status == 0 ? EXIT_DONE : EXIT_WRONG;
}

/* --- check */

static int read_image(void *context, uint32_t disk, void *buffer, uint64_t offset, uint64_t length)
{
    struct image *images = context;
    return image_read(&images[disk], buffer, offset, length);
}

static int check_images(const struct arguments *arguments, const struct log_content *content, struct image *images)
{
    struct check_options options = {.before_ns = arguments->before_ns,
                                    .after_ns = arguments->after_ns,
                                    .crashed = arguments->crashed,
                                    .out = stdout,
                                    .read = read_image,
                                    .context = images};
    if (arguments->crashed && !arguments->before_given)
        options.before_ns = UINT64_MAX - 1; /* whatever has been acknowledged at all */
    struct check_result result;
    bool good = check_run(content, &options, &result);
    const struct log_plan *plan = &content->plan;
    printf("%s: %" PRIu64 " records of %u writers on %u disks are in, %" PRIu64 " are missing; %" PRIu64
           " slots looked at, %" PRIu64 " problems\n",
           good ? "one instant" : "NOT one instant", result.records_in, plan->writers * plan->disks, plan->disks,
           result.records_missing, result.slots, result.problems);
    return good ? EXIT_DONE : EXIT_WRONG;
}

static int command_check(const struct arguments *arguments)
{
    struct log_content content;
    char error[512];
    int status = EXIT_WRONG;
    struct image images[LOG_DISKS_MAX];
    int opened = 0;
    /* The log after the images: what an image shows must be in the log. Connecting does not read yet, but a snapshot does
     * not change either. */
    while (opened < arguments->name_count && image_open(&images[opened], arguments->names[opened]) == 0)
        opened++;
    if (!log_load(arguments->log_path, &content, error, sizeof(error)))
        fprintf(stderr, "stamp: %s\n", error);
    else if ((uint32_t)arguments->name_count != content.plan.disks)
        status = usage_error("%d images, but the run had %u disks", arguments->name_count, content.plan.disks);
    else if (opened == arguments->name_count)
        status = check_images(arguments, &content, images);
    log_content_free(&content);
    while (opened > 0)
        image_close(&images[--opened]);
    return status;
}

int main(int argc, char **argv)
{
    const char *command = argc > 1 ? argv[1] : "";
    struct arguments arguments = {.after_ns = UINT64_MAX};
    arguments.writer.plan = (struct log_plan){.writers = 1, .queue = 1, .record_bytes = 4096, .region_bytes = 16 << 20};
    if (strcmp(command, "now") == 0 && argc == 2) {
        printf("%" PRIu64 "\n", log_now_ns());
        return EXIT_DONE;
    }
    bool dependent = strcmp(command, "dependent") == 0;
    if (!dependent && strcmp(command, "write") != 0 && strcmp(command, "check") != 0) {
        fputs(usage_text, argc == 2 && strcmp(command, "--help") == 0 ? stdout : stderr);
        return argc == 2 && strcmp(command, "--help") == 0 ? EXIT_DONE : EXIT_USAGE;
    }
    int status = parse(&arguments, argc - 1, argv + 1);
    if (status != EXIT_DONE)
        return status;
    return strcmp(command, "check") == 0 ? command_check(&arguments) : command_write(&arguments, dependent);
}
