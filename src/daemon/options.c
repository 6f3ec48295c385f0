/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The command line of fleeced.
 *
 * A value with sub-options ("vda=FILE,format=raw") is cut at single commas; a doubled comma is a comma, as in QEMU, so
 * that every file name can be said. Each sub-option is cut at its first '='. What belongs to later versions is refused
 * by name, never ignored.
 */
#include "daemon/options.h"

#include <assert.h>
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/name.h"
#include "daemon/config.h"

const char options_help[] =
    "usage: fleeced --name VM --disk NAME=FILE[,OPTION=VALUE…] [--disk …] [OPTION…]\n"
    "       fleeced --config FILE [OPTION…]\n\n"
    "Serves the disks of one virtual machine over NBD and vhost-user, and takes snapshots of\n"
    "them while they are written to.\n\n"
    "  --name VM                the name of the VM\n"
    "  --disk NAME=FILE[,…]     a disk: an image file or a block device; a comma in FILE is written twice\n"
    "      format=raw|qcow2     the format of the image (default: raw)\n"
    "      cache=none|writeback direct I/O (the default), or the page cache\n"
    "      read-only=on|off     refuse writes (default: off)\n"
    "      driver=file|null     null, with an empty FILE: reads zeroes, forgets writes\n"
    "      size=SIZE            of a null disk\n"
    "      granularity=SIZE     unit of preservation, a power of two from 4K (the default) to 4M\n"
    "      track=on|off         note changes for incremental backups, or never (default: once a checkpoint is made)\n"
    "      track-granularity=SIZE unit of that, from 4K (the default) to 4M\n"
    "  --nbd ADDRESS            unix:PATH or tcp:HOST:PORT (loopback only); default: nbd.sock in the run-time folder\n"
    "  --vhost-user NAME=SOCKET  the disk as a vhost-user-blk device, for a VMM; one for each disk\n"
    "  --incoming on|off        open the disks when the VMM starts to use them: a VM that migrates to here (default: "
    "off)\n"
    "  --control SOCKET         the control socket; default: control.sock in the run-time folder\n"
    "  --fleece OPTION=VALUE[,…] where blocks are preserved\n"
    "      ram=SIZE             memory (default: 256M)\n"
    "      max=SIZE             of cache files, which take what memory can't hold (default: none without dir=)\n"
    "      dir=DIR              where the cache files are made (default: beside each disk's image)\n"
    "      cbw-timeout=SECONDS  how long a guest's write may wait for room (default: 10)\n"
    "      copy-on-read=on|off  keep what is read in spare memory (default: off)\n"
    "  --io-threads N           I/O threads; default: one per disk, as many as there are processors, 4 at most\n"
    "  --lock-timeout SECONDS   how long to wait for the lock of a disk that a killed daemon still holds (default: "
    "30)\n"
    "  --guest-agent SOCKET     freeze the guest for snapshots, through the socket of its qemu-ga\n"
    "  --hook-dir DIR           programs that run before (\"freeze\") and after (\"thaw\") the instant of a snapshot\n"
    "  --freeze-timeout SECONDS from the first hook to the thaw, which comes then at the latest (default: 10)\n"
    "  --thaw                   only thaw what a killed daemon of this name has left frozen\n"
    "  --state-dir DIR          where state of block devices is kept, and of images in folders that can't be written\n"
    "  --config FILE            lines WORD = VALUE, with the words above\n"
    "  --help, --version\n\n"
    "The run-time folder is $XDG_RUNTIME_DIR/fleece/VM, for root /run/fleece/VM. See fleeced(8).\n";

/* --- values with sub-options */

/* Cuts the next piece off *rest, at a single comma; ",," becomes ",". In place. NULL: none is left. */
static char *take_piece(char **rest)
{
    char *piece = *rest, *to = piece, *from = piece;
    if (!piece)
        return NULL;
    for (; *from; from++) {
        if (*from == ',' && from[1] != ',')
            break;
        if (*from == ',')
            from++;
        *to++ = *from;
    }
    *rest = *from ? from + 1 : NULL;
    *to = 0;
    return piece;
}

/* Cuts "name=value" in place. -EINVAL without '='. */
static int cut_assignment(const char *option, char *piece, char **value, struct error *err)
{
    char *equals = strchr(piece, '=');
    if (!equals)
        return error_set(err, EINVAL, "%s: '%.100s' is not NAME=VALUE", option, piece);
    *equals = 0;
    *value = equals + 1;
    return 0;
}

