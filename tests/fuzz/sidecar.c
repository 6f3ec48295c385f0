/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Any bytes as what a sidecar holds: its first block as it is, or the payloads of a superblock, a log block and a page,
 * which are sealed here, for no fuzzer guesses sums. What is opened must answer all questions, take a write, and close.
 */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "driver/file.h"
#include "driver/null.h"
#include "track/sidecar.h"
#include "track/tracker.h"
#include "world.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

enum { DISK_BYTES = 8 * 1024 * 1024, SEQUENCE = 100 };

struct scene {
    struct world *world;
    struct io *io;
    struct disk *disk;
    struct tracker *tracker;
    struct tracker_op op;
    bool done;
};

struct input {
    const uint8_t *bytes;
    size_t length;
};

static void take(struct input *input, void *to, size_t length)
{
    size_t part = length < input->length ? length : input->length;
    memset(to, 0, length);
    memcpy(to, input->bytes, part);
    input->bytes += part;
    input->length -= part;
}

static void put(struct world_file *file, struct sidecar *sidecar, uint64_t at, unsigned blocks, enum sidecar_kind kind,
                uint32_t number, const void *payload)
{
    static struct sidecar_block block[SIDECAR_SUPER_BLOCKS];
    sidecar_put_payload(block, blocks, payload);
    sidecar_seal(sidecar, block, blocks, at, kind, number, SEQUENCE + number);
    world_file_fill(file, at * SIDECAR_BLOCK_BYTES, block, blocks * SIDECAR_BLOCK_BYTES);
}

static void fill_sidecar(struct world_file *file, struct input input)
{
    static uint8_t payload[SIDECAR_SUPER_BLOCKS * SIDECAR_PAYLOAD], none[SIDECAR_PAYLOAD];
    static struct sidecar_block header;
    struct sidecar sidecar = {.granularity_shift = 12, .area_blocks = 2};
    uint8_t sealed;
    take(&input, &sealed, 1);
    sidecar_make_header(&sidecar, 1, &header);
    if (!(sealed & 1))
        take(&input, &header, sizeof header);
    world_file_fill(file, 0, &header, sizeof header);
    take(&input, payload, sizeof payload);
    put(file, &sidecar, SIDECAR_SUPER_AT, SIDECAR_SUPER_BLOCKS, SIDECAR_SUPER, 2, payload);
    put(file, &sidecar, SIDECAR_SUPER_AT + SIDECAR_SUPER_BLOCKS, SIDECAR_SUPER_BLOCKS, SIDECAR_SUPER, 1, payload);
    for (uint32_t number = 1; number < SIDECAR_LOGS; number++)
        put(file, &sidecar, SIDECAR_LOG_AT + number, 1, SIDECAR_LOG, number, none);
    take(&input, payload, SIDECAR_PAYLOAD);
    put(file, &sidecar, SIDECAR_LOG_AT, 1, SIDECAR_LOG, SIDECAR_LOGS, payload);
    take(&input, payload, SIDECAR_PAYLOAD);
    put(file, &sidecar, SIDECAR_AREAS_AT, 1, SIDECAR_PAGE, 1, payload);
}

static void op_done(struct tracker_op *op)
{
    container_of(op, struct scene, op)->done = true;
}

static bool is_done(void *argument)
{
    return ((struct scene *)argument)->done;
}

static int wait_for(struct scene *scene)
{
    bool done = world_run_until(scene->world, is_done, scene, 100 * NS_PER_S);
    assert(done);
    scene->done = false;
    world_act_as(scene->world, scene->io);
    assert(scene->op.status == 0 || scene->op.error.text[0]);
    return scene->op.status;
}

static void write_done(struct request *req, int status)
{
    assert(status == 0);
    free(req);
}

static void look(struct scene *scene)
{
    static struct checkpoint_info infos[LIMIT_CHECKPOINTS];
    unsigned count = tracker_checkpoints(scene->tracker, infos, LIMIT_CHECKPOINTS);
    assert(count <= LIMIT_CHECKPOINTS);
    for (unsigned i = 0; i < count; i++) {
        struct range run;
        uint64_t next = 0;
        assert(strlen(infos[i].id.name) <= LIMIT_NAME_BYTES && infos[i].changed_bytes <= DISK_BYTES);
        while (next < DISK_BYTES && tracker_changed(scene->tracker, infos[i].id.uuid, next, &run, &next) == 0)
            assert(range_end(run) <= DISK_BYTES);
    }
    struct request *req = calloc(1, sizeof *req);
    *req = (struct request){.kind = REQUEST_DISCARD, .range = {0, 3 * BLOCK_BYTES_DEFAULT}, .done = write_done};
    node_submit(&scene->disk->node, req);
    world_run_for(scene->world, NS_PER_S);
    world_act_as(scene->world, scene->io);
    scene->op = (struct tracker_op){.done = op_done};
    tracker_close(scene->tracker, &scene->op);
    wait_for(scene);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
    struct scene scene = {.world = world_create(&(struct world_options){.seed = 1}), .op = {.done = op_done}};
    struct tracker_options options = {.memory = {"/dev/shm/fuzz", "vda"}};
    struct file_options file = {.path = "sidecar"};
    scene.io = world_reactor(scene.world, "vda", 1);
    world_act_as(scene.world, scene.io);
    fill_sidecar(world_file_create(scene.world, "sidecar", tracker_sidecar_bytes(DISK_BYTES, 0), 512, false),
                 (struct input){bytes, length});
    scene.disk = disk_create("vda", null_create(scene.io, DISK_BYTES));
    if (file_open(scene.io, &file, &options.sidecar, NULL) < 0)
        abort();
    scene.tracker = tracker_create(scene.disk, &options);
    assert(scene.tracker);
    tracker_open(scene.tracker, &scene.op);
    if (wait_for(&scene) == 0)
        look(&scene);
    tracker_destroy(scene.tracker);
    disk_destroy(scene.disk);
    world_act_as(scene.world, NULL);
    if (world_destroy(scene.world, stderr) > 0)
        abort();
    return 0;
}
