/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The NBD client node against nbdkit, with its filters as servers of every kind; also servers that die and that hang. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "driver/nbd.h"
#include "io/ring.h"

#define SIZE (64 * MIB)

struct server {
    char folder[32], uri[128], log[64];
    pid_t pid;
    struct io *io;
};

static bool have_nbdkit(void)
{
    return system("command -v nbdkit >/dev/null 2>&1") == 0;
}

static void server_make_folder(struct server *server)
{
    strcpy(server->folder, "/tmp/fleece-nbd-XXXXXX");
    assert_non_null(mkdtemp(server->folder));
    snprintf(server->log, sizeof server->log, "%s/log", server->folder);
    snprintf(server->uri, sizeof server->uri, "nbd+unix:///?socket=%s/sock", server->folder);
}

/* The command serves at the socket "sock" in the folder; when it does, the file "pid" is there (the socket is earlier). */
static void server_run(struct server *server, const char *command)
{
    char path[64];
    struct error err;
    snprintf(path, sizeof path, "%s/pid", server->folder);
    server->pid = fork();
    if (server->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execl("/bin/sh", "sh", "-c", command, NULL);
        _exit(127);
    }
    for (int i = 0; access(path, F_OK) < 0; i++) {
        assert_true(i < 12000);
        usleep(10000);
    }
    if (ring_create(&server->io, &err) < 0)
        fail_msg("%s", err.text);
}

/* nbdkit with 64 MiB of memory; options of itself and parameters of its filters, split at blanks. */
static void server_start(struct server *server, const char *options, const char *parameters)
{
    char command[512];
    server_make_folder(server);
    snprintf(command, sizeof command, "exec nbdkit -f -t 32 -U %s/sock -P %s/pid %s memory 64M %s 2>%s", server->folder,
             server->folder, options, parameters, server->log);
    server_run(server, command);
}

static void server_stop(struct server *server)
{
    char command[64];
    ring_destroy(server->io);
    kill(server->pid, SIGKILL);
    waitpid(server->pid, NULL, 0);
    snprintf(command, sizeof command, "rm -rf %s", server->folder);
    assert_int_equal(system(command), 0);
}

struct sync_request {
    struct request req;
    struct io *io;
    int status;
    unsigned *waiting; /* the last one ends the loop */
};

static void sync_done(struct request *req, int status)
{
    struct sync_request *sync = container_of(req, struct sync_request, req);
    sync->status = status;
    if (--*sync->waiting == 0)
        ring_quit(sync->io);
}

/* Runs one request to its end. */
static int run(struct node *node, struct request req, struct request *result)
{
    unsigned waiting = 1;
    struct sync_request sync = {.req = req, .io = node->io, .waiting = &waiting, .status = 1};
    sync.req.done = sync_done;
    node_submit(node, &sync.req);
    assert_int_equal(sync.status, 1); /* never inside submit */
    ring_run(node->io);
    if (result)
        *result = sync.req;
    return sync.status;
}

static int transfer(struct node *node, enum request_kind kind, uint32_t flags, uint64_t start, void *bytes,
                    size_t length)
{
    struct iovec iov = {bytes, length};
    return run(node,
               (struct request){.kind = kind, .flags = flags, .range = {start, length}, .iov = &iov, .iov_count = 1},
               NULL);
}

static int range_request(struct node *node, enum request_kind kind, uint32_t flags, uint64_t start, uint64_t length)
{
    return run(node, (struct request){.kind = kind, .flags = flags, .range = {start, length}}, NULL);
}

static struct node *open_node(struct server *server, bool read_only)
{
    struct node *node = NULL;
    struct error err;
    if (nbd_node_open(server->io, server->uri, read_only, &node, &err) < 0)
        fail_msg("%s", err.text);
    return node;
}

static void fill(char *bytes, size_t length, unsigned seed)
{
    srand(seed);
    for (size_t i = 0; i < length; i++)
        bytes[i] = (char)rand();
}

