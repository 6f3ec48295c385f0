/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Bitmaps in shared memory.
 *
 *     header     one page: whose memory it is, and which areas hold spans
 *     area 0     head: which of its pages may be touched; how often each page of the sidecar was written
 *                pages of bits
 *     area 1 ... LIMIT_CHECKPOINTS of them; the address range is reserved, memory is taken page by page
 *
 * A page is grown (fallocated) before it is touched, and noted as grown after that: so nothing that a kill leaves is ever a
 * page that must not be touched (C13). A bit is set in the step that hands its write to the kernel, by one store; so what a
 * killed process leaves is exact.
 *
 * Adoption (C11): the sidecar holds the nonce of the last writable open. An open that has made a new one says it here first,
 * beside the old one; then writes it to the sidecar; then lets the old one go. So the memory fits the sidecar at every
 * moment of that, and memory that another open has passed by never does.
 *
 * The memory of a span that goes is given back in steps, for to free half a GiB of it takes tens of milliseconds. Until then
 * its area is doomed, which is noted in the header, so that whoever adopts it goes on.
 *
 * How often a page was written is counted up when the write is durable, not before: the next write goes to the copy that
 * the last one did not go to, and if the killed process had one more on its way, it is that copy that it went to.
 */
#include "track/span.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MEMORY_MAGIC "FLEECETM"
enum { MEMORY_VERSION = 4 };

struct span_memory_area {
    uint64_t first_sequence; /* 0: holds no span */
    uint64_t unstored, doomed;
};

struct span_memory_header {
    char magic[8];
    uint32_t version, granularity_shift;
    uint64_t disk_bytes, sidecar_pages;
    uint8_t boot_id[BOOT_ID_BYTES], uuid[SIDECAR_UUID_BYTES];
    uint8_t nonce[SPAN_NONCE_BYTES], nonce_next[SPAN_NONCE_BYTES];
    uint64_t is_void;
    struct disk_note note;
    struct span_memory_area areas[SIDECAR_AREAS];
};
_Static_assert(sizeof(struct span_memory_header) <= SPAN_PAGE_BYTES, "one page");

/* What comes before must be in memory when this is: a kill may come between any two stores. */
#define PUBLISH(place, value) __atomic_store_n(&(place), value, __ATOMIC_RELEASE)

static uint64_t counts_at(const struct span_memory *memory)
{
    return round_up(memory->pages, sizeof(uint32_t));
}

void span_memory_init(struct span_memory *memory, struct io *io, const struct io_shm_name *name, uint64_t sidecar_pages)
{
    *memory = (struct span_memory){.io = io, .name = *name, .sidecar_pages = sidecar_pages};
    memory->pages = (sidecar_pages * SIDECAR_PAGE_BITS + SPAN_PAGE_BITS - 1) / SPAN_PAGE_BITS;
    memory->head_bytes = round_up(counts_at(memory) + sidecar_pages * sizeof(uint32_t), SPAN_PAGE_BYTES);
    memory->area_bytes = memory->head_bytes + memory->pages * SPAN_PAGE_BYTES;
}

static uint64_t reserved_bytes(const struct span_memory *memory)
{
    return SPAN_PAGE_BYTES + SIDECAR_AREAS * memory->area_bytes;
}

static void set_size(struct span_memory *memory, uint64_t disk_bytes, unsigned shift)
{
    memory->bit_count = (disk_bytes + (UINT64_C(1) << shift) - 1) >> shift;
}

static int map_header(struct span_memory *memory)
{
    int status = io_shm_grow(memory->io, &memory->shm, (struct range){0, SPAN_PAGE_BYTES});
    memory->header = (struct span_memory_header *)(void *)memory->shm.base;
    memory->open = true;
    return status;
}

