/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The sidecar of a disk: blocks that are sealed, checked, read and written (sidecar_format.h). It knows where blocks are and
 * whether their sectors are valid; what they mean is known to those who have them. Owner: the disk's reactor.
 */
#ifndef FLEECE_TRACK_SIDECAR_H
#define FLEECE_TRACK_SIDECAR_H

#include "block/node.h"
#include "track/sidecar_format.h"

struct sidecar {
    struct node *node;
    uint8_t uuid[SIDECAR_UUID_BYTES];
    unsigned granularity_shift;
    uint64_t area_blocks; /* of one span: two copies of each page that the largest disk can have */
    uint64_t sequence;    /* the last one given */
};

/* One request to the sidecar. One at a time; the memory and the buffer are the caller's until done(). */
struct sidecar_io {
    void (*done)(struct sidecar_io *io, int status); /* 0 or -errno; never inside the call that started it */
    struct request req;
    struct iovec iov;
};

/* The pages of a disk's bitmap. */
uint64_t sidecar_pages(uint64_t disk_bytes, unsigned granularity_shift);
/* Lays out a new one on its node, for a disk of so many bytes. 0; -EINVAL: the node is too small. */
int sidecar_lay_out(struct sidecar *sidecar, uint64_t disk_bytes, struct error *err);
/* The block of the header, sealed. */
void sidecar_make_header(const struct sidecar *sidecar, uint64_t created_ns, struct sidecar_block *block);
/* From a header block. 0; -ENOENT: it was never written, whole; -EBADMSG: damaged, or of another kind. */
int sidecar_read_header(struct sidecar *sidecar, const struct sidecar_block *block, struct error *err);

/* Where a page of an area is; `copy` is 0 or 1. */
uint64_t sidecar_page_block(const struct sidecar *sidecar, unsigned area, uint64_t page, unsigned copy);
/* A new sequence number: larger than all in the sidecar. */
uint64_t sidecar_next_sequence(struct sidecar *sidecar);

/* Payload of `blocks` blocks, as one piece of memory, into and out of sectors. */
void sidecar_put_payload(struct sidecar_block *block, unsigned blocks, const void *payload);
void sidecar_get_payload(const struct sidecar_block *block, unsigned blocks, void *payload);
/* Makes the sectors valid, for this place; their payload is there. */
void sidecar_seal(const struct sidecar *sidecar, struct sidecar_block *block, unsigned blocks, uint64_t number_of_block,
                  enum sidecar_kind kind, uint32_t number, uint64_t sequence);

struct sidecar_stamp { /* of a sector; zeroes: it was never written */
    uint64_t sequence;
    uint32_t number;
};
/* Reads the stamps of all sectors. 0, or -EBADMSG: *bad is the number (in the file) of a sector that is damaged. */
int sidecar_check(const struct sidecar *sidecar, const struct sidecar_block *block, unsigned blocks,
                  uint64_t number_of_block, enum sidecar_kind kind, struct sidecar_stamp *stamps, uint64_t *bad);

/* Starts a request. Blocks lie one behind the other; buffers are aligned to SIDECAR_BLOCK_BYTES. */
void sidecar_read(struct sidecar *sidecar, struct sidecar_io *io, uint64_t first, unsigned blocks, void *buffer);
void sidecar_write(struct sidecar *sidecar, struct sidecar_io *io, uint64_t first, unsigned blocks, void *buffer,
                   bool durably);
/* Zeroes that keep their space, durably: what is written there later finds room. */
void sidecar_allocate(struct sidecar *sidecar, struct sidecar_io *io, uint64_t first, uint64_t blocks);
void sidecar_flush(struct sidecar *sidecar, struct sidecar_io *io);

#endif
