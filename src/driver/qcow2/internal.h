/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of the qcow2 driver share. qcow2.c says how they work together. */
#ifndef FLEECE_DRIVER_QCOW2_INTERNAL_H
#define FLEECE_DRIVER_QCOW2_INTERNAL_H

#include "driver/qcow2/header.h"

/* Whoever waits for metadata. */
struct qcow2_waiter {
    struct list_node link;
    /* It has happened: decide afresh. Or -errno: it can't. Called once for each time that it was queued. */
    void (*wake)(struct qcow2_waiter *waiter, int status);
};

/* Metadata is kept in pages: parts of tables. The order is that of writing (commit.c). */
enum page_class { PAGE_REFBLOCK, PAGE_REFTABLE, PAGE_L2, PAGE_L1, PAGE_CLASSES };

struct page {
    struct qcow2 *image;
    struct list_node hash_link;
    /* In clean, dirty[class], writing (through) or, by the commit, commit.pages[class]; loading, or being written by the
     * commit: nowhere. */
    struct list_node link;
    uint64_t offset; /* in the file */
    char *bytes;
    char *shadow; /* what the commit writes, when `bytes` has changed since it began */
    enum page_class class;
    bool loading, dirty, committing;
    bool failed;                 /* what is in memory could not be written through: nobody may rely on it */
    struct list waiting;         /* for the load */
    struct list now, next;       /* for the write that is under way; for the one that comes next */
    struct qcow2_waiter settled; /* the commit's */
    struct request req;
    struct iovec iov;
};

enum commit_step {
    COMMIT_IDLE,
    COMMIT_REFBLOCKS,
    COMMIT_SYNC_DATA,
    COMMIT_REFTABLE,
    COMMIT_SYNC_REFTABLE,
    COMMIT_L2,
    COMMIT_SYNC_L2,
    COMMIT_L1,
    COMMIT_SETTLE, /* written through: wait for these pages instead */
    COMMIT_SYNC_END,
    COMMIT_GRACE, /* whoever began before the mappings changed has ended */
    COMMIT_FREE,  /* count down what nothing refers to any more */
    COMMIT_FREED, /* write these counts */
    COMMIT_PUNCH, /* give their space back */
    COMMIT_END,
};

struct cluster_run {
    uint64_t first, count;
};

/* Clusters that nothing will refer to once the mappings in memory are stable: each is to be counted down by one. */
struct freed {
    struct cluster_run run;
    uint64_t released; /* of the run: counted down already */
    bool zero;         /* nobody has ever written to them */
    bool used;         /* some are still referred to */
};

struct commit {
    enum commit_step step;
    int status, count_status; /* written through: the latter is of the counts; else it stays 0 */
    unsigned writing;
    bool unsynced; /* pages were written since the last sync of this commit */
    struct list pages[PAGE_CLASSES];
    struct list flushers, enders; /* waiters of this one: for all to be stable; and free what is to be free */
    struct list counters;         /* for all counts to be stable */
    struct list next, next_end, next_counters; /* of the next one */
    unsigned freed, next_freed; /* image->freed[0..freed) are of this commit; those before next_freed are done */
    unsigned settling;          /* pages that are waited for */
    bool side;                  /* of the grace */
    struct qcow2_waiter waiter;
    struct request req;
};

/* Clusters for new mappings, when these are written through (pool.c). */
struct pool {
    enum pool_step { POOL_IDLE, POOL_COUNT, POOL_EXTEND, POOL_COMMIT } step;
    struct cluster_run ready[LIMIT_QCOW2_POOL_RUNS], next[LIMIT_QCOW2_POOL_RUNS / 2];
    unsigned ready_count, next_count;
    uint64_t ready_clusters;
    uint64_t batch, batch_max; /* clusters */
    /* The file reaches so far: its node's end_bytes counts writes that failed, too. */
    uint64_t extended_bytes, extending_bytes;
    struct list waiting; /* for clusters */
    struct list closing; /* for the pool to be idle */
    struct qcow2_waiter waiter;
    struct io_task task;
    struct request req;
    struct iovec iov;
};

/* Syncs of the file that many wait for. */
struct group_sync {
    struct list now, next;
    struct io_task task;
    struct request req;
    bool busy;
};

/* A part of a read that goes to one place. */
struct piece {
    struct list_node link;
    struct request *parent;
    bool counted, side; /* image->under_way */
    struct request req;
    struct iovec iov[LIMIT_QCOW2_FRAGMENTS];
};

