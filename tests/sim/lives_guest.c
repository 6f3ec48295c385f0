/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The guest of the many lives, and what it may find on its disks. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/limits.h"
#include "base/probe.h"
#include "base/zero.h"
#include "lives.h"

/* What a request may take: the time-out of the cache, the fence of a killed daemon, the device. */
#define PATIENCE_NS (15 * NS_PER_S)

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count, size);
    assert_non_null(memory);
    return memory;
}

/* ---- numbers ---- */

/* Each sector says the number of its write and where it is, so that nothing passes for it. */
static void stamp_sector(uint8_t *bytes, uint32_t number, uint64_t sector)
{
    const uint32_t head[2] = {number, (uint32_t)sector};
    memset(bytes, (int)(number % 251), 512);
    memcpy(bytes, head, sizeof head);
}

uint32_t guest_number(const struct lives *lives, unsigned disk, uint64_t sector, const uint8_t *bytes)
{
    uint32_t head[2];
    memcpy(head, bytes, sizeof head);
    if (memory_is_zero((const char *)bytes, 512))
        return LIVES_ZERO;
    const uint8_t first = stage_first_value(disk, sector / LIVES_SECTORS);
    if (bytes[0] == first && bytes[511] == first && memcmp(bytes, bytes + 1, 511) == 0)
        return LIVES_FIRST;
    for (unsigned i = sizeof head; i < 512; i++)
        if (bytes[i] != head[0] % 251)
            lives_fail(lives, "sector %llu of disk %u: byte %u is of no write", (unsigned long long)sector, disk, i);
    if (head[1] != sector)
        lives_fail(lives, "sector %llu of disk %u holds write %u of sector %u", (unsigned long long)sector, disk,
                   head[0], head[1]);
    return head[0];
}

static uint32_t first_number(uint64_t block)
{
    return block < STAGE_DISK_BYTES / STAGE_BLOCK ? LIVES_FIRST : LIVES_ZERO;
}

void guest_look(const struct lives *lives, unsigned disk, uint32_t *sectors)
{
    const uint8_t *bytes = world_file_bytes(lives->stage->files[disk]);
    for (uint64_t block = 0; block < lives->blocks; block++)
        for (uint64_t i = block * LIVES_SECTORS; i < (block + 1) * LIVES_SECTORS; i++)
            sectors[i] = lives->disks[disk].blocks[block].touched ? guest_number(lives, disk, i, bytes + i * 512)
                                                                  : first_number(block);
}

/* ---- what a block may hold ---- */

static struct lives_write *block_add(struct lives *lives, unsigned disk, uint64_t index, uint32_t number, bool loose)
{
    struct lives_block *block = &lives->disks[disk].blocks[index];
    assert_true(block->write_count < LIVES_MAY);
    block->touched = true;
    block->stamp = ++lives->stamps;
    block->writes[block->write_count] = (struct lives_write){.number = number, .loose = loose};
    return &block->writes[block->write_count++];
}

/* The first `count` can't come back any more. */
static void block_drop(struct lives_block *block, unsigned count)
{
    memmove(block->writes, block->writes + count, (block->write_count - count) * sizeof block->writes[0]);
    block->write_count -= (uint8_t)count;
    block->from -= block->from < count ? block->from : (uint8_t)count;
    block->stable = false;
}

/* What was acknowledged until then is stable. */
static void block_flushed(struct lives_block *block, uint64_t then)
{
    unsigned stable = LIVES_MAY;
    for (unsigned i = 0; i < block->write_count; i++)
        if (block->writes[i].acknowledged != 0 && block->writes[i].acknowledged <= then && !block->writes[i].loose)
            stable = i;
    if (stable != LIVES_MAY)
        block_drop(block, stable);
}

static void block_acknowledged(struct lives *lives, struct lives_block *block, const struct lives_writer *writer)
{
    const unsigned last = block->write_count - 1u;
    block->busy = false;
    block->recorded = block->recorded || writer->recorded;
    block->writes[last].acknowledged = ++lives->stamps;
    if (block->writes[last].loose)
        return;
    block->from = (uint8_t)last;
    block->seen = false;
    if ((writer->request.flags & REQUEST_FUA) || !lives->tracked) /* without tracking no power is lost */
        block_drop(block, last);
}

static bool may_hold(const struct lives *lives, unsigned disk, uint64_t sector, uint32_t number, bool power_lost)
{
    const struct lives_disk *of = &lives->disks[disk];
    const struct lives_block *block = &of->blocks[sector / LIVES_SECTORS];
    if (block->seen && of->seen[sector] == number)
        return true;
    if (power_lost && block->stable && of->stable[sector] == number)
        return true;
    for (unsigned i = power_lost ? 0 : block->from; i < block->write_count; i++)
        if (block->writes[i].number == number)
            return true;
    return false;
}

