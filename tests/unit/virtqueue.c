/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Virtqueues against a driver of our own (ring_driver.c): random chains of all shapes and sizes of rings with a model that
 * knows what each chain must become and when either side must be told; and everything that a hostile guest can put there.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "export/vhost_user/shared_map.h"
#include "export/vhost_user/virtqueue.h"
#include "ring_driver.h"

enum {
    MEMORY = 4 << 20, /* of the guest, in two regions that adjoin */
    EDGE = MEMORY / 2,
    RINGS = 4096,                          /* where the rings are */
    TABLE_BYTES = 328,                     /* aligned to 8 bytes, or not at all */
    TABLES = EDGE - 256 * TABLE_BYTES - 8, /* 512 indirect tables, one of them across the edge */
    DATA = EDGE + 1048576,                 /* and below */
    PARTS = 20,
    CHAINS = 4096,
};
#define USER UINT64_C(0x7f1200000000)

struct expected {
    struct part parts[PARTS];
    uint16_t count, slots; /* slots: of a packed ring */
    uint32_t written;
};

struct scene {
    char *flat; /* as the guest sees it */
    struct guest_memory *memory;
    struct driver driver;
    struct driver_place place;
    struct virtqueue *queue;
    struct virtqueue_features features;
    /* The model. Cookies are numbers of chains. */
    struct expected chains[CHAINS];
    uint32_t added, taken;
    struct virtqueue_chain *held; /* taken and not returned */
    uint32_t held_cookie[CHAINS], held_count;
    uint32_t returned[CHAINS], returned_at, returned_end, got; /* cookies in the order in which they were returned */
    uint32_t random;
};

static struct scene scene;

static uint32_t any(uint32_t below)
{
    scene.random = scene.random * 1664525 + 1013904223;
    return (uint32_t)((uint64_t)scene.random * below >> 32);
}

static struct virtqueue *make(uint16_t size, uint32_t base, struct error *err)
{
    const struct virtqueue_place place = {USER + scene.place.descriptors, USER + scene.place.available,
                                          USER + scene.place.used};
    return virtqueue_create(&scene.features, scene.memory, &place, size, base, err);
}

/* A queue at rest, beginning somewhere. */
static void begin(struct virtqueue_features features, uint16_t size)
{
    struct error err = {0};
    memset(scene.flat, 0, MEMORY);
    scene.features = features;
    scene.place.descriptors = RINGS;
    scene.place.available = scene.place.descriptors + driver_descriptors_bytes(size);
    scene.place.used = (scene.place.available + driver_available_bytes(size) + 3) & ~UINT64_C(3);
    assert_true(scene.place.used + driver_used_bytes(size) < TABLES);
    driver_init(&scene.driver, scene.flat, &scene.place, size, features.packed, features.event_idx);
    scene.added = scene.taken = scene.held_count = scene.returned_at = scene.returned_end = scene.got = 0;
    scene.queue = make(size, features.packed ? 0x80008000 : 0, &err);
    if (!scene.queue)
        fail_msg("%s", err.text);
    assert_null(virtqueue_broken(scene.queue));
    assert_true(virtqueue_publish(scene.queue)); /* the first one always is */
    assert_false(virtqueue_publish(scene.queue));
}

static void end(void)
{
    for (uint32_t i = 0; i < scene.held_count; i++)
        virtqueue_drop(&scene.held[i]);
    virtqueue_destroy(scene.queue);
    scene.queue = NULL;
}

static uint64_t guest_address(const void *host)
{
    for (unsigned i = 0; i < 2; i++) {
        const char *base = guest_memory_at(scene.memory, USER + i * EDGE, EDGE, 1);
        if ((const char *)host >= base && (const char *)host < base + EDGE)
            return (uint64_t)((const char *)host - base) + i * EDGE;
    }
    fail_msg("a fragment outside of memory");
    return 0;
}

/* The bytes of the fragments are those of the descriptors, in order. */
static void check_side(const struct expected *chain, bool write, const struct iovec *iov, unsigned count,
                       uint64_t bytes)
{
    unsigned at = 0;
    uint64_t sum = 0, done = 0; /* of the fragment */
    for (uint16_t i = 0; i < chain->count; i++) {
        uint64_t address = chain->parts[i].address, left = chain->parts[i].write == write ? chain->parts[i].length : 0;
        sum += left;
        while (left > 0) {
            assert_true(at < count);
            assert_int_equal(guest_address((char *)iov[at].iov_base + done), address);
            const uint64_t rest = iov[at].iov_len - done, part = left < rest ? left : rest;
            address += part;
            left -= part;
            done += part;
            if (done == iov[at].iov_len) {
                at++;
                done = 0;
            }
        }
        assert_int_equal(done, 0); /* a fragment is not of two descriptors */
    }
    assert_int_equal(at, count);
    assert_int_equal(sum, bytes);
}

