/* SPDX-License-Identifier: GPL-2.0-or-later */
/* libfleece against a server that says what it is told, on the other side of a real socket. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/limits.h"
#include "fleece/fleece.h"

#define GREETING "{\"QMP\":{\"version\":{\"fleece\":{}},\"capabilities\":[]}}\r\n"
#define NEGOTIATED "{\"return\":{},\"id\":1}\r\n"

struct server {
    char folder[32], path[64];
    int listener;
    pthread_t thread;
    const char *const *replies; /* the first at once, each other after a line was read; NULL ends */
    bool hang_up;               /* after the last reply; else the client does */
};

static void say(int fd, const char *text)
{
    assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

static void *serve(void *argument)
{
    struct server *server = argument;
    int fd = accept(server->listener, NULL, NULL);
    for (const char *const *reply = server->replies; *reply; reply++) {
        char byte = '\n';
        do {
            if (reply != server->replies && recv(fd, &byte, 1, 0) != 1)
                break;
        } while (byte != '\n');
        say(fd, *reply);
    }
    char rest;
    while (!server->hang_up && recv(fd, &rest, 1, 0) == 1)
        ;
    close(fd);
    return NULL;
}

/* `hang_up`: closes after the last reply. */
static struct fleece *start(struct server *server, const char *const *replies, bool hang_up, char *error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(server->folder, "/tmp/fleece-XXXXXX");
    assert_non_null(mkdtemp(server->folder));
    snprintf(server->path, sizeof server->path, "%s/s", server->folder);
    strcpy(address.sun_path, server->path);
    server->replies = replies;
    server->hang_up = hang_up;
    server->listener = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(server->listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(server->listener, 1), 0);
    assert_int_equal(pthread_create(&server->thread, NULL, serve, server), 0);
    return fleece_open(server->path, error);
}

static void finish(struct server *server, struct fleece *fleece)
{
    fleece_close(fleece);
    pthread_join(server->thread, NULL);
    close(server->listener);
    unlink(server->path);
    rmdir(server->folder);
}

static void events_and_replies(void **state)
{
    (void)state;
    struct server server;
    char error[FLEECE_ERROR_BYTES];
    const char *const replies[] = {GREETING, NEGOTIATED "{\"event\":\"A\"}\n",
                                   "{\"event\":\"B\"}\r\n{\"return\":[1,\"x\"],\"id\":2}\r\n{\"event\":\"C\"}\r\n",
                                   "{\"error\":{\"class\":\"GenericError\",\"desc\":\"no such thing\"},\"id\":3}\r\n",
                                   NULL};
    struct fleece *fleece = start(&server, replies, false, error);
    assert_non_null(fleece);
    char *text = fleece_execute(fleece, "x", "{\"a\": 1}", error);
    assert_string_equal(text, "[1,\"x\"]");
    free(text);
    assert_null(fleece_execute(fleece, "y", NULL, error));
    assert_string_equal(error, "no such thing");
    for (const char *name = "ABC"; *name; name++) {
        char expected[32];
        snprintf(expected, sizeof expected, "{\"event\":\"%c\"}", *name);
        text = fleece_event(fleece, -1, error);
        assert_string_equal(text, expected);
        free(text);
    }
    assert_null(fleece_event(fleece, 0, error));
    assert_int_equal(error[0], 0);
    assert_null(fleece_event(fleece, 20, error));
    assert_int_equal(error[0], 0);
    struct pollfd pollfd = {.fd = fleece_descriptor(fleece), .events = POLLIN};
    assert_int_equal(poll(&pollfd, 1, 0), 0);
    finish(&server, fleece);
}

static void wrong_arguments(void **state)
{
    (void)state;
    struct server server;
    char error[FLEECE_ERROR_BYTES];
    const char *const replies[] = {GREETING, NEGOTIATED, "{\"return\":{},\"id\":2}\r\n", NULL};
    struct fleece *fleece = start(&server, replies, false, error);
    const char *const wrong[] = {"", "[]", "{", "{\"a\":1,\"a\":2}", "7"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_null(fleece_execute(fleece, "x", wrong[i], error));
        assert_non_null(strstr(error, "arguments of x are not a JSON object"));
    }
    char *text = fleece_execute(fleece, "x", "{}", error); /* nothing of all that was sent */
    assert_string_equal(text, "{}");
    free(text);
    finish(&server, fleece);
}

static void lost_connection(void **state)
{
    (void)state;
    struct server server;
    char error[FLEECE_ERROR_BYTES];
    const char *const replies[] = {GREETING, NEGOTIATED "{\"event\":\"LAST\"}\r\n{\"half", NULL};
    struct fleece *fleece = start(&server, replies, true, error);
    assert_non_null(fleece);
    char *text = fleece_event(fleece, -1, error);
    assert_string_equal(text, "{\"event\":\"LAST\"}");
    free(text);
    for (int i = 0; i < 2; i++) { /* and it stays so */
        assert_null(fleece_event(fleece, -1, error));
        assert_non_null(strstr(error, "has closed the connection"));
        assert_null(fleece_execute(fleece, "x", NULL, error));
        assert_non_null(strstr(error, "has closed the connection"));
    }
    finish(&server, fleece);
}

static void events_are_bounded(void **state)
{
    (void)state;
    struct server server;
    char error[FLEECE_ERROR_BYTES], *many = malloc(64 * (LIMIT_CLIENT_EVENTS + 10)), *at = many;
    for (int i = 0; i < LIMIT_CLIENT_EVENTS + 5; i++)
        at += sprintf(at, "{\"event\":\"E\",\"data\":%d}\n", i);
    strcpy(at, "{\"return\":{},\"id\":2}\n");
    const char *const replies[] = {GREETING, NEGOTIATED, many, NULL};
    struct fleece *fleece = start(&server, replies, false, error);
    free(fleece_execute(fleece, "x", NULL, error));
    for (int i = 5; i < LIMIT_CLIENT_EVENTS + 5; i++) {
        char expected[64], *text = fleece_event(fleece, 0, error);
        snprintf(expected, sizeof expected, "{\"event\":\"E\",\"data\":%d}", i);
        assert_string_equal(text, expected);
        free(text);
    }
    assert_null(fleece_event(fleece, 0, error));
    finish(&server, fleece);
    free(many);
}

static void default_places(void **state)
{
    (void)state;
    char path[64];
    setenv("XDG_RUNTIME_DIR", "/x", 1);
    assert_int_equal(fleece_default_socket("web1", path, sizeof path), 0);
    assert_string_equal(path, geteuid() == 0 ? "/run/fleece/web1/control.sock" : "/x/fleece/web1/control.sock");
    assert_int_equal(fleece_default_socket("web1", path, 10), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(events_and_replies), cmocka_unit_test(wrong_arguments), cmocka_unit_test(lost_connection),
        cmocka_unit_test(events_are_bounded), cmocka_unit_test(default_places),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
