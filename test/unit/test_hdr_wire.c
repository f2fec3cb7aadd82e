/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Tests of rdma_hdr's binary layouts: private data and messages.
 */
#include "hdr_fields.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

/* ---- private data ------------------------------------------------------- */

static const uint8_t connect_bytes[RDMA_HDR_CONNECT_LEN + 8] = {
    0x48, 0x52, 0x44, 0x4d, 1,    2,    32,   0,    /* start */
    0xab, 0xcd, 0xef, 0x12, 0x34, 0x56, 0x78, 0x90, /* token */
    0xab, 0xcd, 0xef, 0x12, 0x34, 0x56, 0x78, 0x90,
};
static const uint8_t accept_bytes[RDMA_HDR_ACCEPT_LEN + 8] = {
    0x48, 0x52, 0x44, 0x4d, 1, 1, 64, 0, 0x81, 0x02, 0x03, 0x04,
};

static rdma_hdr_reject get_connect(const uint8_t *data, size_t n,
                                   rdma_hdr_connect *c)
{
    uint8_t *copy = exact_copy(data, n);
    rdma_hdr_reject why;

    memset(c, FILL, sizeof(*c));
    why = rdma_hdr_get_connect(copy, n, c);
    ck_assert(why == RDMA_HDR_REJECT_NONE || untouched(c, sizeof(*c)));
    free(copy);
    return why;
}

static rdma_hdr_reject get_accept(const uint8_t *data, size_t n,
                                  rdma_hdr_accept *a)
{
    uint8_t *copy = exact_copy(data, n);
    rdma_hdr_reject why;

    memset(a, FILL, sizeof(*a));
    why = rdma_hdr_get_accept(copy, n, a);
    ck_assert(why == RDMA_HDR_REJECT_NONE || untouched(a, sizeof(*a)));
    free(copy);
    return why;
}

START_TEST(connect_layout)
{
    uint8_t out[RDMA_HDR_CONNECT_LEN];
    rdma_hdr_connect c;
    size_t n;

    for (n = 0; n < RDMA_HDR_CONNECT_LEN; n++)
        ck_assert_int_eq(get_connect(connect_bytes, n, &c),
                         RDMA_HDR_REJECT_MALFORMED);
    /* as it is, and padded */
    for (; n <= sizeof(connect_bytes); n++) {
        ck_assert_int_eq(get_connect(connect_bytes, n, &c), 0);
        ck_assert_int_eq(c.kind, RDMA_HDR_READ);
        ck_assert_uint_eq(c.depth, 32);
        ck_assert_mem_eq(c.token, hdr_token, RDMA_HDR_TOKEN_LEN);
    }
    memset(out, FILL, sizeof(out));
    rdma_hdr_put_connect(&c, out);
    ck_assert_mem_eq(out, connect_bytes, sizeof(out));
    ck_assert_int_eq(rdma_hdr_get_connect(NULL, 0, &c),
                     RDMA_HDR_REJECT_MALFORMED);
}
END_TEST

START_TEST(accept_layout)
{
    uint8_t out[RDMA_HDR_ACCEPT_LEN];
    rdma_hdr_accept a;
    size_t n;

    for (n = 0; n < RDMA_HDR_ACCEPT_LEN; n++)
        ck_assert_int_eq(get_accept(accept_bytes, n, &a),
                         RDMA_HDR_REJECT_MALFORMED);
    for (; n <= sizeof(accept_bytes); n++) {
        ck_assert_int_eq(get_accept(accept_bytes, n, &a), 0);
        ck_assert_int_eq(a.kind, RDMA_HDR_WRITE);
        ck_assert_uint_eq(a.depth, 64);
        ck_assert_uint_eq(a.conn, 0x81020304);
    }
    memset(out, FILL, sizeof(out));
    rdma_hdr_put_accept(&a, out);
    ck_assert_mem_eq(out, accept_bytes, sizeof(out));
    ck_assert_int_eq(rdma_hdr_get_accept(NULL, 0, &a),
                     RDMA_HDR_REJECT_MALFORMED);
}
END_TEST