/* All that a node does, at a server of any ability. */
static void work_with(const char *options, const char *parameters)
{
    struct server server;
    server_start(&server, options, parameters);
    struct node *node = open_node(&server, false);
    char *out = malloc(MIB), *in = malloc(MIB);
    assert_int_equal(node->size_bytes, SIZE);
    fill(out, MIB, 1);
    assert_int_equal(transfer(node, REQUEST_WRITE, 0, 5 * MIB + 3, out, MIB), 0);
    assert_int_equal(transfer(node, REQUEST_WRITE, REQUEST_FUA, 9 * MIB, out, 4096), 0);
    assert_int_equal(transfer(node, REQUEST_READ, 0, 5 * MIB + 3, in, MIB), 0);
    assert_memory_equal(out, in, MIB);

    /* Fragments of all lengths, straight into their places. */
    struct iovec iov[100];
    size_t used = 0;
    unsigned count = 0;
    for (; count < 100; count++) {
        iov[count] = (struct iovec){in + used, 1 + count * 97};
        used += iov[count].iov_len;
    }
    memset(in, 0, MIB);
    assert_int_equal(
        run(node, (struct request){.kind = REQUEST_READ, .range = {5 * MIB + 3, used}, .iov = iov, .iov_count = count},
            NULL),
        0);
    assert_memory_equal(out, in, used);
    fill(in, MIB, 2);
    assert_int_equal(
        run(node, (struct request){.kind = REQUEST_WRITE, .range = {20 * MIB, used}, .iov = iov, .iov_count = count},
            NULL),
        0);
    assert_int_equal(transfer(node, REQUEST_READ, 0, 20 * MIB, out, used), 0);
    assert_memory_equal(out, in, used);

    assert_int_equal(range_request(node, REQUEST_WRITE_ZEROES, REQUEST_FUA, 5 * MIB, 3 * MIB + 17), 0);
    assert_int_equal(transfer(node, REQUEST_READ, 0, 5 * MIB + 3, in, MIB), 0);
    for (size_t i = 0; i < MIB; i++)
        assert_int_equal(in[i], 0);
    int status = range_request(node, REQUEST_WRITE_ZEROES, REQUEST_FAST_ZERO, 0, MIB);
    assert_int_equal(status, node->can_fast_zero ? 0 : -EOPNOTSUPP);
    status = range_request(node, REQUEST_DISCARD, 0, 9 * MIB, MIB);
    assert_int_equal(status, node->can_discard ? 0 : -EOPNOTSUPP);
    assert_int_equal(range_request(node, REQUEST_FLUSH, 0, 0, 0), 0);
    free(out);
    free(in);
    node_destroy(node);
    server_stop(&server);
}

static void servers_of_every_kind(void **state)
{
    (void)state;
    if (!have_nbdkit())
        skip();
    work_with("", "");
    work_with("--no-sr", "");
    work_with("--filter=nozero", "");
    work_with("--filter=fua --filter=nozero", "");
    work_with("--filter=blocksize-policy",
              "blocksize-maximum=64K blocksize-error-policy=error blocksize-minimum=1 blocksize-preferred=4K");
    work_with("--filter=fua", "fuamode=emulate");
}