static void add_one(void)
{
    struct expected *chain = &scene.chains[scene.added % CHAINS];
    const bool indirect = scene.features.indirect && any(2);
    const uint16_t most = indirect || scene.driver.size > PARTS ? PARTS : scene.driver.size;
    *chain = (struct expected){.count = (uint16_t)(1 + any(any(2) ? 3 : most))};
    if (chain->count > most)
        chain->count = most;
    uint16_t reads = (uint16_t)any(chain->count + 1u);
    for (uint16_t i = 0; i < chain->count; i++) {
        chain->parts[i].length = any(8) ? 1 + any(10000) : 0;
        chain->parts[i].address = any(2) ? DATA + any(500000) : EDGE - any(chain->parts[i].length + 1);
        chain->parts[i].write = i >= reads;
    }
    chain->slots = indirect ? 1 : chain->count;
    const uint64_t table = TABLES + any(2) + scene.added % 512 * TABLE_BYTES;
    if (driver_add(&scene.driver, chain->parts, chain->count, indirect ? table : 0, scene.added))
        scene.added++;
}

static bool take_one(void)
{
    struct virtqueue_chain *chain = &scene.held[scene.held_count];
    const int status = virtqueue_take(scene.queue, chain);
    if (status < 0)
        fail_msg("%s", virtqueue_broken(scene.queue));
    if (status == 0)
        return false;
    const struct expected *expected = &scene.chains[scene.taken % CHAINS];
    check_side(expected, false, chain->iov, chain->read_count, chain->read_bytes);
    check_side(expected, true, chain->iov + chain->read_count, chain->write_count, chain->write_bytes);
    scene.held_cookie[scene.held_count++] = scene.taken++;
    return true;
}

static void return_one(void)
{
    const uint32_t i = any(scene.held_count), cookie = scene.held_cookie[i];
    scene.chains[cookie % CHAINS].written = any(2) ? any(UINT32_MAX) : 0;
    virtqueue_return(scene.queue, &scene.held[i], scene.chains[cookie % CHAINS].written);
    scene.returned[scene.returned_end++ % CHAINS] = cookie;
    scene.held_count--;
    memmove(&scene.held[i], &scene.held[i + 1], (scene.held_count - i) * sizeof scene.held[0]);
    memmove(&scene.held_cookie[i], &scene.held_cookie[i + 1], (scene.held_count - i) * sizeof scene.held_cookie[0]);
}

/* What the driver gets is what was returned and published, in that order. */
static void get_all(void)
{
    uint32_t cookie, written;
    while (driver_get(&scene.driver, &cookie, &written)) {
        assert_true(scene.got < scene.returned_at);
        assert_int_equal(cookie, scene.returned[scene.got % CHAINS]);
        assert_int_equal(written, scene.chains[cookie % CHAINS].written);
        scene.got++;
    }
    assert_int_equal(scene.got, scene.returned_at);
}

/* The driver has seen everything, wishes to be called (at once, a little later, or not at all), and is, or is not. */
static void publish(void)
{
    const uint16_t ahead = (uint16_t)any(scene.driver.size < 4 ? scene.driver.size : 4);
    const bool calls = any(2);
    uint32_t steps = 0;
    for (uint32_t i = scene.returned_at; i != scene.returned_end; i++)
        steps += scene.features.packed ? scene.chains[scene.returned[i % CHAINS] % CHAINS].slots : 1u;
    get_all();
    if (calls)
        assert_false(driver_want_calls(&scene.driver, ahead));
    else
        driver_want_no_calls(&scene.driver);
    const bool call = virtqueue_publish(scene.queue);
    scene.returned_at = scene.returned_end;
    if (calls)
        assert_int_equal(call, scene.features.event_idx ? ahead < steps : steps > 0);
    else if (scene.features.packed || !scene.features.event_idx)
        assert_false(call);
    get_all();
}

static void run(struct virtqueue_features features, uint16_t size, unsigned steps)
{
    begin(features, size);
    for (unsigned step = 0; step < steps; step++) {
        switch (any(6)) {
        case 0:
        case 1:
            for (uint32_t i = any(8); i > 0 && scene.added - scene.taken < 500 && scene.added - scene.got < CHAINS - 8;
                 i--)
                add_one();
            driver_show(&scene.driver);
            (void)driver_must_kick(&scene.driver);
            break;
        case 2:
            for (uint32_t i = any(8); i > 0; i--)
                take_one();
            break;
        case 3:
        case 4:
            for (uint32_t i = any(6); i > 0 && scene.held_count > 0; i--)
                return_one();
            break;
        case 5:
            publish();
            break;
        }
    }
    while (take_one())
        ;
    while (scene.held_count > 0)
        return_one();
    publish();
    assert_int_equal(scene.got, scene.added);
    assert_int_equal(scene.driver.free_count, size);
    assert_int_equal(virtqueue_base(scene.queue),
                     features.packed ? (scene.driver.next | scene.driver.wrap << 15) * 0x10001u : scene.driver.next);
    end();
}

