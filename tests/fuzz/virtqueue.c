/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Any bytes as what a guest has in its rings, and a front-end in its in-flight region: the memory is filled with the input
 * again and again, and a byte of it says what happens in between: takes, returns, publishes, other memory, a restart. All
 * fragments must lie in the guest's memory (a sanitizer sees it), reads before writes, within the limits.
 *
 * The first byte: features; the second: size of the ring; the third: whether there is an in-flight region, and where the
 * queue begins. Then operations, one byte each, up to OPERATIONS; the rest is memory, over and over.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "export/vhost_user/virtqueue.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

enum { PAGE = 4096, PAGES = 4, OPERATIONS = 48, HELD = 64, REGION = 16384 };
#define USER UINT64_C(0x10000)

struct scene {
    struct virtqueue_features features;
    struct guest_memory *memory, *less; /* all four pages; but the last */
    struct virtqueue *queue;
    char *flat; /* the first three pages are one region, the last is another */
    struct virtqueue_chain held[HELD];
    unsigned held_count;
    uint32_t size, base;
    bool inflight;
    uint64_t region[REGION / 8];
    const uint8_t *fill;
    size_t fill_length;
};

static struct guest_memory *memory_create(struct scene *scene)
{
    struct error err;
    int fd = memfd_create("guest", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, PAGES * PAGE) < 0)
        abort();
    const struct guest_region low = {0, USER, (PAGES - 1) * PAGE, 0};
    const struct guest_region high = {(PAGES - 1) * PAGE, USER + (PAGES - 1) * PAGE, PAGE, (PAGES - 1) * PAGE};
    scene->flat = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    scene->less = guest_memory_with(NULL, &low, fd, &err);
    struct guest_memory *memory = scene->less ? guest_memory_with(scene->less, &high, fd, &err) : NULL;
    if (!memory || scene->flat == MAP_FAILED)
        abort();
    close(fd);
    return memory;
}

/* Bytes of the input, round and round, from somewhere in it. */
static void fill(const struct scene *scene, void *to, size_t bytes, size_t from)
{
    for (size_t done = 0; done < bytes && scene->fill_length > 0;) {
        const size_t at = (from + done) % scene->fill_length, rest = scene->fill_length - at;
        const size_t part = rest < bytes - done ? rest : bytes - done;
        memcpy((char *)to + done, scene->fill + at, part);
        done += part;
    }
}

static void start(struct scene *scene)
{
    const struct virtqueue_place place = {USER, USER + PAGE, USER + PAGE + 512};
    struct error err;
    scene->queue = virtqueue_create(&scene->features, scene->memory, &place, scene->size, scene->base, &err);
    if (scene->queue && scene->inflight &&
        virtqueue_set_inflight(scene->queue, scene->region, sizeof scene->region, &err) < 0) {
        virtqueue_destroy(scene->queue);
        scene->queue = NULL;
    }
}

static void look(const struct virtqueue_chain *chain)
{
    uint64_t sums[2] = {0, 0};
    volatile char sink = 0;
    const unsigned count = (unsigned)chain->read_count + chain->write_count;
    assert(count <= LIMIT_VIRTQUEUE_FRAGMENTS && chain->memory);
    for (unsigned i = 0; i < count; i++) {
        const char *base = chain->iov[i].iov_base;
        const size_t length = chain->iov[i].iov_len;
        assert(length > 0 && length <= PAGES * PAGE);
        sink = sink ^ base[0] ^ base[length - 1];
        sums[i >= chain->read_count] += length;
    }
    assert(sums[0] == chain->read_bytes && sums[1] == chain->write_bytes);
}

static void take(struct scene *scene, unsigned most, int (*from)(struct virtqueue *, struct virtqueue_chain *))
{
    for (unsigned i = 0; i < most && scene->held_count < HELD; i++) {
        const int status = from(scene->queue, &scene->held[scene->held_count]);
        assert((status < 0) == (virtqueue_broken(scene->queue) != NULL));
        if (status <= 0)
            return;
        look(&scene->held[scene->held_count++]);
    }
}

static void give_back(struct scene *scene, unsigned which)
{
    if (scene->held_count == 0)
        return;
    which %= scene->held_count;
    virtqueue_return(scene->queue, &scene->held[which], which * 1000);
    scene->held[which] = scene->held[--scene->held_count];
}

static void restart(struct scene *scene)
{
    while (scene->held_count > 0)
        virtqueue_drop(&scene->held[--scene->held_count]);
    virtqueue_destroy(scene->queue);
    start(scene);
    if (scene->queue)
        take(scene, HELD, virtqueue_resubmit);
}

static void act(struct scene *scene, uint8_t operation)
{
    const unsigned value = operation >> 3;
    struct error err;
    switch (operation & 7) {
    case 0:
        fill(scene, scene->flat, PAGES * PAGE, value * 97);
        break;
    case 1:
    case 2:
        take(scene, value + 1, virtqueue_take);
        break;
    case 3:
        give_back(scene, value);
        break;
    case 4:
        (void)virtqueue_publish(scene->queue);
        break;
    case 5:
        if (value & 1)
            (void)virtqueue_want_kicks(scene->queue);
        else
            virtqueue_want_no_kicks(scene->queue);
        break;
    case 6:
        (void)virtqueue_set_memory(scene->queue, value & 1 ? scene->memory : scene->less, &err);
        break;
    case 7:
        if (value & 1)
            fill(scene, scene->region, sizeof scene->region, value * 31);
        restart(scene);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
    static struct scene scene; /* its memory is made once */
    if (length < 3)
        return 0;
    if (!scene.memory)
        scene.memory = memory_create(&scene);
    memset(scene.flat, 0, PAGES * PAGE);
    memset(scene.region, 0, sizeof scene.region);
    scene.features = (struct virtqueue_features){
        .packed = bytes[0] & 1, .event_idx = bytes[0] & 2, .indirect = bytes[0] & 4};
    scene.size = bytes[0] & 8 ? bytes[1] : 1u << bytes[1] % 8;
    scene.inflight = bytes[2] & 1;
    scene.base = bytes[2] & 2 ? 0x80008000u : (bytes[2] >> 2) * 0x10001u;
    const size_t operations = length - 3 < OPERATIONS ? length - 3 : OPERATIONS;
    scene.fill = bytes + 3 + operations;
    scene.fill_length = length - 3 - operations;
    fill(&scene, scene.flat, PAGES * PAGE, 0);
    start(&scene);
    for (size_t i = 0; i < operations && scene.queue; i++)
        act(&scene, bytes[3 + i]);
    while (scene.held_count > 0)
        virtqueue_drop(&scene.held[--scene.held_count]);
    virtqueue_destroy(scene.queue);
    return 0;
}
