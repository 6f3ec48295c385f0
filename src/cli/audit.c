/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fleece audit: does the tracking of changes tell the truth? What it calls unchanged since the latest point of a set must be
 * what that point holds.
 *
 *     snapshot (leased, shows the changes since the checkpoint of the point) -> release what is not in the sample
 *     -> for each extent of the sample: what has changed? -> read it there and in the set -> compare the rest -> release
 *
 * No checkpoint is made, committed or deleted. What the set holds is compared with its hashes before, so that damage of
 * the set is not taken for a fault of the tracking. The snapshot needs cache only for what is in the sample, and ends
 * with this process.
 */
#include "cli/command.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include <jansson.h>

#include "cli/chain_images.h"
#include "cli/reply.h"
#include "cli/sample.h"
#include "cli/set_argument.h"
#include "driver/nbd.h"
#include "fleece/fleece.h"

#define EXTENT_BLOCKS (MANIFEST_EXTENT_BYTES / HASHES_BLOCK_BYTES)

struct audit {
    struct cli *cli;
    struct fleece *fleece;
    struct set *set;
    struct sample sample;
    struct transfer transfer;
    struct manifest *manifest;
    char point[POINT_NAME_BYTES];
    char snapshot[LIMIT_NAME_BYTES + 1];
    unsigned wrong_disks, failed_disks;
    bool warned;
    /* Of this disk: */
    const char *disk;
    struct node *source;
    unsigned dirty_map;
    uint64_t size_bytes;               /* that both have */
    uint64_t clean_bytes, wrong_bytes; /* compared, and different */
    struct range wrong;                /* different blocks that have not been said yet */
    unsigned said;
    char *now, *then; /* an extent each */
};

static void print_json(json_t *line)
{
    cli_print_json(line);
    fflush(stdout);
    json_decref(line);
}

/* --- what differs */

static void say_wrong(struct audit *audit)
{
    struct range wrong = audit->wrong;
    audit->wrong = (struct range){0, 0};
    if (wrong.length == 0 || audit->said++ >= LIMIT_VERIFY_RANGES)
        return;
    cli_fail("disk %s: bytes %" PRIu64 " to %" PRIu64
             " have changed since point %s, and checkpoint %s does not know it",
             audit->disk, wrong.start, range_end(wrong) - 1, audit->point, audit->manifest->checkpoint.name);
    if (audit->cli->json)
        print_json(json_pack("{s:s, s:s, s:I, s:I}", "event", "difference", "disk", audit->disk, "start",
                             (json_int_t)wrong.start, "length", (json_int_t)wrong.length));
}

static void note_wrong(struct audit *audit, struct range block)
{
    audit->wrong_bytes += block.length;
    if (audit->wrong.length > 0 && range_end(audit->wrong) == block.start) {
        audit->wrong.length += block.length;
        return;
    }
    say_wrong(audit);
    audit->wrong = block;
}

/* --- one extent */

static int read_extent(struct audit *audit, struct node *node, struct range extent, char *bytes)
{
    struct iovec iov = {bytes, extent.length};
    struct request req = {.kind = REQUEST_READ, .range = extent, .iov = &iov, .iov_count = 1};
    return transfer_request(&audit->transfer, node, &req);
}

/* changed[i]: whether tracking says so of block i of the extent. */
static int ask_changes(struct audit *audit, struct range extent, bool *changed)
{
    struct block_extent answer[EXTENT_BLOCKS];
    uint64_t at = extent.start;
    while (at < range_end(extent)) {
        struct request req = {.kind = REQUEST_BLOCK_STATUS,
                              .flags = REQUEST_DIRTY,
                              .dirty_map = audit->dirty_map,
                              .range = {at, range_end(extent) - at},
                              .extents = answer,
                              .extent_max = EXTENT_BLOCKS};
        int status = transfer_request(&audit->transfer, audit->source, &req);
        if (status < 0)
            return status;
        for (unsigned i = 0; i < req.extent_count; at += answer[i++].length)
            for (uint64_t block = at; block < at + answer[i].length; block += HASHES_BLOCK_BYTES)
                changed[(block - extent.start) / HASHES_BLOCK_BYTES] |= answer[i].flags & EXTENT_DIRTY;
    }
    return 0;
}

static void release(struct audit *audit, struct range range)
{
    struct request req = {.kind = REQUEST_DISCARD, .range = range};
    if (audit->source->can_release && range.length > 0)
        transfer_request(&audit->transfer, audit->source, &req); /* it only saves cache */
}

