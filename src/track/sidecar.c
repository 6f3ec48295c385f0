/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Blocks of a sidecar.
 *
 * A sector is valid when its sum is right, which is taken over the sidecar's UUID, its place and all that is in it: so the
 * block of another sidecar, or one that has got to another place, is not valid. The storage writes sectors whole, but any
 * part of the sectors of a write that was under way when the power failed may be there. So
 *
 *     all sectors have one stamp            the block was written whole, or never (zeroes)
 *     stamps differ, and all are valid      a write was torn, which only the last one can have been
 *     a sector is not valid                 damage, always: nothing that we or the power do leaves that behind
 *
 * The header is written once, when the sidecar is made, before anything else is in it.
 *
 * Sequence numbers count in their lower bits what a process has written, and in the upper ones the writable opens. The first
 * thing that an open writes is a superblock with the next count, and nothing else is written before that is stable: so every
 * block is younger than all of earlier opens, though nobody has looked at them all.
 */
#include "track/sidecar.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/crc32c.h"

uint64_t sidecar_pages(uint64_t disk_bytes, unsigned granularity_shift)
{
    uint64_t bits = (disk_bytes + (UINT64_C(1) << granularity_shift) - 1) >> granularity_shift;
    return (bits + SIDECAR_PAGE_BITS - 1) / SIDECAR_PAGE_BITS;
}

int sidecar_lay_out(struct sidecar *sidecar, uint64_t disk_bytes, struct error *err)
{
    uint64_t blocks = sidecar->node->size_bytes / SIDECAR_BLOCK_BYTES,
             pages = sidecar_pages(disk_bytes, sidecar->granularity_shift);
    uint64_t needed = SIDECAR_AREAS_AT + SIDECAR_AREAS * 2 * pages;
    if (blocks < needed)
        return error_set(err, EINVAL, "a sidecar of %llu bytes is too small for a disk of %llu bytes: it takes %llu",
                         (unsigned long long)sidecar->node->size_bytes, (unsigned long long)disk_bytes,
                         (unsigned long long)(needed * SIDECAR_BLOCK_BYTES));
    sidecar->area_blocks = round_down((blocks - SIDECAR_AREAS_AT) / SIDECAR_AREAS, 2);
    return 0;
}

void sidecar_make_header(const struct sidecar *sidecar, uint64_t created_ns, struct sidecar_block *block)
{
    struct sidecar_header header = {
        .version = htole32(SIDECAR_VERSION),
        .granularity_bytes = htole32(UINT32_C(1) << sidecar->granularity_shift),
        .area_blocks = htole64(sidecar->area_blocks),
        .created_ns = htole64(created_ns),
    };
    memcpy(header.magic, SIDECAR_MAGIC, SIDECAR_MAGIC_BYTES);
    memcpy(header.uuid, sidecar->uuid, SIDECAR_UUID_BYTES);
    memset(block, 0, sizeof *block);
    memcpy(block->sectors[0].payload, &header, sizeof header);
    sidecar_seal(sidecar, block, 1, 0, SIDECAR_HEADER, 1, 1);
}

static int header_malformed(unsigned from, unsigned to, const char *what, struct error *err)
{
    return error_set(err, EBADMSG, "malformed: bytes %u-%u, the header, %s", from, to - 1, what);
}

int sidecar_read_header(struct sidecar *sidecar, const struct sidecar_block *block, struct error *err)
{
    struct sidecar_stamp stamps[SIDECAR_SECTORS];
    struct sidecar_header header;
    uint64_t bad;
    if (sidecar_check(sidecar, block, 1, 0, SIDECAR_HEADER, stamps, &bad) < 0)
        return header_malformed((unsigned)bad * SIDECAR_SECTOR_BYTES, (unsigned)(bad + 1) * SIDECAR_SECTOR_BYTES,
                                "are damaged", err);
    for (unsigned i = 0; i < SIDECAR_SECTORS; i++)
        if (stamps[i].sequence == 0)
            return -ENOENT;
    memcpy(&header, block->sectors[0].payload, sizeof header);
    uint32_t granularity = le32toh(header.granularity_bytes);
    uint64_t area_blocks = le64toh(header.area_blocks);
    if (memcmp(header.magic, SIDECAR_MAGIC, SIDECAR_MAGIC_BYTES) != 0)
        return header_malformed(0, SIDECAR_BLOCK_BYTES, "are not a sidecar's", err);
    if (le32toh(header.version) != SIDECAR_VERSION)
        return error_set(err, EBADMSG, "of version %u, this program knows version %d", le32toh(header.version),
                         SIDECAR_VERSION);
    if (granularity < BLOCK_BYTES_MIN || granularity > BLOCK_BYTES_MAX || (granularity & (granularity - 1)) != 0)
        return header_malformed(0, SIDECAR_BLOCK_BYTES, "name an impossible granularity", err);
    if (area_blocks < 2 || area_blocks % 2 != 0 ||
        area_blocks > (sidecar->node->size_bytes / SIDECAR_BLOCK_BYTES - SIDECAR_AREAS_AT) / SIDECAR_AREAS)
        return error_set(err, EBADMSG, "malformed: it has been cut short to %llu bytes",
                         (unsigned long long)sidecar->node->size_bytes);
    sidecar->granularity_shift = (unsigned)__builtin_ctz(granularity);
    sidecar->area_blocks = area_blocks;
    memcpy(sidecar->uuid, header.uuid, SIDECAR_UUID_BYTES);
    return 0;
}

