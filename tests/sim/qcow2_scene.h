/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One scene with a small image, as qcow2_scene.c sets it up. */
#ifndef TESTS_SIM_QCOW2_SCENE_H
#define TESTS_SIM_QCOW2_SCENE_H

#include "driver/qcow2/internal.h"
#include "world.h"

enum { CLUSTER = 512, PER_BLOCK = CLUSTER / 8, COVERED = CLUSTER / 8 * PER_BLOCK }; /* clusters */
enum { DISK_BYTES = 256 * KIB, TABLE_BYTES = 32 * KIB, BASE_BYTES = DISK_BYTES + TABLE_BYTES + 1000 };
enum { GROWN_BYTES = 3 * MIB + 512 }; /* the L1 table has two clusters then */
enum { TABLE_AT = CLUSTER, L1_AT = 2 * CLUSTER, BLOCK_AT = 3 * CLUSTER, FIRST_FREE = 4 };
enum { STEPS = 16, TABLES = DISK_BYTES / TABLE_BYTES, POWER_LOSSES = 40, OF_BASE = 0xbb };

/* Operations of one kind on a part of the image. Empty: none. */
struct pick {
    enum world_kind kind;
    struct range range;
};

struct step {
    struct request req; /* first */
    struct iovec iov;
    unsigned char value;
    int status;
    bool done;
};

enum shape { THROUGH, OVER_BASE, WRITE_BACK, OLD_OVER_BASE }; /* old: of version 2 */

struct scene {
    const char *name;
    uint64_t seed;
    enum shape shape;
    struct world *world;
    struct io *io;
    struct world_file *file;
    struct node *image;
    unsigned process;
    struct pick hold, fails, watch;
    unsigned fail_times, flags;
    bool is_full;           /* no new page of counts can be written */
    uint64_t writes_left;   /* to watch; 0: none */
    bool seen;              /* what is watched has landed */
    unsigned writes, syncs; /* of the file, so far */
    /* The change of the file of this number fails so; and all later ones. */
    uint64_t bad_number, changes;
    int bad_status;
    bool bad_for_good;
    struct step steps[STEPS];
    unsigned used;
    struct node_extension extension;
    int extended; /* its status; 1: it is not answered */
};

/* The image has `clusters`, of which the first FIRST_FREE are used. */
struct scene *scene_begin(const char *name, enum shape shape, uint64_t seed, uint64_t clusters);
/* Closes the image, with what it can still do. */
void scene_end(struct scene *scene);
/* Or closes it as it is, with all given back: no cluster leaks. */
void scene_end_exact(struct scene *scene);
void scene_fail(const struct scene *scene, const char *format, ...) __attribute__((format(printf, 2, 3), noreturn));

/* Data is filled with the step's value. */
struct step *scene_start(struct scene *scene, enum request_kind kind, uint64_t at, uint64_t length);
/* As long as anything happens. */
void scene_go_on(struct scene *scene);
void scene_expect(struct scene *scene, const struct step *step, int status);
/* And nothing else happens. */
void scene_run_until_done(struct scene *scene, struct step *step);
/* For world_run_until(): what is watched has landed. */
bool scene_was_seen(void *argument);
/* Whether the range reads as that value. */
bool scene_reads_as(struct scene *scene, struct range range, unsigned char value);
/* The image has no error; clusters may leak. */
void scene_check(const struct scene *scene);

void scene_forget_hooks(struct scene *scene);
/* Then a new process opens the image. */
void scene_kill(struct scene *scene);
void scene_lose_power(struct scene *scene);

#endif
