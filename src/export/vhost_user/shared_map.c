/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The kernel answers an access behind the end of a mapped file with SIGBUS, and so does memory whose hardware has
 * failed. The handler looks whose address it is. One of ours: a zeroed page of private memory takes its place, and the
 * access is done again by returning. Only that one page (of the file's size of pages: 2 MiB and more on hugetlbfs),
 * because the others keep their virtue: a disk operation on a missing page fails with EFAULT, while one on zeroes would
 * put them on the disk.
 *
 * Every other SIGBUS (a bug, a file of somebody else, kill -BUS) goes to the action that was there before us: that is put
 * back, and the access is done again, or the signal is sent again.
 *
 * Large mappings are undone by a thread that ends when there are none: a reactor would stand still for 80 ms with each GiB.
 *
 * A handler can know nothing but what is at file scope, so the mappings are listed there. A slot of the list is changed
 * under a lock and read by a handler without: it has a sequence number that is odd while it changes. The slot of the mapping
 * that has faulted cannot change, because who accesses it holds it; one that changes meanwhile is somebody else's.
 */
#include "export/vhost_user/shared_map.h"

#include <assert.h>
#include <errno.h>
#include <linux/magic.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/range.h"

struct guard_slot { /* free: map NULL */
    atomic_uint sequence;
    _Atomic uintptr_t start, end;
    _Atomic(struct shared_map *) map;
};

static struct {
    pthread_mutex_t lock; /* of all changes */
    struct guard_slot slots[LIMIT_SHARED_MAPS];
    atomic_uint slots_end; /* those behind were never used */
    atomic_uint tears;
    struct sigaction before;
    struct shared_map *unmapping; /* a list, under the lock */
    bool unmapper;                /* a thread sees to it, until it is empty */
} guard = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* In the handler. Zeroes take the place of the page at that address; of the whole mapping when it cannot be split more. */
static bool tear(struct shared_map *map, uintptr_t address)
{
    const uint64_t at = round_down(address - (uintptr_t)map->mapped, map->page_bytes);
    const int flags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    atomic_store(&map->torn, true);
    atomic_fetch_add(&guard.tears, 1);
    return mmap(map->mapped + at, map->page_bytes, PROT_READ | PROT_WRITE, flags, -1, 0) != MAP_FAILED ||
           mmap(map->mapped, map->mapped_bytes, PROT_READ | PROT_WRITE, flags, -1, 0) != MAP_FAILED;
}

/* In the handler. Whose address it is; NULL: none of ours. */
static struct shared_map *find(uintptr_t address)
{
    const unsigned end = atomic_load(&guard.slots_end);
    for (unsigned i = 0; i < end; i++) {
        struct guard_slot *slot = &guard.slots[i];
        const unsigned sequence = atomic_load_explicit(&slot->sequence, memory_order_acquire);
        const uintptr_t slot_start = atomic_load_explicit(&slot->start, memory_order_acquire);
        const uintptr_t slot_end = atomic_load_explicit(&slot->end, memory_order_acquire);
        struct shared_map *map = atomic_load_explicit(&slot->map, memory_order_acquire);
        const unsigned again = atomic_load_explicit(&slot->sequence, memory_order_relaxed);
        if (sequence == again && sequence % 2 == 0 && map && address >= slot_start && address < slot_end)
            return map;
    }
    return NULL;
}

static void bus_error(int number, siginfo_t *info, void *context)
{
    (void)context;
    const int error = errno;
    const bool by_access = info->si_code > 0;
    struct shared_map *map = by_access ? find((uintptr_t)info->si_addr) : NULL;
    if (!map || !tear(map, (uintptr_t)info->si_addr)) {
        (void)sigaction(number, &guard.before, NULL);
        if (!by_access)
            (void)raise(number); /* comes when we return */
    }
    errno = error;
}

int shared_map_guard(struct error *err)
{
    struct sigaction action = {.sa_sigaction = bus_error, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGBUS, &action, &guard.before) < 0)
        return error_set(err, errno, "cannot handle SIGBUS: %s", error_name(errno));
    return 0;
}

/* Under the lock. */
static void change_slot(struct guard_slot *slot, struct shared_map *map, uintptr_t start, uintptr_t end)
{
    atomic_fetch_add(&slot->sequence, 1);
    atomic_store(&slot->start, start);
    atomic_store(&slot->end, end);
    atomic_store(&slot->map, map);
    atomic_fetch_add(&slot->sequence, 1);
}

static int enlist(struct shared_map *map, struct error *err)
{
    int status = 0;
    pthread_mutex_lock(&guard.lock);
    const unsigned end = atomic_load(&guard.slots_end);
    unsigned i = 0;
    while (i < end && atomic_load(&guard.slots[i].map))
        i++;
    if (i == LIMIT_SHARED_MAPS) {
        status = error_set(err, ENOMEM, "%d pieces of shared memory are mapped already, which is the most",
                           LIMIT_SHARED_MAPS);
    } else {
        change_slot(&guard.slots[i], map, (uintptr_t)map->mapped, (uintptr_t)map->mapped + map->mapped_bytes);
        map->slot = i;
        if (i == end)
            atomic_store(&guard.slots_end, end + 1);
    }
    pthread_mutex_unlock(&guard.lock);
    return status;
}

static void delist(struct shared_map *map)
{
    pthread_mutex_lock(&guard.lock);
    change_slot(&guard.slots[map->slot], NULL, 0, 0);
    pthread_mutex_unlock(&guard.lock);
}

