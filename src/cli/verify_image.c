/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is looked at in an image:
 *
 *  - what it says about itself, and its file of hashes, when it is opened (chain_images.c)
 *  - the bytes: of each extent (or of a sample) what was captured is read, hashed and compared. All of it, so that one
 *    damaged place does not hide the next
 *  - the length of the file, and that a qcow2 image has zeroes where it is longer than the disk, which readers of the image
 *    see and no hash of an extent covers
 *  - of a qcow2 image its tables and counts (set/qcow2_check.c), and the hash of them
 *  - of an overlay, which blocks it holds: exactly those that were captured. One that is missing would let the parent show
 *    through (C25), even where that is zero as well today; one too many would hide the parent
 *
 * Damaged extents are gathered, and neighbours told as one place.
 */
#include "cli/verify_image.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "cli/chain_images.h"
#include "set/qcow2_check.h"

enum finding { FOUND_NOTHING, FOUND_OTHER_HASH, FOUND_UNREADABLE };

struct check {
    const struct verify_options *options;
    const struct chain_link *link;
    const struct hashes *hashes;
    struct verify_result *result;
    const char *path;
    uint8_t *findings;   /* of each extent */
    char unreadable[64]; /* why, of the first one */
};

static void tell(struct check *check, struct range range, const char *what)
{
    if (check->result->places++ < LIMIT_VERIFY_RANGES)
        check->options->damage(check->options->context, check->link, check->path, range, what);
}

/* --- the bytes */

static void extent_damaged(void *context, unsigned layer, struct range extent, int status)
{
    struct check *check = context;
    uint8_t *finding = &check->findings[extent.start / COPY_EXTENT_BYTES];
    assert(layer == 0);
    check->result->damaged_extents += *finding == FOUND_NOTHING;
    *finding = status == -EBADMSG ? FOUND_OTHER_HASH : FOUND_UNREADABLE;
    if (status != -EBADMSG && !check->unreadable[0])
        snprintf(check->unreadable, sizeof check->unreadable, "%s", error_name(status));
}

static void tell_extents(struct check *check)
{
    uint64_t count = check->hashes->count;
    for (uint64_t first = 0, end; check->result->damaged_extents > 0 && first < count; first = end) {
        char sentence[LIMIT_ERROR_BYTES], extents[64];
        uint64_t start = first * COPY_EXTENT_BYTES, stop;
        for (end = first + 1; end < count && check->findings[end] == check->findings[first];)
            end++;
        if (check->findings[first] == FOUND_NOTHING)
            continue;
        stop = end * COPY_EXTENT_BYTES < check->hashes->size_bytes ? end * COPY_EXTENT_BYTES
                                                                   : check->hashes->size_bytes;
        if (end == first + 1)
            snprintf(extents, sizeof extents, "extent %llu", (unsigned long long)first);
        else
            snprintf(extents, sizeof extents, "extents %llu to %llu", (unsigned long long)first,
                     (unsigned long long)end - 1);
        bool other_hash = check->findings[first] == FOUND_OTHER_HASH;
        snprintf(sentence, sizeof sentence, "%s (bytes %llu to %llu) of %.300s: %s%s", extents,
                 (unsigned long long)start, (unsigned long long)stop - 1, check->path,
                 other_hash ? "not the SHA-256 of the time of the backup" : "unreadable: ",
                 other_hash ? "" : check->unreadable);
        tell(check, (struct range){start, stop - start}, sentence);
    }
}

/* Whether the image holds anything of the extent. */
static bool has_extent(const void *context, uint64_t extent)
{
    static const uint8_t none[COPY_MASK_BYTES];
    const struct hashes *hashes = context;
    return !hashes->masks || memcmp(hashes->masks + extent * COPY_MASK_BYTES, none, sizeof none) != 0;
}

/* The blocks of an incremental image that are looked at; NULL: no memory. */
static uint8_t *chosen_blocks(const struct hashes *hashes, const struct bitmap *only)
{
    uint8_t *blocks = malloc((hashes->count + 1) * COPY_MASK_BYTES);
    if (!blocks)
        return NULL;
    memcpy(blocks, hashes->masks, hashes->count * COPY_MASK_BYTES);
    for (uint64_t extent = bitmap_next(only, 0, false); extent < hashes->count;
         extent = bitmap_next(only, extent + 1, false))
        memset(blocks + extent * COPY_MASK_BYTES, 0, COPY_MASK_BYTES);
    return blocks;
}

