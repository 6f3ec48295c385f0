/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One image of a backup set, looked at as closely as it can be. */
#ifndef FLEECE_CLI_VERIFY_IMAGE_H
#define FLEECE_CLI_VERIFY_IMAGE_H

#include "cli/sample.h"
#include "cli/transfer.h"
#include "set/chain.h"

struct verify_options {
    struct transfer *transfer;
    const struct set *set;
    struct sample *sample; /* of the extents of the image */
    /* Called for each damaged place: bytes of the disk (empty: it has no such place) and a sentence. */
    void (*damage)(void *context, const struct chain_link *link, const char *path, struct range range,
                   const char *what);
    void *context;
};

struct verify_result {
    uint64_t extents;         /* of which the image holds something */
    uint64_t looked_at;       /* of these */
    uint64_t damaged_extents; /* of these */
    uint64_t places;          /* that `damage` was called for, or would have been but for the limit */
};

/* Looks at the image of one link of a chain. 0 also when it is damaged; -ECANCELED: interrupted. */
int verify_image(const struct verify_options *options, const struct chain *chain, unsigned link,
                 struct verify_result *result, struct error *err);

#endif