static void block_status(void **state)
{
    (void)state;
    if (!have_nbdkit())
        skip();
    struct server server;
    server_start(&server, "", "");
    struct node *node = open_node(&server, false);
    struct block_extent extents[8];
    struct request req;
    char bytes[32768];
    fill(bytes, sizeof bytes, 3);
    assert_int_equal(transfer(node, REQUEST_WRITE, 0, MIB, bytes, sizeof bytes), 0);
    struct request ask = {.kind = REQUEST_BLOCK_STATUS, .range = {0, SIZE}, .extents = extents, .extent_max = 8};
    assert_int_equal(run(node, ask, &req), 0);
    uint64_t covered = 0;
    for (unsigned i = 0; i < req.extent_count; i++) {
        bool data = covered <= MIB && MIB < covered + extents[i].length;
        assert_int_equal(extents[i].flags, data ? 0 : EXTENT_HOLE | EXTENT_ZERO);
        covered += extents[i].length;
    }
    assert_true(covered > MIB && covered <= SIZE && req.extent_count >= 2);
    ask.range = (struct range){100, 200};
    ask.flags = REQUEST_ONE;
    assert_int_equal(run(node, ask, &req), 0);
    assert_int_equal(req.extent_count, 1);
    assert_int_equal(extents[0].length, 200); /* never more than was asked for */
    ask.flags = 0;
    ask.extent_max = 1;
    ask.range = (struct range){0, SIZE};
    assert_int_equal(run(node, ask, &req), 0);
    assert_int_equal(req.extent_count, 1);
    ask.flags = REQUEST_RESIDENCE; /* no snapshot of ours */
    assert_int_equal(run(node, ask, &req), 0);
    assert_true(req.extent_count == 1 && extents[0].length == SIZE && extents[0].flags == 0);
    assert_false(node->can_release);
    ask.flags = 0;
    node_destroy(node);
    server_stop(&server);

    server_start(&server, "--no-sr", ""); /* knows nothing: all may be data */
    node = open_node(&server, true);
    assert_int_equal(run(node, ask, &req), 0);
    assert_int_equal(extents[0].length, SIZE);
    assert_int_equal(extents[0].flags, 0);
    node_destroy(node);
    server_stop(&server);
}

/* All of a node's map: asked for on and on; dirty ranges into `dirty`, returns how many. */
static unsigned dirty_ranges(struct node *node, unsigned map, struct range *dirty, unsigned max)
{
    struct block_extent extents[4];
    struct request req;
    unsigned count = 0;
    for (uint64_t at = 0; at < node->size_bytes;) {
        struct request ask = {.kind = REQUEST_BLOCK_STATUS,
                              .flags = REQUEST_DIRTY,
                              .dirty_map = map,
                              .range = {at, node->size_bytes - at},
                              .extents = extents,
                              .extent_max = 4};
        assert_int_equal(run(node, ask, &req), 0);
        for (unsigned i = 0; i < req.extent_count; i++) {
            if (extents[i].flags == EXTENT_DIRTY && count > 0 && range_end(dirty[count - 1]) == at) {
                dirty[count - 1].length += extents[i].length;
            } else if (extents[i].flags == EXTENT_DIRTY) {
                assert_true(count < max);
                dirty[count++] = (struct range){at, extents[i].length};
            }
            at += extents[i].length;
        }
    }
    return count;
}

static unsigned map_named(const struct node *node, const char *name)
{
    for (unsigned i = 0; i < node->dirty_map_count; i++)
        if (strcmp(node->dirty_maps[i], name) == 0)
            return i;
    fail_msg("there is no dirty map %s", name);
    return 0;
}

