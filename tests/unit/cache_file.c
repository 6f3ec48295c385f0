/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Cache files on a real file system: their header, their names, what is recognised as a left-over and what is not. And a
 * crash at every moment: a process that makes one is killed before and after each of its system calls; whatever it leaves,
 * the sweep of the next start takes it away.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/cache_file.h"
#include "fleece/disk_tier.h"

static char folder[] = "/tmp/fleece-unit-cache-XXXXXX";

static struct cache_file_plan plan_of(const char *vm, const char *disk, bool named_at_once)
{
    return (struct cache_file_plan){.folder = folder,
                                    .vm = vm,
                                    .disk = disk,
                                    .max_bytes = 10 * MIB,
                                    .block_bytes = 4 * KIB,
                                    .disk_bytes = 12345,
                                    .uuid = {1, 2, 3},
                                    .named_at_once = named_at_once};
}

static const char *path_of(const char *name)
{
    static char paths[2][PATH_MAX]; /* two may be in use at once */
    static unsigned next;
    char *path = paths[next++ % 2];
    snprintf(path, PATH_MAX, "%s/%s", folder, name);
    return path;
}

static bool exists(const char *name)
{
    struct stat st;
    return lstat(path_of(name), &st) == 0;
}

static unsigned entries(void)
{
    unsigned count = 0;
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    for (const struct dirent *entry; (entry = readdir(dir));)
        count += entry->d_name[0] != '.';
    closedir(dir);
    return count;
}

static void put(const char *name, const void *bytes, size_t length)
{
    int fd = open(path_of(name), O_CREAT | O_EXCL | O_WRONLY, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, length), length);
    close(fd);
}

static void empty_folder(void)
{
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    for (const struct dirent *entry; (entry = readdir(dir));)
        if (entry->d_name[0] != '.')
            unlinkat(dirfd(dir), entry->d_name, entry->d_type == DT_DIR ? AT_REMOVEDIR : 0);
    closedir(dir);
}

static void made(const char *vm, const char *disk, bool named_at_once, struct cache_file *file)
{
    struct error err;
    struct cache_file_plan plan = plan_of(vm, disk, named_at_once);
    if (cache_file_make(&plan, file, &err) < 0)
        fail_msg("%s", err.text);
}

static void test_header(void **state)
{
    (void)state;
    for (int named = 0; named < 2; named++) {
        struct cache_file file;
        struct cache_file_header header;
        struct stat st;
        made("web1", "vda", named, &file);
        assert_string_equal(file.path, path_of("web1.vda.fleece-cache"));
        assert_int_equal(entries(), 1);
        assert_int_equal(fstat(file.fd, &st), 0);
        assert_int_equal(st.st_size, disk_tier_file_bytes(MIB, 39));
        assert_int_equal(st.st_mode & 0777, 0600);
        assert_true(st.st_blocks * 512 <= 65536); /* sparse */
        int fd = open(file.path, O_RDONLY);
        assert_int_equal(read(fd, &header, sizeof header), sizeof header);
        close(fd);
        assert_memory_equal(header.magic, CACHE_FILE_MAGIC, CACHE_MAGIC_BYTES);
        assert_int_equal(le32toh(header.crc), cache_header_crc(&header));
        assert_int_equal(le32toh(header.slots_per_segment), 256);
        assert_int_equal(le32toh(header.segments_max), 39);
        assert_int_equal(le64toh(header.disk_bytes), 12345);
        assert_string_equal(header.vm, "web1");
        assert_string_equal(header.disk, "vda");
        assert_int_equal(cache_file_unlink(&file), 0);
        assert_int_equal(entries(), 0);
        close(file.fd);
    }
}

/* A name that somebody has is left to them; what has been put in our place is not ours to remove. */
static void test_names(void **state)
{
    (void)state;
    struct cache_file file;
    struct error err;
    put("web1.vda.fleece-cache", "mine", 4);
    assert_int_equal(symlink("nowhere", path_of("web1.vda.fleece-cache-1")), 0);
    for (int named = 0; named < 2; named++) {
        made("web1", "vda", named, &file);
        assert_string_equal(file.path, path_of("web1.vda.fleece-cache-2"));
        assert_int_equal(cache_file_unlink(&file), 0);
        close(file.fd);
    }
    made("web1", "vda", false, &file);
    assert_int_equal(rename(file.path, path_of("elsewhere")), 0);
    put("web1.vda.fleece-cache-2", "theirs", 6);
    assert_int_equal(cache_file_unlink(&file), 0);
    assert_true(exists("web1.vda.fleece-cache-2"));
    close(file.fd);
    for (unsigned i = 3; i < LIMIT_CACHE_FILE_NAMES; i++) {
        char name[64];
        snprintf(name, sizeof name, "web1.vda.fleece-cache-%u", i);
        put(name, "x", 1);
    }
    struct cache_file_plan plan = plan_of("web1", "vda", false);
    assert_int_equal(cache_file_make(&plan, &file, &err), -EEXIST);
    assert_non_null(strstr(err.text, "web1.vda.fleece-cache to …-99 are all taken"));
    plan.folder = "/nonexistent";
    assert_int_equal(cache_file_make(&plan, &file, &err), -ENOENT);
    assert_non_null(strstr(err.text, "disk vda can be made in /nonexistent: No such file"));
    empty_folder();
}