int span_memory_create(struct span_memory *memory, const struct span_key *key, struct error *err)
{
    assert(!memory->open);
    int status = io_shm_create(memory->io, &memory->shm, &memory->name, reserved_bytes(memory), err);
    if (status < 0)
        return status;
    status = map_header(memory);
    if (status < 0) {
        span_memory_close(memory, true);
        return error_set(err, -status, "no room for change tracking in '%s': %s", memory->name.folder,
                         error_name(status));
    }
    struct span_memory_header *header = memory->header;
    *header = (struct span_memory_header){
        .version = MEMORY_VERSION,
        .granularity_shift = key->granularity_shift,
        .disk_bytes = key->disk_bytes,
        .sidecar_pages = memory->sidecar_pages,
    };
    memcpy(header->boot_id, key->boot_id, sizeof header->boot_id);
    memcpy(header->uuid, key->uuid, sizeof header->uuid);
    memcpy(header->nonce, key->nonce, sizeof header->nonce);
    memcpy(header->nonce_next, key->nonce, sizeof header->nonce_next);
    set_size(memory, key->disk_bytes, key->granularity_shift);
    return 0;
}

static bool header_is_ours(const struct span_memory_header *header, const struct span_key *key)
{
    return memcmp(header->magic, MEMORY_MAGIC, sizeof header->magic) == 0 && header->version == MEMORY_VERSION &&
           memcmp(header->boot_id, key->boot_id, sizeof header->boot_id) == 0 &&
           memcmp(header->uuid, key->uuid, sizeof header->uuid) == 0;
}

static bool header_fits(const struct span_memory *memory, const struct span_key *key)
{
    const struct span_memory_header *header = memory->header;
    return memory->shm.reserved_bytes == reserved_bytes(memory) &&
           header->granularity_shift == key->granularity_shift &&
           (header->disk_bytes == key->disk_bytes || (key->next_bytes && header->disk_bytes == key->next_bytes)) &&
           header->sidecar_pages == memory->sidecar_pages &&
           (memcmp(header->nonce, key->nonce, sizeof header->nonce) == 0 ||
            memcmp(header->nonce_next, key->nonce, sizeof header->nonce_next) == 0);
}

int span_memory_adopt(struct span_memory *memory, const struct span_key *key, struct error *err)
{
    assert(!memory->open);
    int status = io_shm_adopt(memory->io, &memory->shm, &memory->name, err);
    if (status < 0)
        return status;
    status = memory->shm.reserved_bytes >= SPAN_PAGE_BYTES ? map_header(memory) : -ENOENT;
    if (status < 0 || !header_is_ours(memory->header, key))
        status = error_set(err, ENOENT, "the shared memory '%s' is of another sidecar", memory->name.file);
    else if (memory->header->is_void)
        status = error_set(err, ESTALE, "tracking had ended when the daemon was killed");
    else if (!header_fits(memory, key))
        status = error_set(err, ESTALE, "the sidecar is older than what the daemon left in memory when it was killed");
    if (status < 0) {
        io_shm_destroy(memory->io, &memory->shm);
        memory->open = false;
    }
    set_size(memory, key->disk_bytes, key->granularity_shift);
    return status;
}

/* Without its magic it is nobody's: while it is filled from the sidecar it knows nothing that the sidecar does not. */
static void make_known(struct span_memory_header *header)
{
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    memcpy(header->magic, MEMORY_MAGIC, sizeof header->magic);
}

void span_memory_announce(struct span_memory *memory, const uint8_t past[SPAN_NONCE_BYTES],
                          const uint8_t nonce[SPAN_NONCE_BYTES])
{
    struct span_memory_header *header = memory->header;
    /* The past one is one of the two, and a kill may come at any byte: it is in both places before one of them changes. */
    memcpy(header->nonce, past, sizeof header->nonce);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    memcpy(header->nonce_next, nonce, sizeof header->nonce_next);
    make_known(header);
}

void span_memory_settle(struct span_memory *memory)
{
    memcpy(memory->header->nonce, memory->header->nonce_next, sizeof memory->header->nonce);
    make_known(memory->header);
}

void span_memory_set_size(struct span_memory *memory, uint64_t disk_bytes)
{
    set_size(memory, disk_bytes, memory->header->granularity_shift);
    memory->header->disk_bytes = disk_bytes;
}

