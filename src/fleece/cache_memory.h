/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What outlives the daemon of one disk's fleecing cache: named shared memory with the records of its places and what its
 * points need. The slots of RAM lie beside it, in a piece of their own (ram_tier.h). Owner: the disk's reactor; made and
 * adopted on any thread before that.
 */
#ifndef FLEECE_FLEECE_CACHE_MEMORY_H
#define FLEECE_FLEECE_CACHE_MEMORY_H

#include <limits.h>
#include <stdatomic.h>

#include "base/limits.h"
#include "io/io.h"

enum place_kind { PLACE_RAM, PLACE_FILE, PLACE_ZERO };

#define PLACE_KINDS 3u

#define CACHE_SESSION_BYTES 16
/* What each snapshot needs, and needed at its cut: see needed_memory.h. */
#define NEEDED_SETS (2 * LIMIT_SNAPSHOTS)
/* Each kind of places begins with a page of keys of its own. */
#define CACHE_PLACES_ALIGNMENT ((uint32_t)(4 * KIB / sizeof(uint64_t)))

struct cache_file_id { /* by which the next daemon recognises the cache file */
    uint8_t uuid[16];
    uint64_t device, inode;
    char path[PATH_MAX];
};

struct cache_memory_plan { /* how the places are numbered; a cache that is adopted has that of the one before */
    uint64_t room_bytes;   /* the largest disk that there is room for */
    uint32_t block_shift, slots_per_segment;
    uint32_t segments_max[PLACE_KINDS];
};

struct cache_memory_header;

struct cache_memory {
    struct io *io;
    const char *folder;
    char map_file[LIMIT_NAME_BYTES + 8], slots_file[LIMIT_NAME_BYTES + 8];
    uint8_t session[CACHE_SESSION_BYTES]; /* of the table of snapshots that it belongs to */
    struct io_shm shm;
    struct cache_memory_header *header; /* NULL: neither made nor adopted yet */
    bool adopted;
    uint64_t *keys;                    /* by place, as in the map */
    uint64_t keys_at;                  /* in the shared memory */
    uint64_t needed_at, needed_stride; /* see needed_memory.h */
    uint64_t states_bytes;
    uint64_t grown[PLACE_KINDS]; /* bytes of keys that may be touched */
};

/* Nothing is made yet. The folder must stay. */
void cache_memory_init(struct cache_memory *memory, struct io *io, const char *folder, const char *disk,
                       const uint8_t session[CACHE_SESSION_BYTES]);
/* Makes it anew, for a disk of that size. `file`: the cache file, NULL: there is none. 0 or -errno with a sentence. */
int cache_memory_create(struct cache_memory *memory, const struct cache_memory_plan *plan, uint64_t disk_bytes,
                        const struct cache_file_id *file, struct error *err);
/* Takes over what a killed daemon of the same boot and session has left. 0, or -errno with a sentence: it is not right. */
int cache_memory_adopt(struct cache_memory *memory, struct error *err);
/* With its names. The map must not use the keys any more. */
void cache_memory_destroy(struct cache_memory *memory);
/* Takes away names that nobody uses any more. */
void cache_memory_remove(struct io *io, const char *folder, const char *disk);

/* What it was made with. */
struct cache_memory_plan cache_memory_plan(const struct cache_memory *memory);
const struct cache_file_id *cache_memory_file(const struct cache_memory *memory); /* NULL: there is none */
struct io_shm_name cache_memory_slots(const struct cache_memory *memory);

/* The disk will have this size, and has it. Whoever adopts the memory between the two may find either. NULL is no memory
 * at all. */
void cache_memory_announce_growth(struct cache_memory *memory, uint64_t disk_bytes);
void cache_memory_grow(struct cache_memory *memory, uint64_t disk_bytes);
/* Of one that is adopted: whether it is of a disk of that size, which it has from now on. -EINVAL with a sentence. */
int cache_memory_check_disk(struct cache_memory *memory, uint64_t disk_bytes, struct error *err);
/* The size of the disk at the cut of the snapshot with that number. */
void cache_memory_note_point(struct cache_memory *memory, unsigned number, uint64_t size_bytes);
uint64_t cache_memory_point(const struct cache_memory *memory, unsigned number);

/* The number of the first place of a kind; of PLACE_KINDS: how many there are. */
uint32_t cache_memory_base(const struct cache_memory_plan *plan, unsigned kind);
/* Segments below `end` of the kind may be used from now on. 0, or -ENOSPC: tmpfs is full. NULL is no memory at all: 0. */
int cache_memory_reach(struct cache_memory *memory, enum place_kind kind, uint32_t end);
/* No segment of the kind at or beyond it was ever used. */
uint32_t cache_memory_reached(const struct cache_memory *memory, enum place_kind kind);
/* The number of the last header written into the cache file. NULL is no memory at all. */
void cache_memory_note_sequence(struct cache_memory *memory, uint64_t sequence);
uint64_t cache_memory_sequence(const struct cache_memory *memory);

#endif