/* Returns how many were removed. */
static unsigned sweep(const char *where)
{
    struct cache_sweep sweep = {.vm = "web1", .patience_ns = 50 * NS_PER_MS};
    cache_file_sweep(&sweep, where);
    for (unsigned i = 0; i < sweep.removed_count; i++)
        assert_int_equal(close(sweep.removed[i]), 0);
    return sweep.removed_count;
}

static void leave(const char *vm, const char *disk)
{
    struct cache_file file;
    made(vm, disk, false, &file);
    close(file.fd);
}

static void test_sweep(void **state)
{
    (void)state;
    struct cache_file used;
    struct cache_file_header header;
    leave("web1", "vda"); /* goes, as does its sibling */
    leave("web1", "vda");
    leave("web1", "old.fleece-cache.disk");
    leave("web2", "vda"); /* other VMs' stay */
    leave("web1.x", "vda");
    made("web1", "vdb", false, &used);
    int fd = open(path_of("web1.vda.fleece-cache"), O_RDONLY);
    assert_int_equal(read(fd, &header, sizeof header), sizeof header);
    close(fd);
    header.disk_bytes++; /* the sum is wrong now */
    put("web1.vdc.fleece-cache", &header, sizeof header);
    header.version = htole32(CACHE_VERSION + 1);
    header.crc = htole32(cache_header_crc(&header));
    put("web1.vdd.fleece-cache", &header, sizeof header); /* of a later version */
    put("web1.vde.fleece-cache", "text", 4);
    put("web1.vdf.fleece-cache", "", 0);
    put("web1.vdg.fleece-cache.new", "x", 1);
    put("web1.vdh.fleece-cache.new", "", 0); /* unfinished: goes */
    put("web1.vdi.fleece-cache.old", &header, sizeof header);
    assert_int_equal(symlink("web1.vda.fleece-cache", path_of("web1.vdj.fleece-cache")), 0);
    assert_int_equal(mkfifo(path_of("web1.vdk.fleece-cache"), 0600), 0);
    assert_int_equal(mkdir(path_of("web1.vdl.fleece-cache"), 0700), 0);
    leave("web1", "vdm");
    assert_int_equal(rename(path_of("web1.vdm.fleece-cache"), path_of("other-name")), 0);
    unsigned before = entries();
    assert_int_equal(sweep(folder), 4);
    assert_int_equal(entries(), before - 4);
    assert_false(exists("web1.vda.fleece-cache") || exists("web1.vda.fleece-cache-1") ||
                 exists("web1.old.fleece-cache.disk.fleece-cache") || exists("web1.vdh.fleece-cache.new"));
    close(used.fd);
    sweep(folder);
    assert_int_equal(entries(), before - 5);
    assert_false(exists("web1.vdb.fleece-cache"));
    assert_int_equal(sweep("/nonexistent"), 0);
    empty_folder();
}

/* Kills a process that makes a cache file at its n-th stop; false: it had ended before. */
static bool killed_at(unsigned n, bool named_at_once)
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct cache_file file;
        struct error err;
        struct cache_file_plan plan = plan_of("web1", "vda", named_at_once);
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        _exit(cache_file_make(&plan, &file, &err) == 0 ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSTOPPED(status));
    for (unsigned i = 0; i < n; i++) {
        assert_int_equal(ptrace(PTRACE_SYSCALL, child, NULL, NULL), 0);
        assert_int_equal(waitpid(child, &status, 0), child);
        if (WIFEXITED(status)) {
            assert_int_equal(WEXITSTATUS(status), 0);
            return false;
        }
    }
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &status, 0), child);
    return true;
}

static void test_crash_at_every_moment(void **state)
{
    (void)state;
    for (int named = 0; named < 2; named++) {
        unsigned n = 0, left = 0;
        for (bool killed = true; killed; n++) {
            put("web1.vdb.fleece-cache", "stranger", 8);
            killed = killed_at(n, named);
            left += entries() > 1;
            sweep(folder);
            assert_int_equal(entries(), 1);
            empty_folder();
        }
        assert_true(n > 10 && left > 0); /* two stops for each call */
    }
}

static int set_up(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_header),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_sweep),
        cmocka_unit_test(test_crash_at_every_moment),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
