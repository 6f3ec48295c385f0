/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The life of the daemon, on the control thread.
 *
 *   CLAIM    run-time folder and its lock, so that nothing below ever happens twice for one VM
 *   AWAIT    with --incoming: the vhost-user sockets, until a VMM uses a disk; all else of the disks is another daemon's
 *   OPEN     the disks, on a helper thread, since a killed daemon's locks may have to be waited for
 *   RECOVER  sidecars and checkpoints: what each disk knows of its changes, before any of them is written; then the
 *            snapshots of a killed daemon, with copy-before-write in place, and away with what else it has left
 *   EXPORT   the NBD server, the pushes of a killed daemon and the vhost-user sockets: from here on the guest is served
 *   SERVE    the control socket, and "ready"
 *   then, after a signal, `quit` or a failure at any point, whatever exists ends in the opposite order:
 *   THAW     a guest that is frozen for a cut thaws, while its disks are still served
 *   END_JOBS jobs are cancelled by force: nobody waits for a target
 *   UNEXPORT front-ends of vhost-user have their requests answered and are hung up on, then NBD ends with ESHUTDOWN
 *   CLOSE    snapshots are deleted, disks are closed; where the VM has gone on elsewhere, first goes what would not know
 *            of that
 *   HANG_UP  control clients get what is queued for them; the space of cache files is given back
 *   ENDED    reactors stop, the folder and its sockets are removed
 *
 * Where the signal is SIGUSR2 the daemon ends for the next one, such as a new version of it: THAW, then the front-ends of
 * vhost-user as in UNEXPORT, and then it leaves all else as a kill would: snapshots, jobs, what is tracked. The next one
 * adopts that (C10: it waits for the locks, which go when all I/O has landed), and the guests' VMMs connect again.
 *
 * Everything that ends must have ended on its reactor before the reactor stops, so each step starts in the completion of
 * the one before. The first signal asks for this orderly end; a second one gives up waiting: files of our own are removed
 * and the process ends at once. While disks are being opened there is nothing to end in order, so the first signal
 * does that, too.
 */
#include "daemon/daemon.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/place.h"
#include "daemon/daemon_internal.h"
#include "daemon/memories.h"
#include "daemon/notify.h"
#include "daemon/space.h"
#include "io/ring.h"
#include "vm/push.h"

static void daemon_end_next(void *argument);

static void daemon_move(struct daemon *daemon, enum daemon_state to)
{
    static const char allowed[][DAEMON_ENDED + 1] = {
        [DAEMON_CLAIM] = {[DAEMON_AWAIT] = 1, [DAEMON_OPEN] = 1, [DAEMON_THAW] = 1},
        [DAEMON_AWAIT] = {[DAEMON_OPEN] = 1, [DAEMON_THAW] = 1},
        [DAEMON_OPEN] = {[DAEMON_RECOVER] = 1, [DAEMON_THAW] = 1},
        [DAEMON_RECOVER] = {[DAEMON_EXPORT] = 1, [DAEMON_THAW] = 1},
        [DAEMON_EXPORT] = {[DAEMON_SERVE] = 1, [DAEMON_THAW] = 1},
        [DAEMON_SERVE] = {[DAEMON_THAW] = 1},
        [DAEMON_THAW] = {[DAEMON_END_JOBS] = 1, [DAEMON_UNEXPORT] = 1},
        [DAEMON_END_JOBS] = {[DAEMON_UNEXPORT] = 1},
        [DAEMON_UNEXPORT] = {[DAEMON_CLOSE] = 1},
        [DAEMON_CLOSE] = {[DAEMON_HANG_UP] = 1},
        [DAEMON_HANG_UP] = {[DAEMON_ENDED] = 1},
    };
    assert(allowed[daemon->state][to]);
    daemon->state = to;
}

static bool is_starting(const struct daemon *daemon)
{
    return daemon->state < DAEMON_SERVE;
}

/* --- the end */

static void daemon_end(struct daemon *daemon, const char *reason)
{
    if (daemon->state >= DAEMON_THAW)
        return;
    notify_send("STOPPING=1");
    daemon_move(daemon, DAEMON_THAW);
    if (daemon->control)
        control_server_stop(daemon->control, reason);
    guest_stop(&daemon->guest, daemon_end_next, daemon);
}

/* To the next daemon. */
_Noreturn static void daemon_leave(struct daemon *daemon)
{
    runtime_release(&daemon->runtime);
    _exit(EXIT_HANDED_OVER);
}

