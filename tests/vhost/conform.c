// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A case passes when what it looks for was right and, after it, a new connection writes and reads as if nothing had been.
 * A back-end that does not accept connections any more ends the list: nothing behind it could be told apart.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "conform.h"

enum { REQUEST_BYTES = 1 << 20, PROBE_BYTES = 4096, ACK_MS = FRONT_TIMEOUT_MS };

bool scene_fail(struct scene *scene, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(scene->error, sizeof(scene->error), format, arguments);
    va_end(arguments);
    return false;
}

bool scene_skip(struct scene *scene, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(scene->error, sizeof(scene->error), format, arguments);
    va_end(arguments);
    scene->skipped = true;
    return false;
}

void scene_end(struct scene *scene)
{
    front_close(scene->front);
}

bool scene_negotiated(struct scene *scene)
{
    scene_end(scene);
    front_init(scene->front, scene->path, &scene->options->front);
    int status = front_connect(scene->front, FRONT_TIMEOUT_MS);
    if (status == 0)
        status = front_negotiate(scene->front);
    return status == 0 || scene_fail(scene, "%s", scene->front->error);
}

bool scene_started_with(struct scene *scene, const struct front_options *options)
{
    scene_end(scene);
    int status = front_open(scene->front, scene->path, options);
    if (status == -EOPNOTSUPP)
        return scene_skip(scene, "%s", scene->front->error);
    if (status != 0)
        return scene_fail(scene, "%s", scene->front->error);
    blk_request_init(&scene->request, &scene->front->memory, 0, REQUEST_BYTES, false);
    blk_request_init(&scene->other, &scene->front->memory, 0, REQUEST_BYTES, false);
    return true;
}

bool scene_started(struct scene *scene)
{
    return scene_started_with(scene, &scene->options->front);
}

bool scene_answers(struct scene *scene)
{
    struct channel_reply reply;
    int status = front_ask(scene->front, MSG_GET_FEATURES, NULL, 0, &reply);
    return status == 0 || scene_fail(scene, "%s", scene->front->error);
}

bool scene_answers_or_closed(struct scene *scene)
{
    struct channel_reply reply;
    int status = front_ask(scene->front, MSG_GET_FEATURES, NULL, 0, &reply);
    if (status == 0 || status == -ECONNRESET || status == -EPIPE)
        return true;
    return scene_fail(scene, "%s", scene->front->error);
}

/* 4 KiB of random bytes, at a random place. */
static bool probe(struct scene *scene, struct front_end *front, struct ring *ring, struct blk_request *request)
{
    char out[PROBE_BYTES], in[PROBE_BYTES];
    uint64_t sectors = front->config.capacity;
    if (sectors < PROBE_BYTES / SECTOR)
        return scene_fail(scene, "a disk of %llu sectors", (unsigned long long)sectors);
    struct blk_command write = {.type = BLK_WRITE, .out = out, .out_bytes = sizeof(out)};
    write.sector = rng_below(&scene->rng, sectors - PROBE_BYTES / SECTOR + 1);
    struct blk_command read = {.type = BLK_READ, .sector = write.sector, .in_bytes = sizeof(in)};
    rng_fill(&scene->rng, out, sizeof(out));
    if (front->features >> FEATURE_RO & 1)
        memset(out, 0, sizeof(out));
    int status = front_has(front, FEATURE_RO) ? 0 : blk_do(front, ring, request, &write, NULL);
    if (status == 0)
        status = blk_do(front, ring, request, &read, in);
    if (status < 0)
        return scene_fail(scene, "%s", front->error);
    if (status > 0)
        return scene_fail(scene, "a good request ended with status %d", status);
    if (!front_has(front, FEATURE_RO) && memcmp(in, out, sizeof(in)) != 0)
        return scene_fail(scene, "what was written at sector %llu is not what is read",
                          (unsigned long long)write.sector);
    return true;
}

bool scene_works(struct scene *scene, unsigned ring)
{
    return probe(scene, scene->front, &scene->front->rings[ring], &scene->request);
}

int scene_send(struct scene *scene, uint32_t request, const void *payload, uint32_t size, const int *fds,
               unsigned fd_count)
{
    struct channel_reply reply;
    int status = channel_send(scene->front->socket, request, WIRE_VERSION | WIRE_NEED_REPLY, payload, size, fds,
                              fd_count);
    if (status == 0)
        status = channel_receive(scene->front->socket, &reply, ACK_MS);
    if (status == -ECONNRESET || status == -EPIPE)
        return 0;
    if (status != 0) {
        scene_fail(scene, "no answer to message %u that asked for one: %s", request, strerror(-status));
        return -1;
    }
    if (reply.fd >= 0)
        close(reply.fd);
    return reply.header.size == 8 && reply.payload.u64 == 0;
}