/* Both spellings of a choice of two. */
static int parse_choice(const char *option, const char *name, const char *value, const char *no, const char *yes,
                        bool *chosen, struct error *err)
{
    if (strcmp(value, yes) != 0 && strcmp(value, no) != 0)
        return error_set(err, EINVAL, "%s: %s=%.100s is not right: %s or %s", option, name, value, no, yes);
    *chosen = strcmp(value, yes) == 0;
    return 0;
}

/* --- --disk */

static int parse_granularity(const char *option, const char *name, const char *value, uint64_t *bytes,
                             struct error *err)
{
    int status = size_parse(name, value, bytes, err);
    if (status < 0)
        return error_prefix(err, "%s", option);
    if (*bytes < BLOCK_BYTES_MIN || *bytes > BLOCK_BYTES_MAX || (*bytes & (*bytes - 1)) != 0)
        return error_set(err, EINVAL, "%s: %s=%.100s is not right: a power of two from 4K to 4M", option, name, value);
    return 0;
}

static int parse_disk_option(const char *option, struct disk_options *disk, const char *name, const char *value,
                             struct error *err)
{
    if (strcmp(name, "format") == 0)
        return parse_choice(option, name, value, "raw", "qcow2", &disk->qcow2, err);
    if (strcmp(name, "cache") == 0)
        return parse_choice(option, name, value, "none", "writeback", &disk->page_cache, err);
    if (strcmp(name, "read-only") == 0)
        return parse_choice(option, name, value, "off", "on", &disk->read_only, err);
    if (strcmp(name, "driver") == 0)
        return parse_choice(option, name, value, "file", "null", &disk->null_driver, err);
    if (strcmp(name, "size") == 0) {
        int status = size_parse("size", value, &disk->size_bytes, err);
        if (status < 0)
            return error_prefix(err, "%s", option);
        if (disk->size_bytes == 0 || disk->size_bytes > LIMIT_DISK_BYTES)
            return error_set(err, EINVAL, "%s: size=%.100s is not right: from 1 byte to 4096T", option, value);
        return 0;
    }
    if (strcmp(name, "granularity") == 0)
        return parse_granularity(option, name, value, &disk->block_bytes, err);
    if (strcmp(name, "track-granularity") == 0)
        return parse_granularity(option, name, value, &disk->track_granularity, err);
    if (strcmp(name, "track") == 0) {
        bool on = false;
        int status = parse_choice(option, name, value, "off", "on", &on, err);
        disk->track = on ? TRACK_ON : TRACK_OFF;
        return status;
    }
    return error_set(err, EINVAL,
                     "%s: unknown option '%.100s': format, cache, read-only, driver, size, granularity, track and "
                     "track-granularity are known",
                     option, name);
}

/* What the sub-options say together. */
static int check_disk(const char *option, struct disk_options *disk, const char *path, struct error *err)
{
    if (disk->null_driver && disk->size_bytes == 0)
        return error_set(err, EINVAL, "%s: driver=null wants size=SIZE", option);
    if (disk->null_driver && disk->qcow2)
        return error_set(err, EINVAL, "%s: format=qcow2 is for files", option);
    if (disk->null_driver && path[0] && strcmp(path, "null") != 0)
        return error_set(err, EINVAL, "%s: driver=null uses no file, but '%.200s' is given", option, path);
    if (disk->track == TRACK_ON && (disk->null_driver || disk->read_only))
        return error_set(err, EINVAL, "%s: track=on is for disks that can be written and keep what is", option);
    if (disk->null_driver)
        return 0;
    if (!path[0])
        return error_set(err, EINVAL, "%s: the name of the file is missing: NAME=FILE", option);
    if (disk->size_bytes)
        return error_set(err, EINVAL, "%s: size= is for driver=null; a file has its own size", option);
    disk->path = strdup(path);
    return disk->path ? 0 : error_set(err, ENOMEM, "%s: no memory", option);
}

