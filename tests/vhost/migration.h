/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A migration, as far as the source has part in it: memory is copied by the marks of the back-end (its log) and of the
 * driver (the caller, who says where he wrote), while requests are under way. When the rings have stopped and the last marks
 * were taken the copy is all of the memory, or the back-end has written somewhere and not said so.
 */
#ifndef TESTS_VHOST_MIGRATION_H
#define TESTS_VHOST_MIGRATION_H

#include "blk.h"

struct migration {
    struct front_end *front;
    uint8_t *log, *wrote; /* a bit a page: of the back-end's, of the driver's */
    char *copy;
    uint64_t pages_copied, checks;
};

/* After the memory of the front-end was made. 0 or -errno. */
int migration_init(struct migration *migration, struct front_end *front);
void migration_fini(struct migration *migration);

/* Switches the log on, all memory is to be copied; or off. 0 or -errno with front->error. */
int migration_log(struct migration *migration, bool on);
static inline bool migration_is_on(const struct migration *migration)
{
    return migration->front->log.on;
}
void migration_wrote(struct migration *migration, uint64_t address, uint64_t length);
/* What the driver writes when it adds a request to a ring, and when it arms it. */
void migration_wrote_request(struct migration *migration, const struct blk_request *request, const struct ring *ring);
void migration_wrote_wish(struct migration *migration, const struct ring *ring);
/* Takes the marks, then copies those pages. */
void migration_copy(struct migration *migration);
/* When nothing is written any more: the guest address of a page that is missing; UINT64_MAX: none is. */
uint64_t migration_missing(struct migration *migration);

#endif