/* Byte at of both is set to value: what is the verdict? */
static const struct {
    size_t at;
    uint8_t value;
    rdma_hdr_reject why;
} starts[] = {
    {0, 'h', RDMA_HDR_REJECT_MALFORMED}, {1, 0, RDMA_HDR_REJECT_MALFORMED},
    {2, 'd', RDMA_HDR_REJECT_MALFORMED}, {3, 'N', RDMA_HDR_REJECT_MALFORMED},
    {4, 0, RDMA_HDR_REJECT_VERSION},     {4, 2, RDMA_HDR_REJECT_VERSION},
    {4, 255, RDMA_HDR_REJECT_VERSION},   {5, 0, RDMA_HDR_REJECT_KIND},
    {5, 3, RDMA_HDR_REJECT_KIND},        {5, 255, RDMA_HDR_REJECT_KIND},
    {5, 1, RDMA_HDR_REJECT_NONE},        {5, 2, RDMA_HDR_REJECT_NONE},
    {6, 0, RDMA_HDR_REJECT_DEPTH},       {6, 7, RDMA_HDR_REJECT_DEPTH},
    {6, 8, RDMA_HDR_REJECT_NONE},        {6, 255, RDMA_HDR_REJECT_NONE},
    {7, 1, RDMA_HDR_REJECT_NONE},        {7, 255, RDMA_HDR_REJECT_NONE},
};

START_TEST(each_start)
{
    uint8_t data[RDMA_HDR_CONNECT_LEN];
    rdma_hdr_connect c;
    rdma_hdr_accept a;
    size_t i;

    for (i = 0; i < COUNT(starts); i++) {
        memcpy(data, connect_bytes, RDMA_HDR_CONNECT_LEN);
        data[starts[i].at] = starts[i].value;
        ck_assert_int_eq(get_connect(data, RDMA_HDR_CONNECT_LEN, &c),
                         starts[i].why);
        memcpy(data, accept_bytes, RDMA_HDR_ACCEPT_LEN);
        data[starts[i].at] = starts[i].value;
        ck_assert_int_eq(get_accept(data, RDMA_HDR_ACCEPT_LEN, &a),
                         starts[i].why);
    }
    /* of several faults the first in order is named */
    memset(data, 0, sizeof(data));
    ck_assert_int_eq(get_connect(data, sizeof(data), &c),
                     RDMA_HDR_REJECT_MALFORMED);
    memcpy(data, "HRDM", 4);
    ck_assert_int_eq(get_connect(data, sizeof(data), &c),
                     RDMA_HDR_REJECT_VERSION);
    data[4] = 1;
    ck_assert_int_eq(get_connect(data, sizeof(data), &c), RDMA_HDR_REJECT_KIND);
    data[5] = 1;
    ck_assert_int_eq(get_connect(data, sizeof(data), &c),
                     RDMA_HDR_REJECT_DEPTH);
    data[6] = 8;
    ck_assert_int_eq(get_connect(data, sizeof(data), &c), RDMA_HDR_REJECT_NONE);
    /* conn 0; the lowest and the highest */
    memcpy(data, accept_bytes, RDMA_HDR_ACCEPT_LEN);
    memset(data + 8, 0, 4);
    ck_assert_int_eq(get_accept(data, RDMA_HDR_ACCEPT_LEN, &a),
                     RDMA_HDR_REJECT_MALFORMED);
    data[11] = 1;
    ck_assert_int_eq(get_accept(data, RDMA_HDR_ACCEPT_LEN, &a), 0);
    ck_assert_uint_eq(a.conn, 1);
    memset(data + 8, 0xff, 4);
    ck_assert_int_eq(get_accept(data, RDMA_HDR_ACCEPT_LEN, &a), 0);
    ck_assert_uint_eq(a.conn, UINT32_MAX);
}
END_TEST

