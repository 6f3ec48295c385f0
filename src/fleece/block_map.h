/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which place of the cache holds which block as it was at which epoch: 16 bytes an entry. A place is a number: what is
 * there (a slot in RAM, a slot of the cache file, nothing but the mark "zeroes") is the cache's affair.
 *
 * Epochs count the snapshots of a VM. An entry of block B with epoch E holds B as it was at every point p with
 * older(B) < p <= E, where older(B) is the epoch of B's next older entry (0: none): the interval of points it serves (C5).
 */
#ifndef FLEECE_FLEECE_BLOCK_MAP_H
#define FLEECE_FLEECE_BLOCK_MAP_H

#include <stdbool.h>
#include <stdint.h>

#define PLACE_NONE UINT32_MAX

struct block_map {
    /* By place: block << EPOCH_BITS | epoch; 0: not in the map (epoch 0 does not exist). A store makes the entry, or ends
     * it, for whoever adopts the keys as well: after its data is there, and before its place is used again (C2, C12). */
    uint64_t *keys;
    uint32_t *chains;  /* by place: the next place of its bucket, +1; newer entries of a block come first */
    uint32_t *buckets; /* first place, +1 */
    uint32_t *regions; /* entries of each run of MAP_REGION_BLOCKS blocks */
    uint64_t *groups;  /* by region: a bit for each of its 64 groups of blocks that may have entries; see below */
    uint64_t region_count;
    uint32_t places_max, bucket_count, bucket_mask; /* see block_map.c */
    uint32_t entries;
    void *memory; /* the one mapping that they are in, but for keys that are the caller's */
    uint64_t bytes;
};

enum { EPOCH_BITS = 28, MAP_GROUP_BLOCKS = 16, MAP_REGION_BLOCKS = 64 * MAP_GROUP_BLOCKS };
/* Newer than every point: the block as it is on the disk now, kept though nobody has overwritten it. */
#define EPOCH_UNCHANGED ((UINT32_C(1) << EPOCH_BITS) - 1)

/* 0 or -ENOMEM. The memory is touched as places come into use. `keys`: where the keys are, all of them zero as far as
 * block_map_adopt() is not told of them; NULL: in memory of its own. */
int block_map_init(struct block_map *map, uint32_t places_max, uint64_t blocks, uint64_t *keys);
void block_map_fini(struct block_map *map);

/* Enters the place under the key that it has already, in any order. false: the block has an entry of that epoch; the place
 * is left out. */
bool block_map_adopt(struct block_map *map, uint32_t place);
/* `epoch` is newer than every entry that the block has. */
void block_map_insert(struct block_map *map, uint32_t place, uint64_t block, uint32_t epoch);
void block_map_remove(struct block_map *map, uint32_t place);
/* A block that was unchanged so far is about to be overwritten: its entry is a copy for the points up to `epoch` now. */
void block_map_date(struct block_map *map, uint32_t place, uint32_t epoch);
/* The entry is at another place from now on. */
void block_map_move(struct block_map *map, uint32_t from, uint32_t to);

/* The place that holds the block for the point `epoch`; PLACE_NONE: the block has not been preserved since. */
uint32_t block_map_find(const struct block_map *map, uint64_t block, uint32_t epoch);
/* The place of the block's newest entry; PLACE_NONE: it has none. */
uint32_t block_map_first(const struct block_map *map, uint64_t block);
/* Epoch of the block's newest entry that is not EPOCH_UNCHANGED; 0: none. */
uint32_t block_map_newest(const struct block_map *map, uint64_t block);
/* Epoch of the next older entry of the place's block; 0: none. */
uint32_t block_map_older(const struct block_map *map, uint32_t place);
/* Epoch and block of the place's entry; epoch 0: the place is not in the map. */
uint32_t block_map_epoch(const struct block_map *map, uint32_t place);
uint64_t block_map_block(const struct block_map *map, uint32_t place);

/* The first block at or after `from` and before `end` that may have an entry; `end`: there is none. Cheap. */
uint64_t block_map_next(const struct block_map *map, uint64_t from, uint64_t end);

#endif
