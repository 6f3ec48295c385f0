// SPDX-License-Identifier: GPL-2.0-or-later
/* Requests: each kind, each status that VIRTIO 1.2, 5.2.6 asks for, every shape of header and data. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "conform.h"

enum { SHORT_WAIT_MS = 300, DATA = 64 << 10 };

static bool each_kind(struct scene *scene)
{
    if (!scene_started(scene) || !scene_works(scene, 0))
        return false;
    if (front_has(scene->front, FEATURE_FLUSH))
        return scene_expect(scene, "a flush", &(struct blk_command){.type = BLK_FLUSH}, BLK_OK);
    return true;
}

static bool device_id(struct scene *scene)
{
    if (!scene_started(scene))
        return false;
    char id[BLK_ID_BYTES + 1] = {0}, again[64];
    struct blk_command command = {.type = BLK_GET_ID, .in_bytes = BLK_ID_BYTES};
    int status = blk_do(scene->front, &scene->front->rings[0], &scene->request, &command, id);
    if (status != BLK_OK)
        return scene_fail(scene, "status %d", status);
    if (!id[0])
        return scene_fail(scene, "it is empty");
    static const uint32_t sizes[] = {1, 10, 19, 21, 64};
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        command.in_bytes = sizes[i];
        memset(again, 0, sizeof(again));
        status = blk_do(scene->front, &scene->front->rings[0], &scene->request, &command, again);
        if (status < 0)
            return scene_fail(scene, "%u bytes: %s", sizes[i], scene->front->error);
        uint32_t part = sizes[i] < BLK_ID_BYTES ? sizes[i] : BLK_ID_BYTES;
        if (status == BLK_OK && memcmp(id, again, part) != 0)
            return scene_fail(scene, "its first %u bytes are others than before", part);
    }
    return true;
}

static bool beyond_the_disk(struct scene *scene)
{
    if (!scene_started(scene))
        return false;
    uint64_t end = scene->front->config.capacity;
    const uint64_t sectors[] = {
        end,        end - 1,       end + 1, UINT64_C(1) << 55, (UINT64_C(1) << 55) - 1, UINT64_C(1) << 63,
        UINT64_MAX, UINT64_MAX - 7};
    static char data[DATA];
    for (unsigned i = 0; i < sizeof(sectors) / sizeof(sectors[0]); i++) {
        char what[64];
        snprintf(what, sizeof(what), "64 KiB at sector %llu of %llu", (unsigned long long)sectors[i],
                 (unsigned long long)end);
        if (!scene_expect(scene, what, &(struct blk_command){BLK_READ, sectors[i], NULL, 0, DATA}, BLK_IOERR) ||
            !scene_expect(scene, what, &(struct blk_command){BLK_WRITE, sectors[i], data, DATA, 0}, BLK_IOERR))
            return false;
    }
    return scene_works(scene, 0);
}

/* The last sector is a sector. */
static bool end_of_disk(struct scene *scene)
{
    if (!scene_started(scene))
        return false;
    uint64_t end = scene->front->config.capacity;
    char out[SECTOR], in[SECTOR];
    rng_fill(&scene->rng, out, sizeof(out));
    struct blk_command write = {BLK_WRITE, end - 1, out, SECTOR, 0}, read = {BLK_READ, end - 1, NULL, 0, SECTOR};
    if (blk_do(scene->front, &scene->front->rings[0], &scene->request, &write, NULL) != BLK_OK ||
        blk_do(scene->front, &scene->front->rings[0], &scene->request, &read, in) != BLK_OK)
        return scene_fail(scene, "sector %llu of %llu: an error", (unsigned long long)end - 1, (unsigned long long)end);
    return memcmp(in, out, SECTOR) == 0 ||
           scene_fail(scene, "sector %llu is not as it was written", (unsigned long long)end - 1);
}

/* Data is a multiple of 512 bytes; what else comes is refused, and nothing of it is written. */
static bool odd_lengths(struct scene *scene)
{
    if (!scene_started(scene))
        return false;
    static char data[DATA];
    static const uint32_t lengths[] = {1, 511, 513, 1023, 4095, 65535};
    for (unsigned i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        char what[64];
        snprintf(what, sizeof(what), "%u bytes", lengths[i]);
        if (!scene_expect(scene, what, &(struct blk_command){BLK_READ, 0, NULL, 0, lengths[i]}, BLK_IOERR) ||
            !scene_expect(scene, what, &(struct blk_command){BLK_WRITE, 0, data, lengths[i], 0}, BLK_IOERR))
            return false;
    }
    return scene_works(scene, 0);
}