/* A part of a request that is one kind of thing. */
struct mapping {
    enum mapping_kind { MAP_NONE, MAP_ZERO, MAP_DATA, MAP_COMPRESSED } kind;
    uint64_t host;   /* of its first byte; of the compressed data */
    uint64_t length; /* bytes from there on that are so; of a compressed cluster: to its end */
    uint32_t compressed_bytes;
};

/* A cluster as its L2 entry has it. Without extended entries a cluster is its own only subcluster. */
struct cluster {
    uint64_t host;       /* 0: none */
    uint32_t data, zero; /* subclusters, a bit for each */
    uint32_t compressed_bytes;
    bool compressed;
    bool copied; /* nobody else refers to it */
};

/* A change of fields in the header's first sector (header_change.c). */
struct header_change {
    struct qcow2 *image;
    /* Into what the file holds when it is its turn. */
    void (*apply)(struct header_change *change, uint8_t *sector);
    void (*done)(struct header_change *change, int status);
    bool begun; /* the file may have it, whatever the status */
    /* private: */
    enum header_step { HEADER_READ, HEADER_WRITE, HEADER_SYNC } step;
    char *sector;
    struct qcow2_waiter waiter;
    struct request req;
    struct iovec iov;
};
enum extend_step { EXTEND_TABLE, EXTEND_LOOK, EXTEND_ZERO, EXTEND_COMMIT, EXTEND_HEADER, EXTEND_END };

/* The disk is about to get another size (extend.c). */
struct qcow2_extend {
    struct qcow2 *image;
    struct node_extension *extension;
    enum extend_step step;
    uint64_t at, zero_end; /* looked at so far; where something else than zeroes ends */
    struct qcow2_waiter waiter;
    struct header_change header;
    struct request req;
    struct io_task task;
};

struct qcow2 {
    struct node node; /* first */
    struct node *file, *backing;
    struct qcow2_header header;
    uint32_t cluster_bits, cluster_bytes, page_bytes;
    uint32_t subclusters, granule_bytes; /* the unit that is there or not */
    uint32_t entry_bytes, l2_bits;       /* 2^l2_bits entries in an L2 table */
    uint32_t refcount_bits;
    uint64_t refblock_entries;
    bool write_back; /* mappings stay in memory until a flush; else they are written through */
    bool compress;   /* clusters that are written whole */
    bool doomed;     /* destroyed, but a commit is under way, or clusters are counted ahead */
    struct io_task doom;
    /* I/O on clusters that are mapped: begun before and since the last grace of a commit. */
    unsigned under_way[2];
    bool side;
    /* cache.c */
    struct list buckets[LIMIT_QCOW2_BUCKETS];
    struct list clean, dirty[PAGE_CLASSES];
    unsigned page_count, dirty_count, page_max;
    struct list room_waiters; /* for a page that may go */
    struct commit commit;
    /* through.c */
    struct list writing;
    struct io_task through;
    struct group_sync sync;
    /* pool.c */
    struct pool pool;
    struct cluster_run *unused; /* counted as free, zero, for new mappings */
    unsigned unused_count;
    struct grow *grow; /* the table of refcount blocks is being replaced */
    struct list grow_waiters;
    uint64_t grown_to; /* up to this cluster attempts that failed may have written; 0: none has */
    /* header_change.c */
    bool header_changes;
    struct list header_waiters;
    /* l1_grow.c: entries of the table stay as they are */
    struct l1_move *l1_move;
    struct list l1_waiters;
    /* extend.c */
    struct qcow2_extend extend;
    uint64_t named_bytes; /* the disk's size that the header may tell, besides the node's; 0: it does not */
    /* mapping.c */
    uint64_t begun_table; /* a cluster for an L2 table, of which there is no page in memory yet; 0: none */
    /* refcount.c */
    uint64_t cursor;  /* the next cluster; everything from there on is free and zero */
    uint64_t pack_at; /* compressed data goes on here when its cluster is the last one; 0: it begins a cluster */
    unsigned passed;  /* clusters that were counted behind the end of the file */
    struct freed *freed;
    unsigned freed_count, freed_max;
    /* read.c */
    struct piece *pieces;
    struct list free_pieces, piece_waiters;
    unsigned inflating;
    struct list inflate_waiters;
    /* write.c */
    struct qcow2_write *write_slots;
    struct list free_writes, writes; /* slots: idle, at work */
    struct list waiting_writes;      /* requests without a slot */
    struct list blocked;             /* by what others at work are mapping */
    bool starting_writes;            /* those that waited */
    unsigned buffers_used;
    struct list buffer_waiters;
    char *zeroes;
};