static const struct virtqueue_features all_features[] = {
    {false, false, false}, {false, false, true}, {false, true, false}, {false, true, true},
    {true, false, false},  {true, false, true},  {true, true, false},  {true, true, true},
};
enum { ALL_FEATURES = 8 };

static void random_chains(void **state)
{
    (void)state;
    static const uint16_t sizes[] = {1, 2, 4, 8, 64, 256, 1024, 32768, 3, 7, 100, 127, 255};
    for (unsigned i = 0; i < ALL_FEATURES; i++)
        for (unsigned j = 0; j < sizeof sizes / sizeof sizes[0]; j++)
            if (all_features[i].packed || (sizes[j] & (sizes[j] - 1)) == 0)
                run(all_features[i], sizes[j], sizes[j] == 32768 ? 20000 : 3000);
}

/* Indexes of 16 bits go round twice: 130,000 chains through a ring. */
static void indexes_wrap(void **state)
{
    (void)state;
    run((struct virtqueue_features){false, true, false}, 256, 240000);
    run((struct virtqueue_features){true, true, false}, 100, 60000);
}

static void refused(struct virtqueue_features features, uint32_t size, uint32_t base, const char *why)
{
    struct error err = {0};
    const struct virtqueue_place place = {USER + scene.place.descriptors, USER + scene.place.available,
                                          USER + scene.place.used};
    assert_null(virtqueue_create(&features, scene.memory, &place, size, base, &err));
    if (!strstr(err.text, why))
        fail_msg("\"%s\" does not say \"%s\"", err.text, why);
}

static void sizes_and_places(void **state)
{
    (void)state;
    const struct virtqueue_features split = {0}, packed = {.packed = true};
    const struct driver_place good = {RINGS, RINGS + 0x80000, RINGS + 0xa0000};
    scene.place = good;
    refused(split, 0, 0, "a virtqueue of 0 descriptors, not 1 to 32768");
    refused(packed, 0, 0, "a virtqueue of 0 descriptors");
    refused(split, 65536, 0, "a virtqueue of 65536 descriptors");
    refused(split, UINT32_MAX, 0, "not 1 to 32768");
    refused(packed, 32769, 0, "not 1 to 32768");
    refused(split, 3, 0, "no power of two");
    refused(split, 32767, 0, "no power of two");
    refused(packed, 3, 3, "cannot begin at 0x3");
    refused(packed, 3, 0x00030001, "cannot begin at 0x30001");
    for (unsigned kind = 0; kind < 2; kind++) {
        const struct virtqueue_features features = {.packed = kind};
        struct driver_place bad[] = {good, good, good, good, good, good, good};
        bad[0].descriptors = RINGS + 8;
        bad[1].descriptors = EDGE - 16 * 255; /* not in one mapping */
        bad[2].descriptors = UINT64_MAX - USER - 15;
        bad[3].available = MEMORY - 2;
        bad[4].available += kind ? 2 : 1;
        bad[5].used += 2;
        bad[6].used = MEMORY;
        for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
            scene.place = bad[i];
            refused(features, 256, 0, "not inside of one region");
        }
        static const uint16_t sizes[] = {1, 2, 32768};
        for (unsigned i = 0; i < 3; i++) {
            struct error err = {0};
            scene.place = good;
            scene.features = features;
            struct virtqueue *queue = make(sizes[i], 0, &err);
            assert_non_null(queue);
            virtqueue_destroy(queue);
        }
    }
    virtqueue_destroy(NULL);
}

static void a_queue_that_begins_somewhere(void **state)
{
    (void)state;
    struct error err = {0};
    begin((struct virtqueue_features){.packed = true}, 10);
    virtqueue_destroy(scene.queue);
    scene.queue = make(10, 0x00030004, &err);
    assert_int_equal(virtqueue_base(scene.queue), 0x00030004);
    virtqueue_destroy(scene.queue);
    scene.queue = make(10, 0x8004, &err); /* of a front-end that knows of one index */
    assert_int_equal(virtqueue_base(scene.queue), 0x80048004);
    end();
    begin((struct virtqueue_features){0}, 8);
    virtqueue_destroy(scene.queue);
    scene.queue = make(8, 65535, &err);
    assert_int_equal(virtqueue_base(scene.queue), 65535);
    end();
}

/* What a guest has no right to, and what is said of it. */
struct crime {
    const char *said;
    bool packed, indirect;
    struct desc descriptors[4]; /* split: flags, next; packed: id, flags but for those of the wrap counter */
    struct desc table[3];       /* at TABLES */
    uint16_t head, index;       /* split; index 0: 1 */
};