uint64_t sidecar_page_block(const struct sidecar *sidecar, unsigned area, uint64_t page, unsigned copy)
{
    assert(area < SIDECAR_AREAS && page * 2 + copy < sidecar->area_blocks);
    return SIDECAR_AREAS_AT + area * sidecar->area_blocks + page * 2 + copy;
}

uint64_t sidecar_next_sequence(struct sidecar *sidecar)
{
    return ++sidecar->sequence;
}

void sidecar_put_payload(struct sidecar_block *block, unsigned blocks, const void *payload)
{
    const uint8_t *from = payload;
    for (unsigned i = 0; i < blocks * SIDECAR_SECTORS; i++, from += SIDECAR_SECTOR_PAYLOAD)
        memcpy(block[i / SIDECAR_SECTORS].sectors[i % SIDECAR_SECTORS].payload, from, SIDECAR_SECTOR_PAYLOAD);
}

void sidecar_get_payload(const struct sidecar_block *block, unsigned blocks, void *payload)
{
    uint8_t *to = payload;
    for (unsigned i = 0; i < blocks * SIDECAR_SECTORS; i++, to += SIDECAR_SECTOR_PAYLOAD)
        memcpy(to, block[i / SIDECAR_SECTORS].sectors[i % SIDECAR_SECTORS].payload, SIDECAR_SECTOR_PAYLOAD);
}

static uint32_t sector_crc(const struct sidecar *sidecar, const struct sidecar_sector *sector, uint64_t number,
                           enum sidecar_kind kind)
{
    static const uint8_t none[SIDECAR_UUID_BYTES];
    uint64_t place = htole64(number);
    uint32_t crc = crc32c(0, kind == SIDECAR_HEADER ? none : sidecar->uuid, SIDECAR_UUID_BYTES);
    crc = crc32c(crc, &place, sizeof place);
    return crc32c(crc, &sector->tag, sizeof *sector - offsetof(struct sidecar_sector, tag));
}

void sidecar_seal(const struct sidecar *sidecar, struct sidecar_block *block, unsigned blocks, uint64_t number_of_block,
                  enum sidecar_kind kind, uint32_t number, uint64_t sequence)
{
    assert(number <= SIDECAR_NUMBER_MASK && sequence > 0);
    for (unsigned i = 0; i < blocks * SIDECAR_SECTORS; i++) {
        struct sidecar_sector *sector = &block[i / SIDECAR_SECTORS].sectors[i % SIDECAR_SECTORS];
        sector->tag = htole32((uint32_t)kind << 24 | number);
        sector->sequence = htole64(sequence);
        sector->crc = htole32(sector_crc(sidecar, sector, number_of_block * SIDECAR_SECTORS + i, kind));
    }
}

static bool is_zero(const void *bytes, size_t length)
{
    const uint8_t *b = bytes;
    return b[0] == 0 && memcmp(b, b + 1, length - 1) == 0;
}

int sidecar_check(const struct sidecar *sidecar, const struct sidecar_block *block, unsigned blocks,
                  uint64_t number_of_block, enum sidecar_kind kind, struct sidecar_stamp *stamps, uint64_t *bad)
{
    for (unsigned i = 0; i < blocks * SIDECAR_SECTORS; i++) {
        const struct sidecar_sector *sector = &block[i / SIDECAR_SECTORS].sectors[i % SIDECAR_SECTORS];
        uint64_t place = number_of_block * SIDECAR_SECTORS + i;
        uint32_t tag = le32toh(sector->tag);
        stamps[i] = (struct sidecar_stamp){le64toh(sector->sequence), tag & SIDECAR_NUMBER_MASK};
        bool valid = stamps[i].sequence != 0 && tag >> 24 == (uint32_t)kind &&
                     le32toh(sector->crc) == sector_crc(sidecar, sector, place, kind);
        if (valid)
            continue;
        *bad = place;
        if (!is_zero(sector, sizeof *sector))
            return -EBADMSG;
    }
    return 0;
}

static void io_done(struct request *req, int status)
{
    struct sidecar_io *io = container_of(req, struct sidecar_io, req);
    io->done(io, status);
}

static void submit(struct sidecar *sidecar, struct sidecar_io *io, enum request_kind kind, uint32_t flags,
                   uint64_t first, uint64_t blocks, void *buffer)
{
    io->req = (struct request){
        .kind = kind,
        .flags = flags,
        .range = {first * SIDECAR_BLOCK_BYTES, blocks * SIDECAR_BLOCK_BYTES},
        .iov = buffer ? &io->iov : NULL,
        .iov_count = buffer ? 1 : 0,
        .done = io_done,
    };
    io->iov = (struct iovec){buffer, blocks * SIDECAR_BLOCK_BYTES};
    node_submit(sidecar->node, &io->req);
}

void sidecar_read(struct sidecar *sidecar, struct sidecar_io *io, uint64_t first, unsigned blocks, void *buffer)
{
    submit(sidecar, io, REQUEST_READ, 0, first, blocks, buffer);
}

void sidecar_write(struct sidecar *sidecar, struct sidecar_io *io, uint64_t first, unsigned blocks, void *buffer,
                   bool durably)
{
    submit(sidecar, io, REQUEST_WRITE, durably ? REQUEST_FUA : 0, first, blocks, buffer);
}

void sidecar_allocate(struct sidecar *sidecar, struct sidecar_io *io, uint64_t first, uint64_t blocks)
{
    submit(sidecar, io, REQUEST_WRITE_ZEROES, REQUEST_NO_HOLE | REQUEST_FUA, first, blocks, NULL);
}

void sidecar_flush(struct sidecar *sidecar, struct sidecar_io *io)
{
    submit(sidecar, io, REQUEST_FLUSH, 0, 0, 0, NULL);
}
