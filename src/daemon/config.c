/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The file is parsed by libinih, which gives no numbers of lines, takes 199 bytes of each at most, and cuts off names that
 * it finds too long. So it gets its lines from here, counted, and looked at for what it would pass over:
 *
 *  - a section, or a line that begins with a blank (libinih: more of the value above): there are none
 *  - "WORD: VALUE", which it would take
 *  - a byte 0, which would end the line
 *
 * A long line is handed over in pieces; each but the first begins with a blank, so libinih takes it for more of the value,
 * and the pieces are put together again. No piece begins or ends with a blank of the line itself, which would be lost.
 */
#include "daemon/config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <ini.h>

struct config {
    const char *path;
    int (*apply)(void *context, const char *word, char *value, struct error *err);
    void *context;
    FILE *file;
    unsigned line; /* its number */
    char text[LIMIT_CONFIG_LINE_BYTES], value[LIMIT_CONFIG_LINE_BYTES];
    size_t at; /* what of the text has been handed over */
    bool more; /* and whether there is more of it */
    int status;
    struct error *err;
};

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* The first error ends it all. */
static void fail(struct config *config, int code, const char *sentence)
{
    if (config->status == 0)
        config->status = error_set(config->err, code, "%s:%u: %s", config->path, config->line, sentence);
}

/* Blanks at the end, and a remark, go. */
static void trim(char *text)
{
    for (char *at = text + 1; text[0] && *at; at++)
        if (*at == ';' && is_blank(at[-1]))
            *at = '\0';
    size_t length = strlen(text);
    while (length > 0 && is_blank(text[length - 1]))
        text[--length] = '\0';
}

/* What is wrong with a line that was read into text[size], which was full of ones; NULL: nothing. */
static const char *judge_line(const char *text, size_t size)
{
    const char *end = memrchr(text, '\0', size); /* fgets() puts it behind what it has read */
    if (strlen(text) != (size_t)(end - text))
        return "there is a byte 0 in the line";
    if (strlen(text) == size - 1 && text[size - 2] != '\n')
        return "the line is too long: 16382 bytes are right at most";
    if (is_blank(text[0]))
        return "the line begins with a blank: a value is one line, WORD = VALUE";
    if (text[0] == '[')
        return "there are no sections: a line is WORD = VALUE, with the words of the options";
    return NULL;
}

static bool says_nothing(const char *text)
{
    text += strspn(text, " \t\r\n");
    return *text == '\0' || *text == '#' || *text == ';';
}

/* Fills `text` with the next line that says something. False: there is none. */
static bool next_line(struct config *config)
{
    do {
        memset(config->text, 1, sizeof config->text);
        if (!fgets(config->text, sizeof config->text, config->file))
            return false;
        config->line++;
        const char *wrong = judge_line(config->text, sizeof config->text);
        if (wrong && (!says_nothing(config->text) || !is_blank(config->text[0])))
            fail(config, EINVAL, wrong);
    } while (config->status == 0 && says_nothing(config->text));
    trim(config->text);
    config->at = 0;
    return config->status == 0;
}

/* How much of `text` goes into a piece of `room` bytes. */
static size_t piece_length(const char *text, size_t room)
{
    size_t length = strlen(text);
    if (length <= room)
        return length;
    for (length = room; length > 1; length--)
        if (!is_blank(text[length - 1]) && !is_blank(text[length]) && text[length] != ';' && text[length] != '#')
            return length;
    return room; /* nothing but blanks */
}

/* As fgets(), for libinih. */
static char *read_piece(char *piece, int size, void *argument)
{
    struct config *config = argument;
    bool first = !config->more;
    if (config->status < 0 || (first && !next_line(config)))
        return NULL;
    size_t length = piece_length(config->text + config->at, (size_t)size - 3);
    snprintf(piece, (size_t)size, "%s%.*s\n", first ? "" : " ", (int)length, config->text + config->at);
    if (first && (piece[0] == '=' || piece[strcspn(piece, "=:")] != '='))
        fail(config, EINVAL, "it is not WORD = VALUE");
    config->at += length;
    config->more = config->text[config->at] != '\0';
    return config->status == 0 ? piece : NULL;
}

/* A piece was understood. */
static int take_piece(void *argument, const char *section, const char *word, const char *value)
{
    struct config *config = argument;
    (void)section;
    size_t used = strlen(config->value);
    snprintf(config->value + used, sizeof config->value - used, "%s", value);
    if (config->more || config->status < 0)
        return 1;
    config->status = config->apply(config->context, word, config->value, config->err);
    if (config->status < 0)
        error_prefix(config->err, "%s:%u", config->path, config->line);
    config->value[0] = '\0';
    return 1;
}

static int open_file(struct config *config)
{
    struct stat stat;
    int fd = open(config->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return error_set(config->err, errno, "%s can't be opened: %s", config->path, error_name(errno));
    if (fstat(fd, &stat) == 0 && S_ISREG(stat.st_mode) && (config->file = fdopen(fd, "r")) != NULL)
        return 0;
    close(fd);
    return error_set(config->err, EINVAL, "%s is not a regular file", config->path);
}

int config_read(const char *path, int (*apply)(void *context, const char *word, char *value, struct error *err),
                void *context, struct error *err)
{
    struct config *config = calloc(1, sizeof *config);
    if (!config)
        return error_set(err, ENOMEM, "no memory to read %s", path);
    *config = (struct config){.path = path, .apply = apply, .context = context, .err = err};
    int status = open_file(config);
    if (status == 0) {
        int wrong = ini_parse_stream(read_piece, config, take_piece, config);
        if (wrong && config->status == 0)
            fail(config, EINVAL, "it is not WORD = VALUE");
        if (config->status == 0 && ferror(config->file))
            fail(config, EIO, "it can't be read");
        fclose(config->file);
        status = config->status;
    }
    free(config);
    return status;
}