static const struct crime crimes[] = {
    {"descriptor 8 of 8 was made available", .head = 8},
    {"descriptor 65535 of 8", .head = 65535},
    {"index jumped from 0 to 9 in a ring of 8", .index = 9},
    {"index jumped from 0 to 65535", .index = 65535},
    {"loop", .descriptors = {{DATA, 1, DESC_NEXT, 1}, {DATA, 1, DESC_NEXT, 0}}},
    {"loop", .descriptors = {{DATA, 0, DESC_NEXT, 0}}},
    {"goes on at descriptor 8 of 8", .descriptors = {{DATA, 1, DESC_NEXT, 8}}},
    {"at 0x400000 is outside", .descriptors = {{MEMORY, 1, 0, 0}}},
    {"of 2 bytes at 0x3fffff is outside", .descriptors = {{MEMORY - 1, 2, 0, 0}}},
    {"is outside", .descriptors = {{UINT64_MAX, 1, 0, 0}}},
    {"is outside", .descriptors = {{UINT64_MAX - 15, 32, 0, 0}}},
    {"is outside", .descriptors = {{0, UINT32_MAX, 0, 0}}},
    {"reads behind one that it writes", .descriptors = {{DATA, 1, DESC_WRITE | DESC_NEXT, 1}, {DATA, 1, 0, 0}}},
    {"reads behind one that it writes", .indirect = true,
     .descriptors = {{DATA, 1, DESC_WRITE | DESC_NEXT, 1}, {TABLES, 16, DESC_INDIRECT, 0}}, .table = {{DATA, 1, 0, 0}}},
    {"not negotiated", .descriptors = {{TABLES, 16, DESC_INDIRECT, 0}}, .table = {{DATA, 1, 0, 0}}},
    {"has 0 bytes", .indirect = true, .descriptors = {{TABLES, 0, DESC_INDIRECT, 0}}},
    {"has 17 bytes", .indirect = true, .descriptors = {{TABLES, 17, DESC_INDIRECT, 0}}},
    {"has 15 bytes", .indirect = true, .descriptors = {{TABLES, 15, DESC_INDIRECT, 0}}},
    {"has 137 descriptors", .indirect = true, .descriptors = {{TABLES, 137 * 16, DESC_INDIRECT, 0}}},
    {"has 268435455 descriptors", .indirect = true, .descriptors = {{0, UINT32_MAX - 15, DESC_INDIRECT, 0}}},
    {"table of 32 bytes at 0x3ffff0 is outside", .indirect = true,
     .descriptors = {{MEMORY - 16, 32, DESC_INDIRECT, 0}}},
    {"not the last", .indirect = true, .descriptors = {{TABLES, 16, DESC_INDIRECT | DESC_NEXT, 1}, {DATA, 1, 0, 0}}},
    {"of another one", .indirect = true, .descriptors = {{TABLES, 32, DESC_INDIRECT, 0}},
     .table = {{DATA, 1, DESC_NEXT, 1}, {TABLES, 16, DESC_INDIRECT, 0}}},
    {"goes on at number 2", .indirect = true, .descriptors = {{TABLES, 32, DESC_INDIRECT, 0}},
     .table = {{DATA, 1, DESC_NEXT, 1}, {DATA, 1, DESC_NEXT, 2}}},
    {"is a loop", .indirect = true, .descriptors = {{TABLES, 32, DESC_INDIRECT, 0}},
     .table = {{DATA, 1, DESC_NEXT, 1}, {DATA, 1, DESC_NEXT, 0}}},
    {"outside", .indirect = true, .descriptors = {{TABLES, 32, DESC_INDIRECT, 0}},
     .table = {{DATA, 1, DESC_NEXT, 1}, {MEMORY, 1, 0, 0}}},
    {"is outside", true, .descriptors = {{MEMORY, 1, 0, 0}}},
    {"is outside", true, .descriptors = {{EDGE, UINT32_MAX, 0, 0}}},
    {"reads behind one that it writes", true, .descriptors = {{DATA, 1, 0, DESC_WRITE | DESC_NEXT}, {DATA, 1, 0, 0}}},
    {"not negotiated", true, .descriptors = {{TABLES, 16, 0, DESC_INDIRECT}}},
    {"has 24 bytes", true, .indirect = true, .descriptors = {{TABLES, 24, 0, DESC_INDIRECT}}},
    {"has 0 bytes", true, .indirect = true, .descriptors = {{TABLES, 0, 0, DESC_INDIRECT}}},
    {"has 137 descriptors", true, .indirect = true, .descriptors = {{TABLES, 137 * 16, 0, DESC_INDIRECT}}},
    {"is outside", true, .indirect = true, .descriptors = {{MEMORY - 16, 32, 0, DESC_INDIRECT}}},
    {"of an indirect table", true, .indirect = true,
     .descriptors = {{TABLES, 16, 0, DESC_INDIRECT | DESC_NEXT}, {DATA, 1, 0, 0}}},
    {"of an indirect table", true, .indirect = true,
     .descriptors = {{DATA, 1, 0, DESC_NEXT}, {TABLES, 16, 0, DESC_INDIRECT}}},
    {"outside", true, .indirect = true, .descriptors = {{TABLES, 16, 0, DESC_INDIRECT}}, .table = {{MEMORY, 1, 0, 0}}},
    {"more than 8 descriptors", true,
     .descriptors =
         {{DATA, 1, 0, DESC_NEXT}, {DATA, 1, 0, DESC_NEXT}, {DATA, 1, 0, DESC_NEXT}, {DATA, 1, 0, DESC_NEXT}}},
};