int span_memory_owner(const void *bytes, uint64_t length, uint64_t *device, uint64_t *inode)
{
    struct span_memory_header header;
    if (length < sizeof header)
        return -EINVAL;
    memcpy(&header, bytes, sizeof header);
    if (memcmp(header.magic, MEMORY_MAGIC, sizeof header.magic) != 0 || header.version != MEMORY_VERSION)
        return -EINVAL;
    *device = header.note.device;
    *inode = header.note.inode;
    return 0;
}

struct disk_note *span_memory_note(const struct span_memory *memory)
{
    return &memory->header->note;
}

void span_memory_condemn(struct span_memory *memory)
{
    PUBLISH(memory->header->is_void, 1);
}

void span_memory_close(struct span_memory *memory, bool remove)
{
    if (!memory->open)
        return;
    if (remove)
        io_shm_remove(memory->io, &memory->name);
    io_shm_destroy(memory->io, &memory->shm);
    memory->open = false;
    memory->doomed = memory->reap_page = 0;
}

/* One span. */

static uint64_t area_at(const struct span_memory *memory, unsigned area)
{
    return SPAN_PAGE_BYTES + area * memory->area_bytes;
}

static int span_map(struct span *span, struct span_memory *memory, unsigned area, uint64_t first_sequence)
{
    char *head = memory->shm.base + area_at(memory, area);
    *span = (struct span){
        .area = area,
        .first_sequence = first_sequence,
        .grown = (uint8_t *)head,
        .written = (uint32_t *)(void *)(head + counts_at(memory)),
        .words = (uint64_t *)(void *)(head + memory->head_bytes),
        .changed = calloc(memory->sidecar_pages, 1),
    };
    if (!span->changed)
        return -ENOMEM;
    span->memory = memory;
    return 0;
}

int span_create(struct span *span, struct span_memory *memory, unsigned area, uint64_t first_sequence)
{
    assert(memory->open && memory->header->areas[area].first_sequence == 0 && first_sequence > 0);
    assert(!span_area_is_doomed(memory, area));
    int status = span_map(span, memory, area, first_sequence);
    if (status < 0)
        return status;
    status = io_shm_grow(memory->io, &memory->shm, (struct range){area_at(memory, area), memory->head_bytes});
    if (status < 0) {
        free(span->changed);
        *span = (struct span){0};
        return status;
    }
    memset(span->grown, 0, memory->head_bytes);
    return 0;
}

void span_publish(struct span *span)
{
    struct span_memory_area *area = &span->memory->header->areas[span->area];
    area->unstored = 0;
    PUBLISH(area->first_sequence, span->first_sequence);
}

int span_adopt(struct span *span, struct span_memory *memory, unsigned area, uint64_t first_sequence)
{
    if (memory->header->areas[area].first_sequence != first_sequence)
        return -ENOENT;
    int status = span_map(span, memory, area, first_sequence);
    if (status < 0)
        return status;
    for (uint64_t page = 0; page < memory->pages; page++)
        span->grown_pages += span_has_page(span, page);
    return 0;
}

/* The word first: a kill in between leaves a span that is there still, or one that is doomed. */
static void area_doom(struct span_memory *memory, unsigned area)
{
    PUBLISH(memory->header->areas[area].doomed, 1);
    PUBLISH(memory->header->areas[area].first_sequence, 0);
    memory->doomed |= UINT64_C(1) << area;
}

void span_destroy(struct span *span)
{
    if (!span->memory)
        return;
    area_doom(span->memory, span->area);
    free(span->changed);
    *span = (struct span){0};
}

void span_memory_drop_others(struct span_memory *memory, const bool used[SIDECAR_AREAS])
{
    for (unsigned area = 0; area < SIDECAR_AREAS; area++) {
        if (used[area])
            memory->header->areas[area].doomed = 0;
        else if (memory->header->areas[area].first_sequence != 0 || memory->header->areas[area].doomed)
            area_doom(memory, area);
    }
}