static int parse_disk(struct options *options, char *text, struct error *err)
{
    char option[LIMIT_NAME_BYTES + 16], *rest = text, *path = NULL, *piece, *value = NULL;
    if (options->disk_count == LIMIT_DISKS)
        return error_set(err, EINVAL, "--disk: more than %d disks", LIMIT_DISKS);
    struct disk_options *disk = &options->disks[options->disk_count];
    piece = take_piece(&rest);
    assert(piece);
    if (!strchr(piece, '='))
        return error_set(err, EINVAL, "--disk '%.100s' is not NAME=FILE", piece);
    int status = cut_assignment("--disk", piece, &path, err);
    if (status == 0 && name_check("disk name", piece, err) < 0)
        status = error_prefix(err, "--disk");
    if (status < 0)
        return status;
    snprintf(disk->name, sizeof disk->name, "%s", piece);
    snprintf(option, sizeof option, "--disk %s", disk->name);
    for (unsigned i = 0; i < options->disk_count; i++)
        if (strcmp(options->disks[i].name, disk->name) == 0)
            return error_set(err, EINVAL, "%s: two disks have this name", option);
    while ((piece = take_piece(&rest))) {
        status = cut_assignment(option, piece, &value, err);
        if (status == 0)
            status = parse_disk_option(option, disk, piece, value, err);
        if (status < 0)
            return status;
    }
    status = check_disk(option, disk, path, err);
    if (status == 0)
        options->disk_count++;
    return status;
}

/* --- the other options */

static int make_absolute(const char *option, const char *prefix, const char *path, char **absolute, struct error *err)
{
    char folder[PATH_MAX] = "";
    if (!path[0])
        return error_set(err, EINVAL, "%s: the path is empty", option);
    if (path[0] != '/' && !getcwd(folder, sizeof folder))
        return error_set(err, errno, "%s: the current folder has no name: %s", option, error_name(errno));
    free(*absolute);
    *absolute = NULL;
    if (asprintf(absolute, "%s%s%s%s", prefix, folder, folder[0] ? "/" : "", path) < 0)
        return error_set(err, ENOMEM, "%s: no memory", option);
    return 0;
}

static bool parse_seconds(const char *text, double least, double most, double *seconds)
{
    char *end;
    *seconds = strtod(text, &end);
    return text[0] >= '0' && text[0] <= '9' && !*end && *seconds >= least && *seconds <= most;
}

static int parse_fleece_size(const char *name, const char *value, uint64_t least, uint64_t most, const char *right,
                             uint64_t *size_bytes, struct error *err)
{
    if (size_parse(name, value, size_bytes, err) < 0)
        return error_prefix(err, "--fleece");
    if (*size_bytes < least || *size_bytes > most)
        return error_set(err, EINVAL, "--fleece: %s=%.100s is not right: from %s", name, value, right);
    return 0;
}

static int parse_fleece_option(struct options *options, const char *name, const char *value, struct error *err)
{
    double seconds;
    if (strcmp(name, "ram") == 0)
        return parse_fleece_size(name, value, FLEECE_RAM_MIN, FLEECE_RAM_MAX, "4M to 1T", &options->ram_bytes, err);
    if (strcmp(name, "max") == 0)
        return parse_fleece_size(name, value, FLEECE_DISK_CACHE_MIN, FLEECE_DISK_CACHE_MAX, "8M to 8T",
                                 &options->cache_bytes, err);
    if (strcmp(name, "dir") == 0)
        return make_absolute("--fleece: dir", "", value, &options->cache_dir, err);
    if (strcmp(name, "copy-on-read") == 0)
        return parse_choice("--fleece", name, value, "off", "on", &options->copy_on_read, err);
    if (strcmp(name, "cbw-timeout") == 0) {
        if (!parse_seconds(value, (double)CBW_TIMEOUT_MIN_NS / NS_PER_S, (double)CBW_TIMEOUT_MAX_NS / NS_PER_S,
                           &seconds))
            return error_set(err, EINVAL, "--fleece: cbw-timeout=%.100s is not right: seconds, from 0.1 to 3600",
                             value);
        options->cbw_timeout_ns = (uint64_t)(seconds * (double)NS_PER_S);
        return 0;
    }
    return error_set(err, EINVAL,
                     "--fleece: unknown option '%.100s': ram, max, dir, cbw-timeout and copy-on-read are known", name);
}

static int parse_fleece(struct options *options, char *text, struct error *err)
{
    char *rest = text, *piece, *value = NULL;
    int status = 0;
    while (status == 0 && (piece = take_piece(&rest))) {
        status = cut_assignment("--fleece", piece, &value, err);
        if (status == 0)
            status = parse_fleece_option(options, piece, value, err);
    }
    return status;
}