static bool no_data(struct scene *scene)
{
    if (!scene_started(scene))
        return false;
    for (uint32_t type = BLK_READ; type <= BLK_WRITE; type++) {
        int status = blk_do(scene->front, &scene->front->rings[0], &scene->request, &(struct blk_command){.type = type},
                            NULL);
        if (status < 0)
            return scene_fail(scene, "%s", scene->front->error);
    }
    return scene_works(scene, 0);
}

static bool unknown_kinds(struct scene *scene)
{
    if (!scene_started(scene))
        return false;
    static const uint32_t types[] = {2, 3, 7, 10, 12, 14, 15, 16, 26, 99, UINT32_MAX};
    for (unsigned i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        char what[32];
        snprintf(what, sizeof(what), "type %u", types[i]);
        if (!scene_expect(scene, what, &(struct blk_command){.type = types[i], .in_bytes = 512}, BLK_UNSUPP))
            return false;
    }
    return scene_works(scene, 0);
}

static bool expect_segments(struct scene *scene, uint32_t type, const struct blk_segment *segments, uint32_t bytes,
                            const char *what, int wanted)
{
    return scene_expect(scene, what, &(struct blk_command){.type = type, .out = segments, .out_bytes = bytes}, wanted);
}

static bool write_zeroes(struct scene *scene)
{
    if (!scene_started(scene))
        return false;
    struct front_end *front = scene->front;
    if (!front_has(front, FEATURE_WRITE_ZEROES))
        return scene_skip(scene, "WRITE_ZEROES is not offered");
    static char data[DATA], read_back[DATA], wanted[DATA];
    for (uint32_t unmap = 0; unmap < 2; unmap++) {
        rng_fill(&scene->rng, data, DATA);
        memcpy(wanted, data, DATA);
        memset(wanted + 3 * SECTOR, 0, 50 * SECTOR);
        struct blk_segment segment = {8 + 3, 50, unmap};
        if (!scene_expect(scene, "a write", &(struct blk_command){BLK_WRITE, 8, data, DATA, 0}, BLK_OK) ||
            !expect_segments(scene, BLK_WRITE_ZEROES, &segment, sizeof(segment), "zeroes", BLK_OK))
            return false;
        struct blk_command read = {BLK_READ, 8, NULL, 0, DATA};
        if (blk_do(front, &front->rings[0], &scene->request, &read, read_back) != BLK_OK)
            return scene_fail(scene, "a read failed");
        if (memcmp(read_back, wanted, DATA) != 0)
            return scene_fail(
                scene, "50 sectors were made zeroes (unmap %u), and these, or others, are not what they should be",
                unmap);
    }
    return true;
}

static bool segments_wrong(struct scene *scene, uint32_t type, uint32_t most_sectors, uint32_t most_segments)
{
    uint64_t end = scene->front->config.capacity;
    struct blk_segment one = {0, 8, 0}, flagged = {0, 8, 2}, all_flags = {0, 8, UINT32_MAX}, past = {end - 4, 8, 0},
                       far = {UINT64_MAX - 3, 8, 0}, *many;
    if (!expect_segments(scene, type, &one, 16, "one segment", BLK_OK) ||
        !expect_segments(scene, type, &flagged, 16, "an unknown flag", BLK_UNSUPP) ||
        !expect_segments(scene, type, &all_flags, 16, "all flags", BLK_UNSUPP) ||
        !expect_segments(scene, type, &past, 16, "beyond the disk", BLK_IOERR) ||
        !expect_segments(scene, type, &far, 16, "far beyond the disk", BLK_IOERR) ||
        !expect_segments(scene, type, &one, 15, "15 bytes of a segment", BLK_ANY_ERROR) ||
        !expect_segments(scene, type, &one, 0, "no segment", BLK_ANY_ERROR))
        return false;
    if (most_sectors < UINT32_MAX && most_sectors < end) {
        struct blk_segment large = {0, most_sectors + 1, 0};
        if (!expect_segments(scene, type, &large, 16, "a sector more than the limit", BLK_ANY_ERROR))
            return false;
    }
    if (most_segments >= 1024)
        return true;
    many = calloc(most_segments + 1, sizeof(*many));
    for (unsigned i = 0; i <= most_segments; i++)
        many[i] = (struct blk_segment){i * 8 % (end / 8 * 8), 8, 0};
    bool good = expect_segments(scene, type, many, most_segments * 16, "as many segments as allowed", BLK_OK) &&
                expect_segments(scene, type, many, (most_segments + 1) * 16, "a segment more than allowed",
                                BLK_ANY_ERROR);
    free(many);
    return good;
}