/* ---- requests ---- */

static void read_check(const struct lives *lives, const struct lives_writer *reader)
{
    const uint64_t first = reader->block * LIVES_SECTORS;
    for (uint64_t i = 0; i < reader->count * LIVES_SECTORS; i++) {
        const struct lives_block *block = &lives->disks[reader->disk].blocks[reader->block + i / LIVES_SECTORS];
        const uint32_t number = guest_number(lives, reader->disk, first + i, reader->request.buffer + i * 512);
        if (!block->busy && block->stamp <= reader->issued && !may_hold(lives, reader->disk, first + i, number, false))
            lives_fail(lives, "the guest reads %u in sector %llu of disk %u", number, (unsigned long long)(first + i),
                       reader->disk);
    }
}

static void settle(struct lives *lives, struct lives_writer *writer)
{
    struct lives_disk *disk = &lives->disks[writer->disk];
    if (writer->count == 0)
        return;
    if (!writer->request.done) {
        if (world_now(lives->stage->world) - writer->issued_ns > PATIENCE_NS)
            lives_fail(lives, "a request of the guest takes too long (R2)");
        return;
    }
    if (writer->request.status != 0)
        lives_fail(lives, "a request of the guest fails: %d (R2)", writer->request.status);
    if (writer->kind == REQUEST_READ)
        read_check(lives, writer);
    for (uint64_t i = 0; i < lives->blocks && writer->kind == REQUEST_FLUSH; i++)
        if (disk->blocks[i].write_count > 0)
            block_flushed(&disk->blocks[i], writer->issued);
    for (uint64_t i = 0; i < writer->count && writer->number != 0; i++)
        block_acknowledged(lives, &disk->blocks[writer->block + i], writer);
    writer->count = 0;
}

static bool is_free(const struct lives *lives, const struct lives_writer *writer)
{
    for (uint64_t i = 0; i < writer->count; i++) {
        const struct lives_block *block = &lives->disks[writer->disk].blocks[writer->block + i];
        if (block->busy || block->write_count + 1 >= LIVES_MAY)
            return false;
    }
    return true;
}

uint64_t guest_place(struct lives *lives, uint64_t count)
{
    const uint64_t region = lives_below(lives, lives->regions) * LIVES_REGION;
    const uint64_t first = lives->stage->disk_bytes / STAGE_BLOCK;
    const uint64_t room = first - region < 256 ? first - region : 256;
    return region + lives_below(lives, room - count + 1);
}

static enum request_kind choose_kind(struct lives *lives)
{
    const uint64_t what = lives_below(lives, 100);
    if (what < 5)
        return REQUEST_READ;
    if (what < 12)
        return REQUEST_FLUSH;
    if (what < 22 && lives->discards)
        return REQUEST_DISCARD;
    return what < 32 && lives->discards ? REQUEST_WRITE_ZEROES : REQUEST_WRITE;
}

/* Notes what the request will change, and fills its buffer. */
static void enter(struct lives *lives, struct lives_writer *writer)
{
    const bool zeroes = writer->kind != REQUEST_WRITE;
    writer->number = ++lives->numbers;
    for (uint64_t i = 0; i < writer->count; i++) {
        struct lives_block *block = &lives->disks[writer->disk].blocks[writer->block + i];
        const bool loose = writer->kind == REQUEST_DISCARD;
        block->busy = true;
        block_add(lives, writer->disk, writer->block + i, zeroes ? LIVES_ZERO : writer->number, loose);
    }
    for (uint64_t i = 0; i < writer->count * LIVES_SECTORS && !zeroes; i++)
        stamp_sector(writer->request.buffer + i * 512, writer->number, writer->block * LIVES_SECTORS + i);
}

static void submit(struct lives *lives, struct lives_writer *writer)
{
    struct stage *stage = lives->stage;
    struct stage_request *request = &writer->request;
    switch (writer->kind) {
    case REQUEST_READ:
        stage_read(stage, request, &stage->disks[writer->disk]->node, writer->block, writer->count);
        break;
    case REQUEST_WRITE:
        stage_write_buffer(stage, request, writer->disk, writer->block, writer->count);
        break;
    case REQUEST_WRITE_ZEROES:
        stage_write_zeroes(stage, request, writer->disk, writer->block, writer->count);
        break;
    case REQUEST_DISCARD:
        PROBE(restart_guest_discards);
        stage_discard(stage, request, writer->disk, writer->block, writer->count);
        break;
    case REQUEST_FLUSH:
    case REQUEST_BLOCK_STATUS:
        stage_flush(stage, request, writer->disk);
        break;
    }
}

