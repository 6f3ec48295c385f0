// SPDX-License-Identifier: GPL-2.0-or-later
/* Files whose content follows from their number.
 *
 * Number n is a file FOLDER/n, fsynced with its folder, and then a page of FOLDER/pages, overwritten in place. Every fifth
 * file is written under another name and renamed. The number is said when all of it is durable, and the next one is begun
 * only then, so at most the largest number that is found may be incomplete. */
#include "load.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAGE 4096
#define PAGE_WORDS (PAGE / sizeof(uint64_t))
#define PAGES 64
#define LONGEST (40 << 10)

struct content {
    size_t size;
    uint64_t words[LONGEST / sizeof(uint64_t) + 1];
};

static void content_of(uint64_t n, struct content *content)
{
    load_fill(content->words, LONGEST / sizeof(uint64_t) + 1, n);
    content->size = (size_t)(content->words[0] % LONGEST) + 1;
}

/* Page n: its number, then what belongs to it. */
static void page_of(uint64_t n, uint64_t *page)
{
    load_fill(page, PAGE_WORDS, ~n);
    page[0] = n;
}

static void write_file(int folder, const char *name, const struct content *content)
{
    int fd = openat(folder, name, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || write(fd, content->words, content->size) != (ssize_t)content->size || fsync(fd) != 0 ||
        close(fd) != 0)
        load_die("writing %s", name);
}

static void write_page(int pages, uint64_t n)
{
    uint64_t page[PAGE_WORDS];
    page_of(n, page);
    if (pwrite(pages, page, PAGE, (off_t)(n % PAGES * PAGE)) != PAGE || fdatasync(pages) != 0)
        load_die("writing page %llu", (unsigned long long)n);
}

/* Is the file there with its content? */
static int file_is_right(int folder, uint64_t n)
{
    static struct content expected, found;
    char name[24];
    snprintf(name, sizeof name, "%llu", (unsigned long long)n);
    int fd = openat(folder, name, O_RDONLY);
    if (fd < 0)
        return 0;
    ssize_t size = read(fd, found.words, sizeof found.words);
    close(fd);
    content_of(n, &expected);
    return size == (ssize_t)expected.size && memcmp(found.words, expected.words, expected.size) == 0;
}

/* The largest number for which there is a file, and how many are above `limit`. */
static uint64_t largest(const char *path, uint64_t limit, unsigned *above)
{
    DIR *folder = opendir(path);
    uint64_t found = 0;
    if (!folder)
        load_die("opening %s", path);
    *above = 0;
    for (struct dirent *entry; (entry = readdir(folder));) {
        char *end;
        uint64_t n = strtoull(entry->d_name, &end, 10);
        if (*end || n == 0)
            continue;
        *above += n > limit;
        if (n > found)
            found = n;
    }
    closedir(folder);
    return found;
}

void load_files(const char *path, const char *name, unsigned pause_ms)
{
    static struct content content;
    unsigned above;
    int folder = open(path, O_RDONLY | O_DIRECTORY);
    int pages = folder < 0 ? -1 : openat(folder, "pages", O_RDWR | O_CREAT, 0644);
    if (pages < 0)
        load_die("opening %s/pages", path);
    uint64_t n = largest(path, UINT64_MAX, &above);
    if (n > 0 && file_is_right(folder, n)) { /* all that can be missing is its page */
        write_page(pages, n);
        load_say(name, n++);
    }
    for (n = n > 0 ? n : 1;; n++) {
        char file[24];
        snprintf(file, sizeof file, "%llu", (unsigned long long)n);
        content_of(n, &content);
        if (n % 5 == 0) {
            write_file(folder, "new", &content);
            if (renameat(folder, "new", folder, file) != 0)
                load_die("renaming %s", file);
        } else {
            write_file(folder, file, &content);
        }
        if (fsync(folder) != 0)
            load_die("fsync of %s", path);
        write_page(pages, n);
        load_say(name, n);
        load_pause(pause_ms);
    }
}

void load_check_files(const char *path, uint64_t last)
{
    unsigned above;
    errno = 0;
    int folder = open(path, O_RDONLY | O_DIRECTORY);
    int pages = folder < 0 ? -1 : openat(folder, "pages", O_RDONLY);
    if (pages < 0)
        load_die("opening %s/pages", path);
    for (uint64_t n = 1; n <= last; n++) {
        if (!file_is_right(folder, n))
            load_die("%s/%llu is not as it was fsynced; durable are 1 to %llu", path, (unsigned long long)n,
                     (unsigned long long)last);
    }
    for (uint64_t n = last > PAGES ? last - PAGES + 1 : 1; n <= last; n++) {
        uint64_t found[PAGE_WORDS], expected[PAGE_WORDS];
        if (pread(pages, found, PAGE, (off_t)(n % PAGES * PAGE)) != PAGE)
            load_die("reading page %llu of %s", (unsigned long long)n, path);
        page_of(found[0], expected);
        if (found[0] < n || found[0] % PAGES != n % PAGES || memcmp(found, expected, PAGE) != 0)
            load_die("page %llu of %s holds %llu", (unsigned long long)n, path, (unsigned long long)found[0]);
    }
    largest(path, last, &above);
    printf("right %llu above %u\n", (unsigned long long)last, above);
}