static void compare_blocks(struct audit *audit, struct range extent, const bool *changed)
{
    for (uint64_t at = 0; at < extent.length; at += HASHES_BLOCK_BYTES) {
        uint64_t left = extent.length - at, length = left < HASHES_BLOCK_BYTES ? left : HASHES_BLOCK_BYTES;
        if (changed[at / HASHES_BLOCK_BYTES])
            continue;
        audit->clean_bytes += length;
        if (memcmp(audit->now + at, audit->then + at, length) != 0)
            note_wrong(audit, (struct range){extent.start + at, length});
    }
}

static int audit_extent(struct audit *audit, struct node *view, struct range extent, struct error *err)
{
    bool changed[EXTENT_BLOCKS] = {false};
    int status = ask_changes(audit, extent, changed);
    if (status == 0)
        status = read_extent(audit, audit->source, extent, audit->now);
    if (status < 0)
        return error_set(err, -status, "reading %s@%s failed at byte %" PRIu64 ": %s", audit->disk, audit->snapshot,
                         extent.start, error_name(status));
    release(audit, extent);
    status = read_extent(audit, view, extent, audit->then);
    if (status < 0) {
        *err = *chain_view_error(view);
        return status;
    }
    compare_blocks(audit, extent, changed);
    return 0;
}

/* --- one disk */

static bool any_extent(const void *context, uint64_t bit)
{
    (void)context;
    (void)bit;
    return true;
}

static struct range extent_of(const struct audit *audit, uint64_t first, uint64_t end)
{
    uint64_t start = first * MANIFEST_EXTENT_BYTES, stop = end * MANIFEST_EXTENT_BYTES;
    return (struct range){start, (stop < audit->size_bytes ? stop : audit->size_bytes) - start};
}

static void release_unchosen(struct audit *audit, const struct bitmap *chosen)
{
    const uint64_t most = LIMIT_NBD_RANGE_BYTES / MANIFEST_EXTENT_BYTES;
    for (uint64_t first = 0, end; first < chosen->bit_count; first = end) {
        first = bitmap_next(chosen, first, false);
        end = bitmap_next_before(chosen, first, first + most < chosen->bit_count ? first + most : chosen->bit_count,
                                 true);
        if (first < chosen->bit_count)
            release(audit, extent_of(audit, first, end));
    }
}

static int audit_chosen(struct audit *audit, struct node *view, const struct bitmap *chosen, uint64_t count,
                        struct error *err)
{
    struct progress *progress = &audit->transfer.progress;
    uint64_t done = 0;
    int status = 0;
    release_unchosen(audit, chosen);
    progress_begin(progress, audit->cli->json, audit->point, audit->disk, io_now_ns(audit->transfer.io));
    for (uint64_t extent = bitmap_next(chosen, 0, true); extent < chosen->bit_count && status == 0;
         extent = bitmap_next(chosen, extent + 1, true)) {
        status = transfer_interrupted(&audit->transfer)
                     ? error_set(err, ECANCELED, "interrupted")
                     : audit_extent(audit, view, extent_of(audit, extent, extent + 1), err);
        progress_show(progress, io_now_ns(audit->transfer.io), ++done * MANIFEST_EXTENT_BYTES,
                      count * MANIFEST_EXTENT_BYTES, audit->clean_bytes);
    }
    progress_end(progress);
    say_wrong(audit);
    return status;
}

static void print_disk(const struct audit *audit, uint64_t extents, uint64_t count)
{
    if (audit->cli->json)
        print_json(json_pack("{s:s, s:s, s:b, s:I, s:I, s:I, s:I, s:I}", "event", "disk", "disk", audit->disk, "ok",
                             audit->wrong_bytes == 0, "extents", (json_int_t)extents, "audited", (json_int_t)count,
                             "compared", (json_int_t)audit->clean_bytes, "different", (json_int_t)audit->wrong_bytes,
                             "seed", (json_int_t)audit->sample.seed));
    else
        printf("%s: %" PRIu64 " of %" PRIu64 " MiB looked at (--seed %" PRIu64 "), %" PRIu64
               " KiB unchanged since point %s: %s\n",
               audit->disk, count, extents, audit->sample.seed, audit->clean_bytes / KIB, audit->point,
               audit->wrong_bytes == 0 ? "as it was" : "NOT AS IT WAS");
    fflush(stdout);
}