START_TEST(rejects)
{
    uint8_t data[4] = {FILL, FILL, FILL, FILL};
    unsigned i;

    for (i = 0; i <= 255; i++) {
        rdma_hdr_put_reject((rdma_hdr_reject)i, data);
        ck_assert_uint_eq(data[0], i);
        ck_assert_uint_eq(data[1], FILL);
        ck_assert_uint_eq(rdma_hdr_get_reject(data, 1), i <= 7 ? i : 0);
        ck_assert_uint_eq(rdma_hdr_get_reject(data, 4), i <= 7 ? i : 0);
        ck_assert_ptr_nonnull(rdma_hdr_reject_name((rdma_hdr_reject)i));
    }
    ck_assert_int_eq(rdma_hdr_get_reject(data, 0), RDMA_HDR_REJECT_NONE);
    ck_assert_int_eq(rdma_hdr_get_reject(NULL, 0), RDMA_HDR_REJECT_NONE);
    ck_assert_str_eq(rdma_hdr_reject_name(RDMA_HDR_REJECT_TOKEN),
                     "wrong token");
    ck_assert_str_eq(rdma_hdr_reject_name((rdma_hdr_reject)-1),
                     "unknown reason");
}
END_TEST

START_TEST(tokens)
{
    uint8_t other[RDMA_HDR_TOKEN_LEN];
    int bit;

    memcpy(other, hdr_token, sizeof(other));
    ck_assert_int_eq(rdma_hdr_token_equal(hdr_token, other), 1);
    for (bit = 0; bit < 128; bit++) {
        other[bit / 8] = (uint8_t)(other[bit / 8] ^ 1 << bit % 8);
        ck_assert_int_eq(rdma_hdr_token_equal(hdr_token, other), 0);
        other[bit / 8] = (uint8_t)(other[bit / 8] ^ 1 << bit % 8);
    }
}
END_TEST

/* ---- messages ----------------------------------------------------------- */

/* Every field has bytes of its own. */
static const rdma_hdr_msg full = {
    .flags = 0xff,
    .credits = 0x0203,
    .id = 0x04050607,
    .bytes = 0x08090a0b0c0d0e0fu,
    .stag = 0x10111213,
    .len = 0x14151617,
    .to = 0x18191a1b1c1d1e1fu,
};

/* Which bytes of the message a type uses, one bit each, first byte lowest. */
static const struct {
    rdma_hdr_type type;
    const char *name;
    uint32_t used;
    int fin;
} types[] = {
    {RDMA_HDR_HELLO, "HELLO", 0x0000000d, 0},
    {RDMA_HDR_WRITTEN, "WRITTEN", 0x0000fffd, 1},
    {RDMA_HDR_OFFER, "OFFER", 0xfffffffd, 1},
    {RDMA_HDR_CONSUMED, "CONSUMED", 0x0000fffd, 1},
    {RDMA_HDR_ABORT, "ABORT", 0x00f000fd, 0},
    {RDMA_HDR_PING, "PING", 0x0000000d, 0},
    {RDMA_HDR_PONG, "PONG", 0x0000000d, 0},
};

/* The message of that type with all fields set, used or not. */
static void all_bytes(unsigned type, uint8_t data[RDMA_HDR_MSG_LEN])
{
    uint8_t i;

    for (i = 0; i < RDMA_HDR_MSG_LEN; i++)
        data[i] = i;
    data[0] = (uint8_t)type;
    data[1] = 0xff;
}

static rdma_hdr_status get_msg(const uint8_t *data, size_t n, rdma_hdr_msg *m)
{
    uint8_t *copy = exact_copy(data, n);
    rdma_hdr_status status;

    memset(m, FILL, sizeof(*m));
    status = rdma_hdr_get_msg(copy, n, m);
    ck_assert(status == RDMA_HDR_OK || untouched(m, sizeof(*m)));
    free(copy);
    return status;
}