/* The guests' requests are answered; now those who read. */
static void daemon_guests_left(void *argument)
{
    struct daemon *daemon = argument;
    if (daemon->hand_over)
        daemon_leave(daemon);
    if (daemon->exports)
        exports_stop(daemon->exports, daemon_end_next, daemon);
    else
        daemon_end_next(daemon);
}

/* One step has ended: the next one. */
static void daemon_end_next(void *argument)
{
    struct daemon *daemon = argument;
    if (daemon->state == DAEMON_THAW && !daemon->hand_over) {
        daemon_move(daemon, DAEMON_END_JOBS);
        job_table_end(&daemon->jobs, daemon_end_next, daemon);
        return;
    }
    if (daemon->state == DAEMON_END_JOBS || daemon->state == DAEMON_THAW) {
        daemon_move(daemon, DAEMON_UNEXPORT);
        vhost_exports_stop(&daemon->vhost_exports, daemon_guests_left, daemon);
        return;
    }
    if (daemon->state == DAEMON_UNEXPORT) {
        daemon_move(daemon, DAEMON_CLOSE);
        if (daemon->vhost_exports.away)
            sidecars_leave(&daemon->sidecars);
        if (daemon->vm) {
            vm_destroy(daemon->vm, daemon_end_next, daemon);
            return;
        }
    }
    if (daemon->state == DAEMON_CLOSE) {
        daemon_move(daemon, DAEMON_HANG_UP);
        if (daemon->control) {
            control_server_destroy(daemon->control, daemon_end_next, daemon);
            return;
        }
    }
    if (!caches_are_idle(&daemon->caches)) {
        caches_when_idle(&daemon->caches, daemon_end_next, daemon);
        return;
    }
    daemon_move(daemon, DAEMON_ENDED);
    if (daemon->signal_waiting)
        io_cancel(daemon->control_io, &daemon->signal_op);
    else
        ring_quit(daemon->control_io);
}

static void daemon_fail(struct daemon *daemon, const struct error *err)
{
    log_error("%s", err->text);
    if (is_starting(daemon) && daemon->vm && (vm_snapshot_next(daemon->vm, NULL) || daemon->jobs.count > 0)) {
        /* An orderly end would delete the snapshots and cancel the jobs: the next start takes them over again. */
        runtime_release(&daemon->runtime);
        _exit(EXIT_FAILED);
    }
    daemon->exit_code = EXIT_FAILED;
    daemon_end(daemon, "host-signal");
}

/* --- signals */

static void daemon_give_up(struct daemon *daemon)
{
    caches_give_up(&daemon->caches);
    if (daemon->vm)
        vm_forget(daemon->vm);
    runtime_release(&daemon->runtime);
    _exit(EXIT_INTERRUPTED);
}

static void signals_wait(struct daemon *daemon)
{
    daemon->signal_waiting = true;
    io_poll(daemon->control_io, &daemon->signal_op, daemon->signal_fd, POLLIN);
}

static void signal_arrived(struct io_op *op, int64_t result)
{
    struct daemon *daemon = container_of(op, struct daemon, signal_op);
    (void)result; /* whatever it is: the descriptor tells */
    daemon->signal_waiting = false;
    if (daemon->state == DAEMON_ENDED) {
        ring_quit(daemon->control_io);
        return;
    }
    if (read(daemon->signal_fd, &daemon->signal, sizeof daemon->signal) != sizeof daemon->signal) {
        signals_wait(daemon);
        return;
    }
    const bool hand_over = daemon->signal.ssi_signo == SIGUSR2;
    if (hand_over && (daemon->state == DAEMON_OPEN || daemon->hand_over))
        daemon_leave(daemon);
    if (hand_over && (daemon->state >= DAEMON_THAW || daemon->end_wanted)) { /* it ends for good */
        signals_wait(daemon);
        return;
    }
    if (daemon->state == DAEMON_OPEN || daemon->state >= DAEMON_THAW || daemon->end_wanted)
        daemon_give_up(daemon);
    daemon->hand_over = hand_over && !daemon->vhost_exports.away;
    log_info(daemon->hand_over ? "ending for the next daemon: signal %s" : "ending: signal %s",
             strsignal((int)daemon->signal.ssi_signo));
    if (is_starting(daemon) && !daemon->awaiting) {
        daemon->exit_code = EXIT_INTERRUPTED;
        daemon->end_wanted = true;
    } else
        daemon_end(daemon, "host-signal");
    signals_wait(daemon);
}

