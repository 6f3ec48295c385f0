/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A hash table by linear hashing: it grows by one bucket with each entry, so there is never a moment at which all of it is
 * rebuilt, and a cache file of terabytes costs memory only for what is in it. Buckets [0, bucket_mask] exist from the last
 * doubling; those beyond are split off one after the other, until there are twice as many. A bucket's chain keeps the
 * entries of one block in their order, newest first: all of them have the same hash, so a split moves them together.
 *
 * Neighbouring blocks lie in neighbouring buckets, 64 at a time, because what is written together is looked up together;
 * the groups of 64 are scattered, because guests like powers of two.
 *
 * Who wants to know where something is preserved at all passes over what has nothing: a group of 16 blocks has a bit, set
 * with its first entry and cleared when its region of 64 groups has none left. (Without groups the map of a 1 TiB disk with
 * 10,000 preserved blocks, each in a region of its own, took ten million look-ups: a second.)
 *
 * All arrays are in one mapping, not calloc(): once the heap has such blocks to reuse, calloc() clears them, all megabytes
 * of them, on the disk's reactor while a snapshot is prepared (measured: 8 ms for each disk at 1 GiB of cache).
 *
 * After a crash the keys may be there still (cache_memory.c), and all else is made anew from them. An entry that was being
 * moved may be there twice then.
 */
#include "fleece/block_map.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <sys/mman.h>

#include "base/limits.h"
#include "base/probe.h"

static const uint64_t EPOCH_MASK = (UINT64_C(1) << EPOCH_BITS) - 1;

/* One store: whoever reads the keys after a crash finds the entry whole, or not at all. */
static void key_store(struct block_map *map, uint32_t place, uint64_t key)
{
    __atomic_store_n(&map->keys[place], key, __ATOMIC_RELEASE);
}

int block_map_init(struct block_map *map, uint32_t places_max, uint64_t blocks, uint64_t *keys)
{
    uint64_t buckets = places_max > MAP_BUCKETS_MIN ? places_max : MAP_BUCKETS_MIN;
    uint64_t regions = blocks / MAP_REGION_BLOCKS + 1;
    *map = (struct block_map){.places_max = places_max, .region_count = regions};
    map->bytes = places_max * ((keys ? 0 : sizeof *map->keys) + sizeof *map->chains) + buckets * sizeof *map->buckets +
                 regions * (sizeof *map->regions + sizeof *map->groups);
    uint64_t *memory = mmap(NULL, map->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
                            0);
    if (memory == MAP_FAILED) {
        *map = (struct block_map){0};
        return -ENOMEM;
    }
    map->memory = memory;
    map->keys = keys ? keys : memory;
    map->groups = memory + (keys ? 0 : places_max);
    map->chains = (uint32_t *)(map->groups + regions);
    map->buckets = map->chains + places_max;
    map->regions = map->buckets + buckets;
    map->bucket_count = MAP_BUCKETS_MIN;
    map->bucket_mask = MAP_BUCKETS_MIN - 1;
    return 0;
}

void block_map_fini(struct block_map *map)
{
    if (map->bytes)
        munmap(map->memory, map->bytes);
    *map = (struct block_map){0};
}

static uint32_t hash_of(uint64_t block)
{
    uint64_t group = (block >> 6) * UINT64_C(0x9e3779b97f4a7c15);
    return (uint32_t)(group >> 32) ^ (uint32_t)(block & 63);
}

static uint32_t bucket_of(const struct block_map *map, uint64_t block)
{
    uint32_t hash = hash_of(block), bucket = hash & (2 * map->bucket_mask + 1);
    return bucket < map->bucket_count ? bucket : hash & map->bucket_mask;
}

uint64_t block_map_block(const struct block_map *map, uint32_t place)
{
    return map->keys[place] >> EPOCH_BITS;
}

uint32_t block_map_epoch(const struct block_map *map, uint32_t place)
{
    return (uint32_t)(map->keys[place] & EPOCH_MASK);
}

/* The first entry of the block in a chain that starts with link (place + 1); 0: none. */
static uint32_t chain_seek(const struct block_map *map, uint32_t link, uint64_t block)
{
    while (link && block_map_block(map, link - 1) != block)
        link = map->chains[link - 1];
    return link;
}

static uint64_t group_bit(uint64_t block)
{
    return UINT64_C(1) << (block % MAP_REGION_BLOCKS / MAP_GROUP_BLOCKS);
}

static uint32_t chain_of(const struct block_map *map, uint64_t block)
{
    if (!(map->groups[block / MAP_REGION_BLOCKS] & group_bit(block)))
        return 0;
    return chain_seek(map, map->buckets[bucket_of(map, block)], block);
}

/* Splits the next bucket in two. */
static void map_grow(struct block_map *map)
{
    uint32_t fresh = map->bucket_count, old = fresh & map->bucket_mask;
    uint32_t *stays = &map->buckets[old], *goes = &map->buckets[fresh];
    map->bucket_count++;
    for (uint32_t link = *stays; link; link = map->chains[link - 1]) {
        uint32_t **end = bucket_of(map, block_map_block(map, link - 1)) == old ? &stays : &goes;
        **end = link;
        *end = &map->chains[link - 1];
    }
    *stays = *goes = 0;
    if (map->bucket_count == 2 * (map->bucket_mask + 1))
        map->bucket_mask = 2 * map->bucket_mask + 1;
}