START_TEST(message_layout)
{
    uint8_t data[RDMA_HDR_MSG_LEN], want[RDMA_HDR_MSG_LEN];
    size_t i, k;

    for (i = 0; i < COUNT(types); i++) {
        rdma_hdr_msg m = full;

        all_bytes(types[i].type, want);
        for (k = 0; k < RDMA_HDR_MSG_LEN; k++) {
            if (!(types[i].used >> k & 1))
                want[k] = 0;
        }
        want[1] = types[i].fin ? RDMA_HDR_FIN : 0;
        m.type = (uint8_t)types[i].type;
        memset(data, FILL, sizeof(data));
        rdma_hdr_put_msg(&m, data);
        ck_assert_mem_eq(data, want, sizeof(want));
        /* received with everything set: the same */
        all_bytes(types[i].type, data);
        ck_assert_int_eq(get_msg(data, sizeof(data), &m), RDMA_HDR_OK);
        ck_assert_uint_eq(m.type, types[i].type);
        ck_assert_uint_eq(m.credits, full.credits);
        rdma_hdr_put_msg(&m, data);
        ck_assert_mem_eq(data, want, sizeof(want));
        ck_assert_str_eq(rdma_hdr_type_name(types[i].type), types[i].name);
    }
}
END_TEST

START_TEST(message_fields)
{
    uint8_t data[RDMA_HDR_MSG_LEN];
    rdma_hdr_msg m;

    all_bytes(RDMA_HDR_OFFER, data);
    ck_assert_int_eq(get_msg(data, sizeof(data), &m), RDMA_HDR_OK);
    ck_assert_uint_eq(m.flags, RDMA_HDR_FIN);
    ck_assert_uint_eq(m.id, full.id);
    ck_assert(m.bytes == full.bytes && m.to == full.to);
    ck_assert_uint_eq(m.stag, full.stag);
    ck_assert_uint_eq(m.len, full.len);
    all_bytes(RDMA_HDR_PING, data);
    ck_assert_int_eq(get_msg(data, sizeof(data), &m), RDMA_HDR_OK);
    ck_assert(m.flags == 0 && m.id == 0 && m.bytes == 0 && m.stag == 0 &&
              m.len == 0 && m.to == 0);
    all_bytes(RDMA_HDR_ABORT, data);
    ck_assert_int_eq(get_msg(data, sizeof(data), &m), RDMA_HDR_OK);
    ck_assert(m.flags == 0 && m.bytes == 0 && m.stag == 0 && m.to == 0);
    ck_assert_uint_eq(m.len, full.len); /* an unknown reason is valid */
}
END_TEST

START_TEST(message_lengths_and_types)
{
    uint8_t data[RDMA_HDR_MSG_LEN * 2];
    rdma_hdr_msg m;
    unsigned type;
    size_t n;

    memset(data, 0, sizeof(data));
    for (type = 0; type <= 255; type++) {
        int known = type >= 1 && type <= 7;

        all_bytes(type, data);
        for (n = 0; n <= sizeof(data); n++)
            ck_assert_int_eq(get_msg(data, n, &m),
                             known && n == RDMA_HDR_MSG_LEN
                                 ? RDMA_HDR_OK
                                 : RDMA_HDR_MALFORMED);
        ck_assert_int_eq(strcmp(rdma_hdr_type_name(type), "?") == 0, !known);
        if (!known) {
            m = full;
            m.type = (uint8_t)type;
            rdma_hdr_put_msg(&m, data); /* no more than type and credits */
            ck_assert_uint_eq(data[0], type);
            ck_assert_mem_eq(data + 1, "\0\2\3\0\0\0\0", 7);
        }
    }
    ck_assert_int_eq(rdma_hdr_get_msg(NULL, 0, &m), RDMA_HDR_MALFORMED);
    ck_assert_str_eq(rdma_hdr_type_name(~0u), "?");
}
END_TEST

