/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Targets of pushes in a real folder: what is noted of a new file is right in every step of its making, so whoever takes it
 * over removes exactly that, and opens nothing else again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "driver/file.h"
#include "driver/file_internal.h"
#include "io/ring.h"
#include "job/image.h"
#include "job/target.h"

struct fixture {
    struct io *io;
    char folder[64], path[128];
    struct target_note note;
    struct target target;
    struct target_options options;
    atomic_bool stop;
    struct error err;
};

/* ---- what comes in between ---- */

static const char *swapped;   /* path: another file gets its name, after the next opening or locking */
static bool swap_when_locked; /* rather than when it is open */
static bool is_shared;        /* all files are on a file system of several machines */

static void put(const char *path);
static void swap(void)
{
    char aside[PATH_MAX];
    const char *path = swapped;
    swapped = NULL;
    snprintf(aside, sizeof aside, "%s.aside", path);
    assert_int_equal(rename(path, aside), 0);
    put(path);
    assert_int_equal(truncate(path, 2 * MIB), 0);
}

int __real_image_open(struct io *io, const char *path, bool read_only, struct node **node, struct error *err);
int __wrap_image_open(struct io *io, const char *path, bool read_only, struct node **node, struct error *err);
int __wrap_image_open(struct io *io, const char *path, bool read_only, struct node **node, struct error *err)
{
    int status = __real_image_open(io, path, read_only, node, err);
    if (swapped && !swap_when_locked)
        swap();
    return status;
}

int __real_file_lock(struct io *io, int fd, const struct file_options *options, unsigned index, struct error *err);
int __wrap_file_lock(struct io *io, int fd, const struct file_options *options, unsigned index, struct error *err);
int __wrap_file_lock(struct io *io, int fd, const struct file_options *options, unsigned index, struct error *err)
{
    int status = __real_file_lock(io, fd, options, index, err);
    if (swapped && swap_when_locked)
        swap();
    return status;
}

bool __real_file_descriptor_has_local_times(int fd);
bool __wrap_file_descriptor_has_local_times(int fd);
bool __wrap_file_descriptor_has_local_times(int fd)
{
    return !is_shared && __real_file_descriptor_has_local_times(fd);
}

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    swapped = NULL;
    swap_when_locked = is_shared = false;
    assert_int_equal(ring_create(&f->io, &f->err), 0);
    strcpy(f->folder, "/tmp/fleece-target-XXXXXX");
    assert_non_null(mkdtemp(f->folder));
    snprintf(f->path, sizeof f->path, "%s/image", f->folder);
    f->options = (struct target_options){.where = f->path, .size_bytes = MIB, .stop = &f->stop, .note = &f->note};
    target_note_begin(&f->note);
    *state = f;
    return 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *where)
{
    (void)st;
    (void)type;
    (void)where;
    return remove(path);
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    nftw(f->folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    ring_destroy(f->io);
    free(f);
    return 0;
}

static void open_new(struct fixture *f)
{
    assert_int_equal(target_open(f->io, &f->options, &f->target, &f->err), 0);
}

/* As a daemon that is killed: the note stays. */
static void lose(struct fixture *f)
{
    if (f->target.node)
        node_destroy(f->target.node);
    target_fini(&f->target);
}

static int open_again(struct fixture *f)
{
    assert_int_equal(target_take_over(f->path, &f->note, &f->target), 0);
    return target_open_again(f->io, &f->options, &f->target, &f->err);
}

static void remove_again(struct fixture *f)
{
    assert_int_equal(target_take_over(f->path, &f->note, &f->target), 0);
    target_remove(&f->target);
    target_fini(&f->target);
}

static unsigned files_in(const struct fixture *f)
{
    char command[128], count[16] = "";
    snprintf(command, sizeof command, "ls -A %s | wc -l", f->folder);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    assert_non_null(fgets(count, sizeof count, pipe));
    pclose(pipe);
    return (unsigned)atoi(count);
}

static void put(const char *path)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fputs("mine", file) >= 0, true);
    assert_int_equal(fclose(file), 0);
}

static void a_new_file_is_known(void **state)
{
    struct fixture *f = *state;
    open_new(f);
    assert_int_equal(target_note_stage(&f->note), TARGET_KNOWN);
    assert_true(f->note.created && f->target.is_zero && files_in(f) == 1);
    lose(f);
    assert_int_equal(open_again(f), 0);
    assert_true(f->target.is_zero);
    lose(f);
    remove_again(f);
    assert_int_equal(files_in(f), 0);
    remove_again(f);
}

/* Killed when it had the random name: before it was known which file that is, and after. */
static void killed_before_it_has_its_name(void **state)
{
    struct fixture *f = *state;
    char temporary[256];
    for (unsigned known = 0; known < 2; known++) {
        target_note_begin(&f->note);
        open_new(f);
        lose(f);
        snprintf(temporary, sizeof temporary, "%s/.fleece-push-%s", f->folder, f->note.nonce);
        assert_int_equal(rename(f->path, temporary), 0);
        if (!known)
            target_note_store(&f->note, TARGET_NAMING);
        put(f->path); /* a stranger's */
        assert_true(open_again(f) == -ESTALE && f->err.text[0]);
        lose(f);
        remove_again(f);
        assert_int_equal(files_in(f), 1);
        assert_int_equal(unlink(f->path), 0);
    }
    target_note_begin(&f->note);
    put(f->path);
    remove_again(f); /* killed before anything */
    assert_int_equal(files_in(f), 1);
}