static void commit(const struct crime *crime)
{
    const struct driver *driver = &scene.driver;
    for (unsigned i = 0; i < 4; i++) {
        struct desc desc = crime->descriptors[i];
        desc.b |= crime->packed ? DESC_AVAIL : 0;
        *driver_descriptor(driver, i) = desc;
        if (crime->packed) /* a ring full of the like */
            *driver_descriptor(driver, i + 4) = desc;
    }
    memcpy(scene.flat + TABLES, crime->table, sizeof crime->table);
    if (!crime->packed) {
        uint16_t *available = (uint16_t *)(void *)(scene.flat + scene.place.available);
        available[2] = crime->head;
        available[1] = crime->index ? crime->index : 1;
    }
}

static void crimes_break_the_queue(void **state)
{
    (void)state;
    static struct virtqueue_chain chain;
    for (unsigned i = 0; i < sizeof crimes / sizeof crimes[0]; i++) {
        begin((struct virtqueue_features){.packed = crimes[i].packed, .indirect = crimes[i].indirect}, 8);
        commit(&crimes[i]);
        assert_int_equal(virtqueue_take(scene.queue, &chain), -EPROTO);
        const char *why = virtqueue_broken(scene.queue);
        assert_non_null(why);
        if (!strstr(why, crimes[i].said))
            fail_msg("crime %u: \"%s\" does not say \"%s\"", i, why, crimes[i].said);
        assert_int_equal(virtqueue_take(scene.queue, &chain), -EPROTO);
        assert_false(virtqueue_want_kicks(scene.queue));
        end();
    }
}

/* What came before the crime completes. */
static void a_broken_queue_returns_what_it_has(void **state)
{
    (void)state;
    for (unsigned i = 0; i < ALL_FEATURES; i++) {
        begin(all_features[i], 8);
        const struct part good = {DATA, 512, true}, bad = {MEMORY, 512, true};
        assert_true(driver_add(&scene.driver, &good, 1, 0, 7));
        assert_true(driver_add(&scene.driver, &bad, 1, 0, 8));
        driver_show(&scene.driver);
        assert_int_equal(virtqueue_take(scene.queue, &scene.held[0]), 1);
        assert_int_equal(virtqueue_take(scene.queue, &scene.held[1]), -EPROTO);
        virtqueue_return(scene.queue, &scene.held[0], 512);
        (void)virtqueue_publish(scene.queue);
        uint32_t cookie, written;
        assert_true(driver_get(&scene.driver, &cookie, &written));
        assert_true(cookie == 7 && written == 512);
        assert_false(driver_get(&scene.driver, &cookie, &written));
        end();
    }
}

/* More chains at once than the ring has descriptors: none may be out twice. */
static void nothing_is_available_twice(void **state)
{
    (void)state;
    const struct part part = {DATA, 512, true};
    begin((struct virtqueue_features){0}, 4);
    uint16_t *available = (uint16_t *)(void *)(scene.flat + scene.place.available);
    assert_true(driver_add(&scene.driver, &part, 1, 0, 0));
    driver_show(&scene.driver);
    assert_true(virtqueue_take(scene.queue, &scene.held[scene.held_count++]) == 1);
    available[2 + 1] = 0;
    available[1] = 2;
    assert_int_equal(virtqueue_take(scene.queue, &scene.held[1]), -EPROTO);
    assert_non_null(strstr(virtqueue_broken(scene.queue), "descriptor 0 was made available again"));
    end();
    begin((struct virtqueue_features){.packed = true}, 4);
    for (unsigned i = 0; i < 4; i++) {
        assert_true(driver_add(&scene.driver, &part, 1, 0, 0));
        assert_true(virtqueue_take(scene.queue, &scene.held[scene.held_count++]) == 1);
    }
    assert_int_equal(virtqueue_take(scene.queue, &scene.held[4]), 0);
    driver_descriptor(&scene.driver, 0)->b = DESC_USED; /* the next round's flags */
    assert_int_equal(virtqueue_take(scene.queue, &scene.held[4]), -EPROTO);
    assert_non_null(strstr(virtqueue_broken(scene.queue), "descriptor 0 was made available again"));
    end();
}