static inline struct qcow2 *qcow2_of(struct node *node)
{
    return (struct qcow2 *)(void *)node; /* node is its first member */
}

static inline void qcow2_wait(struct list *queue, struct qcow2_waiter *waiter)
{
    list_append(queue, &waiter->link);
}

/* All that are in the queue now. */
void qcow2_wake_all(struct list *queue, int status);
/* The first one only. */
void qcow2_wake_one(struct list *queue);

/* Where the image ends: offsets are to lie before it. A multiple of the cluster size. */
uint64_t qcow2_end(const struct qcow2 *image);
/* Whether [offset, offset+length) may be a cluster or table of this image: whole clusters, not the header, nor one of
 * the two tables that the header names, and not beyond the end. */
bool qcow2_place_is_right(const struct qcow2 *image, uint64_t offset, uint64_t length);
/* How many of the bytes from `at` on the first fragments cover, as many as fit into one request of ours. */
uint64_t qcow2_fragments_length(const struct request *req, uint64_t at, uint64_t length);

/* open.c: all memory of it but itself. */
void qcow2_image_free(struct qcow2 *image);
extern const struct node_ops qcow2_ops;

/* cache.c. All of these: 0, or -EAGAIN: the waiter is queued, or another error. */
void cache_init(struct qcow2 *image);
void cache_fini(struct qcow2 *image);
int page_get(struct qcow2 *image, enum page_class class, uint64_t offset, struct qcow2_waiter *waiter,
             struct page **page);
/* A page of zeroes, without looking into the file. -EIO: an image that uses the place already is damaged. */
int page_new(struct qcow2 *image, enum page_class class, uint64_t offset, struct qcow2_waiter *waiter,
             struct page **page);
/* Before `bytes` are changed. false: no memory. */
bool page_change(struct page *page);
void page_settle(struct page *page); /* to the list that it belongs to */
/* What it held when its write began, which is now or, for the commit, was before. */
void page_write(struct page *page, void (*done)(struct request *req, int status));
/* It is out of a write. */
void page_finish(struct page *page, bool written);
/* Whether there is room for no other page. */
bool cache_is_full(const struct qcow2 *image);
/* Keeps the bound again, as far as pages may go. */
void cache_trim(struct qcow2 *image);
/* Forgets all pages of that place, which are clean. */
int cache_drop(struct qcow2 *image, struct range place, struct qcow2_waiter *waiter);
bool cache_has(struct qcow2 *image, struct range place);

/* through.c */
void through_init(struct qcow2 *image);
/* 0: the kernel has what the page holds; -EAGAIN: the waiter is woken when it has what the page holds now, or it failed. */
int page_through(struct page *page, struct qcow2_waiter *waiter);
/* Woken when a sync that began later has ended. */
void sync_wait(struct qcow2 *image, struct qcow2_waiter *waiter);

/* commit.c */
void commit_init(struct qcow2 *image);
/* The waiter is woken when everything that is in memory now is stable, or it failed. */
void commit_wait(struct qcow2 *image, struct qcow2_waiter *waiter);
/* ... and when what became free by then has been counted down and punched out. */
void commit_wait_end(struct qcow2 *image, struct qcow2_waiter *waiter);
/* The waiter is woken when all counts that are in memory now are stable, or it failed. */
void commit_wait_counts(struct qcow2 *image, struct qcow2_waiter *waiter);
/* Begins one, unless one is under way, so that pages become clean. */
void commit_begin(struct qcow2 *image);
/* Around I/O on clusters that are mapped, from the look at the mapping on: they are not used for anything else before. */
bool mapped_enter(struct qcow2 *image);
void mapped_leave(struct qcow2 *image, bool side);

/* pool.c: 0, or -EAGAIN: the waiter is queued, or another error. */
void pool_init(struct qcow2 *image);
/* Clusters side by side, at most so many, and at least one; they are zero. Written through: counted on the disk, too. */
int clusters_take(struct qcow2 *image, uint64_t most, struct qcow2_waiter *waiter, uint64_t *offset, uint64_t *count);
/* Clusters that are counted as free and zero. */
void unused_add(struct qcow2 *image, struct cluster_run run);
/* All that was counted ahead becomes free with the next commit. */
int pool_give_back(struct qcow2 *image, struct qcow2_waiter *waiter);