/* QEMU's storage daemon with a qcow2 image: one bitmap for each write and all writes after it, 6 in all. */
static void dirty_maps_of_qemu(void **state)
{
    (void)state;
    if (system("command -v qemu-storage-daemon qemu-img qemu-io >/dev/null 2>&1") != 0)
        skip();
    struct server server;
    char command[2048];
    server_make_folder(&server);
    snprintf(command, sizeof command,
             "cd %s && exec 2>log >&2 && qemu-img create -q -f qcow2 i.qcow2 64M && for n in 1 2 3 4 5 6; do "
             "qemu-img bitmap --add -g 64k i.qcow2 day-$n && qemu-io -c \"write $((n * 4))M ${n}k\" i.qcow2; done",
             server.folder);
    assert_int_equal(system(command), 0);
    snprintf(command, sizeof command,
             "cd %s && exec qemu-storage-daemon --pidfile pid --blockdev "
             "qcow2,read-only=on,node-name=d,file.driver=file,file.filename=i.qcow2 "
             "--nbd-server addr.type=unix,addr.path=sock --export nbd,id=e,node-name=d,name=,bitmaps.0=day-1,"
             "bitmaps.1=day-4,bitmaps.2=day-6 2>log",
             server.folder);
    server_run(&server, command);
    struct range dirty[8];
    struct node *node = open_node(&server, true);
    assert_int_equal(node->dirty_map_count, 3);
    const unsigned shown[] = {1, 4, 6};
    for (unsigned i = 0; i < 3; i++) {
        char name[8];
        snprintf(name, sizeof name, "day-%u", shown[i]);
        unsigned count = dirty_ranges(node, map_named(node, name), dirty, 8);
        assert_int_equal(count, 7 - shown[i]);
        for (unsigned n = 0; n < count; n++)
            assert_true(dirty[n].start == (shown[i] + n) * 4 * MIB && dirty[n].length == 64 * KIB);
    }
    struct block_extent extent; /* of another context, beside them */
    struct request ask = {.kind = REQUEST_BLOCK_STATUS, .range = {4 * MIB, KIB}, .extents = &extent, .extent_max = 1},
                   req;
    assert_int_equal(run(node, ask, &req), 0);
    assert_int_equal(extent.flags, 0);
    node_destroy(node);
    server_stop(&server);
}

/* More maps than a node shows, and names longer than ours: the first that fit are had. */
static void dirty_maps_are_bounded(void **state)
{
    (void)state;
    if (system("command -v qemu-storage-daemon qemu-img >/dev/null 2>&1") != 0)
        skip();
    struct server server;
    char command[2048], long_name[LIMIT_NAME_BYTES + 2];
    server_make_folder(&server);
    memset(long_name, 'x', sizeof long_name);
    long_name[sizeof long_name - 1] = 0;
    snprintf(command, sizeof command,
             "cd %s && exec 2>log >&2 && qemu-img create -q -f qcow2 i.qcow2 64M && "
             "for n in %s 1 2 3 4 5 6 7 8 9 10 11 12; do qemu-img bitmap --add i.qcow2 $n; done",
             server.folder, long_name);
    assert_int_equal(system(command), 0);
    snprintf(command, sizeof command,
             "cd %s && exec qemu-storage-daemon --pidfile pid --blockdev "
             "qcow2,read-only=on,node-name=d,file.driver=file,file.filename=i.qcow2 --nbd-server "
             "addr.type=unix,addr.path=sock "
             "--export nbd,id=e,node-name=d,name=,bitmaps.0=%s,bitmaps.1=1,bitmaps.2=2,bitmaps.3=3,bitmaps.4=4,"
             "bitmaps.5=5,bitmaps.6=6,bitmaps.7=7,bitmaps.8=8,bitmaps.9=9,bitmaps.10=10,bitmaps.11=11 2>log",
             server.folder, long_name);
    server_run(&server, command);
    struct range dirty[1];
    struct node *node = open_node(&server, true);
    assert_int_equal(node->dirty_map_count, LIMIT_DIRTY_MAPS);
    for (unsigned i = 0; i < node->dirty_map_count; i++) {
        assert_int_equal(atoi(node->dirty_maps[i]), i + 1);
        assert_int_equal(dirty_ranges(node, i, dirty, 1), 0);
    }
    node_destroy(node);
    server_stop(&server);
}

static void errors_come_back(void **state)
{
    (void)state;
    if (!have_nbdkit())
        skip();
    struct server server;
    char bytes[4096];
    server_start(&server, "--filter=error", "error-pread=ENOSPC error-pwrite=EIO error-rate=100%");
    struct node *node = open_node(&server, false);
    assert_int_equal(transfer(node, REQUEST_READ, 0, 0, bytes, sizeof bytes), -ENOSPC);
    assert_int_equal(transfer(node, REQUEST_WRITE, 0, 0, bytes, sizeof bytes), -EIO);
    node_destroy(node);
    server_stop(&server);
}