void block_map_insert(struct block_map *map, uint32_t place, uint64_t block, uint32_t epoch)
{
    assert(epoch > block_map_newest(map, block) && epoch <= EPOCH_UNCHANGED &&
           block < UINT64_C(1) << (64 - EPOCH_BITS));
    assert(!map->keys[place]);
    key_store(map, place, block << EPOCH_BITS | epoch);
    map->regions[block / MAP_REGION_BLOCKS]++;
    map->groups[block / MAP_REGION_BLOCKS] |= group_bit(block);
    if (++map->entries > map->bucket_count && map->bucket_count < map->places_max)
        map_grow(map);
    uint32_t *bucket = &map->buckets[bucket_of(map, block)];
    map->chains[place] = *bucket;
    *bucket = place + 1;
}

bool block_map_adopt(struct block_map *map, uint32_t place)
{
    const uint64_t block = block_map_block(map, place);
    const uint32_t epoch = block_map_epoch(map, place);
    if (map->entries >= map->bucket_count && map->bucket_count < map->places_max)
        map_grow(map);
    uint32_t *after = &map->buckets[bucket_of(map, block)];
    for (uint32_t *link = after; *link; link = &map->chains[*link - 1]) {
        if (block_map_block(map, *link - 1) != block)
            continue;
        if (block_map_epoch(map, *link - 1) <= epoch) {
            if (block_map_epoch(map, *link - 1) == epoch)
                return false;
            after = link;
            break;
        }
        after = &map->chains[*link - 1];
    }
    map->entries++;
    map->regions[block / MAP_REGION_BLOCKS]++;
    map->groups[block / MAP_REGION_BLOCKS] |= group_bit(block);
    map->chains[place] = *after;
    *after = place + 1;
    return true;
}

/* Where the place is linked from. */
static uint32_t *link_to(struct block_map *map, uint32_t place)
{
    uint32_t *link = &map->buckets[bucket_of(map, block_map_block(map, place))];
    while (*link != place + 1) {
        assert(*link);
        link = &map->chains[*link - 1];
    }
    return link;
}

void block_map_remove(struct block_map *map, uint32_t place)
{
    uint32_t *link = link_to(map, place);
    uint64_t region = block_map_block(map, place) / MAP_REGION_BLOCKS;
    *link = map->chains[place];
    if (--map->regions[region] == 0)
        map->groups[region] = 0;
    map->entries--;
    key_store(map, place, 0);
    map->chains[place] = 0;
}

void block_map_move(struct block_map *map, uint32_t from, uint32_t to)
{
    assert(map->keys[from] && !map->keys[to]);
    *link_to(map, from) = to + 1;
    map->chains[to] = map->chains[from];
    key_store(map, to, map->keys[from]);
    key_store(map, from, 0);
    map->chains[from] = 0;
}

uint32_t block_map_find(const struct block_map *map, uint64_t block, uint32_t epoch)
{
    uint32_t found = PLACE_NONE;
    for (uint32_t link = chain_of(map, block); link && block_map_epoch(map, link - 1) >= epoch;
         link = chain_seek(map, map->chains[link - 1], block)) {
        found = link - 1;
        if (MUTANT(find_takes_newest))
            break;
    }
    return found;
}

uint32_t block_map_first(const struct block_map *map, uint64_t block)
{
    return chain_of(map, block) - 1;
}

void block_map_date(struct block_map *map, uint32_t place, uint32_t epoch)
{
    assert(block_map_epoch(map, place) == EPOCH_UNCHANGED && epoch > block_map_older(map, place));
    key_store(map, place, block_map_block(map, place) << EPOCH_BITS | epoch);
}

uint32_t block_map_newest(const struct block_map *map, uint64_t block)
{
    uint32_t link = chain_of(map, block);
    if (link && block_map_epoch(map, link - 1) == EPOCH_UNCHANGED)
        link = chain_seek(map, map->chains[link - 1], block);
    return link ? block_map_epoch(map, link - 1) : 0;
}

uint32_t block_map_older(const struct block_map *map, uint32_t place)
{
    uint32_t link = chain_seek(map, map->chains[place], block_map_block(map, place));
    return link ? block_map_epoch(map, link - 1) : 0;
}

uint64_t block_map_next(const struct block_map *map, uint64_t from, uint64_t end)
{
    while (from < end) {
        uint64_t group = from / MAP_GROUP_BLOCKS, region = from / MAP_REGION_BLOCKS;
        uint64_t here_and_later = map->groups[region] >> group % 64;
        if (here_and_later & 1)
            return from;
        from = here_and_later ? (group + (uint64_t)__builtin_ctzll(here_and_later)) * MAP_GROUP_BLOCKS
                              : (region + 1) * MAP_REGION_BLOCKS;
    }
    return end;
}