/* The head goes last: it says which pages are grown. */
bool span_memory_reap(struct span_memory *memory)
{
    if (!memory->doomed)
        return false;
    const unsigned area = (unsigned)__builtin_ctzll(memory->doomed);
    const uint64_t at = area_at(memory, area);
    const uint8_t *grown = (const uint8_t *)memory->shm.base + at;
    const uint8_t *first = memchr(grown + memory->reap_page, 1, memory->pages - memory->reap_page);
    if (first) {
        const uint64_t page = (uint64_t)(first - grown);
        uint64_t end = page;
        while (end < memory->pages && end - page < LIMIT_BITMAP_STEP_CHUNKS && grown[end])
            end++;
        const struct range run = {at + memory->head_bytes + page * SPAN_PAGE_BYTES, (end - page) * SPAN_PAGE_BYTES};
        io_shm_punch(memory->io, &memory->shm, run);
        memory->reap_page = end;
        return true;
    }
    io_shm_punch(memory->io, &memory->shm, (struct range){at, memory->head_bytes});
    PUBLISH(memory->header->areas[area].doomed, 0);
    memory->doomed &= memory->doomed - 1;
    memory->reap_page = 0;
    return memory->doomed != 0;
}

void span_set_unstored(struct span *span, bool unstored)
{
    PUBLISH(span->memory->header->areas[span->area].unstored, unstored);
}

bool span_is_unstored(const struct span *span)
{
    return span->memory->header->areas[span->area].unstored != 0;
}

int span_grow(struct span *span, uint64_t first_bit, uint64_t count)
{
    struct span_memory *memory = span->memory;
    assert(count > 0 && first_bit + count <= memory->pages * SPAN_PAGE_BITS);
    uint64_t at = area_at(memory, span->area) + memory->head_bytes;
    for (uint64_t page = first_bit / SPAN_PAGE_BITS; page <= (first_bit + count - 1) / SPAN_PAGE_BITS; page++) {
        if (span_has_page(span, page))
            continue;
        int status = io_shm_grow(memory->io, &memory->shm,
                                 (struct range){at + page * SPAN_PAGE_BYTES, SPAN_PAGE_BYTES});
        if (status < 0)
            return status;
        memset(span->words + page * SPAN_PAGE_WORDS, 0, SPAN_PAGE_BYTES); /* a kill may have left it half made */
        PUBLISH(span->grown[page], 1);
        span->grown_pages++;
    }
    return 0;
}

bool span_all_set(const struct span *span, uint64_t first_bit, uint64_t count)
{
    const uint64_t end = first_bit + count;
    for (uint64_t word = first_bit / 64; word <= (end - 1) / 64; word++)
        if (~span_word(span, word) & span_mask(first_bit, end, word))
            return false;
    return true;
}

void span_save_page(const struct span *span, uint64_t page, uint8_t payload[SIDECAR_PAYLOAD])
{
    const uint64_t words = SIDECAR_PAGE_BITS / 64, first = page * words, all = span->memory->pages * SPAN_PAGE_WORDS;
    for (uint64_t i = 0; i < words; i++) {
        uint64_t value = first + i < all ? htole64(span_word(span, first + i)) : 0;
        memcpy(payload + i * 8, &value, 8);
    }
}

int span_load_page(struct span *span, uint64_t page, const uint8_t payload[SIDECAR_PAYLOAD])
{
    const uint64_t words = SIDECAR_PAGE_BITS / 64, first = page * words;
    for (uint64_t i = 0; i < words; i++) {
        uint64_t value;
        memcpy(&value, payload + i * 8, 8);
        if (value == 0 && !span_word(span, first + i))
            continue;
        int status = span_grow(span, (first + i) * 64, 64);
        if (status < 0)
            return status;
        span->words[first + i] = le64toh(value);
    }
    return 0;
}

static void note_changed(struct span *span, uint64_t word)
{
    span->changed[word * 64 / SIDECAR_PAGE_BITS] = 1;
}

void span_set(struct span *span, uint64_t first_bit, uint64_t count)
{
    const uint64_t end = first_bit + count;
    for (uint64_t word = first_bit / 64; word <= (end - 1) / 64; word++) {
        uint64_t mask = span_mask(first_bit, end, word);
        assert(span_has_page(span, word / SPAN_PAGE_WORDS));
        if ((span->words[word] & mask) == mask)
            continue;
        span->words[word] |= mask;
        note_changed(span, word);
    }
}

