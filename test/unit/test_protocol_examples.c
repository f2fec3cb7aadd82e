/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Replays the examples of docs/PROTOCOL.md, so that the text and the code
 * cannot drift apart. The file is argv[1], or $PROTOCOL_MD, or lies where make
 * runs. A block of examples looks like this; PROTOCOL.md, 15, says the rest:
 *
 *     ```rdma-message ok
 *     06 00 00 00 ...
 *     ---
 *     type=PING fin=0 credits=0
 *     ```
 *
 * A value that stands below --- has to be what was decoded, and a value that
 * does not stand there has to be 0 or absent.
 */
#include "rdma_hdr.h"

#include <arpa/inet.h>
#include <check.h>
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *path = "docs/PROTOCOL.md";

/* ---- blocks ------------------------------------------------------------- */

typedef struct block {
    char kind[32];    /* "rdma-request ok" */
    unsigned line;    /* of the fence, for messages */
    char input[4096]; /* lines above ---, each ended by \n */
    char expect[1024];
} block;

/* Read the next block from f; 0 at the end of the file. */
static int next_block(FILE *f, unsigned *line, block *b)
{
    char text[4096];
    char *to = NULL;
    size_t room = 0;

    memset(b, 0, sizeof(*b));
    while (fgets(text, sizeof(text), f) != NULL) {
        size_t n = strlen(text);

        ++*line;
        ck_assert_msg(n > 0 && text[n - 1] == '\n', "line %u", *line);
        if (to == NULL) {
            if (strncmp(text, "```rdma-", 8) != 0)
                continue;
            ck_assert_uint_lt(n - 3, sizeof(b->kind));
            memcpy(b->kind, text + 3, n - 4);
            b->line = *line;
            to = b->input;
            room = sizeof(b->input);
        }
        else if (strcmp(text, "```\n") == 0) {
            return 1;
        }
        else if (strcmp(text, "---\n") == 0) {
            to = b->expect;
            room = sizeof(b->expect);
        }
        else {
            ck_assert_uint_lt(strlen(to) + n, room);
            strcat(to, text);
        }
    }
    ck_assert_msg(to == NULL, "%s:%u: no end", path, b->line);
    return 0;
}

/* Take the first line off *text; NULL when there is none. */
static char *take_line(char **text)
{
    char *start = *text, *end = strchr(start, '\n');

    if (end == NULL)
        return NULL;
    *end = '\0';
    *text = end + 1;
    return start;
}

static size_t unhex(const char *text, uint8_t *out, size_t room)
{
    size_t n = 0;
    int used;
    unsigned byte;

    while (sscanf(text, " %2x%n", &byte, &used) == 1) {
        ck_assert_uint_lt(n, room);
        out[n++] = (uint8_t)byte;
        text += used;
    }
    ck_assert_uint_eq(strspn(text, " \n"), strlen(text));
    return n;
}

/* ---- comparing ---------------------------------------------------------- */

typedef struct value {
    const char *key;
    char text[64];
    int seen;
} value;

static void set_uint(value *v, const char *key, uint64_t num)
{
    v->key = key;
    snprintf(v->text, sizeof(v->text), "%" PRIu64, num);
}

static void set_text(value *v, const char *key, const char *text)
{
    v->key = key;
    snprintf(v->text, sizeof(v->text), "%s", text);
}

static void set_hex(value *v, const char *key, uint64_t num, int digits)
{
    v->key = key;
    snprintf(v->text, sizeof(v->text), "%0*" PRIx64, digits, num);
}

static void set_token(value *v, const char *key, const uint8_t token[16])
{
    size_t i;

    v->key = key;
    for (i = 0; i < RDMA_HDR_TOKEN_LEN; i++)
        snprintf(v->text + 2 * i, 3, "%02x", token[i]);
}

