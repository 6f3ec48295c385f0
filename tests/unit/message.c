/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The reader of control messages: whole, cut anywhere, wrong in every way, too long, too deep. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "control/message.h"

/* Feeds all of it in pieces of `step` bytes and writes down what came out: 'o' object, 'w' wrong, 'F' fatal. */
static void outcome(const char *bytes, size_t length, size_t step, char *said)
{
    struct message_reader reader;
    message_reader_init(&reader);
    size_t used = 0, at = 0;
    bool ended = false;
    while (!ended) {
        json_t *message = NULL;
        struct error err = {0};
        enum message_result result = message_reader_next(&reader, &message, &err);
        if (result == MESSAGE_OBJECT) {
            assert_true(json_is_object(message));
            json_decref(message);
            said[used++] = 'o';
        } else if (result == MESSAGE_WRONG || result == MESSAGE_FATAL) {
            assert_true(err.text[0]);
            said[used++] = result == MESSAGE_WRONG ? 'w' : 'F';
            ended = result == MESSAGE_FATAL;
        } else {
            size_t room = message_reader_room(&reader), piece = length - at < step ? length - at : step;
            assert_true(room > 0);
            if (piece > room)
                piece = room;
            int status = message_reader_add(&reader, bytes + at, piece);
            assert_int_equal(status, 0);
            at += piece;
            ended = piece == 0;
        }
    }
    said[used] = 0;
    message_reader_fini(&reader);
}

static void expect(const char *bytes, size_t length, const char *expected)
{
    char *said = malloc(length + 2);
    for (size_t step = 1; step <= 7; step++) {
        outcome(bytes, length, step, said);
        assert_string_equal(said, expected);
    }
    outcome(bytes, length, length, said);
    assert_string_equal(said, expected);
    free(said);
}

static void expect_text(const char *text, const char *expected)
{
    expect(text, strlen(text), expected);
}

static void right_messages(void **state)
{
    (void)state;
    expect_text("", "");
    expect_text(" \r\n\t", "");
    expect_text("{}", "o");
    expect_text("{\"execute\":\"a\"}{\"execute\":\"b\"}\n {}", "ooo");
    expect_text("{\"a\":\"}{][\\\"\\\\\"}{}", "oo");
    expect_text("{\"a\":[1,{\"b\":[[]]}]}", "o");
    expect_text("{\"a\":\n1}", "o");
    expect_text("{\"a\":\"\xc3\xa4\"}", "o");
}

static void half_messages(void **state)
{
    (void)state;
    expect_text("{", "");
    expect_text("{\"execute\":\"query-status\"", "");
    expect_text("{\"execute\":\"query-st", "");
    expect_text("{}{\"a\":\"\\", "o");
}

static void wrong_messages(void **state)
{
    (void)state;
    expect_text("garbage\n{}", "wo");
    expect_text("garbage{}\n{}{}", "woo");
    expect_text("\"text\"\n[]\n7\nnull\n}\n]\n{}", "wwwwwwo");
    expect_text("{\"a\":]}\n{}", "wo");
    expect_text("{\"a\":[}\n{}", "wo");
    expect_text("{\"a\":\"no end\n{}", "wo");
    expect_text("{\"a\" 1}{}", "wo");
    expect_text("{\"a\":1,\"a\":2}{}", "wo");
    expect_text("{\"a\":123456789012345678901234567890}{}", "wo");
    expect_text("{\"a\":\"\\u0000\"}{}", "wo");
    expect_text("{\"a\":\"\xff\xfe\"}{}", "wo");
    expect_text("{\"\xc0\x80\":1}{}", "wo");
    expect_text("\xff\n{}", "wo");
    expect("{\"a\":\0}{}", 9, "wo");
    expect("\0\n{}", 4, "wo");
    expect_text("garbage without an end", "w");
}

static void deep_messages(void **state)
{
    (void)state;
    char text[4 * LIMIT_CONTROL_DEPTH + 32] = "{\"a\":";
    for (int i = 0; i < LIMIT_CONTROL_DEPTH - 1; i++)
        strcat(text, "[");
    for (int i = 0; i < LIMIT_CONTROL_DEPTH - 1; i++)
        strcat(text, "]");
    strcat(text, "}");
    expect_text(text, "o");
    memmove(text + 6, text + 5, strlen(text + 5) + 1);
    text[5] = '[';
    expect_text(text, "F");
}

static void long_messages(void **state)
{
    (void)state;
    size_t length = LIMIT_CONTROL_MESSAGE_BYTES;
    char *text = malloc(length + 1);
    assert_non_null(text);
    for (size_t surplus = 0; surplus <= 1; surplus++) {
        memset(text, 'x', length + surplus);
        memcpy(text, "{\"a\":\"", 6);
        memcpy(text + length + surplus - 2, "\"}", 2);
        expect(text, length + surplus, surplus ? "F" : "o");
    }
    /* Garbage of any length is thrown away as it comes. */
    memset(text, 'x', length);
    text[length] = '\n';
    expect(text, length + 1, "w");
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(right_messages), cmocka_unit_test(half_messages), cmocka_unit_test(wrong_messages),
        cmocka_unit_test(deep_messages),  cmocka_unit_test(long_messages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
