/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Compressed clusters. Reading one: its sectors are read in aligned pieces, unpacked whole on a helper thread, and the
 * wanted part is copied into the reader's memory. Both of QEMU's methods are read, zstd is written.
 *
 * What is unpacked is a stranger's: it may be too short or no compressed data at all (-EIO), and it never makes more than
 * a cluster.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include <zlib.h>
#include <zstd.h>

#include "base/probe.h"
#include "driver/qcow2/internal.h"

static bool unpack_deflate(char *packed, size_t length, char *cluster, size_t cluster_bytes)
{
    z_stream stream = {.next_in = (Bytef *)packed,
                       .avail_in = (uInt)length,
                       .next_out = (Bytef *)cluster,
                       .avail_out = (uInt)cluster_bytes};
    if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) /* no header */
        return false;
    int result = inflate(&stream, Z_FINISH);
    inflateEnd(&stream);
    return (result == Z_STREAM_END || result == Z_BUF_ERROR) && stream.avail_out == 0;
}

static bool unpack_zstd(const char *packed, size_t length, char *cluster, size_t cluster_bytes)
{
    ZSTD_inBuffer in = {packed, length, 0};
    ZSTD_outBuffer out = {cluster, cluster_bytes, 0};
    ZSTD_DStream *stream = ZSTD_createDStream();
    bool going_on = stream != NULL;
    while (going_on && out.pos < out.size) {
        size_t in_before = in.pos, out_before = out.pos;
        going_on = !ZSTD_isError(ZSTD_decompressStream(stream, &out, &in)) &&
                   (in.pos > in_before || out.pos > out_before);
    }
    ZSTD_freeDStream(stream);
    return out.pos == out.size;
}

/* On a helper thread. */
static int64_t unpack(void *argument)
{
    struct inflate *inflate = argument;
    const struct qcow2 *image = inflate->image;
    char *packed = inflate->packed + (inflate->mapping.host - inflate->span.start);
    size_t length = inflate->mapping.compressed_bytes;
    bool well = image->header.zstd ? unpack_zstd(packed, length, inflate->cluster, image->cluster_bytes)
                                   : unpack_deflate(packed, length, inflate->cluster, image->cluster_bytes);
    return well ? 0 : -EIO;
}

static void unpacked(struct io_op *op, int64_t result)
{
    struct inflate *inflate = container_of(op, struct inflate, op);
    const struct request *parent = inflate->parent;
    if (result == 0)
        iov_copy_in(parent->iov, parent->iov_count, inflate->at - parent->range.start,
                    inflate->cluster + inflate->at % inflate->image->cluster_bytes, inflate->length);
    inflate->done(inflate, (int)result);
}

static void read_next(struct inflate *inflate);

static void has_read(struct request *req, int status)
{
    struct inflate *inflate = container_of(req, struct inflate, req);
    inflate->read += inflate->iov.iov_len;
    if (status < 0) {
        inflate->done(inflate, status);
    } else if (inflate->read < inflate->span.length) {
        read_next(inflate);
    } else {
        inflate->op.done = unpacked;
        io_work(inflate->image->node.io, &inflate->op, unpack, inflate);
    }
}

static void read_next(struct inflate *inflate)
{
    uint64_t left = inflate->span.length - inflate->read;
    inflate->iov = (struct iovec){inflate->packed + inflate->read,
                                  left < LIMIT_REQUEST_BYTES ? left : LIMIT_REQUEST_BYTES};
    inflate->req = (struct request){.kind = REQUEST_READ,
                                    .range = {inflate->span.start + inflate->read, inflate->iov.iov_len},
                                    .iov = &inflate->iov,
                                    .iov_count = 1,
                                    .done = has_read};
    node_submit(inflate->image->file, &inflate->req);
}

bool inflate_start(struct qcow2 *image, struct request *parent, uint64_t at, uint64_t length,
                   const struct mapping *mapping, void (*done)(struct inflate *inflate, int status))
{
    struct inflate *inflate = calloc(1, sizeof *inflate);
    if (!inflate)
        return false;
    *inflate = (struct inflate){
        .image = image, .parent = parent, .at = at, .length = length, .mapping = *mapping, .done = done};
    inflate->span = range_align_out((struct range){mapping->host, mapping->compressed_bytes}, LIMIT_ALIGNMENT_BYTES);
    if (range_end(inflate->span) > image->file->size_bytes)
        inflate->span.length = image->file->size_bytes - inflate->span.start;
    inflate->packed = aligned_alloc(LIMIT_ALIGNMENT_BYTES, round_up(inflate->span.length, LIMIT_ALIGNMENT_BYTES));
    inflate->cluster = malloc(image->cluster_bytes);
    if (!inflate->packed || !inflate->cluster) {
        inflate_free(inflate);
        return false;
    }
    image->inflating++;
    inflate->side = mapped_enter(image);
    PROBE(qcow2_compressed_read);
    read_next(inflate);
    return true;
}

void inflate_free(struct inflate *inflate)
{
    free(inflate->packed);
    free(inflate->cluster);
    free(inflate);
}

ZSTD_CCtx *deflate_open(void)
{
    return ZSTD_createCCtx();
}

void deflate_close(ZSTD_CCtx *context)
{
    ZSTD_freeCCtx(context);
}

uint32_t deflate_cluster(ZSTD_CCtx *context, const char *cluster, uint32_t cluster_bytes, char *packed)
{
    if (!context) /* no memory: it is written as it is */
        return 0;
    size_t size = ZSTD_compressCCtx(context, packed, cluster_bytes - IMAGE_SECTOR_BYTES, cluster, cluster_bytes,
                                    QCOW2_ZSTD_LEVEL);
    return ZSTD_isError(size) ? 0 : (uint32_t)size;
}