static const struct {
    rdma_hdr_msg msg;
    int good;
} messages[] = {
    {{.type = RDMA_HDR_WRITTEN, .id = 0}, 0},
    {{.type = RDMA_HDR_WRITTEN, .id = 1}, 1},
    {{.type = RDMA_HDR_WRITTEN, .id = RDMA_HDR_ID_MAX}, 1},
    {{.type = RDMA_HDR_WRITTEN, .id = RDMA_HDR_ID_MAX + 1}, 0},
    {{.type = RDMA_HDR_CONSUMED, .id = 0}, 0},
    {{.type = RDMA_HDR_CONSUMED, .id = RDMA_HDR_ID_MAX}, 1},
    {{.type = RDMA_HDR_CONSUMED, .id = UINT32_MAX}, 0},
    {{.type = RDMA_HDR_ABORT, .id = 0}, 0},
    {{.type = RDMA_HDR_ABORT, .id = 1, .len = UINT32_MAX}, 1},
    {{.type = RDMA_HDR_ABORT, .id = RDMA_HDR_ID_MAX + 1}, 0},
    {{.type = RDMA_HDR_OFFER, .id = 0, .bytes = 1, .len = 1}, 0},
    {{.type = RDMA_HDR_OFFER, .id = 1, .bytes = 1, .len = 1}, 1},
    {{.type = RDMA_HDR_OFFER, .id = 1, .bytes = 1, .len = 2}, 0},
    {{.type = RDMA_HDR_OFFER, .id = 1, .bytes = 5}, 0},
    {{.type = RDMA_HDR_OFFER, .id = 1, .bytes = 5, .flags = 1}, 1},
    {{.type = RDMA_HDR_OFFER, .id = 1, .bytes = 5, .flags = 0xfe}, 0},
    {{.type = RDMA_HDR_OFFER,
      .id = 1,
      .bytes = 5,
      .len = 1,
      .to = UINT64_MAX - 1},
     1},
    {{.type = RDMA_HDR_OFFER, .id = 1, .bytes = 5, .len = 1, .to = UINT64_MAX},
     0},
    {{.type = RDMA_HDR_OFFER,
      .id = 1,
      .bytes = UINT64_MAX,
      .len = UINT32_MAX,
      .to = UINT64_MAX - UINT32_MAX},
     1},
    {{.type = RDMA_HDR_OFFER,
      .id = 1,
      .bytes = UINT64_MAX,
      .len = UINT32_MAX,
      .to = UINT64_MAX - UINT32_MAX + 1},
     0},
};

START_TEST(message_limits)
{
    uint8_t data[RDMA_HDR_MSG_LEN];
    rdma_hdr_msg m;
    size_t i;

    for (i = 0; i < COUNT(messages); i++) {
        rdma_hdr_put_msg(&messages[i].msg, data);
        ck_assert_msg((get_msg(data, sizeof(data), &m) == RDMA_HDR_OK) ==
                          messages[i].good,
                      "row %u", (unsigned)i);
    }
    /* no part: what stands in stag and to is not looked at */
    rdma_hdr_put_msg(&messages[14].msg, data);
    memset(data + 16, 0xff, 4);
    memset(data + 24, 0xff, 8);
    ck_assert_int_eq(get_msg(data, sizeof(data), &m), RDMA_HDR_OK);
    ck_assert(m.stag == 0 && m.to == 0 && m.len == 0 && m.bytes == 5);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("rdma_hdr binary");
    TCase *t = tcase_create("all");
    SRunner *runner;
    int failed;

    tcase_add_test(t, connect_layout);
    tcase_add_test(t, accept_layout);
    tcase_add_test(t, each_start);
    tcase_add_test(t, rejects);
    tcase_add_test(t, tokens);
    tcase_add_test(t, message_layout);
    tcase_add_test(t, message_fields);
    tcase_add_test(t, message_lengths_and_types);
    tcase_add_test(t, message_limits);
    suite_add_tcase(s, t);
    runner = srunner_create(s);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