static void the_longest_chains(void **state)
{
    (void)state;
    static struct part parts[LIMIT_VIRTQUEUE_FRAGMENTS + 1];
    for (unsigned i = 0; i <= LIMIT_VIRTQUEUE_FRAGMENTS; i++)
        parts[i] = (struct part){DATA + i * 4096, 4096, i > 5};
    for (unsigned i = 0; i < ALL_FEATURES; i++) {
        begin(all_features[i], 256);
        const uint64_t table = all_features[i].indirect ? TABLES : 0;
        assert_true(driver_add(&scene.driver, parts, LIMIT_VIRTQUEUE_FRAGMENTS, table, 0));
        driver_show(&scene.driver);
        assert_int_equal(virtqueue_take(scene.queue, &scene.held[0]), 1);
        scene.held_count = 1;
        assert_int_equal(scene.held[0].read_count + scene.held[0].write_count, LIMIT_VIRTQUEUE_FRAGMENTS);
        assert_int_equal(scene.held[0].write_bytes, 4096u * (LIMIT_VIRTQUEUE_FRAGMENTS - 6));
        if (!table) {
            assert_true(driver_add(&scene.driver, parts, 120, 0, 1));
            driver_show(&scene.driver);
            assert_int_equal(virtqueue_take(scene.queue, &scene.held[1]), 1);
            scene.held_count = 2;
        }
        end();
        begin(all_features[i], 256);
        assert_true(driver_add(&scene.driver, parts, LIMIT_VIRTQUEUE_FRAGMENTS + 1, 0, 0));
        driver_show(&scene.driver);
        assert_int_equal(virtqueue_take(scene.queue, &scene.held[0]), -EPROTO);
        assert_non_null(strstr(virtqueue_broken(scene.queue), "more than 136"));
        end();
        begin(all_features[i], 256); /* as many descriptors, but the last lies across the edge */
        parts[LIMIT_VIRTQUEUE_FRAGMENTS - 1].address = EDGE - 1;
        assert_true(driver_add(&scene.driver, parts, LIMIT_VIRTQUEUE_FRAGMENTS, table, 0));
        driver_show(&scene.driver);
        assert_int_equal(virtqueue_take(scene.queue, &scene.held[0]), -EPROTO);
        assert_non_null(strstr(virtqueue_broken(scene.queue), "more than 136 fragments"));
        parts[LIMIT_VIRTQUEUE_FRAGMENTS - 1].address = DATA;
        end();
    }
}

/* The same through a ring in a guest whose memory has 5 GiB, of which nothing is touched. */
static void four_gib_and_not_more(void **state)
{
    (void)state;
    struct error err = {0};
    struct guest_memory *small = scene.memory;
    int fd = memfd_create("guest", MFD_CLOEXEC);
    assert_int_equal(ftruncate(fd, (off_t)(5 * GIB)), 0);
    scene.memory = guest_memory_with(small, &(struct guest_region){GIB, USER + GIB, 5 * GIB, 0}, fd, &err);
    assert_non_null(scene.memory);
    for (unsigned i = 0; i < ALL_FEATURES; i++) {
        const struct part parts[] = {{GIB, UINT32_MAX, true}, {GIB, 1, true}, {GIB + 4096, 1, true}};
        for (uint16_t count = 2; count <= 3; count++) {
            begin(all_features[i], 4);
            assert_true(driver_add(&scene.driver, parts, count, all_features[i].indirect ? TABLES : 0, 0));
            driver_show(&scene.driver);
            assert_int_equal(virtqueue_take(scene.queue, &scene.held[0]), count == 2 ? 1 : -EPROTO);
            if (count == 2)
                assert_int_equal(scene.held[0].write_bytes, LIMIT_VIRTQUEUE_BYTES);
            else
                assert_non_null(strstr(virtqueue_broken(scene.queue), "4294967297 bytes, more than 4 GiB"));
            scene.held_count = count == 2;
            end();
        }
    }
    guest_memory_unref(scene.memory);
    scene.memory = small;
    close(fd);
}

/* In a packed queue an entry of a table has one flag that counts. */
static void other_flags_in_packed_tables_mean_nothing(void **state)
{
    (void)state;
    begin((struct virtqueue_features){.packed = true, .indirect = true}, 4);
    const struct part parts[] = {{DATA, 16, false}, {DATA + 4096, 4096, true}};
    assert_true(driver_add(&scene.driver, parts, 2, TABLES, 0));
    struct desc *table = (struct desc *)(void *)(scene.flat + TABLES);
    memcpy(&table[0].b, &(uint16_t){DESC_NEXT | DESC_INDIRECT | DESC_AVAIL}, 2);
    assert_int_equal(virtqueue_take(scene.queue, &scene.held[0]), 1);
    assert_true(scene.held[0].read_bytes == 16 && scene.held[0].write_bytes == 4096);
    scene.held_count = 1;
    end();
}

/* Of chains that the model does not know. */
static bool take_one_quietly(void)
{
    const int status = virtqueue_take(scene.queue, &scene.held[scene.held_count]);
    assert_true(status >= 0);
    scene.held_count += (uint32_t)status;
    return status == 1;
}