static int signals_start(struct daemon *daemon, struct error *err)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGUSR2);
    daemon->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (daemon->signal_fd < 0)
        return error_set(err, errno, "no descriptor for signals: %s", error_name(errno));
    daemon->signal_op.done = signal_arrived;
    signals_wait(daemon);
    return 0;
}

/* --- what the control server asks us for */

static void host_exports_query(void *context, void (*done)(void *argument, const struct nbd_server_status *status),
                               void *argument)
{
    struct daemon *daemon = context;
    exports_query(daemon->exports, done, argument);
}

static unsigned host_vhost_users(void *context, struct vhost_export_status *status)
{
    const struct daemon *daemon = context;
    for (unsigned i = 0; i < daemon->vhost_exports.count; i++)
        vhost_export_status(daemon->vhost_exports.exports[i], &status[i]);
    return daemon->vhost_exports.count;
}

static void host_guest(void *context, struct freezer_status *status)
{
    const struct daemon *daemon = context;
    freezer_status(daemon->guest.freezer, status);
}

static void host_quit(void *context)
{
    log_info("ending: a control client asked for it");
    daemon_end(context, "host-qmp-quit");
}

/* --- the start, from its last step to its first */

static void record_sockets(struct daemon *daemon)
{
    const char *paths[LIMIT_NBD_ADDRESSES + LIMIT_DISKS + 1] = {daemon->control_path};
    unsigned count = 1;
    struct error err;
    for (unsigned i = 0; i < daemon->nbd_count; i++)
        if (strncmp(daemon->nbd[i], "unix:", 5) == 0)
            paths[count++] = daemon->nbd[i] + 5;
    for (unsigned i = 0; i < daemon->options->vhost_user_count; i++)
        paths[count++] = daemon->options->vhost_users[i].socket;
    if (runtime_record(&daemon->runtime, paths, count, &err) < 0)
        log_warning("%s", err.text);
}

static void daemon_served(void *argument, const struct error *failure)
{
    struct daemon *daemon = argument;
    struct error err;
    if (failure) {
        daemon_fail(daemon, failure);
        return;
    }
    if (daemon->end_wanted) {
        daemon_end(daemon, "host-signal");
        return;
    }
    if (control_server_listen(daemon->control, daemon->control_path, &err) < 0) {
        error_prefix(&err, "--control");
        daemon_fail(daemon, &err);
        return;
    }
    record_sockets(daemon);
    daemon_move(daemon, DAEMON_SERVE);
    caches_free_left_overs(&daemon->caches);
    notify_ready(daemon->options, daemon->nbd, daemon->nbd_count, daemon->control_path);
    if (!daemon->options->incoming)
        return;
    vhost_exports_open(&daemon->vhost_exports, daemon->vm);
    guest_arrived(&daemon->guest, daemon->control_io, daemon->options);
}

static void daemon_published(void *argument)
{
    struct daemon *daemon = argument;
    pushes_take_over(daemon->vm, &daemon->jobs);
    if (daemon->end_wanted)
        daemon_end(daemon, "host-signal");
    else if (daemon->options->incoming)
        daemon_served(daemon, NULL);
    else
        vhost_exports_start(&daemon->vhost_exports, daemon->control_io, daemon->vm, NULL, daemon->options, NULL,
                            daemon_served, daemon);
}

static void daemon_exported(void *argument, const struct error *failure)
{
    struct daemon *daemon = argument;
    if (failure)
        daemon_fail(daemon, failure);
    else if (daemon->end_wanted)
        daemon_end(daemon, "host-signal");
    else
        vm_publish_adopted(daemon->vm, daemon_published, daemon);
}

/* The VM takes over the leaves that were opened. */
static int daemon_make_vm(struct daemon *daemon, struct error *err)
{
    struct vm_options options = {
        .name = daemon->options->vm,
        .ram_bytes = daemon->options->ram_bytes,
        .disk_bytes = daemon->caches.max_bytes,
        .cbw_timeout_ns = daemon->options->cbw_timeout_ns,
        .copy_on_read = daemon->options->copy_on_read,
        .memory_folder = daemon->memory_folder,
        .hooks = daemon_vm_hooks(daemon),
    };
    daemon->vm = vm_create(daemon->control_io, &options);
    if (!daemon->vm)
        return error_set(err, ENOMEM, "no memory for VM %s", options.name);
    for (unsigned i = 0; i < daemon->disks.opened; i++) {
        const struct disk_options *disk = &daemon->options->disks[i];
        int status = vm_add_disk(daemon->vm, disk->name, daemon->disks.leaves[i], disk->block_bytes, err);
        if (status < 0)
            return error_prefix(err, "--disk %s", disk->name);
    }
    if (daemon->disks.opened < daemon->options->disk_count)
        return 0; /* it only has to be destroyed */
    return vm_start(daemon->vm, err) < 0 ? error_prefix(err, "--fleece") : 0;
}