static void compare(const block *b, value *values, size_t count)
{
    char expect[sizeof(b->expect)];
    char *word, *save = NULL;
    size_t i;

    memcpy(expect, b->expect, sizeof(expect));
    for (word = strtok_r(expect, " \n", &save); word != NULL;
         word = strtok_r(NULL, " \n", &save)) {
        char *is = strchr(word, '=');

        ck_assert_msg(is != NULL, "%s:%u: %s", path, b->line, word);
        *is++ = '\0';
        for (i = 0; i < count && strcmp(values[i].key, word) != 0; i++)
            ;
        ck_assert_msg(i < count, "%s:%u: no %s", path, b->line, word);
        ck_assert_msg(strcmp(values[i].text, is) == 0,
                      "%s:%u: %s: text %s, code %s", path, b->line, word, is,
                      values[i].text);
        values[i].seen = 1;
    }
    for (i = 0; i < count; i++)
        ck_assert_msg(values[i].seen || strspn(values[i].text, "0-") ==
                                            strlen(values[i].text),
                      "%s:%u: %s=%s is not told", path, b->line, values[i].key,
                      values[i].text);
}

/* ---- one kind of block each --------------------------------------------- */

/* Several field lines are one value, RFC 9110, 5.3. */
static void join_lines(char *input, char *field, size_t size)
{
    char *line;

    field[0] = '\0';
    while ((line = take_line(&input)) != NULL) {
        ck_assert_uint_lt(strlen(field) + strlen(line) + 2, size);
        if (field[0] != '\0')
            strcat(field, ", ");
        strcat(field, line);
    }
}

static void check_request(block *b)
{
    rdma_hdr_request r, again;
    value v[9];
    char field[4096], second[4096], kinds[32], addr[64] = "-";

    memset(v, 0, sizeof(v));
    join_lines(b->input, field, sizeof(field));
    ck_assert_msg(rdma_hdr_parse_request(field, strlen(field), &r) == 0,
                  "%s:%u", path, b->line);
    if (r.family != 0)
        inet_ntop(r.family == 6 ? AF_INET6 : AF_INET, r.addr, addr,
                  sizeof(addr));
    snprintf(kinds, sizeof(kinds), "%s,%s", rdma_hdr_kind_name(r.prefer[0]),
             rdma_hdr_kind_name(r.prefer[1]));
    set_uint(&v[0], "port", r.port);
    set_text(&v[1], "addr", addr);
    set_token(&v[2], "token", r.token);
    set_uint(&v[3], "id", r.id);
    set_text(&v[4], "prefer", kinds);
    set_hex(&v[5], "stag", r.stag, 8);
    set_hex(&v[6], "to", r.to, 16);
    set_uint(&v[7], "len", r.len);
    compare(b, v, 8);
    ck_assert_int_eq(rdma_hdr_format_request(&r, field, sizeof(field)), 0);
    ck_assert_int_eq(rdma_hdr_parse_request(field, strlen(field), &again), 0);
    ck_assert_int_eq(rdma_hdr_format_request(&again, second, sizeof(second)),
                     0);
    ck_assert_str_eq(field, second);
}

static void check_response(block *b)
{
    rdma_hdr_response r, again;
    value v[9];
    char field[4096], second[4096];
    const char *declined;

    memset(v, 0, sizeof(v));
    join_lines(b->input, field, sizeof(field));
    ck_assert_msg(rdma_hdr_parse_response(field, strlen(field), &r) == 0,
                  "%s:%u", path, b->line);
    declined = rdma_hdr_declined_name(r.declined);
    set_uint(&v[0], "id", r.id);
    set_uint(&v[1], "conn", r.conn);
    set_text(&v[2], "declined", declined != NULL ? declined : "-");
    set_text(&v[3], "kind", rdma_hdr_kind_name(r.kind));
    set_uint(&v[4], "total", r.total);
    set_hex(&v[5], "stag", r.stag, 8);
    set_hex(&v[6], "to", r.to, 16);
    set_uint(&v[7], "len", r.len);
    set_uint(&v[8], "fin", (unsigned)r.fin);
    if (r.id == 0)
        set_text(&v[0], "id", "-");
    if (r.conn == 0)
        set_text(&v[1], "conn", "-");
    if (!r.has_total)
        set_text(&v[4], "total", "-");
    compare(b, v, 9);
    ck_assert_int_eq(rdma_hdr_format_response(&r, field, sizeof(field)), 0);
    ck_assert_int_eq(rdma_hdr_parse_response(field, strlen(field), &again), 0);
    ck_assert_int_eq(rdma_hdr_format_response(&again, second, sizeof(second)),
                     0);
    ck_assert_str_eq(field, second);
}