static int check_bytes(struct check *check, struct chain_images *images, struct error *err)
{
    struct bitmap only = {0};
    uint8_t *blocks = NULL;
    uint64_t data_bytes;
    struct chain_view_options options = {.damaged = extent_damaged, .context = check, .only = &only};
    int status = bitmap_init(&only, check->hashes->count, false);
    if (status == 0)
        status = sample_choose(check->options->sample, has_extent, check->hashes, &only, &check->result->extents,
                               &check->result->looked_at);
    if (status == 0 && check->hashes->masks && !(blocks = chosen_blocks(check->hashes, &only)))
        status = -ENOMEM;
    if (status < 0)
        error_set(err, ENOMEM, "no memory to choose what is looked at");
    else
        status = chain_images_show(images, check->hashes->size_bytes, &options, err);
    if (status == 0) {
        struct copy_options copy = {.source = images->view, .source_name = check->path, .wanted = blocks};
        status = transfer_copy(check->options->transfer, check->link->point, check->link->disk.name, &copy, &data_bytes,
                               err);
    }
    if (status == 0)
        tell_extents(check);
    bitmap_fini(&only);
    free(blocks);
    return status;
}

/* --- which blocks an overlay holds */

static void tell_blocks(struct check *check, uint64_t first, uint64_t end, bool missing)
{
    char sentence[LIMIT_ERROR_BYTES];
    uint64_t start = first * HASHES_BLOCK_BYTES, stop = end * HASHES_BLOCK_BYTES;
    stop = stop < check->hashes->size_bytes ? stop : check->hashes->size_bytes;
    if (stop <= start)
        return;
    snprintf(sentence, sizeof sentence, "bytes %llu to %llu of %.300s: %s", (unsigned long long)start,
             (unsigned long long)stop - 1, check->path,
             missing ? "captured, but the image has no such block, and the one below it shows through"
                     : "the image has a block that was not captured, and hides the one below it");
    tell(check, (struct range){start, stop - start}, sentence);
}

/* Blocks [first, end), of which the image holds all or none. */
static void compare_blocks(struct check *check, uint64_t first, uint64_t end, bool held)
{
    uint64_t wrong_from = first;
    for (uint64_t block = first; block <= end; block++)
        if (block == end || hashes_has_block(check->hashes, block) == held) {
            if (block > wrong_from)
                tell_blocks(check, wrong_from, block, !held);
            wrong_from = block + 1;
        }
}

static int check_blocks(struct check *check, struct node *image, struct error *err)
{
    struct block_extent answer[LIMIT_VERIFY_EXTENTS];
    uint64_t size = check->hashes->size_bytes;
    for (uint64_t at = 0; at < size;) {
        struct request req = {.kind = REQUEST_BLOCK_STATUS,
                              .flags = REQUEST_TOP,
                              .range = {at, size - at},
                              .extents = answer,
                              .extent_max = sizeof answer / sizeof *answer};
        int status = transfer_request(check->options->transfer, image, &req);
        if (transfer_interrupted(check->options->transfer))
            return error_set(err, ECANCELED, "interrupted");
        if (status < 0) {
            char sentence[LIMIT_ERROR_BYTES];
            snprintf(sentence, sizeof sentence, "the tables of %.300s at byte %llu of the disk: unreadable: %s",
                     check->path, (unsigned long long)at, error_name(status));
            tell(check, (struct range){at, COPY_EXTENT_BYTES < size - at ? COPY_EXTENT_BYTES : size - at}, sentence);
            at = round_down(at, COPY_EXTENT_BYTES) + COPY_EXTENT_BYTES;
            continue;
        }
        for (unsigned i = 0; i < req.extent_count; at += answer[i++].length)
            compare_blocks(check, at / HASHES_BLOCK_BYTES,
                           (at + answer[i].length + HASHES_BLOCK_BYTES - 1) / HASHES_BLOCK_BYTES,
                           !(answer[i].flags & EXTENT_BACKING));
    }
    return 0;
}

/* --- the file */