bool scene_expect(struct scene *scene, const char *what, const struct blk_command *command, int wanted)
{
    static const char *const names[] = {"OK", "IOERR", "UNSUPP"};
    char *in = command->in_bytes ? malloc(command->in_bytes) : NULL;
    int status = blk_do(scene->front, &scene->front->rings[0], &scene->request, command, in);
    free(in);
    if (status < 0)
        return scene_fail(scene, "%s: %s", what, scene->front->error);
    if (status == wanted || (wanted == BLK_ANY_ERROR && (status == BLK_IOERR || status == BLK_UNSUPP)))
        return true;
    return scene_fail(scene, "%s: status %s (%d), not %s", what, status < 3 ? names[status] : "?", status,
                      wanted < 3 ? names[wanted] : "an error");
}

int scene_offer(struct scene *scene, const struct fragment *fragments, unsigned count, int wait_ms)
{
    struct ring *ring = &scene->front->rings[0];
    void *token;
    uint32_t written;
    int status = ring_add(ring, fragments, count, 0, 0, scene);
    if (status != 0)
        return status;
    ring_kick(ring);
    return blk_wait(scene->front, ring, wait_ms, &token, &written);
}

/* A new connection, which does nothing unusual. */
static bool next_is_served(struct scene *scene)
{
    struct front_end *front = calloc(1, sizeof(*front));
    struct blk_request request;
    int status = front_open(front, scene->path, NULL);
    bool good = status == 0 || scene_fail(scene, "the next connection: %s", front->error);
    if (good) {
        blk_request_init(&request, &front->memory, 0, PROBE_BYTES, false);
        good = probe(scene, front, &front->rings[0], &request);
    }
    front_close(front);
    free(front);
    return good;
}

struct tally {
    unsigned passed, failed, skipped;
};

/* false: the back-end is gone. */
static bool run_case(struct scene *scene, const struct conform_case *one, struct tally *tally)
{
    scene->skipped = false;
    scene->error[0] = '\0';
    front_init(scene->front, scene->path, NULL);
    bool good = one->run(scene);
    scene_end(scene);
    char first[sizeof(scene->error)];
    memcpy(first, scene->error, sizeof(first));
    bool alive = next_is_served(scene);
    if (!alive)
        printf("FAIL %s: %s%s%s\n", one->name, first, first[0] ? "; then " : "", scene->error);
    else if (scene->skipped)
        printf("SKIP %s: %s\n", one->name, first);
    else
        printf("%s %s%s%s\n", good ? "PASS" : "FAIL", one->name, good ? "" : ": ", good ? "" : first);
    fflush(stdout);
    *(!alive ? &tally->failed : scene->skipped ? &tally->skipped : good ? &tally->passed : &tally->failed) += 1;
    int fd = alive ? -1 : channel_connect(scene->path, 1000);
    if (fd >= 0)
        close(fd);
    return alive || fd >= 0;
}

int conform_run(const char *path, const struct conform_options *options)
{
    const struct conform_case *lists[] = {conform_messages, conform_memory, conform_queues, conform_requests,
                                          conform_rings,    conform_vmms,   conform_log,    conform_growth};
    struct scene *scene = calloc(1, sizeof(*scene));
    *scene = (struct scene){
        .path = path, .options = options, .rng = {options->seed}, .front = calloc(1, sizeof(struct front_end))};
    struct tally tally = {0};
    bool alive = true, known = false;
    for (unsigned i = 0; i < sizeof(lists) / sizeof(lists[0]); i++) {
        for (const struct conform_case *one = lists[i]; one->name && alive; one++) {
            if (options->list)
                puts(one->name);
            if (options->list || (options->only && strcmp(options->only, one->name) != 0))
                continue;
            known = true;
            alive = run_case(scene, one, &tally);
        }
    }
    free(scene->front);
    free(scene);
    if (options->list)
        return 0;
    if (!known) {
        fprintf(stderr, "vhost_client: there is no case '%s'; see --list\n", options->only);
        return 2;
    }
    printf("%u passed, %u failed, %u skipped%s\n", tally.passed, tally.failed, tally.skipped,
           alive ? "" : "; the back-end is gone");
    return !alive ? 2 : tally.failed ? 1 : 0;
}