/* A page of such a file comes when its server likes, and a reactor that touches it waits as long, for all its disks. */
static const char *server_of(const struct statfs *fs)
{
    switch ((unsigned long)fs->f_type & UINT32_MAX) {
    case FUSE_SUPER_MAGIC:
        return "FUSE";
    case NFS_SUPER_MAGIC:
        return "NFS";
    case SMB_SUPER_MAGIC:
    case CIFS_SUPER_MAGIC:
    case SMB2_SUPER_MAGIC:
        return "SMB";
    case V9FS_MAGIC:
        return "9p";
    case CEPH_SUPER_MAGIC:
        return "Ceph";
    case AFS_SUPER_MAGIC:
    case AFS_FS_MAGIC:
        return "AFS";
    case CODA_SUPER_MAGIC:
        return "Coda";
    }
    return NULL;
}

/* Bytes of a page of the file; 0: it cannot be mapped as it was asked for. */
static uint64_t check_file(int fd, struct range range, struct error *err)
{
    struct stat stat;
    struct statfs fs;
    if (fstat(fd, &stat) < 0 || fstatfs(fd, &fs) < 0) {
        error_set(err, errno, "cannot look at the file of shared memory: %s", error_name(errno));
        return 0;
    }
    if (!S_ISREG(stat.st_mode)) {
        error_set(err, EINVAL, "shared memory must be a regular file or a memfd");
        return 0;
    }
    if (server_of(&fs)) {
        error_set(err, EINVAL,
                  "shared memory must not be a file of %s, whose server could keep us waiting; a memfd can't",
                  server_of(&fs));
        return 0;
    }
    if (range.length == 0 || !range_within(range, (uint64_t)stat.st_size)) {
        error_set(err, EINVAL, "shared memory of %llu bytes at offset %llu of a file that has %llu",
                  (unsigned long long)range.length, (unsigned long long)range.start, (unsigned long long)stat.st_size);
        return 0;
    }
    return fs.f_type == HUGETLBFS_MAGIC ? (uint64_t)fs.f_bsize : (uint64_t)sysconf(_SC_PAGESIZE);
}

static int map_file(struct shared_map *map, int fd, struct range range, struct error *err)
{
    const uint64_t start = round_down(range.start, map->page_bytes);
    map->mapped_bytes = round_up(range_end(range), map->page_bytes) - start;
    map->mapped = mmap(NULL, map->mapped_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, (off_t)start);
    if (map->mapped == MAP_FAILED)
        return error_set(err, errno, "cannot map %llu bytes of shared memory: %s", (unsigned long long)range.length,
                         error_name(errno));
    /* Neither a child's nor a core file's. */
    (void)madvise(map->mapped, map->mapped_bytes, MADV_DONTFORK);
    (void)madvise(map->mapped, map->mapped_bytes, MADV_DONTDUMP);
    map->base = map->mapped + (range.start - start);
    return 0;
}

struct shared_map *shared_map_create(int fd, uint64_t offset, uint64_t size_bytes, struct error *err)
{
    const struct range range = {offset, size_bytes};
    const uint64_t page_bytes = check_file(fd, range, err);
    if (page_bytes == 0)
        return NULL;
    struct shared_map *map = malloc(sizeof *map);
    if (!map) {
        error_set(err, ENOMEM, "no memory");
        return NULL;
    }
    *map = (struct shared_map){.size_bytes = size_bytes, .page_bytes = page_bytes, .references = 1};
    if (map_file(map, fd, range, err) < 0) {
        free(map);
        return NULL;
    }
    if (enlist(map, err) < 0) {
        munmap(map->mapped, map->mapped_bytes);
        free(map);
        return NULL;
    }
    return map;
}

/* In steps: what is being unmapped keeps others from mapping. */
static void unmap_now(struct shared_map *map)
{
    const uint64_t step = round_up(SHARED_MAP_STEP_BYTES, map->page_bytes);
    while (map->mapped_bytes > 0) {
        const uint64_t bytes = map->mapped_bytes < step ? map->mapped_bytes : step;
        map->mapped_bytes -= bytes;
        munmap(map->mapped + map->mapped_bytes, bytes);
    }
    free(map);
}

static void *unmapper(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&guard.lock);
    for (struct shared_map *map; (map = guard.unmapping);) {
        guard.unmapping = map->next;
        pthread_mutex_unlock(&guard.lock);
        unmap_now(map);
        pthread_mutex_lock(&guard.lock);
    }
    guard.unmapper = false;
    pthread_mutex_unlock(&guard.lock);
    return NULL;
}

static bool start_unmapper(void)
{
    pthread_attr_t detached;
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all);
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the main thread */
    const bool started = pthread_create(&thread, &detached, unmapper, NULL) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&detached);
    return started;
}

/* A guest's memory takes seconds to unmap when much of it was touched: another thread's, not the reactor's. */
static void unmap(struct shared_map *map)
{
    bool handed_over = false;
    if (map->mapped_bytes > SHARED_MAP_STEP_BYTES) {
        pthread_mutex_lock(&guard.lock);
        guard.unmapper = guard.unmapper || start_unmapper();
        handed_over = guard.unmapper;
        if (handed_over) {
            map->next = guard.unmapping;
            guard.unmapping = map;
        }
        pthread_mutex_unlock(&guard.lock);
    }
    if (!handed_over)
        unmap_now(map);
}

struct shared_map *shared_map_ref(struct shared_map *map)
{
    assert(map->references > 0);
    map->references++;
    return map;
}

void shared_map_unref(struct shared_map *map)
{
    if (!map)
        return;
    assert(map->references > 0);
    if (--map->references > 0)
        return;
    delist(map);
    unmap(map);
}

bool shared_map_any_torn(void)
{
    return atomic_load_explicit(&guard.tears, memory_order_relaxed) > 0;
}

bool shared_map_is_torn(const struct shared_map *map)
{
    return shared_map_any_torn() && atomic_load(&map->torn);
}