static int daemon_make_servers(struct daemon *daemon, struct error *err)
{
    struct control_host host = {
        .context = daemon,
        .vm = daemon->vm,
        .jobs = &daemon->jobs,
        .nbd_addresses = daemon->nbd,
        .nbd_address_count = daemon->nbd_count,
        .disk_files = daemon->disk_files,
        .reactors = daemon->features,
        .reactor_count = daemon->reactor_count,
        .exports_query = host_exports_query,
        .vhost_users = host_vhost_users,
        .guest = host_guest,
        .rss_bytes = space_rss_bytes,
        .quit = host_quit,
    };
    daemon->exports = exports_create(daemon->control_io, daemon->reactors[0]);
    daemon->control = control_server_create(daemon->control_io, &host);
    if (daemon->control)
        daemon->jobs.hooks = control_job_hooks(daemon->control);
    return daemon->exports && daemon->control ? 0 : error_set(err, ENOMEM, "no memory for the servers");
}

/* On a helper thread. */
static int64_t open_all(void *argument)
{
    struct daemon *daemon = argument;
    int64_t status = caches_choose(&daemon->caches, &daemon->disks.err);
    if (status == 0)
        status = disks_open(&daemon->disks);
    if (status == 0)
        status = caches_prepare(&daemon->caches, daemon->disks.leaves, &daemon->disks.err);
    if (status == 0 && daemon->memory_folder[0])
        memories_take_over(&daemon->disks, daemon->memory_folder);
    return status;
}

static void daemon_swept(struct io_op *op, int64_t result)
{
    struct daemon *daemon = container_of(op, struct daemon, open);
    (void)result;
    if (daemon->end_wanted) {
        daemon_end(daemon, "host-signal");
        return;
    }
    daemon_move(daemon, DAEMON_EXPORT);
    exports_start(daemon->exports, daemon->vm, daemon->nbd, daemon->nbd_count, daemon_exported, daemon);
}

/* On a helper thread. */
static int64_t sweep(void *argument)
{
    struct daemon *daemon = argument;
    caches_sweep(&daemon->caches);
    return 0;
}

/* What is left of the killed daemon is nobody's now. */
static void daemon_adopted(void *argument)
{
    struct daemon *daemon = argument;
    daemon->open.done = daemon_swept;
    io_work(daemon->control_io, &daemon->open, sweep, daemon);
}

/* Nothing is served before every disk knows what it knew, and every snapshot is adopted or buried (C2). */
static void daemon_recovered(void *argument, const struct error *failure)
{
    struct daemon *daemon = argument;
    if (failure || daemon->end_wanted) {
        if (failure)
            daemon_fail(daemon, failure);
        else
            daemon_end(daemon, "host-signal");
        return;
    }
    vm_adopt(daemon->vm, daemon_adopted, daemon);
}

static void disks_opened(struct io_op *op, int64_t result)
{
    struct daemon *daemon = container_of(op, struct daemon, open);
    struct error err;
    int status = daemon_make_vm(daemon, &err);
    if (result < 0)
        err = daemon->disks.err;
    else if (status == 0)
        status = daemon_make_servers(daemon, &err);
    if (result < 0 || status < 0) {
        daemon_fail(daemon, &err);
        return;
    }
    sidecars_init(&daemon->sidecars, daemon->control_io, daemon->options, &daemon->disks);
    daemon_move(daemon, DAEMON_RECOVER);
    vm_recover(daemon->vm, daemon_recovered, daemon);
}

static void daemon_open(struct daemon *daemon)
{
    daemon->awaiting = false;
    daemon->open.done = disks_opened;
    daemon_move(daemon, DAEMON_OPEN);
    io_work(daemon->control_io, &daemon->open, open_all, daemon);
}

static void daemon_wanted(void *argument)
{
    struct daemon *daemon = argument;
    daemon->wanted = true;
    if (daemon->awaiting)
        daemon_open(daemon);
}

/* The sockets are there, and the disks are another daemon's. */
static void daemon_awaits(void *argument, const struct error *failure)
{
    struct daemon *daemon = argument;
    if (failure)
        daemon_fail(daemon, failure);
    else if (daemon->end_wanted)
        daemon_end(daemon, "host-signal");
    if (daemon->state != DAEMON_AWAIT)
        return;
    daemon->awaiting = true;
    record_sockets(daemon);
    log_info("ready: VM %s is awaited; its disks are opened when it is here", daemon->options->vm);
    notify_send("READY=1");
    if (daemon->wanted)
        daemon_open(daemon);
}