/* Every line that is no comment is an example. */
static void check_bad_fields(block *b, rdma_hdr_status status, unsigned *found)
{
    char *text = b->input, *line;
    int request = strncmp(b->kind, "rdma-request", 12) == 0;

    while ((line = take_line(&text)) != NULL) {
        rdma_hdr_request req;
        rdma_hdr_response resp;
        rdma_hdr_status got;

        if (line[0] == '#')
            continue;
        got = request ? rdma_hdr_parse_request(line, strlen(line), &req)
                      : rdma_hdr_parse_response(line, strlen(line), &resp);
        ck_assert_msg(got == status, "%s:%u: %s", path, b->line, line);
        ++*found;
    }
}

static void check_connect(block *b)
{
    uint8_t data[64], again[RDMA_HDR_CONNECT_LEN];
    size_t n = unhex(b->input, data, sizeof(data));
    rdma_hdr_connect c;
    value v[3];
    rdma_hdr_reject why = rdma_hdr_get_connect(data, n, &c);

    memset(v, 0, sizeof(v));
    if (strcmp(b->kind, "rdma-connect reject") == 0) {
        ck_assert_int_ne(why, RDMA_HDR_REJECT_NONE);
        set_uint(&v[0], "reason", why);
        compare(b, v, 1);
        return;
    }
    ck_assert_msg(why == RDMA_HDR_REJECT_NONE, "%s:%u", path, b->line);
    set_text(&v[0], "kind", rdma_hdr_kind_name(c.kind));
    set_uint(&v[1], "depth", c.depth);
    set_token(&v[2], "token", c.token);
    compare(b, v, 3);
    rdma_hdr_put_connect(&c, again);
    ck_assert_mem_eq(again, data, sizeof(again));
}

static void check_accept(block *b)
{
    uint8_t data[64], again[RDMA_HDR_ACCEPT_LEN];
    size_t n = unhex(b->input, data, sizeof(data));
    rdma_hdr_accept a;
    value v[3];
    rdma_hdr_reject why = rdma_hdr_get_accept(data, n, &a);

    memset(v, 0, sizeof(v));
    if (strcmp(b->kind, "rdma-accept reject") == 0) {
        ck_assert_int_ne(why, RDMA_HDR_REJECT_NONE);
        set_uint(&v[0], "reason", why);
        compare(b, v, 1);
        return;
    }
    ck_assert_msg(why == RDMA_HDR_REJECT_NONE, "%s:%u", path, b->line);
    set_text(&v[0], "kind", rdma_hdr_kind_name(a.kind));
    set_uint(&v[1], "depth", a.depth);
    set_uint(&v[2], "conn", a.conn);
    compare(b, v, 3);
    rdma_hdr_put_accept(&a, again);
    ck_assert_mem_eq(again, data, sizeof(again));
}

static void check_reject(block *b)
{
    uint8_t data[64];
    size_t n = unhex(b->input, data, sizeof(data));
    value v[1];

    memset(v, 0, sizeof(v));
    set_uint(&v[0], "reason", rdma_hdr_get_reject(data, n));
    compare(b, v, 1);
}

