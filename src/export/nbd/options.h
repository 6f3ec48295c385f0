/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a client says while it shakes hands, taken apart: pure functions over bytes of a stranger. They keep nothing and
 * read nothing beyond what they are given; names and queries point into the bytes.
 */
#ifndef FLEECE_EXPORT_NBD_OPTIONS_H
#define FLEECE_EXPORT_NBD_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct nbd_text { /* not terminated; may hold any byte */
    const uint8_t *bytes;
    size_t length;
};

struct nbd_option_header {
    uint32_t option;
    uint32_t length; /* bytes of data behind it, as claimed */
};

struct nbd_info_request { /* data of INFO and GO */
    struct nbd_text name;
    bool wants_name, wants_description, wants_block_size;
};

struct nbd_meta_request { /* data of LIST_META_CONTEXT and SET_META_CONTEXT */
    struct nbd_text name;
    uint32_t query_count;
    const uint8_t *queries; /* checked: query_count strings, each behind its length, up to the end of the data */
};

bool nbd_text_equals(struct nbd_text text, const char *string);

/* bytes: NBD_OPTION_BYTES. False: not an option (bad magic). */
bool nbd_option_parse_header(const uint8_t *bytes, struct nbd_option_header *header);
/* False: lengths do not add up, bytes are left over, or a string is too long. */
bool nbd_option_parse_info(struct nbd_text data, struct nbd_info_request *request);
bool nbd_option_parse_meta(struct nbd_text data, struct nbd_meta_request *request);
/* The query at *at, one of a checked request's; moves on behind it. */
struct nbd_text nbd_meta_next_query(const uint8_t **at);

#endif