static void kicks(void **state)
{
    (void)state;
    const struct part part = {DATA, 512, true};
    for (unsigned i = 0; i < ALL_FEATURES; i++) {
        begin(all_features[i], 16);
        struct driver *driver = &scene.driver;
        assert_false(driver_must_kick(driver));
        assert_true(driver_add(driver, &part, 1, 0, 0));
        driver_show(driver);
        assert_true(driver_must_kick(driver)); /* rings begin with kicks wanted */
        assert_true(virtqueue_want_kicks(scene.queue));
        virtqueue_want_no_kicks(scene.queue);
        assert_true(take_one_quietly());
        for (unsigned j = 0; j < 3; j++) {
            assert_true(driver_add(driver, &part, 1, 0, 0));
            driver_show(driver);
            assert_false(driver_must_kick(driver));
            assert_true(take_one_quietly());
        }
        assert_false(virtqueue_want_kicks(scene.queue));
        virtqueue_want_no_kicks(scene.queue); /* we have been woken by something else */
        assert_true(driver_add(driver, &part, 1, 0, 0));
        driver_show(driver);
        assert_false(driver_must_kick(driver));
        assert_true(take_one_quietly());
        assert_false(virtqueue_want_kicks(scene.queue));
        assert_true(driver_add(driver, &part, 1, 0, 0) && driver_add(driver, &part, 1, 0, 0));
        driver_show(driver);
        assert_true(driver_must_kick(driver));
        assert_true(take_one_quietly());
        assert_true(virtqueue_want_kicks(scene.queue));
        end();
    }
}

/* A connection ends between a return and the publish: the next device finds the ring as the driver has left it. */
static void what_was_not_published_was_not_used(void **state)
{
    (void)state;
    struct error err = {0};
    const struct part parts[] = {{DATA, 16, false}, {DATA, 512, true}};
    for (unsigned i = 0; i < ALL_FEATURES; i++) {
        begin(all_features[i], 8);
        for (uint32_t j = 0; j < 3; j++)
            assert_true(driver_add(&scene.driver, parts, 2, 0, j));
        driver_show(&scene.driver);
        while (take_one_quietly())
            ;
        assert_int_equal(scene.held_count, 3);
        while (scene.held_count > 0)
            virtqueue_return(scene.queue, &scene.held[--scene.held_count], 512);
        virtqueue_destroy(scene.queue);
        uint32_t cookie, written;
        assert_false(driver_get(&scene.driver, &cookie, &written));
        scene.queue = make(8, all_features[i].packed ? 0x80008000 : 0, &err);
        for (uint32_t j = 0; j < 3; j++) {
            assert_true(take_one_quietly());
            assert_true(scene.held[j].read_bytes == 16 && scene.held[j].write_bytes == 512);
        }
        while (scene.held_count > 0)
            virtqueue_return(scene.queue, &scene.held[--scene.held_count], 512);
        assert_true(virtqueue_publish(scene.queue));
        for (uint32_t j = 3; j > 0; j--)
            assert_true(driver_get(&scene.driver, &cookie, &written) && cookie == j - 1);
        end();
    }
}

static struct guest_memory *with_second(struct guest_memory *first)
{
    struct error err = {0};
    int fd = memfd_create("other", MFD_CLOEXEC);
    assert_int_equal(ftruncate(fd, EDGE), 0);
    struct guest_memory *memory = guest_memory_with(first, &(struct guest_region){EDGE, USER + EDGE, EDGE, 0}, fd,
                                                    &err);
    assert_non_null(memory);
    close(fd);
    return memory;
}

