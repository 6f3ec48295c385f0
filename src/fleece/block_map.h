/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which slot of the cache holds which block as it was at which epoch: 16 bytes a slot, allocated once.
 *
 * Epochs count the snapshots of a VM. An entry of block B with epoch E holds B as it was at every point p with
 * older(B) < p <= E, where older(B) is the epoch of B's next older entry (0: none): the interval of points it serves (C5).
 */
#ifndef FLEECE_FLEECE_BLOCK_MAP_H
#define FLEECE_FLEECE_BLOCK_MAP_H

#include <stdint.h>

struct block_map {
    uint64_t *keys;    /* by slot: block << 28 | epoch; 0: not in the map (epoch 0 does not exist) */
    uint32_t *chains;  /* by slot: the next slot of its bucket, +1; newer entries of a block come first */
    uint32_t *buckets; /* first slot, +1 */
    uint32_t bucket_mask;
    uint64_t bytes; /* of the one mapping that they are in */
};

/* 0 or -ENOMEM. The memory is touched as slots come into use. */
int block_map_init(struct block_map *map, uint32_t slots_max);
void block_map_fini(struct block_map *map);

/* `epoch` is newer than every entry that the block has. */
void block_map_insert(struct block_map *map, uint32_t slot, uint64_t block, uint32_t epoch);
void block_map_remove(struct block_map *map, uint32_t slot);

/* The slot that holds the block for the point `epoch`; SLOT_NONE: the block has not been preserved since. */
uint32_t block_map_find(const struct block_map *map, uint64_t block, uint32_t epoch);
/* Epoch of the block's newest entry; 0: none. */
uint32_t block_map_newest(const struct block_map *map, uint64_t block);
/* Epoch of the next older entry of the slot's block; 0: none. */
uint32_t block_map_older(const struct block_map *map, uint32_t slot);
/* Epoch of the slot's entry; 0: the slot is not in the map. */
uint32_t block_map_epoch(const struct block_map *map, uint32_t slot);

#endif