/* Both are open. */
static int audit_disk(struct audit *audit, struct node *view, struct error *err)
{
    struct bitmap chosen = {0};
    uint64_t extents, count = 0;
    audit->size_bytes = view->size_bytes < audit->source->size_bytes ? view->size_bytes : audit->source->size_bytes;
    audit->clean_bytes = audit->wrong_bytes = audit->said = 0;
    int status = bitmap_init(&chosen, copy_extent_count(audit->size_bytes), false);
    if (status == 0)
        status = sample_choose(&audit->sample, any_extent, NULL, &chosen, &extents, &count);
    if (status < 0)
        error_set(err, ENOMEM, "no memory to choose what is looked at");
    else
        status = audit_chosen(audit, view, &chosen, count, err);
    bitmap_fini(&chosen);
    if (status == 0)
        print_disk(audit, extents, count);
    audit->wrong_disks += audit->wrong_bytes > 0;
    return status;
}

/* Whether the view shows what has changed since the checkpoint. */
static bool find_map(struct audit *audit)
{
    for (unsigned i = 0; i < audit->source->dirty_map_count; i++)
        if (strcmp(audit->source->dirty_maps[i], audit->manifest->checkpoint.name) == 0) {
            audit->dirty_map = i;
            return true;
        }
    return false;
}

static int audit_images(struct audit *audit, struct error *err)
{
    struct chain chain;
    struct chain_images images;
    int status = chain_resolve(audit->set, audit->point, audit->disk, &chain, err);
    if (status < 0)
        return status;
    status = chain_images_open(&audit->transfer, audit->set, &chain, 0, chain.count, &images, err);
    if (status == 0) {
        status = chain_images_show(&images, chain.links[0].disk.size_bytes, NULL, err);
        if (status == 0)
            status = audit_disk(audit, images.view, err);
        chain_images_close(&images);
    }
    chain_free(&chain);
    return status;
}

static void skip_disk(struct audit *audit, const char *why)
{
    audit->warned = true;
    cli_warn("disk %s was not audited: %s", audit->disk, why);
}

static int audit_export(struct audit *audit, const json_t *export, struct error *err)
{
    audit->disk = cli_text(export, "disk");
    if (!manifest_disk_find(audit->manifest, audit->disk)) {
        skip_disk(audit, "the latest point has no such disk");
        return 0;
    }
    int status = nbd_node_open(audit->transfer.io, cli_text(export, "uri"), true, &audit->source, err);
    if (status < 0)
        return status;
    if (find_map(audit))
        status = audit_images(audit, err);
    else
        skip_disk(audit,
                  "the daemon does not know what has changed since the latest point; the next backup of it is full");
    node_destroy(audit->source);
    return status;
}

/* --- the whole */

static int audit_exports(struct audit *audit, const json_t *exports)
{
    struct error err;
    int status = 0;
    audit->now = malloc(2 * MANIFEST_EXTENT_BYTES);
    audit->then = audit->now ? audit->now + MANIFEST_EXTENT_BYTES : NULL;
    if (!audit->now)
        return cli_fail("no memory to compare");
    for (size_t i = 0; i < json_array_size(exports) && !transfer_interrupted(&audit->transfer); i++) {
        status = audit_export(audit, json_array_get(exports, i), &err);
        if (status < 0 && !transfer_interrupted(&audit->transfer)) {
            cli_fail("disk %s could not be audited: %s", audit->disk, err.text);
            audit->failed_disks++;
        }
    }
    free(audit->now);
    if (transfer_interrupted(&audit->transfer)) {
        cli_fail("interrupted: not everything was audited");
        return CLI_INTERRUPTED;
    }
    if (audit->wrong_disks > 0)
        cli_fail("the tracking of changes has missed writes, or the disks were written behind its back: no incremental "
                 "backup since point %s can be trusted; make a full one (fleece backup '%s' --full), and report this",
                 audit->point, set_path(audit->set));
    return audit->wrong_disks + audit->failed_disks > 0 ? CLI_FAILED : audit->warned ? CLI_WARNING : CLI_DONE;
}

/* The latest point, with the checkpoint that was made at its cut. */
static int find_point(struct audit *audit, const char *path, struct error *err)
{
    int status = set_open(path, &audit->set, err);
    if (status == 0)
        status = set_begin_reading(audit->set, err);
    if (status == 0)
        status = set_point_find(audit->set, NULL, audit->point, err);
    if (status == 0)
        status = set_manifest_load(audit->set, audit->point, audit->manifest, err);
    if (status == 0 && !audit->manifest->checkpoint.name[0])
        status = error_set(err, ENOENT, "point %s of '%s' was made without a checkpoint: there is nothing to audit",
                           audit->point, path);
    return status;
}

