/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Tables of guest memory over real memfds: look-ups at all edges, hotplug, and files that are cut short under us. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "export/vhost_user/memory.h"
#include "export/vhost_user/shared_map.h"

enum { PAGE = 4096, THREADS = 4, ROUNDS = 200 };

static int file(uint64_t bytes)
{
    int fd = memfd_create("guest", MFD_CLOEXEC);
    assert_true(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
    return fd;
}

/* One more region of a memfd that is as long as it must be; `from` is given up. */
static struct guest_memory *add(struct guest_memory *from, uint64_t guest, uint64_t user, uint64_t size)
{
    struct error err = {0};
    int fd = file(size);
    struct guest_memory *memory = guest_memory_with(
        from, &(struct guest_region){.guest_address = guest, .user_address = user, .size_bytes = size}, fd, &err);
    assert_non_null(memory);
    guest_memory_unref(from);
    close(fd);
    return memory;
}

static void refused(struct guest_memory *from, struct guest_region region, uint64_t file_bytes, const char *why)
{
    struct error err = {0};
    int fd = file(file_bytes);
    assert_null(guest_memory_with(from, &region, fd, &err));
    if (!strstr(err.text, why))
        fail_msg("\"%s\" does not say \"%s\"", err.text, why);
    assert_int_not_equal(err.code, 0);
    close(fd);
}

static void regions_are_checked(void **state)
{
    (void)state;
    struct guest_memory *memory = add(NULL, 0x10000, 0x7f0000000000, 0x10000);
    refused(memory, (struct guest_region){0x1000, 0x1000, 0, 0}, PAGE, "is empty");
    refused(memory, (struct guest_region){UINT64_MAX - 0xfff, 0x1000, 0x1000, 0}, PAGE, "last address");
    refused(memory, (struct guest_region){0x1000, UINT64_MAX - 0xfff, 0x1000, 0}, PAGE, "last address");
    refused(memory, (struct guest_region){0x1000, 0x1000, UINT64_MAX, 0}, PAGE, "last address");
    refused(memory, (struct guest_region){0x1f000, 0x1000, 0x1000, 0}, PAGE, "overlaps that at 0x10000");
    refused(memory, (struct guest_region){0xf000, 0x1000, 0x1001, 0}, 2 * PAGE, "overlaps");
    refused(memory, (struct guest_region){0x0, 0x1000, 0x100000, 0}, 0x100000, "overlaps");
    refused(memory, (struct guest_region){0x1000, 0x1000, 0x1000, 1}, PAGE, "of a file that has 4096");
    refused(memory, (struct guest_region){0x1000, 0x1000, 0x1000, UINT64_MAX}, PAGE, "of a file that has");
    refused(memory, (struct guest_region){0x100000, 0x1000, INT64_MAX, 0}, PAGE,
            "all together have 0x80000000000 at most");
    const uint64_t rest = LIMIT_GUEST_MEMORY_BYTES - 0x10000;
    refused(memory, (struct guest_region){0x100000, 0x1000, rest + 1, 0}, PAGE, "all together have");
    refused(memory, (struct guest_region){0x100000, 0x1000, rest, 0}, PAGE, "of a file that has");
    struct error err = {0};
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    assert_null(guest_memory_with(NULL, &(struct guest_region){0, 0, PAGE, 0}, null, &err));
    assert_non_null(strstr(err.text, "regular file or a memfd"));
    close(null);
    assert_null(guest_memory_with(NULL, &(struct guest_region){0, 0, PAGE, 0}, -1, &err));
    assert_int_equal(err.code, EBADF);
    assert_int_equal(guest_memory_region_count(memory), 1);
    guest_memory_unref(memory);
    guest_memory_unref(NULL);
}

int __real_fstatfs64(int fd, struct statfs *fs);
int __wrap_fstatfs64(int fd, struct statfs *fs);
static __fsword_t file_system; /* that files are of; 0: their own */

int __wrap_fstatfs64(int fd, struct statfs *fs)
{
    const int status = __real_fstatfs64(fd, fs);
    if (file_system)
        fs->f_type = file_system;
    return status;
}

/* Its pages come when somebody else likes, and the reactor waits for each. */
static void files_of_a_server_are_refused(void **state)
{
    (void)state;
    static const struct {
        __fsword_t type;
        const char *name;
    } servers[] = {{FUSE_SUPER_MAGIC, "FUSE"}, {NFS_SUPER_MAGIC, "NFS"},      {SMB_SUPER_MAGIC, "SMB"},
                   {SMB2_SUPER_MAGIC, "SMB"},  {CIFS_SUPER_MAGIC, "SMB"},     {V9FS_MAGIC, "9p"},
                   {CEPH_SUPER_MAGIC, "Ceph"}, {AFS_SUPER_MAGIC, "AFS"},      {AFS_FS_MAGIC, "AFS"},
                   {CODA_SUPER_MAGIC, "Coda"}, {(int)SMB2_SUPER_MAGIC, "SMB"}};
    for (size_t i = 0; i < sizeof servers / sizeof servers[0]; i++) {
        file_system = servers[i].type;
        refused(NULL, (struct guest_region){.size_bytes = 0x1000}, 0x1000, servers[i].name);
    }
    file_system = EXT4_SUPER_MAGIC;
    guest_memory_unref(add(NULL, 0, 0, 0x1000));
    file_system = 0;
}

static void fragments_at_all_edges(void **state)
{
    (void)state;
    struct iovec iov[4];
    /* Three regions, added out of order; two adjoin, and the last ends where addresses end but for one page. */
    struct guest_memory *memory = add(NULL, 3 * PAGE, 0x50000, PAGE);
    memory = add(memory, UINT64_MAX - 2 * PAGE, 0x90000, 2 * PAGE);
    memory = add(memory, PAGE, 0x10000, 2 * PAGE);
    char *low = guest_memory_at(memory, 0x10000, 2 * PAGE, 16), *high = guest_memory_at(memory, 0x50000, PAGE, 16);
    assert_true(low && high);
    assert_int_equal(guest_memory_fragments(memory, PAGE, 0, iov, 4), 0);
    assert_int_equal(guest_memory_fragments(memory, 0, 0, iov, 0), 0);
    assert_int_equal(guest_memory_fragments(memory, PAGE, 2 * PAGE, iov, 1), 1);
    assert_true(iov[0].iov_base == low && iov[0].iov_len == 2 * PAGE);
    assert_int_equal(guest_memory_fragments(memory, 3 * PAGE - 1, 2, iov, 4), 2);
    assert_true(iov[0].iov_base == low + 2 * PAGE - 1 && iov[0].iov_len == 1);
    assert_true(iov[1].iov_base == high && iov[1].iov_len == 1);
    assert_int_equal(guest_memory_fragments(memory, 3 * PAGE - 1, 2, iov, 1), -E2BIG);
    assert_int_equal(guest_memory_fragments(memory, PAGE, 3 * PAGE, iov, 4), 2);
    assert_int_equal(guest_memory_fragments(memory, PAGE, 3 * PAGE + 1, iov, 4), -EFAULT);
    assert_int_equal(guest_memory_fragments(memory, PAGE - 1, 1, iov, 4), -EFAULT);
    assert_int_equal(guest_memory_fragments(memory, PAGE - 1, 2, iov, 4), -EFAULT);
    assert_int_equal(guest_memory_fragments(memory, 4 * PAGE, 1, iov, 4), -EFAULT);
    assert_int_equal(guest_memory_fragments(memory, PAGE, UINT64_MAX, iov, 4), -EFAULT);
    assert_int_equal(guest_memory_fragments(memory, UINT64_MAX - 2 * PAGE, 2 * PAGE, iov, 4), 1);
    assert_int_equal(guest_memory_fragments(memory, UINT64_MAX - 1, 1, iov, 4), 1);
    assert_int_equal(guest_memory_fragments(memory, UINT64_MAX - 1, 4, iov, 4), -EFAULT);
    assert_int_equal(guest_memory_fragments(memory, UINT64_MAX, 1, iov, 4), -EFAULT);
    memcpy(low + 2 * PAGE - 3, "abc", 3);
    memcpy(high, "def", 3);
    char text[7] = "";
    assert_int_equal(guest_memory_read(memory, 3 * PAGE - 3, text, 6), 0);
    assert_string_equal(text, "abcdef");
    assert_int_equal(guest_memory_read(memory, 4 * PAGE - 3, text, 6), -EFAULT);
    guest_memory_unref(memory);
}

static void pieces_for_rings(void **state)
{
    (void)state;
    struct guest_memory *memory = add(NULL, 0, 0x10000, 2 * PAGE);
    memory = add(memory, 2 * PAGE, 0x10000 + 2 * PAGE, PAGE); /* adjoins, but is another mapping */
    char *base = guest_memory_at(memory, 0x10000, 1, 1);
    assert_ptr_equal(guest_memory_at(memory, 0x10010, 16, 16), base + 16);
    assert_null(guest_memory_at(memory, 0x10008, 16, 16));
    assert_non_null(guest_memory_at(memory, 0x10008, 16, 8));
    assert_non_null(guest_memory_at(memory, 0x10000, 2 * PAGE, 16));
    assert_null(guest_memory_at(memory, 0x10000, 2 * PAGE + 1, 16));
    assert_null(guest_memory_at(memory, 0x10000, UINT64_MAX, 16));
    assert_null(guest_memory_at(memory, 0xfff0, 16, 16));
    assert_null(guest_memory_at(memory, 0x10000 + 3 * PAGE, 1, 1));
    guest_memory_unref(memory);
}

/* An offset inside of a page, as for memory of huge pages, and one file behind two regions. */
static void offsets_in_files(void **state)
{
    (void)state;
    struct error err = {0};
    int fd = file(4 * PAGE);
    assert_int_equal(pwrite(fd, "here", 4, PAGE + 512), 4);
    struct guest_memory *one = guest_memory_with(
        NULL,
        &(struct guest_region){
            .guest_address = 0, .user_address = 0x1000, .size_bytes = PAGE, .file_offset = PAGE + 512},
        fd, &err);
    assert_non_null(one);
    struct guest_memory *two = guest_memory_with(one, &(struct guest_region){0x10000, 0x1000, PAGE, PAGE + 512}, fd,
                                                 &err);
    assert_non_null(two);
    close(fd);
    char text[5] = "";
    assert_int_equal(guest_memory_read(two, 0x10000, text, 4), 0);
    assert_string_equal(text, "here");
    assert_int_equal(guest_memory_read(one, 0x10000, text, 4), -EFAULT);
    guest_memory_unref(one);
    guest_memory_unref(two);
}

static unsigned mappings(void)
{
    char line[512];
    unsigned count = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (fgets(line, sizeof line, maps))
        count += strstr(line, "memfd:guest") != NULL;
    fclose(maps);
    return count;
}

static void unplugged_memory_lives_as_long_as_it_is_used(void **state)
{
    (void)state;
    struct error err = {0};
    const struct guest_region second = {0x10000, 0x20000, PAGE, 0};
    struct guest_memory *first = add(NULL, 0, 0x1000, PAGE);
    struct guest_memory *both = add(guest_memory_ref(first), second.guest_address, second.user_address, PAGE);
    struct guest_memory *request = guest_memory_ref(both);
    assert_int_equal(mappings(), 2);
    assert_null(guest_memory_without(both, &(struct guest_region){0x10000, 0x20000, PAGE + 1, 0}, &err));
    assert_null(guest_memory_without(both, &(struct guest_region){0x10001, 0x20000, PAGE, 0}, &err));
    assert_null(guest_memory_without(both, &(struct guest_region){0x10000, 0x20001, PAGE, 0}, &err));
    assert_int_equal(err.code, ENOENT);
    struct guest_memory *without = guest_memory_without(both, &second, &err);
    assert_non_null(without);
    assert_int_equal(guest_memory_region_count(without), 1);
    guest_memory_unref(both);
    guest_memory_unref(first);
    struct iovec iov;
    assert_int_equal(guest_memory_fragments(without, 0x10000, PAGE, &iov, 1), -EFAULT);
    assert_int_equal(guest_memory_fragments(request, 0x10000, PAGE, &iov, 1), 1);
    memset(iov.iov_base, 7, iov.iov_len); /* a read of the disk that arrives late */
    assert_int_equal(mappings(), 2);
    guest_memory_unref(request);
    assert_int_equal(mappings(), 1);
    guest_memory_unref(without);
    assert_int_equal(mappings(), 0);
}

static void as_many_regions_as_allowed(void **state)
{
    (void)state;
    struct iovec iov[LIMIT_GUEST_REGIONS];
    struct guest_memory *memory = NULL;
    for (uint64_t i = 0; i < LIMIT_GUEST_REGIONS; i++) /* every third, then those between them, ... */
        memory = add(memory, (i * 171 % LIMIT_GUEST_REGIONS) * PAGE, 0x100000 + i * PAGE, PAGE);
    refused(memory, (struct guest_region){1 << 30, 1 << 30, PAGE, 0}, PAGE, "512 regions already");
    assert_int_equal(
        guest_memory_fragments(memory, 1, (uint64_t)LIMIT_GUEST_REGIONS * PAGE - 1, iov, LIMIT_GUEST_REGIONS),
        LIMIT_GUEST_REGIONS);
    for (unsigned i = 0; i < LIMIT_GUEST_REGIONS; i++)
        memcpy((char *)iov[i].iov_base + (i == 0 ? 0 : 1), &i, sizeof i);
    for (unsigned i = 0; i < LIMIT_GUEST_REGIONS; i++) {
        unsigned found;
        assert_int_equal(guest_memory_read(memory, (uint64_t)i * PAGE + 1, &found, sizeof found), 0);
        assert_int_equal(found, i);
    }
    guest_memory_unref(memory);
}

/* Anew in each test that needs it: cmocka handles the signal in every test. */
static void guard(void)
{
    struct error err;
    signal(SIGBUS, SIG_DFL);
    assert_int_equal(shared_map_guard(&err), 0);
}

/* A region of four pages whose file loses the last two. */
static struct guest_memory *cut_short(int *fd)
{
    struct error err = {0};
    *fd = file(4 * PAGE);
    struct guest_memory *memory = guest_memory_with(NULL, &(struct guest_region){0, 0x1000, 4 * PAGE, 0}, *fd, &err);
    assert_non_null(memory);
    memset(guest_memory_at(memory, 0x1000, 4 * PAGE, 1), 5, 4 * PAGE);
    assert_int_equal(ftruncate(*fd, 2 * PAGE), 0);
    return memory;
}

static void truncated_memory_is_torn(void **state)
{
    (void)state;
    guard();
    int fd;
    struct guest_memory *sound = add(NULL, 0, 0x1000, PAGE), *memory = cut_short(&fd);
    volatile char *bytes = guest_memory_at(memory, 0x1000, 4 * PAGE, 1);
    assert_int_equal(bytes[2 * PAGE - 1], 5);
    assert_false(guest_memory_is_torn(memory));
    assert_int_equal(bytes[2 * PAGE], 0);
    assert_true(guest_memory_is_torn(memory));
    assert_false(guest_memory_is_torn(sound));
    assert_int_equal(bytes[2 * PAGE - 1], 5);
    /* The page that nobody has touched is still missing for the kernel, so that nobody writes its zeroes to a disk. */
    int disk = file(PAGE);
    assert_int_equal(pwrite(disk, (const char *)bytes + 3 * PAGE, 512, 0), -1);
    assert_int_equal(errno, EFAULT);
    bytes[3 * PAGE] = 1; /* a store */
    assert_int_equal(bytes[3 * PAGE], 1);
    assert_int_equal(bytes[0], 5);
    struct guest_memory *next = add(guest_memory_ref(memory), 0x100000, 0x200000, PAGE);
    assert_true(guest_memory_is_torn(next));
    guest_memory_unref(next);
    guest_memory_unref(memory);
    guest_memory_unref(sound);
    close(disk);
    close(fd);
}

static void *tear_again_and_again(void *argument)
{
    (void)argument;
    for (unsigned i = 0; i < ROUNDS; i++) {
        int fd;
        struct guest_memory *memory = cut_short(&fd);
        volatile char *bytes = guest_memory_at(memory, 0x1000, 4 * PAGE, 1);
        if (guest_memory_is_torn(memory) || bytes[3 * PAGE] != 0 || bytes[2 * PAGE] != 0 || bytes[0] != 5 ||
            !guest_memory_is_torn(memory))
            abort();
        guest_memory_unref(memory);
        close(fd);
    }
    return NULL;
}

static void several_threads_tear_their_own(void **state)
{
    (void)state;
    guard();
    pthread_t threads[THREADS];
    for (unsigned i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, tear_again_and_again, NULL), 0);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
}