static void check_message(block *b)
{
    uint8_t data[64], again[RDMA_HDR_MSG_LEN];
    size_t n = unhex(b->input, data, sizeof(data));
    rdma_hdr_msg m;
    value v[8];

    memset(v, 0, sizeof(v));
    ck_assert_msg(rdma_hdr_get_msg(data, n, &m) == 0, "%s:%u", path, b->line);
    set_text(&v[0], "type", rdma_hdr_type_name(m.type));
    set_uint(&v[1], "fin", m.flags);
    set_uint(&v[2], "credits", m.credits);
    set_uint(&v[3], "id", m.id);
    set_uint(&v[4], "bytes", m.bytes);
    set_hex(&v[5], "stag", m.stag, 8);
    set_uint(&v[6], "len", m.len);
    set_hex(&v[7], "to", m.to, 16);
    compare(b, v, 8);
    rdma_hdr_put_msg(&m, data);
    ck_assert_int_eq(rdma_hdr_get_msg(data, RDMA_HDR_MSG_LEN, &m), 0);
    rdma_hdr_put_msg(&m, again);
    ck_assert_mem_eq(again, data, sizeof(again));
}

static void check_bad_messages(block *b, unsigned *found)
{
    char *text = b->input, *line;

    while ((line = take_line(&text)) != NULL) {
        uint8_t data[64];
        size_t n = unhex(line, data, sizeof(data));
        rdma_hdr_msg m;

        ck_assert_msg(rdma_hdr_get_msg(data, n, &m) == RDMA_HDR_MALFORMED,
                      "%s:%u: %s", path, b->line, line);
        ++*found;
    }
}

/* ---- all of them -------------------------------------------------------- */

/* How many there have to be: a change of the text's form must not make the
 * test find nothing and pass. */
static struct {
    const char *kind;
    void (*check)(block *b); /* or NULL: see bad_block */
    unsigned least;
    unsigned found;
} kinds[] = {
    {"rdma-request ok", check_request, 5, 0},
    {"rdma-request version", NULL, 2, 0},
    {"rdma-request malformed", NULL, 20, 0},
    {"rdma-response ok", check_response, 7, 0},
    {"rdma-response version", NULL, 1, 0},
    {"rdma-response malformed", NULL, 15, 0},
    {"rdma-connect ok", check_connect, 2, 0},
    {"rdma-connect reject", check_connect, 5, 0},
    {"rdma-accept ok", check_accept, 1, 0},
    {"rdma-accept reject", check_accept, 1, 0},
    {"rdma-reject ok", check_reject, 2, 0},
    {"rdma-message ok", check_message, 12, 0},
    {"rdma-message malformed", NULL, 9, 0},
};

static void bad_block(block *b, unsigned *found)
{
    if (strcmp(b->kind, "rdma-message malformed") == 0)
        check_bad_messages(b, found);
    else if (strstr(b->kind, " version") != NULL)
        check_bad_fields(b, RDMA_HDR_UNVERSION, found);
    else
        check_bad_fields(b, RDMA_HDR_MALFORMED, found);
}

START_TEST(examples)
{
    size_t i, count = sizeof(kinds) / sizeof(kinds[0]);
    unsigned line = 0;
    FILE *f = fopen(path, "r");
    block b;

    ck_assert_msg(f != NULL, "cannot read %s", path);
    while (next_block(f, &line, &b)) {
        for (i = 0; i < count && strcmp(kinds[i].kind, b.kind) != 0; i++)
            ;
        ck_assert_msg(i < count, "%s:%u: what is %s?", path, b.line, b.kind);
        if (kinds[i].check == NULL) {
            bad_block(&b, &kinds[i].found);
            continue;
        }
        kinds[i].check(&b);
        kinds[i].found++;
    }
    fclose(f);
    for (i = 0; i < count; i++) {
        printf("%-24s %u\n", kinds[i].kind, kinds[i].found);
        ck_assert_msg(kinds[i].found >= kinds[i].least, "only %u of %s",
                      kinds[i].found, kinds[i].kind);
    }
}
END_TEST

int main(int argc, char **argv)
{
    Suite *s = suite_create("protocol examples");
    TCase *t = tcase_create("docs/PROTOCOL.md");
    SRunner *runner;
    int failed;

    if (getenv("PROTOCOL_MD") != NULL)
        path = getenv("PROTOCOL_MD");
    if (argc > 1)
        path = argv[1];
    tcase_add_test(t, examples);
    suite_add_tcase(s, t);
    runner = srunner_create(s);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