/* refcount.c: 0, or -EAGAIN: the waiter is queued, or another error. */
/* At the end of the file, side by side, at most a page of an L2 table full. */
int clusters_allocate(struct qcow2 *image, uint64_t count, struct qcow2_waiter *waiter, uint64_t *offset);
/* Counts free ones once. -EIO: they are not free. */
int clusters_count(struct qcow2 *image, struct cluster_run run, struct qcow2_waiter *waiter);
/* Room for compressed clusters, packed one behind the other. sizes[i] == 0: not one of them. */
int packed_allocate(struct qcow2 *image, const uint32_t *sizes, unsigned count, struct qcow2_waiter *waiter,
                    uint64_t *offset);
/* Room for so many entries in image->freed; else a commit begins. */
int freed_reserve(struct qcow2 *image, unsigned count, struct qcow2_waiter *waiter);
void freed_add(struct qcow2 *image, uint64_t offset, uint64_t bytes, bool zero);
/* Counts down those of it that one page counts. */
int clusters_release(struct qcow2 *image, struct freed *freed, struct qcow2_waiter *waiter);

/* reftable_grow.c: a larger table of refcount blocks, for clusters from this one on. -EAGAIN: the waiter is queued; or
 * -ENOSPC. */
int table_grow(struct qcow2 *image, uint64_t cluster, struct qcow2_waiter *waiter);
/* While image->grow is there nobody allocates. */
void grow_wait(struct qcow2 *image, struct qcow2_waiter *waiter);
void grow_free(struct qcow2 *image);

/* header_change.c: nothing else writes to the header of an image that is open. */
/* false: no memory. In either case header_change_fini() is to follow. */
bool header_change_init(struct header_change *change, struct qcow2 *image,
                        void (*apply)(struct header_change *change, uint8_t *sector),
                        void (*done)(struct header_change *change, int status));
void header_change_fini(struct header_change *change);
/* done() comes later, when what apply() has changed is stable, or that failed; as often as it is started. */
void header_change_start(struct header_change *change);

/* l1_grow.c: so many entries, more than there are. -EAGAIN: the waiter is queued, and then looks again; or -ENOMEM. */
int l1_grow(struct qcow2 *image, uint64_t entries, struct qcow2_waiter *waiter);
/* While image->l1_move is there no entry changes. */
void l1_wait(struct qcow2 *image, struct qcow2_waiter *waiter);
void l1_move_free(struct qcow2 *image);

/* extend.c: node_ops */
void qcow2_extend(struct node *node, struct node_extension *extension);
void qcow2_grow(struct node *node, uint64_t size_bytes);

/* mapping.c: 0, or -EAGAIN: the waiter is queued, or another error. */
/* The entry of a guest's cluster; -ENOENT: it has no table, and neither has anything before *table_end (in clusters). */
int l2_find(struct qcow2 *image, uint64_t cluster, struct qcow2_waiter *waiter, struct page **page, unsigned *index,
            uint64_t *table_end);
/* The same for whoever changes it, or relies on it for a write: the L1 entry is with the kernel. */
int l2_find_for_write(struct qcow2 *image, uint64_t cluster, struct qcow2_waiter *waiter, struct page **page,
                      unsigned *index, uint64_t *table_end);
int l2_create(struct qcow2 *image, uint64_t cluster, struct qcow2_waiter *waiter);
/* -EIO: no image has such an entry. */
int cluster_decode(const struct qcow2 *image, const struct page *page, unsigned index, struct cluster *cluster);
void cluster_encode(const struct qcow2 *image, struct page *page, unsigned index, const struct cluster *cluster);
int mapping_find(struct qcow2 *image, uint64_t at, uint64_t length, struct qcow2_waiter *waiter,
                 struct mapping *mapping);
static inline unsigned l2_page_entries(const struct qcow2 *image)
{
    return image->page_bytes / image->entry_bytes;
}

struct qcow2_write;
/* read.c, status.c, write.c, zero.c */
void read_submit(struct qcow2 *image, struct request *req);
void status_submit(struct qcow2 *image, struct request *req);
void write_submit(struct qcow2 *image, struct request *req);
/* The next step of zeroing or discarding: w->at moves; or *as_data: zeroes are to be written up to w->data_end. 0, or
 * -EAGAIN: the waiter is queued, or another error. `limit`: others are at work from there on. */