enum { MANY = 24 };

/* Many reads under way at a slow server, which then goes: killed, or hung up on while it hangs. */
static void end_with_work_under_way(bool hang)
{
    struct server server;
    struct sync_request sync[MANY];
    struct iovec iov[MANY];
    unsigned waiting = MANY;
    char *bytes = malloc(MANY * MIB);
    server_start(&server, "--filter=delay", "rdelay=600");
    struct node *node = open_node(&server, true);
    for (unsigned i = 0; i < MANY; i++) {
        iov[i] = (struct iovec){bytes + i * MIB, MIB};
        sync[i] = (struct sync_request){
            .io = server.io,
            .waiting = &waiting,
            .status = 1,
            .req = {.kind = REQUEST_READ, .range = {i * MIB, MIB}, .iov = &iov[i], .iov_count = 1, .done = sync_done}};
        node_submit(node, &sync[i].req);
    }
    kill(server.pid, hang ? SIGSTOP : SIGKILL);
    if (hang)
        nbd_node_hang_up(node);
    ring_run(server.io);
    for (unsigned i = 0; i < MANY; i++)
        assert_int_equal(sync[i].status, -ENOTCONN);
    /* And everything after it. */
    assert_int_equal(transfer(node, REQUEST_READ, 0, 0, bytes, 4096), -ENOTCONN);
    assert_int_equal(range_request(node, REQUEST_FLUSH, 0, 0, 0), -ENOTCONN);
    nbd_node_hang_up(node); /* once more is harmless */
    node_destroy(node);
    free(bytes);
    server_stop(&server);
}

static void the_server_dies(void **state)
{
    (void)state;
    if (!have_nbdkit())
        skip();
    end_with_work_under_way(false);
}

static void the_server_hangs(void **state)
{
    (void)state;
    if (!have_nbdkit())
        skip();
    end_with_work_under_way(true);
}

static void it_dies_while_idle(void **state)
{
    (void)state;
    if (!have_nbdkit())
        skip();
    struct server server;
    char bytes[4096];
    server_start(&server, "", "");
    struct node *node = open_node(&server, true);
    kill(server.pid, SIGKILL);
    waitpid(server.pid, NULL, 0);
    assert_int_equal(transfer(node, REQUEST_READ, 0, 0, bytes, sizeof bytes), -ENOTCONN);
    node_destroy(node);
    server_stop(&server);
}

static void refused(struct io *io, const char *uri, bool read_only, const char *words)
{
    struct node *node = NULL;
    struct error err;
    assert_true(nbd_node_open(io, uri, read_only, &node, &err) < 0);
    if (!strstr(err.text, words) || !strstr(err.text, uri))
        fail_msg("'%s' does not say '%s' of %s", err.text, words, uri);
}

static void connections_are_refused(void **state)
{
    (void)state;
    if (!have_nbdkit())
        skip();
    struct server server;
    server_start(&server, "-r", "");
    refused(server.io, "nbd+unix:///x?socket=/nonexistent/socket", true, "No such file");
    refused(server.io, "nbd://127.0.0.1:1/x", true, "refused");
    refused(server.io, "http://x", true, "URI");
    refused(server.io, server.uri, false, "is read-only");
    server_stop(&server);

    server_start(&server, "--filter=blocksize-policy",
                 "blocksize-minimum=4K blocksize-preferred=4K blocksize-maximum=1M");
    refused(server.io, server.uri, true, "units of 4096 bytes only");
    server_stop(&server);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(servers_of_every_kind),   cmocka_unit_test(block_status),
        cmocka_unit_test(errors_come_back),        cmocka_unit_test(the_server_dies),
        cmocka_unit_test(the_server_hangs),        cmocka_unit_test(it_dies_while_idle),
        cmocka_unit_test(connections_are_refused), cmocka_unit_test(dirty_maps_of_qemu),
        cmocka_unit_test(dirty_maps_are_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