void guest_act(struct lives *lives)
{
    struct lives_writer *writer = &lives->writers[lives_below(lives, LIVES_WRITERS)];
    for (unsigned i = 0; i < LIVES_WRITERS; i++)
        settle(lives, &lives->writers[i]);
    if (writer->count > 0)
        return;
    const enum request_kind kind = choose_kind(lives);
    const bool large = kind == REQUEST_DISCARD || kind == REQUEST_WRITE_ZEROES;
    *writer = (struct lives_writer){.kind = kind,
                                    .disk = (unsigned)lives_below(lives, STAGE_DISKS),
                                    .count = 1 + lives_below(lives, large && lives_chance(lives, 200) ? 60 : 4),
                                    .issued_ns = world_now(lives->stage->world)};
    writer->block = growth_place(lives, lives->disks[writer->disk].size, writer->count);
    if (writer->block == 0)
        writer->block = guest_place(lives, writer->count);
    if (kind != REQUEST_FLUSH && !is_free(lives, writer)) {
        writer->count = 0;
        return;
    }
    if (kind != REQUEST_READ && kind != REQUEST_FLUSH) {
        writer->request.flags = lives_chance(lives, 60) ? REQUEST_FUA : 0;
        enter(lives, writer);
    }
    writer->issued = ++lives->stamps;
    writer->recorded = lives->bitmap_there && kind != REQUEST_DISCARD; /* that may be put off */
    submit(lives, writer);
}

void guest_wait(struct lives *lives)
{
    for (unsigned i = 0; i < LIVES_WRITERS && !lives->stage->dead; i++) {
        struct lives_writer *writer = &lives->writers[i];
        while (writer->count > 0 && !lives->stage->dead) {
            lives_wait(lives, &writer->request.done);
            settle(lives, writer);
        }
    }
}

/* A discard that was put off may run after the cut, and so may whatever is parked. */
void guest_cut(struct lives *lives, unsigned disk)
{
    for (uint64_t i = 0; i < lives->blocks; i++) {
        struct lives_block *block = &lives->disks[disk].blocks[i];
        bool loose = block->busy;
        for (unsigned k = block->from; k < block->write_count; k++)
            loose = loose || block->writes[k].loose;
        if (loose)
            block->stamp = ++lives->stamps;
    }
}

/* ---- deaths ---- */

static void block_after_death(struct lives *lives, unsigned disk, uint64_t index, bool power_lost)
{
    struct lives_disk *of = &lives->disks[disk];
    struct lives_block *block = &of->blocks[index];
    const uint8_t *bytes = world_file_bytes(lives->stage->files[disk]);
    for (uint64_t i = index * LIVES_SECTORS; i < (index + 1) * LIVES_SECTORS; i++) {
        const uint32_t number = guest_number(lives, disk, i, bytes + i * 512);
        if (!may_hold(lives, disk, i, number, power_lost))
            lives_fail(lives, "sector %llu of disk %u holds %u after %s (R6)", (unsigned long long)i, disk, number,
                       power_lost ? "a power loss" : "kill -9");
        of->seen[i] = number;
        if (power_lost || !lives->tracked)
            of->stable[i] = number;
    }
    block->busy = false;
    block->seen = true;
    if (power_lost || !lives->tracked) {
        block->write_count = 0;
        block->stable = true;
    }
    block->from = block->write_count;
}

void guest_after_death(struct lives *lives, bool power_lost)
{
    for (unsigned disk = 0; disk < STAGE_DISKS; disk++)
        for (uint64_t i = 0; i < lives->blocks; i++)
            if (lives->disks[disk].blocks[i].touched)
                block_after_death(lives, disk, i, power_lost);
    for (unsigned i = 0; i < LIVES_WRITERS; i++)
        lives->writers[i].count = 0;
    lives->bitmap_there = false;
}

void guest_begin(struct lives *lives)
{
    lives->numbers = LIVES_FIRST;
    for (unsigned d = 0; d < STAGE_DISKS; d++) {
        struct lives_disk *disk = &lives->disks[d];
        disk->lives = lives;
        disk->size = lives->stage->disk_bytes / STAGE_BLOCK;
        disk->blocks = allocate(lives->blocks, sizeof *disk->blocks);
        disk->seen = allocate(lives->blocks * LIVES_SECTORS, sizeof *disk->seen);
        disk->stable = allocate(lives->blocks * LIVES_SECTORS, sizeof *disk->stable);
        for (uint64_t i = 0; i < lives->blocks; i++) {
            disk->blocks[i].seen = disk->blocks[i].stable = true;
            for (unsigned k = 0; k < LIVES_SECTORS; k++)
                disk->seen[i * LIVES_SECTORS + k] = disk->stable[i * LIVES_SECTORS + k] = first_number(i);
        }
    }
}

void guest_end(struct lives *lives)
{
    for (unsigned disk = 0; disk < STAGE_DISKS; disk++) {
        free(lives->disks[disk].blocks);
        free(lives->disks[disk].seen);
        free(lives->disks[disk].stable);
    }
}