static void another_file_is_left_alone(void **state)
{
    struct fixture *f = *state;
    char elsewhere[256];
    open_new(f);
    lose(f);
    snprintf(elsewhere, sizeof elsewhere, "%s/elsewhere", f->folder);
    assert_int_equal(rename(f->path, elsewhere), 0);
    assert_int_equal(open_again(f), -ESTALE); /* none */
    lose(f);
    put(f->path);
    assert_int_equal(open_again(f), -ESTALE);
    lose(f);
    remove_again(f);
    assert_int_equal(files_in(f), 2);
    assert_int_equal(rename(elsewhere, f->path), 0);
    f->note.is.made_ns++; /* the same number, given to another file */
    target_note_store(&f->note, TARGET_KNOWN);
    assert_int_equal(open_again(f), -ESTALE);
    lose(f);
    remove_again(f);
    assert_int_equal(files_in(f), 1);
}

static void one_that_was_there_is_not_removed(void **state)
{
    struct fixture *f = *state;
    put(f->path);
    assert_int_equal(truncate(f->path, MIB), 0);
    assert_int_equal(target_open(f->io, &f->options, &f->target, &f->err), -EEXIST);
    assert_int_equal(target_note_stage(&f->note), TARGET_UNTOUCHED);
    lose(f);
    f->options.force = true;
    open_new(f);
    assert_false(f->target.is_zero || f->note.created);
    lose(f);
    assert_int_equal(open_again(f), 0);
    assert_false(f->target.is_zero);
    lose(f);
    remove_again(f);
    assert_int_equal(files_in(f), 1);
    assert_int_equal(truncate(f->path, MIB / 2), 0);
    assert_int_equal(open_again(f), -ENOSPC);
    lose(f);
}

/* C10: somebody holds the lock, as the dead daemon's writes do; nobody wants the target any more. */
static void c10_its_lock_is_waited_for(void **state)
{
    struct fixture *f = *state;
    struct target_note note = {0};
    struct target other;
    open_new(f);
    note = f->note;
    assert_int_equal(target_take_over(f->path, &note, &other), 0);
    atomic_store(&f->stop, true);
    assert_int_equal(target_open_again(f->io, &f->options, &other, &f->err), -EAGAIN);
    assert_non_null(strstr(f->err.text, "locked"));
    atomic_store(&f->stop, false);
    lose(f);
    assert_int_equal(target_open_again(f->io, &f->options, &other, &f->err), 0);
    node_destroy(other.node);
    target_fini(&other);
}

static void make_old(struct fixture *f)
{
    put(f->path);
    assert_int_equal(truncate(f->path, MIB), 0);
    f->options.force = true;
}

/* What was opened is what is written, and known as ours; its name leads to somebody else's file. */
static void c10_another_file_comes_in_between(void **state)
{
    struct fixture *f = *state;
    struct stat st;
    make_old(f);
    assert_int_equal(stat(f->path, &st), 0);
    swapped = f->path;
    open_new(f);
    assert_int_equal(f->note.is.inode, st.st_ino);
    assert_int_equal(target_keep(&f->target, &f->err), -ESTALE);
    lose(f);
    assert_int_equal(open_again(f), -ESTALE);
    lose(f);
    target_note_begin(&f->note);
    open_new(f);
    lose(f);
    swapped = f->path;
    assert_int_equal(open_again(f), -ESTALE);
    assert_non_null(strstr(f->err.text, "another file"));
    lose(f);
}

/* The last bytes of such a file are written by a descriptor of their own. */
static void c10_another_file_comes_for_the_tail(void **state)
{
    struct fixture *f = *state;
    make_old(f);
    assert_int_equal(truncate(f->path, MIB + 100), 0);
    swapped = f->path;
    swap_when_locked = true;
    const int status = target_open(f->io, &f->options, &f->target, &f->err);
    lose(f);
    if (swapped)
        skip(); /* no direct I/O here, so there is no such descriptor */
    assert_int_equal(status, -ESTALE);
    assert_non_null(strstr(f->err.text, "another file"));
}

/* A file system whose times say nothing: it is believed as long as nothing relies on it, and zeroes are written again. */
static void what_nobody_can_know_is_not_believed(void **state)
{
    struct fixture *f = *state;
    is_shared = true;
    open_new(f);
    assert_true(f->target.is_zero && !f->target.is_watched);
    lose(f);
    assert_int_equal(open_again(f), 0);
    assert_false(f->target.is_zero || f->target.is_watched);
    lose(f);
    f->options.released = true;
    assert_int_equal(open_again(f), -ESTALE);
    assert_non_null(strstr(f->err.text, "it can't be known whether"));
    lose(f);
    is_shared = false;
    if (!file_has_local_times(f->path))
        skip();
    assert_int_equal(open_again(f), 0);
    assert_true(f->target.is_zero && f->target.is_watched);
    lose(f);
}

static void no_folder_no_file(void **state)
{
    struct fixture *f = *state;
    snprintf(f->path, sizeof f->path, "%s/no/image", f->folder);
    assert_int_equal(target_open(f->io, &f->options, &f->target, &f->err), -ENOENT);
    assert_non_null(strstr(f->err.text, "no such folder"));
    target_remove(&f->target);
    lose(f);
    assert_int_equal(files_in(f), 0);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_new_file_is_known),
        TEST(killed_before_it_has_its_name),
        TEST(another_file_is_left_alone),
        TEST(one_that_was_there_is_not_removed),
        TEST(c10_its_lock_is_waited_for),
        TEST(no_folder_no_file),
        TEST(c10_another_file_comes_in_between),
        TEST(c10_another_file_comes_for_the_tail),
        TEST(what_nobody_can_know_is_not_believed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