static bool is_vm_of_set(const struct audit *audit)
{
    char *reply = cli_execute(audit->fleece, "fleece-query-status", NULL);
    json_t *status = reply ? json_loads(reply, 0, NULL) : NULL;
    bool same = status && strcmp(cli_text(status, "name"), set_vm(audit->set)) == 0;
    if (status && !same)
        cli_fail("the backup set '%s' is of VM '%s', not of '%.64s'", set_path(audit->set), set_vm(audit->set),
                 cli_text(status, "name"));
    json_decref(status);
    free(reply);
    return same;
}

/* Before the signals are watched: a signal ends the process here, and the snapshot with it. */
static json_t *take_snapshot(struct audit *audit)
{
    uint32_t number = 0;
    getrandom(&number, sizeof number, 0); /* a name that is taken is refused */
    snprintf(audit->snapshot, sizeof audit->snapshot, "audit-%08" PRIx32, number);
    json_t *arguments = json_pack("{s:s, s:b, s:[s]}", "name", audit->snapshot, "lease", 1, "maps",
                                  audit->manifest->checkpoint.uuid);
    char *text = arguments ? json_dumps(arguments, JSON_COMPACT) : NULL;
    char *reply = text ? cli_execute(audit->fleece, "fleece-snapshot-create", text) : NULL;
    json_t *snapshot = reply ? json_loads(reply, 0, NULL) : NULL;
    free(reply);
    free(text);
    json_decref(arguments);
    return snapshot;
}

/* It is gone when the command returns; should that fail, it ends with the connection that it is leased to. */
static void delete_snapshot(struct audit *audit)
{
    char error[FLEECE_ERROR_BYTES], arguments[LIMIT_NAME_BYTES + sizeof "{'name': ''}"];
    snprintf(arguments, sizeof arguments, "{\"name\": \"%s\"}", audit->snapshot);
    free(fleece_execute(audit->fleece, "fleece-snapshot-delete", arguments, error));
}

static int audit_set(struct audit *audit, const char *path)
{
    struct error err;
    if (find_point(audit, path, &err) < 0)
        return cli_fail("%s", err.text);
    int code = cli_connect(audit->cli, &audit->fleece);
    if (code != CLI_DONE)
        return code;
    json_t *snapshot = is_vm_of_set(audit) ? take_snapshot(audit) : NULL;
    if (!snapshot)
        code = CLI_FAILED;
    else if (transfer_open(&audit->transfer, audit->cli->json, &err) < 0)
        code = cli_fail("%s", err.text);
    else {
        code = audit_exports(audit, json_object_get(snapshot, "exports"));
        transfer_close(&audit->transfer);
    }
    if (snapshot)
        delete_snapshot(audit);
    json_decref(snapshot);
    fleece_close(audit->fleece);
    return code;
}

static int parse(struct audit *audit, int argc, char **argv)
{
    int code = sample_parse_options(audit->cli, &audit->sample, argc, argv);
    if (code == CLI_DONE && argc - optind != 1)
        code = cli_usage(audit->cli, "audit wants the folder of one backup set");
    else if (code == CLI_DONE && set_argument_point(argv[optind]))
        code = cli_usage(audit->cli, "'%s' is a point; audit wants the folder of a set, and looks at its latest point",
                         argv[optind]);
    return code;
}

static int audit_run(struct cli *cli, int argc, char **argv)
{
    struct audit audit = {.cli = cli};
    sample_init(&audit.sample, AUDIT_SAMPLE_PERCENT);
    int code = parse(&audit, argc, argv);
    if (code != CLI_DONE)
        return code;
    audit.manifest = calloc(1, sizeof *audit.manifest);
    code = audit.manifest ? audit_set(&audit, argv[optind]) : cli_fail("no memory for a manifest");
    if (audit.set)
        set_close(audit.set);
    free(audit.manifest);
    return code;
}

const struct cli_command cli_audit = {
    .name = "audit",
    .arguments = "DIR [--sample PERCENT] [--seed NUMBER]",
    .summary = "compare what the VM's tracking calls unchanged with the latest point of the backup set",
    .run = audit_run,
};
