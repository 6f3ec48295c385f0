// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A guest's side of vhost-user-blk, as a program:
 *
 *   vhost_client run SOCKET [options]      load; prints one line of JSON
 *   vhost_client model SOCKET [options]    random requests against a model in memory
 *   vhost_client conform SOCKET [options]  bad and unusual behaviour, a line PASS, FAIL or SKIP for each case
 *
 * See usage() for the options.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "conform.h"
#include "load.h"
#include "model.h"

struct arguments {
    struct load_options load;
    struct model_options model;
    struct conform_options conform;
    struct front_options front;
};

static void usage(FILE *to)
{
    fputs("usage: vhost_client run SOCKET [options]\n"
          "         --rw randread|randwrite|randrw|read|write|id  (randread)    --bs SIZE (4k)    --depth N (1)\n"
          "         --seconds S (2)   --ramp S (0)   --size SIZE of the disk to use (all)\n"
          "         --poll: looks at the ring instead of sleeping for an interrupt\n"
          "         --verify: blocks that were written are read back as written\n"
          "         --buffers N: so many buffers in turn (depth)   --direct: no indirect tables\n"
          "       vhost_client model SOCKET [options]\n"
          "         --requests N (2000)   --depth N (16)   --size SIZE of the disk to use (16m)\n"
          "         --reconnect: the back-end may go away and come back\n"
          "         --migrate: the VM migrates meanwhile, but stays; its memory is copied by the back-end's marks\n"
          "         --part: when a line on stdin asks for it; says \"parted\", goes on at the next line, ends at the "
          "end\n"
          "         --across: also fragments that lie in two regions (more regions than queues)\n"
          "         --mixed: also indirect tables behind direct descriptors (split rings)\n"
          "       vhost_client conform SOCKET [--only CASE] [--list]\n"
          "         --grow COMMAND: with a size in bytes behind it, it has the disk grow\n"
          "       all: --like VMM (qemu): its manners   --queues N (qemu: 1)   --queue-size N (128)   --packed\n"
          "            --seed N (1)   --regions N (1)   --no-event-idx   --no-indirect   --no-inflight   --no-ack   "
          "--mem-slots\n",
          to);
}

/* 4k, 16m, 1g, 512. */
static uint64_t size_of(const char *text)
{
    char *end;
    uint64_t value = strtoull(text, &end, 0);
    const char *units = "kmgt", *unit = *end ? strchr(units, *end) : NULL;
    if (end == text || (*end && (!unit || end[1]))) {
        fprintf(stderr, "vhost_client: '%s' is not a size such as 4k\n", text);
        exit(2);
    }
    return unit ? value << (10 * (unit - units + 1)) : value;
}

static unsigned number_of(const char *text, unsigned least, unsigned most)
{
    char *end;
    unsigned long value = strtoul(text, &end, 0);
    if (end == text || *end || value < least || value > most) {
        fprintf(stderr, "vhost_client: '%s' is not a number from %u to %u\n", text, least, most);
        exit(2);
    }
    return (unsigned)value;
}

static const struct vmm *vmm_of(const char *name)
{
    const struct vmm *vmm = vmm_find(name);
    if (vmm)
        return vmm;
    fprintf(stderr, "vhost_client: there is no VMM '%s'; there are:", name);
    for (unsigned i = 0; (vmm = vmm_at(i)); i++)
        fprintf(stderr, " %s", vmm->name);
    fputc('\n', stderr);
    exit(2);
}

enum option_value {
    OPTION_RW = 256,
    OPTION_BS,
    OPTION_DEPTH,
    OPTION_SECONDS,
    OPTION_RAMP,
    OPTION_SIZE,
    OPTION_POLL,
    OPTION_VERIFY,
    OPTION_BUFFERS,
    OPTION_DIRECT,
    OPTION_REQUESTS,
    OPTION_RECONNECT,
    OPTION_MIGRATE,
    OPTION_PART,
    OPTION_MIXED,
    OPTION_ACROSS,
    OPTION_ONLY,
    OPTION_LIST,
    OPTION_GROW,
    OPTION_QUEUES,
    OPTION_QUEUE_SIZE,
    OPTION_PACKED,
    OPTION_SEED,
    OPTION_REGIONS,
    OPTION_NO_EVENT_IDX,
    OPTION_NO_INDIRECT,
    OPTION_NO_INFLIGHT,
    OPTION_NO_ACK,
    OPTION_MEM_SLOTS,
    OPTION_LIKE,
};

static const struct option option_table[] = {
    {"rw", 1, NULL, OPTION_RW},
    {"bs", 1, NULL, OPTION_BS},
    {"depth", 1, NULL, OPTION_DEPTH},
    {"seconds", 1, NULL, OPTION_SECONDS},
    {"ramp", 1, NULL, OPTION_RAMP},
    {"size", 1, NULL, OPTION_SIZE},
    {"poll", 0, NULL, OPTION_POLL},
    {"verify", 0, NULL, OPTION_VERIFY},
    {"buffers", 1, NULL, OPTION_BUFFERS},
    {"direct", 0, NULL, OPTION_DIRECT},
    {"requests", 1, NULL, OPTION_REQUESTS},
    {"reconnect", 0, NULL, OPTION_RECONNECT},
    {"migrate", 0, NULL, OPTION_MIGRATE},
    {"part", 0, NULL, OPTION_PART},
    {"mixed", 0, NULL, OPTION_MIXED},
    {"across", 0, NULL, OPTION_ACROSS},
    {"only", 1, NULL, OPTION_ONLY},
    {"list", 0, NULL, OPTION_LIST},
    {"grow", 1, NULL, OPTION_GROW},
    {"queues", 1, NULL, OPTION_QUEUES},
    {"queue-size", 1, NULL, OPTION_QUEUE_SIZE},
    {"packed", 0, NULL, OPTION_PACKED},
    {"seed", 1, NULL, OPTION_SEED},
    {"regions", 1, NULL, OPTION_REGIONS},
    {"no-event-idx", 0, NULL, OPTION_NO_EVENT_IDX},
    {"no-indirect", 0, NULL, OPTION_NO_INDIRECT},
    {"no-inflight", 0, NULL, OPTION_NO_INFLIGHT},
    {"no-ack", 0, NULL, OPTION_NO_ACK},
    {"mem-slots", 0, NULL, OPTION_MEM_SLOTS},
    {"like", 1, NULL, OPTION_LIKE},
    {"help", 0, NULL, 'h'},
    {0},
};