int span_merge_page(struct span *into, const struct span *from, uint64_t page)
{
    if (!span_has_page(from, page))
        return 0;
    int status = span_grow(into, page * SPAN_PAGE_BITS, 1);
    if (status < 0)
        return status;
    for (uint64_t word = page * SPAN_PAGE_WORDS; word < (page + 1) * SPAN_PAGE_WORDS; word++) {
        if (!(from->words[word] & ~into->words[word]))
            continue;
        into->words[word] |= from->words[word];
        note_changed(into, word);
    }
    return 0;
}

void span_change_all(struct span *span)
{
    memset(span->changed, 1, span->memory->sidecar_pages);
}

void span_change(struct span *span, uint64_t first_bit, uint64_t count)
{
    const uint64_t first = first_bit / SIDECAR_PAGE_BITS, last = (first_bit + count - 1) / SIDECAR_PAGE_BITS;
    memset(span->changed + first, 1, last - first + 1);
}

uint64_t span_count(const struct span *span)
{
    uint64_t count = 0;
    for (uint64_t page = 0; page < span->memory->pages; page++)
        for (uint64_t i = 0; i < SPAN_PAGE_WORDS && span_has_page(span, page); i++)
            count += (unsigned)__builtin_popcountll(span->words[page * SPAN_PAGE_WORDS + i]);
    return count;
}

uint64_t span_memory_bytes(const struct span *span)
{
    return span->memory->head_bytes + span->grown_pages * SPAN_PAGE_BYTES;
}

void spans_count(struct span *const *spans, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        spans[i]->since_count = 0;
    const uint64_t pages = count > 0 ? spans[0]->memory->pages : 0;
    for (uint64_t page = 0; page < pages; page++) {
        uint64_t all[SPAN_PAGE_WORDS] = {0}, set = 0;
        for (unsigned i = count; i-- > 0;) {
            if (span_has_page(spans[i], page)) {
                set = 0;
                for (unsigned w = 0; w < SPAN_PAGE_WORDS; w++) {
                    all[w] |= spans[i]->words[page * SPAN_PAGE_WORDS + w];
                    set += (unsigned)__builtin_popcountll(all[w]);
                }
            }
            spans[i]->since_count += set;
        }
    }
}

static uint64_t union_word(struct span *const *spans, unsigned count, uint64_t word)
{
    uint64_t bits = 0;
    for (unsigned i = 0; i < count; i++)
        bits |= span_word(spans[i], word);
    return bits;
}

static bool union_has_page(struct span *const *spans, unsigned count, uint64_t page)
{
    for (unsigned i = 0; i < count; i++)
        if (span_has_page(spans[i], page))
            return true;
    return false;
}

/* The first bit at or after `at` that is `value`, before `end`, which is the answer when there is none. */
static uint64_t union_find(struct span *const *spans, unsigned count, uint64_t at, uint64_t end, bool value)
{
    while (at < end) {
        if (!union_has_page(spans, count, at / SPAN_PAGE_BITS)) {
            if (!value)
                return at;
            at = (at / SPAN_PAGE_BITS + 1) * SPAN_PAGE_BITS;
            continue;
        }
        uint64_t bits = union_word(spans, count, at / 64);
        bits = (value ? bits : ~bits) & ~UINT64_C(0) << (at % 64);
        if (bits) {
            at = at / 64 * 64 + (unsigned)__builtin_ctzll(bits);
            return at < end ? at : end;
        }
        at = (at / 64 + 1) * 64;
    }
    return end;
}

struct block_range spans_next(struct span *const *spans, unsigned count, uint64_t from, uint64_t bit_count,
                              unsigned max_pages)
{
    uint64_t end = (from / SPAN_PAGE_BITS + max_pages) * SPAN_PAGE_BITS;
    if (end > bit_count)
        end = bit_count;
    if (from >= end)
        return (struct block_range){bit_count, 0};
    uint64_t first = union_find(spans, count, from, end, true);
    return (struct block_range){first, union_find(spans, count, first, end, false) - first};
}