bool options_want_cache_files(const struct options *options)
{
    return options->cache_dir || options->cache_bytes;
}

static int parse_nbd(struct options *options, const char *text, struct error *err)
{
    if (options->nbd_count == LIMIT_NBD_ADDRESSES)
        return error_set(err, EINVAL, "--nbd: more than %d addresses", LIMIT_NBD_ADDRESSES);
    char **address = &options->nbd[options->nbd_count];
    if (strncmp(text, "unix:", 5) == 0) {
        int status = make_absolute("--nbd", "unix:", text + 5, address, err);
        options->nbd_count += status == 0;
        return status;
    }
    const char *colon = strrchr(text, ':');
    char *end = NULL;
    unsigned long port = strncmp(text, "tcp:", 4) == 0 && colon > text + 4 ? strtoul(colon + 1, &end, 10) : 0;
    if (!end || *end || colon[1] < '0' || colon[1] > '9' || port < 1 || port > 65535)
        return error_set(err, EINVAL, "--nbd '%.200s' is not an address: unix:PATH or tcp:HOST:PORT", text);
    *address = strdup(text);
    options->nbd_count += *address != NULL;
    return *address ? 0 : error_set(err, ENOMEM, "--nbd: no memory");
}

static int parse_vhost_user(struct options *options, char *text, struct error *err)
{
    char *path = NULL;
    if (options->vhost_user_count == LIMIT_DISKS)
        return error_set(err, EINVAL, "--vhost-user: more than %d disks", LIMIT_DISKS);
    struct vhost_user_options *wanted = &options->vhost_users[options->vhost_user_count];
    if (!strchr(text, '='))
        return error_set(err, EINVAL, "--vhost-user '%.100s' is not NAME=SOCKET", text);
    int status = cut_assignment("--vhost-user", text, &path, err);
    if (status == 0 && name_check("disk name", text, err) < 0)
        status = error_prefix(err, "--vhost-user");
    if (status == 0)
        status = make_absolute("--vhost-user", "", path, &wanted->socket, err);
    if (status < 0)
        return status;
    snprintf(wanted->disk, sizeof wanted->disk, "%s", text);
    options->vhost_user_count++;
    return 0;
}

static int parse_threads(struct options *options, const char *text, struct error *err)
{
    char *end;
    unsigned long count = strtoul(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || count < 1 || count > LIMIT_REACTORS)
        return error_set(err, EINVAL, "--io-threads '%.100s' is not right: from 1 to %d", text, LIMIT_REACTORS);
    options->io_threads = (unsigned)count;
    return 0;
}

static int parse_lock_timeout(struct options *options, const char *text, struct error *err)
{
    double seconds;
    if (!parse_seconds(text, 0, 3600, &seconds))
        return error_set(err, EINVAL, "--lock-timeout '%.100s' is not right: seconds, from 0 to 3600", text);
    options->lock_wait_ns = (uint64_t)(seconds * (double)NS_PER_S);
    return 0;
}

static int parse_freeze_timeout(struct options *options, const char *text, struct error *err)
{
    double seconds;
    if (!parse_seconds(text, (double)FREEZE_TIMEOUT_MIN_NS / NS_PER_S, (double)FREEZE_TIMEOUT_MAX_NS / NS_PER_S,
                       &seconds))
        return error_set(err, EINVAL, "--freeze-timeout '%.100s' is not right: seconds, from 0.1 to 600", text);
    options->freeze_timeout_ns = (uint64_t)(seconds * (double)NS_PER_S);
    return 0;
}

/* Paths that go into lines of text. */
static int parse_guest_path(const char *option, const char *prefix, const char *path, char **absolute,
                            struct error *err)
{
    if (strchr(path, '\n'))
        return error_set(err, EINVAL, "%s: the path has a line break in it", option);
    return make_absolute(option, prefix, path, absolute, err);
}

static int parse_incoming(struct options *options, const char *text, struct error *err)
{
    options->incoming = strcmp(text, "on") == 0;
    if (!options->incoming && strcmp(text, "off") != 0)
        return error_set(err, EINVAL, "--incoming '%.100s' is not right: on or off", text);
    return 0;
}