static void take_common(struct arguments *a, int option)
{
    if (option == OPTION_QUEUES)
        a->front.queues = number_of(optarg, 1, FRONT_QUEUES);
    else if (option == OPTION_QUEUE_SIZE)
        a->front.queue_size = number_of(optarg, 1, RING_SIZE_MAX);
    else if (option == OPTION_PACKED)
        a->front.packed = true;
    else if (option == OPTION_SEED)
        a->load.seed = a->model.seed = a->conform.seed = size_of(optarg);
    else if (option == OPTION_REGIONS)
        a->front.regions = number_of(optarg, 1, GUEST_REGIONS);
    else if (option == OPTION_NO_EVENT_IDX)
        a->front.features_off |= UINT64_C(1) << FEATURE_EVENT_IDX;
    else if (option == OPTION_NO_INDIRECT)
        a->front.features_off |= UINT64_C(1) << FEATURE_INDIRECT;
    else if (option == OPTION_NO_INFLIGHT)
        a->front.protocol_off |= UINT64_C(1) << PROTOCOL_INFLIGHT_SHMFD;
    else if (option == OPTION_NO_ACK)
        a->front.no_ack = true;
    else if (option == OPTION_MEM_SLOTS)
        a->front.by_slots = true;
    else if (option == OPTION_LIKE)
        a->front.vmm = vmm_of(optarg);
    else {
        usage(option == 'h' ? stdout : stderr);
        exit(option == 'h' ? 0 : 2);
    }
}

static void take(struct arguments *a, int option)
{
    if (option == OPTION_RW)
        a->load.rw = optarg;
    else if (option == OPTION_BS)
        a->load.block_bytes = (uint32_t)size_of(optarg);
    else if (option == OPTION_DEPTH)
        a->load.depth = a->model.depth = number_of(optarg, 1, RING_SIZE_MAX);
    else if (option == OPTION_SECONDS)
        a->load.seconds = atof(optarg);
    else if (option == OPTION_RAMP)
        a->load.ramp = atof(optarg);
    else if (option == OPTION_SIZE)
        a->load.size = a->model.size = size_of(optarg);
    else if (option == OPTION_POLL)
        a->load.poll = true;
    else if (option == OPTION_VERIFY)
        a->load.verify = true;
    else if (option == OPTION_BUFFERS)
        a->load.buffers = number_of(optarg, 1, 1 << 20);
    else if (option == OPTION_DIRECT)
        a->load.direct = true;
    else if (option == OPTION_REQUESTS)
        a->model.requests = size_of(optarg);
    else if (option == OPTION_RECONNECT)
        a->model.reconnect = true;
    else if (option == OPTION_MIGRATE)
        a->model.migrate = true;
    else if (option == OPTION_PART)
        a->model.migrate = a->model.part = true;
    else if (option == OPTION_MIXED)
        a->model.mixed = true;
    else if (option == OPTION_ACROSS)
        a->model.across = true;
    else if (option == OPTION_ONLY)
        a->conform.only = optarg;
    else if (option == OPTION_LIST)
        a->conform.list = true;
    else if (option == OPTION_GROW)
        a->conform.grow = optarg;
    else
        take_common(a, option);
}

static bool load_sound(const struct load_options *load)
{
    const char *kinds[] = {"randread", "randwrite", "randrw", "read", "write", "id"};
    bool known = false;
    for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        known |= strcmp(load->rw, kinds[i]) == 0;
    return known && load->block_bytes >= SECTOR && load->block_bytes % SECTOR == 0 && load->block_bytes <= 16 << 20 &&
           load->seconds > 0;
}

int main(int argc, char **argv)
{
    struct arguments a = {.load = {.rw = "randread", .block_bytes = 4096, .depth = 1, .seconds = 2, .seed = 1},
                          .model = {.requests = 2000, .depth = 16, .seed = 1},
                          .conform = {.seed = 1}};
    for (int option; (option = getopt_long(argc, argv, "h", option_table, NULL)) != -1;)
        take(&a, option);
    const char *verb = argc - optind == 2 ? argv[optind] : "", *path = argv[argc - 1];
    front_defaults(&a.front);
    a.load.front = a.model.front = a.conform.front = a.front;
    if (strcmp(verb, "run") == 0 && load_sound(&a.load))
        return load_run(path, &a.load);
    if (strcmp(verb, "model") == 0)
        return model_run(path, &a.model);
    if (strcmp(verb, "conform") == 0)
        return conform_run(path, &a.conform);
    usage(stderr);
    return 2;
}