static void disks_looked_at(struct io_op *op, int64_t result)
{
    struct daemon *daemon = container_of(op, struct daemon, open);
    if (result < 0)
        daemon_fail(daemon, &daemon->disks.err);
    else if (daemon->end_wanted)
        daemon_end(daemon, "host-signal");
    else
        vhost_exports_start(&daemon->vhost_exports, daemon->control_io, NULL, daemon->disks.stand_ins, daemon->options,
                            daemon_wanted, daemon_awaits, daemon);
}

static int reactors_start(struct daemon *daemon, struct error *err)
{
    unsigned wanted = options_io_threads(daemon->options);
    while (daemon->reactor_count < wanted) {
        char name[16];
        unsigned i = daemon->reactor_count;
        snprintf(name, sizeof name, "fleece-io-%u", i & 0xff);
        int status = ring_start(name, &daemon->reactors[i], err);
        if (status < 0)
            return status;
        daemon->features[i] = ring_features(daemon->reactors[i]);
        daemon->reactor_count++;
    }
    return 0;
}

static void choose_places(struct daemon *daemon)
{
    const struct options *options = daemon->options;
    (void)place_memory(daemon->memory_folder, sizeof daemon->memory_folder, options->vm); /* names are short */
    if (options->control)
        snprintf(daemon->control_path, sizeof daemon->control_path, "%s", options->control);
    else
        snprintf(daemon->control_path, sizeof daemon->control_path, "%s/control.sock", daemon->runtime.folder);
    snprintf(daemon->nbd_default, sizeof daemon->nbd_default, "unix:%s/nbd.sock", daemon->runtime.folder);
    daemon->nbd[0] = daemon->nbd_default;
    daemon->nbd_count = 1;
    for (unsigned i = 0; i < options->nbd_count; i++)
        daemon->nbd[i] = options->nbd[i];
    if (options->nbd_count)
        daemon->nbd_count = options->nbd_count;
    for (unsigned i = 0; i < options->disk_count; i++)
        daemon->disk_files[i] = options->disks[i].path;
}

static int daemon_start(struct daemon *daemon, struct error *err)
{
    int status = options_check_state_dir(daemon->options, err);
    if (status == 0)
        status = runtime_claim(&daemon->runtime, daemon->options->vm, daemon->options->lock_wait_ns, err);
    if (status == 0)
        status = guest_start(&daemon->guest, daemon->control_io, daemon->options, &daemon->runtime, err);
    if (status == 0)
        status = signals_start(daemon, err);
    if (status == 0)
        status = reactors_start(daemon, err);
    if (status < 0)
        return status;
    choose_places(daemon);
    daemon->disks.options = daemon->options;
    daemon->disks.reactors = daemon->reactors;
    daemon->disks.reactor_count = daemon->reactor_count;
    if (daemon->options->incoming) {
        daemon_move(daemon, DAEMON_AWAIT);
        daemon->open.done = disks_looked_at;
        io_work(daemon->control_io, &daemon->open, disks_look, &daemon->disks);
    } else {
        daemon_open(daemon);
    }
    return 0;
}

int daemon_run(const struct options *options)
{
    struct error err;
    struct daemon *daemon = calloc(1, sizeof *daemon);
    if (!daemon) {
        log_error("no memory to start");
        return EXIT_FAILED;
    }
    daemon->options = options;
    job_table_init(&daemon->jobs);
    daemon->signal_fd = daemon->runtime.lock_fd = -1;
    if (ring_create(&daemon->control_io, &err) < 0) {
        log_error("%s", err.text);
        free(daemon);
        return EXIT_FAILED;
    }
    caches_init(&daemon->caches, daemon->control_io, options);
    if (daemon_start(daemon, &err) < 0)
        daemon_fail(daemon, &err);
    ring_run(daemon->control_io);
    guest_fini(&daemon->guest);
    for (unsigned i = 0; i < daemon->reactor_count; i++)
        ring_destroy(daemon->reactors[i]);
    ring_destroy(daemon->control_io);
    if (daemon->exports)
        exports_destroy(daemon->exports);
    if (daemon->signal_fd >= 0)
        close(daemon->signal_fd);
    caches_fini(&daemon->caches);
    runtime_release(&daemon->runtime);
    int exit_code = daemon->exit_code;
    free(daemon);
    return exit_code;
}