/* Memory is unplugged, and other memory plugged in, while a chain is out. */
static void memory_changes_under_requests(void **state)
{
    (void)state;
    struct error err = {0};
    const struct part part = {DATA, 512, true};
    for (unsigned i = 0; i < ALL_FEATURES; i++) {
        begin(all_features[i], 8);
        struct guest_memory *half = guest_memory_without(scene.memory,
                                                         &(struct guest_region){EDGE, USER + EDGE, EDGE, 0}, &err);
        struct guest_memory *wrong = guest_memory_without(scene.memory, &(struct guest_region){0, USER, EDGE, 0}, &err);
        struct guest_memory *none = guest_memory_without(half, &(struct guest_region){0, USER, EDGE, 0}, &err);
        struct guest_memory *next = with_second(half);
        for (uint32_t j = 0; j < 4; j++)
            assert_true(driver_add(&scene.driver, &part, 1, 0, j));
        driver_show(&scene.driver);
        assert_true(take_one_quietly());
        assert_int_equal(virtqueue_set_memory(scene.queue, wrong, &err), -EFAULT);
        assert_int_equal(virtqueue_set_memory(scene.queue, none, &err), -EFAULT);
        assert_true(take_one_quietly());
        assert_int_equal(virtqueue_set_memory(scene.queue, next, &err), 0);
        guest_memory_unref(next);
        assert_true(take_one_quietly());
        assert_ptr_equal(scene.held[0].iov[0].iov_base, scene.held[1].iov[0].iov_base);
        assert_ptr_not_equal(scene.held[0].iov[0].iov_base, scene.held[2].iov[0].iov_base);
        memset(scene.held[2].iov[0].iov_base, 1, 512);
        memset(scene.held[0].iov[0].iov_base, 2, 512);
        assert_int_equal(scene.flat[DATA], 2);
        assert_int_equal(virtqueue_set_memory(scene.queue, half, &err), 0);
        assert_int_equal(virtqueue_take(scene.queue, &scene.held[3]), -EPROTO);
        memset(scene.held[2].iov[0].iov_base, 3, 512); /* its region is in no table any more, but for its own */
        while (scene.held_count > 0)
            virtqueue_return(scene.queue, &scene.held[--scene.held_count], 512);
        (void)virtqueue_publish(scene.queue);
        uint32_t cookie, written;
        for (uint32_t j = 3; j > 0; j--)
            assert_true(driver_get(&scene.driver, &cookie, &written) && cookie == j - 1);
        guest_memory_unref(half);
        guest_memory_unref(wrong);
        guest_memory_unref(none);
        end();
    }
}

/* The front-end cuts the file of the rings short while chains are out: no call here ends the process, and it is seen. */
static void rings_are_cut_short(void **state)
{
    (void)state;
    struct error err = {0};
    struct guest_memory *sound = scene.memory;
    char *flat = scene.flat;
    const struct part part = {DATA, 512, true};
    signal(SIGBUS, SIG_DFL); /* cmocka's */
    assert_int_equal(shared_map_guard(&err), 0);
    for (unsigned i = 0; i < ALL_FEATURES; i++) {
        int fd = memfd_create("guest", MFD_CLOEXEC);
        assert_int_equal(ftruncate(fd, MEMORY), 0);
        scene.memory = guest_memory_with(NULL, &(struct guest_region){0, USER, MEMORY, 0}, fd, &err);
        scene.flat = guest_memory_at(scene.memory, USER, MEMORY, 1);
        begin(all_features[i], 8);
        for (uint32_t j = 0; j < 4; j++)
            assert_true(driver_add(&scene.driver, &part, 1, 0, j));
        driver_show(&scene.driver);
        assert_true(take_one_quietly());
        assert_true(take_one_quietly());
        assert_false(guest_memory_is_torn(scene.memory));
        assert_int_equal(ftruncate(fd, 0), 0);
        virtqueue_return(scene.queue, &scene.held[--scene.held_count], 512);
        (void)virtqueue_publish(scene.queue);
        while (virtqueue_take(scene.queue, &scene.held[scene.held_count]) == 1)
            scene.held_count++;
        assert_true(guest_memory_is_torn(scene.memory));
        (void)virtqueue_want_kicks(scene.queue);
        assert_false(guest_memory_is_torn(sound));
        end();
        guest_memory_unref(scene.memory);
        close(fd);
    }
    scene.memory = sound;
    scene.flat = flat;
}

static int set_up(void **state)
{
    (void)state;
    struct error err = {0};
    int fd = memfd_create("guest", MFD_CLOEXEC);
    if (ftruncate(fd, MEMORY) < 0)
        return 1;
    scene.flat = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    scene.held = calloc(CHAINS, sizeof scene.held[0]);
    struct guest_memory *low = guest_memory_with(NULL, &(struct guest_region){0, USER, EDGE, 0}, fd, &err);
    if (low)
        scene.memory = guest_memory_with(low, &(struct guest_region){EDGE, USER + EDGE, EDGE, EDGE}, fd, &err);
    guest_memory_unref(low);
    close(fd);
    scene.random = 1;
    return scene.memory && scene.flat != MAP_FAILED && scene.held ? 0 : 1;
}

static int tear_down(void **state)
{
    (void)state;
    guest_memory_unref(scene.memory);
    free(scene.held);
    return munmap(scene.flat, MEMORY);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_chains),
        cmocka_unit_test(indexes_wrap),
        cmocka_unit_test(sizes_and_places),
        cmocka_unit_test(a_queue_that_begins_somewhere),
        cmocka_unit_test(crimes_break_the_queue),
        cmocka_unit_test(a_broken_queue_returns_what_it_has),
        cmocka_unit_test(nothing_is_available_twice),
        cmocka_unit_test(the_longest_chains),
        cmocka_unit_test(four_gib_and_not_more),
        cmocka_unit_test(other_flags_in_packed_tables_mean_nothing),
        cmocka_unit_test(kicks),
        cmocka_unit_test(what_was_not_published_was_not_used),
        cmocka_unit_test(memory_changes_under_requests),
        cmocka_unit_test(rings_are_cut_short),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