int zero_go_on(struct qcow2_write *w, uint64_t limit, bool *as_data);
/* give_back.c: what it took for a part that failed, and no table names. 0; or -EAGAIN: the waiter is queued. */
int unnamed_give_back(struct qcow2_write *w);
struct piece *piece_take(struct qcow2 *image, struct request *parent);
void piece_put(struct qcow2 *image, struct piece *piece);

/* inflate.c: the rest of a read's compressed cluster from `at` on, into its memory. done: on the owner. */
struct inflate {
    struct qcow2 *image;
    struct request *parent;
    uint64_t at, length; /* of the guest */
    struct mapping mapping;
    void (*done)(struct inflate *inflate, int status);
    /* private: */
    char *packed, *cluster;
    bool side; /* image->under_way */
    struct range span;
    uint64_t read;
    struct request req;
    struct iovec iov;
    struct io_op op;
};
/* false: no memory; else done() comes, and frees it with inflate_free(). */
bool inflate_start(struct qcow2 *image, struct request *parent, uint64_t at, uint64_t length,
                   const struct mapping *mapping, void (*done)(struct inflate *inflate, int status));
void inflate_free(struct inflate *inflate);
/* Compressing, on any thread. The size, or 0: it does not become smaller by a sector at least. */
struct ZSTD_CCtx_s *deflate_open(void);
void deflate_close(struct ZSTD_CCtx_s *context);
uint32_t deflate_cluster(struct ZSTD_CCtx_s *context, const char *cluster, uint32_t cluster_bytes, char *packed);

enum write_step {
    WRITE_IDLE,
    WRITE_DECIDE,
    WRITE_IN_PLACE,   /* where the data is already */
    WRITE_FILL_READ,  /* what stays of the clusters at the edges: from their old place */
    WRITE_FILL_WRITE, /* ... to the new one */
    WRITE_DATA,
    WRITE_PACK,       /* compress */
    WRITE_PACK_PLACE, /* allocate */
    WRITE_PACK_DATA,
    WRITE_SOLID, /* what hides old content is to be stable before the mapping is */
    WRITE_LINK,  /* enter the new place into the table */
    WRITE_THROUGH,
    WRITE_GIVE_BACK, /* it failed: the clusters that it had taken */
    WRITE_COMMIT,
};

/* A write, write zeroes or discard at work. */
struct qcow2_write {
    struct list_node link; /* in image->writes, or free_writes */
    struct qcow2 *image;
    struct request *req;
    struct qcow2_waiter waiter;
    struct io_task task;
    enum write_step step;
    int status;
    uint64_t at;          /* the request has come so far */
    uint64_t data_end;    /* of what is written as data, in one go or several */
    bool zeroes;          /* that data is zeroes */
    bool hides;           /* something else than zeroes was there */
    bool side;            /* of data in place: image->under_way */
    bool written;         /* written through: the page's write is waited for */
    bool beside;          /* data and table are written side by side, and neither is over */
    int half_status;      /* of the one that is */
    struct range part;    /* of the guest's bytes: under way */
    struct range locked;  /* whole clusters that are being mapped; empty: none. Nobody else may change their mapping. */
    struct range kept;    /* what will be there of them then: the part and what is filled */
    uint64_t host;        /* of locked.start */
    bool fresh;           /* the clusters there were taken for this part */
    unsigned named;       /* so many of the locked ones have been entered into the table */
    struct range fill[2]; /* at the edges, of the guest's bytes */
    uint64_t filled;      /* of both together */
    char *buffer;         /* for filling or packing */
    uint32_t sizes[LIMIT_QCOW2_PACK_CLUSTERS]; /* compressed; 0: it stays plain */
    unsigned packed_count, plain_count, next_plain;
    uint64_t packed_bytes, packed_host;
    bool pack;
    struct io_op op;
    struct request child;
    struct iovec iov[LIMIT_QCOW2_FRAGMENTS];
};

/* What a request of ours carries in its leaf_scratch, but for writes. */
struct qcow2_op {
    struct qcow2 *image;
    struct qcow2_waiter waiter;
    uint64_t at; /* the request has come so far */
    unsigned pending;
    int status;
    bool waiting;
};
_Static_assert(sizeof(struct qcow2_op) <= sizeof(((struct request *)0)->leaf_scratch), "fits into the request");

static inline struct qcow2_op *qcow2_op_of(struct request *req)
{
    return (struct qcow2_op *)(void *)req->leaf_scratch;
}

static inline struct request *qcow2_op_request(struct qcow2_op *op)
{
    return (struct request *)(void *)((char *)op - offsetof(struct request, leaf_scratch));
}

#endif