static bool discard(struct scene *scene)
{
    if (!scene_started(scene))
        return false;
    const struct blk_config *config = &scene->front->config;
    if (!front_has(scene->front, FEATURE_DISCARD))
        return scene_skip(scene, "DISCARD is not offered");
    struct blk_segment unmap = {0, 8, BLK_UNMAP};
    return segments_wrong(scene, BLK_DISCARD, config->max_discard_sectors, config->max_discard_seg) &&
           expect_segments(scene, BLK_DISCARD, &unmap, 16, "the unmap flag", BLK_UNSUPP) && scene_works(scene, 0);
}

static bool write_zeroes_wrong(struct scene *scene)
{
    if (!scene_started(scene))
        return false;
    const struct blk_config *config = &scene->front->config;
    if (!front_has(scene->front, FEATURE_WRITE_ZEROES))
        return scene_skip(scene, "WRITE_ZEROES is not offered");
    return segments_wrong(scene, BLK_WRITE_ZEROES, config->max_write_zeroes_sectors, config->max_write_zeroes_seg) &&
           scene_works(scene, 0);
}

/* A read-only disk takes nothing. */
static bool read_only(struct scene *scene)
{
    if (!scene_started(scene))
        return false;
    if (!front_has(scene->front, FEATURE_RO))
        return scene_skip(scene, "the disk is writable");
    static char data[SECTOR];
    return scene_expect(scene, "a write", &(struct blk_command){BLK_WRITE, 0, data, SECTOR, 0}, BLK_IOERR);
}

/* A write and its read back, in random layouts. */
static bool random_layouts(struct scene *scene, enum tables tables)
{
    struct front_end *front = scene->front;
    struct ring *ring = &front->rings[0];
    static char data[DATA], read_back[DATA];
    for (unsigned i = 0; i < 300; i++) {
        uint32_t bytes = SECTOR * (1 + (uint32_t)rng_below(&scene->rng, DATA / SECTOR));
        rng_fill(&scene->rng, data, bytes);
        struct blk_command commands[] = {{BLK_WRITE, 0, data, bytes, 0}, {BLK_READ, 0, NULL, 0, bytes}};
        for (unsigned c = 0; c < 2; c++) {
            void *token;
            uint32_t written;
            blk_lay_out_randomly(&scene->request, &commands[c], &scene->rng, 60, tables);
            unsigned readable = scene->request.readable, all = scene->request.count, direct = scene->request.direct;
            blk_submit(&scene->request, ring);
            ring_kick(ring);
            int status = blk_wait(front, ring, FRONT_TIMEOUT_MS, &token, &written);
            if (status == 0 && blk_finish(&scene->request, read_back, c ? bytes : 0) == BLK_OK)
                continue;
            return scene_fail(scene, "%u readable and %u writable fragments (%u before a table): %s", readable,
                              all - readable, direct, status ? strerror(-status) : "an error");
        }
        if (memcmp(data, read_back, bytes) != 0)
            return scene_fail(scene, "round %u: what was read is not what was written", i);
    }
    return true;
}

/* Header, data and status cut anywhere, odd addresses, indirect tables. */
static bool any_layout(struct scene *scene)
{
    if (!scene_started(scene))
        return false;
    return random_layouts(scene, front_has(scene->front, FEATURE_INDIRECT) ? TABLES_WHOLE : TABLES_NONE);
}

/* Direct descriptors and then one with an indirect table: the device must take it (VIRTIO 1.2, 2.7.5.3.2). */
static bool mixed_tables(struct scene *scene)
{
    if (!scene_started(scene))
        return false;
    if (!front_has(scene->front, FEATURE_INDIRECT) || scene->front->options.packed)
        return scene_skip(scene, "of split rings with indirect tables");
    return random_layouts(scene, TABLES_MIXED);
}

/* What the used ring says of a good read is what was written: the data and the status byte. */
static bool used_length(struct scene *scene)
{
    if (!scene_started(scene))
        return false;
    struct blk_command read = {BLK_READ, 0, NULL, 0, DATA};
    static char data[DATA];
    if (blk_do(scene->front, &scene->front->rings[0], &scene->request, &read, data) != BLK_OK)
        return scene_fail(scene, "a read failed");
    return scene->request.written == DATA + 1 ||
           scene_fail(scene, "of %u bytes %u are said to be written", DATA + 1, scene->request.written);
}

