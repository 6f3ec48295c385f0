/* SPDX-License-Identifier: GPL-2.0-or-later */
/* fleece status: what the daemon of a VM serves and has counted, as tables or as the daemon's own JSON. */
#include "cli/command.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/name.h"
#include "cli/table.h"
#include "fleece/fleece.h"

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "-";
}

static long long number_of(const json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

/* The size into one of the callers' own arrays. */
static const char *size_of(char *text, const json_t *object, const char *key)
{
    return size_format(text, (uint64_t)number_of(object, key));
}

static void print_head(const json_t *status)
{
    char text[3][16];
    const json_t *cache = json_object_get(status, "cache");
    printf("VM %s, fleeced %s, process %lld, %s of memory\n", text_of(status, "name"), text_of(status, "version"),
           number_of(status, "pid"), size_of(text[0], status, "rss-bytes"));
    printf("fleecing cache: %s used, %s at its peak, %s at most\n", size_of(text[0], cache, "bytes"),
           size_of(text[1], cache, "bytes-peak"), size_of(text[2], cache, "bytes-max"));
    if (number_of(cache, "file-bytes-max") > 0)
        printf("cache files: %s used, %s at their peak, %s at most\n", size_of(text[0], cache, "file-bytes"),
               size_of(text[1], cache, "file-bytes-peak"), size_of(text[2], cache, "file-bytes-max"));
    if (number_of(cache, "fill-rate") > 0)
        printf("the cache fills at %s/s and is full in %lld s\n", size_of(text[0], cache, "fill-rate"),
               number_of(cache, "seconds-to-full"));
    size_t i;
    json_t *address, *reactor;
    json_array_foreach (json_object_get(status, "nbd"), i, address)
        printf("NBD on %s\n", json_string_value(address));
    json_array_foreach (json_object_get(status, "reactors"), i, reactor)
        printf("I/O thread %zu: %s\n", i, json_string_value(reactor));
}

static void print_disks(const json_t *disks)
{
    size_t i;
    json_t *disk;
    char text[3][16];
    struct table table;
    table_init(&table, "DISK\t>SIZE\t>READS\t>READ\t>WRITES\t>WRITTEN\t>FLUSHES\t>ERRORS\t>FLIGHT\t>PRESERVED");
    json_array_foreach (disks, i, disk)
        table_add(&table, "%s\t%s\t%lld\t%s\t%lld\t%s\t%lld\t%lld\t%lld\t%lld", text_of(disk, "name"),
                  size_of(text[0], disk, "size"), number_of(disk, "reads"), size_of(text[1], disk, "read-bytes"),
                  number_of(disk, "writes"), size_of(text[2], disk, "written-bytes"), number_of(disk, "flushes"),
                  number_of(disk, "errors"), number_of(disk, "writes-in-flight"), number_of(disk, "blocks-preserved"));
    putchar('\n');
    table_end(&table, true);
}

/* Who freezes it for snapshots. */
static void print_guest(const json_t *guest)
{
    if (!json_is_object(guest))
        return;
    const char *agent = json_string_value(json_object_get(guest, "agent")),
               *hooks = json_string_value(json_object_get(guest, "hook-dir")),
               *reason = json_string_value(json_object_get(guest, "reason"));
    printf("\nguest: %s%s%s%s%s%s%s\n", text_of(guest, "state"), agent ? ", agent " : "", agent ? agent : "",
           hooks ? ", hooks " : "", hooks ? hooks : "", reason ? ": " : "", reason ? reason : "");
}

/* Of the disks that are tracked, or should be. */
static void print_tracking(const json_t *disks)
{
    size_t i, lines = 0;
    json_t *disk;
    struct table table;
    table_init(&table, "TRACKING\tSTATE\tRECOVERY\t>ACTIVE\t>LOGGED\t>STORED\t>PARKED\tREASON");
    json_array_foreach (disks, i, disk) {
        const json_t *tracking = json_object_get(disk, "tracking");
        if (strcmp(text_of(tracking, "state"), "off") == 0)
            continue;
        lines++;
        table_add(&table, "%s\t%s\t%s\t%lld/%lld\t%lld\t%lld\t%lld\t%s", text_of(disk, "name"),
                  text_of(tracking, "state"), text_of(tracking, "recovery"), number_of(tracking, "active"),
                  number_of(tracking, "slots"), number_of(tracking, "log-writes"), number_of(tracking, "page-writes"),
                  number_of(tracking, "writes-parked"), text_of(tracking, "reason"));
    }
    if (lines > 0)
        putchar('\n');
    table_end(&table, lines > 0);
}

static void print_exports(const json_t *exports)
{
    size_t i;
    json_t *export;
    char text[16];
    struct table table;
    table_init(&table, "EXPORT\t>SIZE\tACCESS\t>CONNECTIONS\tURI");
    json_array_foreach (exports, i, export)
        table_add(&table, "%s\t%s\t%s\t%lld\t%s", text_of(export, "name"), size_of(text, export, "size"),
                  json_is_true(json_object_get(export, "read-only")) ? "read-only" : "read-write",
                  number_of(export, "connections"), text_of(export, "uri"));
    putchar('\n');
    table_end(&table, true);
}

/* Each is one disk's door to its VMM. */
static void print_vhost_users(const json_t *users)
{
    size_t i;
    json_t *user;
    struct table table;
    table_init(&table, "VHOST-USER\tVMM\t>QUEUES\t>REQUESTS\tSOCKET");
    json_array_foreach (users, i, user)
        table_add(&table, "%s\t%s\t%lld\t%lld\t%s", text_of(user, "disk"),
                  json_is_true(json_object_get(user, "connected")) ? "connected" : "-", number_of(user, "queues"),
                  number_of(user, "requests"), text_of(user, "socket"));
    if (json_array_size(users) > 0)
        putchar('\n');
    table_end(&table, json_array_size(users) > 0);
}

static void print_snapshots(const json_t *snapshots)
{
    size_t i;
    json_t *snapshot;
    struct table table;
    if (json_array_size(snapshots) == 0) {
        printf("\nno snapshots\n");
        return;
    }
    table_init(&table, "SNAPSHOT\tSTATE\tCREATED\t>HELD (us)\t>ATTEMPTS\tCONSISTENT\tREASON");
    json_array_foreach (snapshots, i, snapshot)
        table_add(&table, "%s\t%s\t%s\t%.0f\t%lld\t%s\t%s", text_of(snapshot, "name"), text_of(snapshot, "state"),
                  text_of(snapshot, "created"), (double)number_of(snapshot, "hold-ns") / 1000,
                  number_of(snapshot, "attempts"), text_of(snapshot, "consistent"),
                  text_of(snapshot, json_object_get(snapshot, "reason") ? "reason" : "consistent-reason"));
    putchar('\n');
    table_end(&table, true);
}

static int status_run(struct cli *cli, int argc, char **argv)
{
    if (argc != 1)
        return cli_usage(cli, "status takes no argument: '%s'", argv[1]);
    struct fleece *fleece = NULL;
    int code = cli_connect(cli, &fleece);
    if (code != CLI_DONE)
        return code;
    char *reply = cli_execute(fleece, "fleece-query-status", NULL);
    fleece_close(fleece);
    if (!reply)
        return CLI_FAILED;
    json_t *status = json_loads(reply, 0, NULL);
    if (!status)
        code = cli_fail("the daemon's status can't be read: it is not JSON");
    else if (cli->json)
        puts(reply);
    else {
        print_head(status);
        print_disks(json_object_get(status, "disks"));
        print_tracking(json_object_get(status, "disks"));
        print_exports(json_object_get(status, "exports"));
        print_vhost_users(json_object_get(status, "vhost-user"));
        print_guest(json_object_get(status, "guest"));
        print_snapshots(json_object_get(status, "snapshots"));
    }
    json_decref(status);
    free(reply);
    return code;
}

const struct cli_command cli_status = {
    .name = "status",
    .arguments = "",
    .summary = "show disks, exports, snapshots and what they have counted",
    .run = status_run,
};
