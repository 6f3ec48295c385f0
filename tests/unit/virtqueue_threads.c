/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Driver and device on two threads, as they are in life: each works until it finds nothing, asks to be told, and sleeps.
 * When one is not told, it sleeps for ever; with an ordering too few a request has the wrong data, or the thread sanitizer
 * sees it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "export/vhost_user/virtqueue.h"
#include "ring_driver.h"

enum { SIZE = 64, DATA = 65536, SLOT = 64, MEMORY = DATA + SIZE * SLOT, REGION = 32768, PATIENCE_MS = 100000 };
#if defined(__SANITIZE_THREAD__)
enum { REQUESTS = 20000 };
#else
enum { REQUESTS = 100000 };
#endif
#define USER UINT64_C(0x7f1200000000)
static const struct driver_place place = {0, 16384, 24576};

struct scene {
    struct virtqueue_features features;
    struct guest_memory *memory;
    struct virtqueue *queue;
    char *flat;
    struct driver driver;
    int kick, call;                        /* eventfds */
    uint32_t free_slots[SIZE], free_count; /* the driver's, of data */
};

static void wait_for(int fd)
{
    uint64_t count;
    struct pollfd poller = {.fd = fd, .events = POLLIN};
    if (poll(&poller, 1, PATIENCE_MS) != 1 || read(fd, &count, sizeof count) != sizeof count)
        abort(); /* nobody told us */
}

static void tell(int fd)
{
    if (write(fd, &(uint64_t){1}, sizeof(uint64_t)) != sizeof(uint64_t))
        abort();
}

/* Each request: a number, of which the device writes the square. */
static void serve(struct virtqueue_chain *chain)
{
    uint64_t number;
    if (chain->read_count != 1 || chain->write_count != 1 || chain->read_bytes != 8 || chain->write_bytes != 8)
        abort();
    memcpy(&number, chain->iov[0].iov_base, sizeof number);
    number *= number;
    memcpy(chain->iov[1].iov_base, &number, sizeof number);
}

static void *device(void *argument)
{
    static struct virtqueue_chain held[SIZE];
    struct scene *scene = argument;
    unsigned count = 0, served = 0, salt = 1;
    bool told = false;
    while (served < REQUESTS) {
        virtqueue_want_no_kicks(scene->queue);
        while (count < SIZE && virtqueue_take(scene->queue, &held[count]) == 1)
            serve(&held[count++]);
        salt = salt * 1664525 + 1013904223;
        /* Some are kept until there is nothing else to do. */
        for (unsigned keep = told ? salt >> 29 : 0; count > keep; served++)
            virtqueue_return(scene->queue, &held[--count], 8);
        if (virtqueue_publish(scene->queue))
            tell(scene->call);
        told = virtqueue_want_kicks(scene->queue);
        if (!told && count == 0 && served < REQUESTS)
            wait_for(scene->kick);
    }
    return NULL;
}

static void submit(struct scene *scene, uint32_t number)
{
    const uint64_t at = DATA + scene->free_slots[--scene->free_count] * SLOT, table = at + 16;
    const struct part parts[] = {{at, 8, false}, {at + 8, 8, true}};
    const uint64_t wide = number, none = 0;
    memcpy(scene->flat + at, &wide, sizeof wide);
    memcpy(scene->flat + at + 8, &none, sizeof none);
    if (!driver_add(&scene->driver, parts, 2, scene->features.indirect ? table : 0, (uint32_t)(at - DATA)))
        abort();
}

static void collect(struct scene *scene, uint32_t *got, uint64_t *sum)
{
    uint32_t cookie, written;
    while (driver_get(&scene->driver, &cookie, &written)) {
        uint64_t number, square;
        memcpy(&number, scene->flat + DATA + cookie, sizeof number);
        memcpy(&square, scene->flat + DATA + cookie + 8, sizeof square);
        if (square != number * number || written != 8)
            abort();
        scene->free_slots[scene->free_count++] = cookie / SLOT;
        *sum += number;
        ++*got;
    }
}

static void drive(struct scene *scene)
{
    uint32_t sent = 0, got = 0, salt = 7;
    uint64_t sum = 0;
    while (got < REQUESTS) {
        salt = salt * 1664525 + 1013904223;
        for (uint32_t batch = 1 + (salt >> 28); batch > 0 && sent < REQUESTS && scene->driver.free_count >= 2; batch--)
            submit(scene, sent++);
        driver_show(&scene->driver);
        if (driver_must_kick(&scene->driver))
            tell(scene->kick);
        driver_want_no_calls(&scene->driver);
        collect(scene, &got, &sum);
        const bool full = sent == REQUESTS || scene->driver.free_count < 2;
        if (full && got < REQUESTS && !driver_want_calls(&scene->driver, 0))
            wait_for(scene->call);
    }
    assert_int_equal(sum, (uint64_t)REQUESTS * (REQUESTS - 1) / 2);
}

static void run(struct virtqueue_features features, bool inflight)
{
    struct error err = {0};
    pthread_t thread;
    static struct scene scene;
    static uint64_t region[REGION / 8];
    const struct virtqueue_place user = {USER + place.descriptors, USER + place.available, USER + place.used};
    int fd = memfd_create("guest", MFD_CLOEXEC);
    memset(&scene, 0, sizeof scene);
    memset(region, 0, sizeof region);
    assert_int_equal(ftruncate(fd, MEMORY), 0);
    scene.features = features;
    while (scene.free_count < SIZE) {
        scene.free_slots[scene.free_count] = scene.free_count;
        scene.free_count++;
    }
    scene.memory = guest_memory_with(NULL, &(struct guest_region){0, USER, MEMORY, 0}, fd, &err);
    close(fd);
    /* The same mapping for both: a sanitizer tells memory by its addresses. */
    scene.flat = guest_memory_at(scene.memory, USER, MEMORY, 1);
    driver_init(&scene.driver, scene.flat, &place, SIZE, features.packed, features.event_idx);
    scene.queue = virtqueue_create(&features, scene.memory, &user, SIZE, features.packed ? 0x80008000 : 0, &err);
    assert_non_null(scene.queue);
    if (inflight)
        assert_int_equal(virtqueue_set_inflight(scene.queue, region, sizeof region, &err), 0);
    scene.kick = eventfd(0, EFD_CLOEXEC);
    scene.call = eventfd(0, EFD_CLOEXEC);
    assert_int_equal(pthread_create(&thread, NULL, device, &scene), 0);
    drive(&scene);
    pthread_join(thread, NULL);
    assert_null(virtqueue_broken(scene.queue));
    virtqueue_destroy(scene.queue);
    guest_memory_unref(scene.memory);
    close(scene.kick);
    close(scene.call);
}

static void two_threads(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 8; i++) /* indirect with every other combination */
        run((struct virtqueue_features){.packed = i & 1, .event_idx = i & 2, .indirect = i & 2}, i & 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
