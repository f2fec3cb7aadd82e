/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Tests of what holds for all fields: control characters, truncation, room,
 * round trips.
 */
#include "hdr_fields.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

static const struct {
    const char *text;
    int request;
} samples[] = {
    {V PORT ", addr=\"2001:db8::1\"" TOKEN ID WRITE READ, 1},
    {V ", x=\"a\\\"b\", y=%\"%c3%a9\", z=(1 b);q" PORT TOKEN ID READ, 1},
    {RID CONN PART ";len=1;fin", 0},
    {RID CONN ", write;total=1048576", 0},
    {RID CONN ", declined=failed", 0},
};

/* A control character, put in or in place of another, at every position. Only a
 * tab can stand anywhere, around a comma, and where it is put in there it
 * changes nothing. */
START_TEST(control_characters)
{
    char field[512], good[RDMA_HDR_FORMAT_MAX], buf[RDMA_HDR_FORMAT_MAX];
    size_t i, at;
    int c, insert;

    for (i = 0; i < COUNT(samples); i++) {
        const char *text = samples[i].text;
        int request = samples[i].request;
        size_t n = strlen(text);

        ck_assert_ptr_nonnull(canonical(text, n, request, good));
        for (c = 0; c <= 0x20; c++) {
            int ctl = c == 0x20 ? 0x7f : c;

            for (at = 0; at <= n; at++) {
                for (insert = 0; insert <= (at < n); insert++) {
                    size_t skip = at < n && !insert;
                    const char *got;

                    memcpy(field, text, at);
                    field[at] = (char)ctl;
                    memcpy(field + at + 1, text + at + skip, n - at - skip);
                    got = canonical(field, n + 1 - skip, request, buf);
                    ck_assert_msg(
                        got == NULL ||
                            (ctl == '\t' && (skip || strcmp(got, good) == 0)),
                        "%s, %d at %u", text, ctl, (unsigned)at);
                }
            }
        }
    }
}
END_TEST

/* What is cut off is malformed, or is the whole of something shorter. */
START_TEST(truncation)
{
    static const struct {
        const char *text;
        int request;
        size_t least; /* no shorter prefix is good */
    } t[] = {
        {V PORT TOKEN ID READ, 1, sizeof(V PORT TOKEN ID READ) - 1},
        {V PORT TOKEN ID WRITE READ, 1,
         sizeof(V PORT TOKEN ID ", write" MEM ";len=4") - 1},
        {RID CONN PART ";len=300;fin", 0, sizeof(RID CONN PART ";len=3") - 1},
        {RID CONN ", write;total=10", 0, sizeof(RID CONN ", write") - 1},
        {RID ", declined=connect", 0, sizeof(RID ", declined=connect") - 1},
    };
    char buf[RDMA_HDR_FORMAT_MAX];
    size_t i, n;

    for (i = 0; i < COUNT(t); i++) {
        for (n = 0; n < t[i].least; n++)
            ck_assert_msg(canonical(t[i].text, n, t[i].request, buf) == NULL,
                          "%s, %u", t[i].text, (unsigned)n);
        ck_assert_ptr_nonnull(canonical(t[i].text, n, t[i].request, buf));
        for (; n <= strlen(t[i].text); n++)
            canonical(t[i].text, n, t[i].request, buf);
    }
}
END_TEST

/* Every size of the buffer: it fits, or nothing is there, and never a byte
 * beyond. */
START_TEST(format_room)
{
    char full[RDMA_HDR_FORMAT_MAX], buf[RDMA_HDR_FORMAT_MAX];
    rdma_hdr_request req = a_request();
    rdma_hdr_response resp = {.id = RDMA_HDR_ID_MAX,
                              .conn = UINT32_MAX,
                              .kind = RDMA_HDR_READ,
                              .has_total = 1,
                              .total = UINT32_MAX,
                              .len = UINT32_MAX,
                              .fin = 1};
    size_t n, size;
    int request;

    /* the longest there are */
    req.port = 65535;
    req.id = RDMA_HDR_ID_MAX;
    req.len = RDMA_HDR_WINDOW_MAX;
    req.family = 6;
    memset(req.addr, 0xff, sizeof(req.addr));
    for (request = 0; request <= 1; request++) {
        ck_assert_int_eq(
            request ? rdma_hdr_format_request(&req, full, sizeof(full))
                    : rdma_hdr_format_response(&resp, full, sizeof(full)),
            RDMA_HDR_OK);
        n = strlen(full);
        for (size = 0; size <= n + 1; size++) {
            rdma_hdr_status status;

            memset(buf, FILL, sizeof(buf));
            status = request ? rdma_hdr_format_request(&req, buf, size)
                             : rdma_hdr_format_response(&resp, buf, size);
            ck_assert(untouched(buf + size, sizeof(buf) - size));
            ck_assert_int_eq(status, size > n ? RDMA_HDR_OK : RDMA_HDR_NOSPACE);
            if (size > n)
                ck_assert_str_eq(buf, full);
            else if (size > 0)
                ck_assert_int_eq(buf[0], '\0');
        }
    }
}
END_TEST

/* xorshift64: the same numbers in every run */
static uint64_t random_bits(void)
{
    static uint64_t state = 88172645463325252u;

    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

START_TEST(round_trips)
{
    char text[RDMA_HDR_FORMAT_MAX];
    int i, j;

    for (i = 0; i < 20000; i++) {
        rdma_hdr_request r = a_request(), again;

        r.port = (uint16_t)(1024 + random_bits() % (65536 - 1024));
        r.id = (uint32_t)(1 + random_bits() % RDMA_HDR_ID_MAX);
        r.family = (int)(random_bits() % 3) * 2;
        r.family = r.family == 0 ? 0 : r.family + 2;
        for (j = 0; j < 16; j++) {
            r.token[j] = (uint8_t)random_bits();
            if (j < (r.family == 6 ? 16 : r.family))
                r.addr[j] = (uint8_t)(random_bits() & random_bits() &
                                      -(random_bits() & 1));
        }
        r.addr[0] |= r.family == 6; /* not a mapped one */
        r.stag = (uint32_t)random_bits();
        r.to = random_bits();
        r.len = 1 + (random_bits() >> (24 + random_bits() % 40));
        if (r.len > UINT64_MAX - r.to)
            r.to = 0;
        ck_assert_int_eq(rdma_hdr_format_request(&r, text, sizeof(text)), 0);
        ck_assert_int_eq(parse_request(text, strlen(text), &again), 0);
        ck_assert(r.port == again.port && r.id == again.id &&
                  r.family == again.family && r.stag == again.stag &&
                  r.to == again.to && r.len == again.len &&
                  r.prefer[0] == again.prefer[0] &&
                  r.prefer[1] == again.prefer[1]);
        ck_assert_mem_eq(r.token, again.token, sizeof(r.token));
        ck_assert_mem_eq(r.addr, again.addr, sizeof(r.addr));
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("rdma_hdr properties");
    TCase *t = tcase_create("all");
    SRunner *runner;
    int failed;

    tcase_add_test(t, control_characters);
    tcase_add_test(t, truncation);
    tcase_add_test(t, format_room);
    tcase_add_test(t, round_trips);
    suite_add_tcase(s, t);
    runner = srunner_create(s);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