static int parse_name(struct options *options, const char *text, struct error *err)
{
    if (name_check("VM name", text, err) < 0)
        return error_prefix(err, "--name");
    snprintf(options->vm, sizeof options->vm, "%s", text);
    return 0;
}

enum { OPTION_CONFIG = 256, OPTION_AGENT, OPTION_HOOKS, OPTION_FREEZE_TIMEOUT, OPTION_THAW };

static const struct option known[] = {
    {"name", required_argument, NULL, 'n'},
    {"disk", required_argument, NULL, 'd'},
    {"nbd", required_argument, NULL, 'b'},
    {"fleece", required_argument, NULL, 'f'},
    {"control", required_argument, NULL, 'c'},
    {"state-dir", required_argument, NULL, 's'},
    {"io-threads", required_argument, NULL, 't'},
    {"lock-timeout", required_argument, NULL, 'l'},
    {"vhost-user", required_argument, NULL, 'u'},
    {"guest-agent", required_argument, NULL, OPTION_AGENT},
    {"hook-dir", required_argument, NULL, OPTION_HOOKS},
    {"freeze-timeout", required_argument, NULL, OPTION_FREEZE_TIMEOUT},
    {"thaw", no_argument, NULL, OPTION_THAW},
    {"incoming", required_argument, NULL, 'i'},
    {"config", required_argument, NULL, OPTION_CONFIG},
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, 'V'},
    {NULL, 0, NULL, 0},
};

static int parse_config_word(void *context, const char *word, char *value, struct error *err);

static int parse_option(struct options *options, int option, char *value, struct error *err)
{
    switch (option) {
    case 'n':
        return parse_name(options, value, err);
    case 'd':
        return parse_disk(options, value, err);
    case 'b':
        return parse_nbd(options, value, err);
    case 'f':
        return parse_fleece(options, value, err);
    case 'c':
        return make_absolute("--control", "", value, &options->control, err);
    case 's':
        return make_absolute("--state-dir", "", value, &options->state_dir, err);
    case 't':
        return parse_threads(options, value, err);
    case 'l':
        return parse_lock_timeout(options, value, err);
    case 'i':
        return parse_incoming(options, value, err);
    case 'h':
        options->action = OPTIONS_HELP;
        return 0;
    case 'V':
        options->action = OPTIONS_VERSION;
        return 0;
    case 'u':
        return parse_vhost_user(options, value, err);
    case OPTION_AGENT:
        return parse_guest_path("--guest-agent", "unix:", value, &options->guest_agent, err);
    case OPTION_HOOKS:
        return parse_guest_path("--hook-dir", "", value, &options->hook_dir, err);
    case OPTION_FREEZE_TIMEOUT:
        return parse_freeze_timeout(options, value, err);
    case OPTION_THAW:
        options->action = OPTIONS_THAW;
        return 0;
    default:
        return config_read(value, parse_config_word, options, err);
    }
}

/* Whatever takes a value on the command line may stand in a file, too, but for another file. */
static int parse_config_word(void *context, const char *word, char *value, struct error *err)
{
    for (const struct option *option = known; option->name; option++)
        if (strcmp(option->name, word) == 0 && option->has_arg && option->val != OPTION_CONFIG)
            return parse_option(context, option->val, value, err);
    return error_set(err, EINVAL, "'%.100s' is no option that a file can have; fleeced --help lists them", word);
}

static int check_vhost_user(const struct options *options, unsigned index, struct error *err)
{
    const struct vhost_user_options *wanted = &options->vhost_users[index];
    bool is_known = false;
    if (strlen(wanted->socket) >= sizeof(((struct sockaddr_un *)0)->sun_path))
        return error_set(err, EINVAL, "--vhost-user %s: the path of the socket is longer than 107 bytes: %.200s",
                         wanted->disk, wanted->socket);
    for (unsigned i = 0; i < options->disk_count; i++)
        is_known |= strcmp(options->disks[i].name, wanted->disk) == 0;
    if (!is_known)
        return error_set(err, EINVAL, "--vhost-user %s: there is no --disk of this name", wanted->disk);
    for (unsigned i = 0; i < index; i++) {
        if (strcmp(options->vhost_users[i].disk, wanted->disk) == 0)
            return error_set(err, EINVAL, "--vhost-user %s: a disk has one socket", wanted->disk);
        if (strcmp(options->vhost_users[i].socket, wanted->socket) == 0)
            return error_set(err, EINVAL, "--vhost-user %s: socket %.200s is another disk's", wanted->disk,
                             wanted->socket);
    }
    return 0;
}