/* As many fragments as seg_max allows, each its own sector, and a ring full of such. */
static bool many_fragments(struct scene *scene)
{
    if (!scene_started(scene))
        return false;
    struct front_end *front = scene->front;
    unsigned most = front_has(front, FEATURE_SEG_MAX) ? front->config.seg_max : 126;
    if (most > front->options.queue_size - 2)
        most = front->options.queue_size - 2;
    struct fragment fragments[1024];
    most = most < 1022 ? most : 1022;
    uint64_t header = guest_take(&front->memory, 0, 17, 16), data = guest_take(&front->memory, 0, most * SECTOR, 4096);
    struct blk_header read = {BLK_READ, 0, 0};
    memcpy(guest_at(&front->memory, header), &read, sizeof(read));
    fragments[0] = (struct fragment){header, 16, false};
    for (unsigned i = 0; i < most; i++)
        fragments[1 + i] = (struct fragment){data + i * SECTOR, SECTOR, true};
    fragments[1 + most] = (struct fragment){header + 16, 1, true};
    if (scene_offer(scene, fragments, most + 2, FRONT_TIMEOUT_MS) != 0)
        return scene_fail(scene, "%u fragments: no answer", most + 2);
    uint8_t status = *(uint8_t *)guest_at(&front->memory, header + 16);
    return status == BLK_OK || scene_fail(scene, "%u fragments: status %u", most + 2, status);
}

/* Much more data than anybody needs, from the same memory again and again: done, or refused. */
static bool huge_request(struct scene *scene)
{
    if (!scene_started(scene))
        return false;
    struct front_end *front = scene->front;
    struct fragment fragments[126];
    uint64_t header = guest_take(&front->memory, 0, 17, 16);
    struct blk_header write = {BLK_WRITE, 0, 0};
    memcpy(guest_at(&front->memory, header), &write, sizeof(write));
    for (unsigned count = 3; count <= 126; count += 41) {
        fragments[0] = (struct fragment){header, 16, false};
        for (unsigned i = 1; i + 1 < count; i++)
            fragments[i] = (struct fragment){0, 8 << 20, false};
        fragments[count - 1] = (struct fragment){header + 16, 1, true};
        int status = scene_offer(scene, fragments, count, FRONT_TIMEOUT_MS);
        if (status == -ETIMEDOUT)
            break; /* a device may give up on such a driver */
        if (status == -ECONNRESET)
            return true;
    }
    return scene_answers_or_closed(scene);
}

/* Requests without the parts that every request has: each may stop the ring, none may do more. */
static bool parts_missing(struct scene *scene)
{
    for (unsigned kind = 0; kind < 10; kind++) {
        if (!scene_started(scene))
            return false;
        struct front_end *front = scene->front;
        uint64_t header = guest_take(&front->memory, 0, 17, 16), data = guest_take(&front->memory, 0, DATA, 4096);
        struct blk_header read = {kind % 2 ? BLK_READ : BLK_WRITE, 0, 0};
        memcpy(guest_at(&front->memory, header), &read, sizeof(read));
        const struct fragment whole = {header, 16, false}, status = {header + 16, 1, true}, in = {data, DATA, true},
                              out = {data, DATA, false};
        struct fragment sets[][3] = {{{header, 8, false}, status},
                                     {{header, 1, false}, status},
                                     {whole},
                                     {whole, out},
                                     {status},
                                     {in},
                                     {status, whole, out},
                                     {in, whole, status},
                                     {{header, 16, true}, in, status},
                                     {whole, status, out}};
        static const unsigned counts[] = {2, 2, 1, 2, 1, 1, 3, 3, 3, 3};
        int got = scene_offer(scene, sets[kind], counts[kind], SHORT_WAIT_MS);
        if (got == -EPROTO)
            return scene_fail(scene, "kind %u: a buffer was used that was not given", kind);
        if (!scene_answers_or_closed(scene))
            return false;
    }
    return true;
}

const struct conform_case conform_requests[] = {
    {"each-kind", each_kind},
    {"device-id", device_id},
    {"beyond-the-disk", beyond_the_disk},
    {"end-of-disk", end_of_disk},
    {"odd-lengths", odd_lengths},
    {"no-data", no_data},
    {"unknown-kinds", unknown_kinds},
    {"write-zeroes", write_zeroes},
    {"discard-wrong", discard},
    {"write-zeroes-wrong", write_zeroes_wrong},
    {"read-only", read_only},
    {"any-layout", any_layout},
    {"mixed-tables", mixed_tables},
    {"used-length", used_length},
    {"many-fragments", many_fragments},
    {"huge-request", huge_request},
    {"parts-missing", parts_missing},
    {0},
};
