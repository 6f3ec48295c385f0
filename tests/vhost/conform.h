/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The list of cases, each a named function: unusual but right behaviour that must work, and wrong behaviour that must hurt
 * nobody but the one who shows it. After each case the next, well-behaved connection must be served.
 */
#ifndef TESTS_VHOST_CONFORM_H
#define TESTS_VHOST_CONFORM_H

#include "blk.h"

struct conform_options {
    const char *only;
    const char *grow; /* a command that, with a size in bytes behind it, has the disk grow; NULL: there is none */
    bool list;
    uint64_t seed;
    struct front_options front; /* what the cases build on */
};

/* A line for each case and a last one with the sums. The program's exit status: 0 nothing failed, 1 something did, 2 the
 * back-end is gone. */
int conform_run(const char *path, const struct conform_options *options);

/* What a case works with. Its connection is not open yet; it is closed when the case returns. */
struct scene {
    const char *path;
    const struct conform_options *options;
    struct front_end *front;
    struct blk_request request, other;
    struct rng rng;
    bool skipped;
    char error[400];
};

/* false: the case failed, or (skipped) does not apply; error says why. */
struct conform_case {
    const char *name;
    bool (*run)(struct scene *scene);
};

extern const struct conform_case conform_messages[], conform_memory[], conform_queues[], conform_requests[],
    conform_rings[], conform_vmms[], conform_log[], conform_growth[];

bool scene_fail(struct scene *scene, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool scene_skip(struct scene *scene, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Ends the connection, if there is one, and begins another: negotiated; or also started, with requests ready. */
bool scene_negotiated(struct scene *scene);
bool scene_started(struct scene *scene);
bool scene_started_with(struct scene *scene, const struct front_options *options);
void scene_end(struct scene *scene);
/* Does the back-end still answer on this connection, or has it closed it? Hanging is neither. */
bool scene_answers_or_closed(struct scene *scene);
bool scene_answers(struct scene *scene);
/* Writes, reads back and compares on ring `ring` of this connection. */
bool scene_works(struct scene *scene, unsigned ring);
/* Sends a message that asks for an acknowledgement: 1 accepted, 0 refused or closed, -1 no answer. */
int scene_send(struct scene *scene, uint32_t request, const void *payload, uint32_t size, const int *fds,
               unsigned fd_count);
/* A request whose status must be `wanted`; BLK_ANY_ERROR: IOERR or UNSUPP. */
enum { BLK_ANY_ERROR = 256 };
bool scene_expect(struct scene *scene, const char *what, const struct blk_command *command, int wanted);
/* Offers a buffer and waits for it for so long: 0 it came back, -ETIMEDOUT, -ECONNRESET, -EPROTO. */
int scene_offer(struct scene *scene, const struct fragment *fragments, unsigned count, int wait_ms);

#endif