static void fault_elsewhere(void)
{
    int fd = file(PAGE);
    volatile char *strange = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
    if (ftruncate(fd, 0) == 0)
        _exit(strange[0]);
}

static void send_signal(void)
{
    kill(getpid(), SIGBUS);
    _exit(0);
}

static void fault_after_unmap(void)
{
    int fd;
    struct guest_memory *memory = cut_short(&fd);
    char *bytes = guest_memory_at(memory, 0x1000, 4 * PAGE, 1);
    guest_memory_unref(memory);
    volatile char *strange = mmap(bytes, 4 * PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0);
    _exit(strange[3 * PAGE]);
}

static void other_bus_errors_end_the_process(void **state)
{
    (void)state;
    void (*const deaths[])(void) = {fault_elsewhere, send_signal, fault_after_unmap};
    for (unsigned i = 0; i < sizeof deaths / sizeof deaths[0]; i++) {
        pid_t child = fork();
        if (child == 0) {
            setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
            guard();
            close(2); /* a sanitizer's handler has much to say */
            deaths[i]();
            _exit(0);
        }
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status) ? WTERMSIG(status) == SIGBUS : WEXITSTATUS(status) != 0);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(__clang__)
        assert_true(WIFSIGNALED(status));
#endif
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(regions_are_checked),
        cmocka_unit_test(files_of_a_server_are_refused),
        cmocka_unit_test(fragments_at_all_edges),
        cmocka_unit_test(pieces_for_rings),
        cmocka_unit_test(offsets_in_files),
        cmocka_unit_test(unplugged_memory_lives_as_long_as_it_is_used),
        cmocka_unit_test(as_many_regions_as_allowed),
        cmocka_unit_test(truncated_memory_is_torn),
        cmocka_unit_test(several_threads_tear_their_own),
        cmocka_unit_test(other_bus_errors_end_the_process),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