static int check_guest(const struct options *options, struct error *err)
{
    const char *agent = options->guest_agent;
    if (agent && strlen(agent) - strlen("unix:") >= sizeof(((struct sockaddr_un *)0)->sun_path))
        return error_set(err, EINVAL, "--guest-agent: the path of the socket is longer than 107 bytes: %.200s",
                         agent + strlen("unix:"));
    if (options->freeze_timeout_ns && !agent && !options->hook_dir)
        return error_set(err, EINVAL, "--freeze-timeout goes with --guest-agent or --hook-dir");
    return 0;
}

static int check_options(const struct options *options, int argc, char **argv, struct error *err)
{
    if (options->action != OPTIONS_SERVE && options->action != OPTIONS_THAW)
        return 0;
    if (optind < argc)
        return error_set(err, EINVAL, "'%.100s' is no option; fleeced --help lists them", argv[optind]);
    if (!options->vm[0])
        return error_set(err, EINVAL, "--name is missing: the name of the VM");
    if (options->action == OPTIONS_THAW)
        return 0;
    if (options->disk_count == 0)
        return error_set(err, EINVAL, "--disk is missing: at least one NAME=FILE");
    if (options->incoming && options->vhost_user_count == 0)
        return error_set(err, EINVAL, "--incoming on without --vhost-user: no VMM could say when the VM is here");
    for (unsigned i = 0; i < options->vhost_user_count; i++) {
        int status = check_vhost_user(options, i, err);
        if (status < 0)
            return status;
    }
    return check_guest(options, err);
}

int options_parse(struct options *options, int argc, char **argv, struct error *err)
{
    int option, status = 0;
    *options = (struct options){.ram_bytes = FLEECE_RAM_DEFAULT, .lock_wait_ns = LOCK_WAIT_DEFAULT_NS};
    optind = 0;
    opterr = 0;
    while (status == 0 && (option = getopt_long(argc, argv, ":h", known, NULL)) != -1) {
        char *value = optarg ? strdup(optarg) : NULL; /* parsers cut it up; argv stays as ps shows it */
        if (option == ':')
            status = error_set(err, EINVAL, "%.100s wants a value", argv[optind - 1]);
        else if (option == '?')
            status = error_set(err, EINVAL, "'%.100s' is no option; fleeced --help lists them", argv[optind - 1]);
        else if (optarg && !value)
            status = error_set(err, ENOMEM, "no memory for the command line");
        else
            status = parse_option(options, option, value, err);
        free(value);
    }
    return status < 0 ? status : check_options(options, argc, argv, err);
}

void options_fini(struct options *options)
{
    for (unsigned i = 0; i < LIMIT_DISKS; i++) {
        free(options->disks[i].path);
        free(options->vhost_users[i].socket);
    }
    for (unsigned i = 0; i < LIMIT_NBD_ADDRESSES; i++)
        free(options->nbd[i]);
    free(options->control);
    free(options->state_dir);
    free(options->cache_dir);
    free(options->guest_agent);
    free(options->hook_dir);
}

unsigned options_io_threads(const struct options *options)
{
    cpu_set_t set;
    unsigned processors = sched_getaffinity(0, sizeof set, &set) == 0 ? (unsigned)CPU_COUNT(&set) : 1;
    unsigned wanted = options->disk_count < processors ? options->disk_count : processors;
    if (wanted > LIMIT_REACTORS_DEFAULT)
        wanted = LIMIT_REACTORS_DEFAULT;
    return options->io_threads ? options->io_threads : wanted;
}

int options_check_state_dir(const struct options *options, struct error *err)
{
    struct stat st;
    if (!options->state_dir)
        return 0;
    if (stat(options->state_dir, &st) < 0)
        return error_set(err, errno, "--state-dir %.300s: %s", options->state_dir, error_name(errno));
    if (!S_ISDIR(st.st_mode))
        return error_set(err, ENOTDIR, "--state-dir %.300s: it is not a directory", options->state_dir);
    if (access(options->state_dir, W_OK | X_OK) < 0)
        return error_set(err, errno, "--state-dir %.300s can't be written: %s", options->state_dir, error_name(errno));
    return 0;
}