static void tell_file(struct check *check, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void tell_file(struct check *check, const char *format, ...)
{
    char what[LIMIT_ERROR_BYTES / 4], sentence[LIMIT_ERROR_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    snprintf(sentence, sizeof sentence, "the file %.250s %s", check->path, what);
    tell(check, (struct range){0, 0}, sentence);
}

static void table_damaged(void *context, uint64_t file_offset, const char *what)
{
    struct check *check = context;
    char sentence[LIMIT_ERROR_BYTES];
    snprintf(sentence, sizeof sentence, "byte %llu of the file %.250s: %s", (unsigned long long)file_offset,
             check->path, what);
    tell(check, (struct range){0, 0}, sentence);
}

/* Clusters that are counted and not used are no damage where the hash of the tables says that they were there. If it says
 * otherwise, one of these counts may be what has changed. */
static int check_tables(struct check *check, int fd, struct error *err)
{
    const char *right = check->link->disk.tables_sha256;
    uint8_t sha256[COPY_HASH_BYTES];
    char text[SHA256_TEXT_BYTES];
    uint64_t before = check->result->places;
    struct qcow2_check_options options = {
        .fd = fd, .allow_leaks = right[0] != '\0', .damage = table_damaged, .context = check};
    int status = qcow2_check(&options, sha256, err);
    hashes_sha256_text(sha256, text);
    if (status < 0 || !right[0] || strcmp(text, right) == 0 || check->result->places > before)
        return status;
    options.allow_leaks = false;
    status = qcow2_check(&options, sha256, err);
    if (status == 0 && check->result->places == before)
        tell_file(check, "has other tables than at the time of the backup: not the SHA-256 of its manifest");
    return status;
}

static int check_file(struct check *check, struct error *err)
{
    const struct manifest_disk *disk = &check->link->disk;
    struct stat stat;
    int fd = open(check->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW), status = 0;
    if (fd < 0 || fstat(fd, &stat) < 0)
        status = error_set(err, errno, "it can't be opened: %s", error_name(errno));
    else if (disk->image_bytes && (uint64_t)stat.st_size != disk->image_bytes)
        tell_file(check, "has %lld bytes, not %llu", (long long)stat.st_size, (unsigned long long)disk->image_bytes);
    if (status == 0 && disk->format == MANIFEST_QCOW2)
        status = check_tables(check, fd, err);
    if (fd >= 0)
        close(fd);
    return status < 0 ? error_prefix(err, "%s", check->path) : 0;
}

/* A qcow2 image has whole sectors. */
static void check_end(struct check *check, struct node *image)
{
    uint8_t sector[IMAGE_SECTOR_BYTES] = {0};
    uint64_t end = check->hashes->size_bytes, start = round_down(end, sizeof sector);
    if (end == start)
        return;
    struct iovec iov = {sector, sizeof sector};
    struct request req = {.kind = REQUEST_READ, .range = {start, sizeof sector}, .iov = &iov, .iov_count = 1};
    if (transfer_request(check->options->transfer, image, &req) < 0)
        return; /* said already: it belongs to the last extent */
    for (uint64_t at = end - start; at < sizeof sector; at++)
        if (sector[at]) {
            tell_file(check, "is not zero behind the end of the disk, at byte %llu", (unsigned long long)(start + at));
            return;
        }
}

/* --- the whole */

static int check_image(struct check *check, struct chain_images *images, struct error *err)
{
    check->hashes = images->layers[0].hashes;
    check->path = images->layers[0].name;
    check->findings = calloc(check->hashes->count + 1, 1);
    if (!check->findings)
        return error_set(err, ENOMEM, "no memory to note what is damaged");
    int status = check_bytes(check, images, err);
    if (status == 0)
        status = check_file(check, err);
    if (status == 0 && check->link->disk.format == MANIFEST_QCOW2)
        check_end(check, images->layers[0].image);
    if (status == 0 && check->link->disk.incremental)
        status = check_blocks(check, images->layers[0].image, err);
    free(check->findings);
    return status;
}

int verify_image(const struct verify_options *options, const struct chain *chain, unsigned link,
                 struct verify_result *result, struct error *err)
{
    struct check check = {.options = options, .link = &chain->links[link], .result = result};
    struct chain_images images;
    memset(result, 0, sizeof *result);
    int status = chain_images_open(options->transfer, options->set, chain, link, 1, &images, err);
    if (status < 0) {
        check.path = "";
        tell(&check, (struct range){0, 0}, err->text);
        return status == -ECANCELED ? status : 0;
    }
    status = check_image(&check, &images, err);
    chain_images_close(&images);
    return status;
}
