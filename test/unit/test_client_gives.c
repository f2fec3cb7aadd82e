/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * What a client's endpoint gives away of itself: rights to its memory, how much of
 * that, its token, and what is said of these in the log.
 */
#include <arpa/inet.h>
#include <string.h>

#include "common.h"
#include "fake.h"
#include "../../client/endpoint_private.h"

#define WINDOW  ((size_t)256 * 1024)
#define WINDOWS 3

static rdmahttp_conf conf;
static rdmahttp_endpoint *eps[2];

static rdmahttp_endpoint *go(unsigned i)
{
    struct sockaddr_storage local = {.ss_family = AF_INET};
    char why[RDMAHTTP_TEXT_MAX];

    inet_pton(AF_INET, "192.0.2.2", &((struct sockaddr_in *)&local)->sin_addr);
    ck_assert_msg(rdmahttp_endpoint_open(&conf, &local, &eps[i], why) == 0,
                  "%s", why);
    return eps[i];
}

static void setup(void)
{
    conf = (rdmahttp_conf){.window = WINDOW,
                           .windows = WINDOWS,
                           .timeout_ms = 10000,
                           .connections = 8};
    fake_start();
}

static void teardown(void)
{
    unsigned i;

    for (i = 0; i < 2; i++) {
        if (eps[i]) {
            rdmahttp_endpoint_close(eps[i]);
        }
    }
    ck_assert_uint_eq(fake_stop(), 0);
}

/* A server may write to windows, and read nothing: there are as many of them as
 * requests at a time, and each is registered once. */
START_TEST(windows_can_be_written_and_no_more)
{
    rdmahttp_endpoint *ep = go(0);
    rdmahttp_transfer *t[WINDOWS];
    unsigned i;

    for (i = 0; i < WINDOWS; i++) {
        t[i] = rdmahttp_endpoint_begin(ep);
        ck_assert_ptr_nonnull(t[i]);
        ck_assert_uint_eq(t[i]->len, WINDOW);
        ck_assert_uint_eq(fake_registered_with(IBV_ACCESS_REMOTE_WRITE),
                          (i + 1) * WINDOW);
    }
    ck_assert_ptr_null(rdmahttp_endpoint_begin(ep)); /* they are in use */
    ck_assert_uint_eq(fake_registered(), WINDOWS * WINDOW);
    ck_assert_uint_eq(
        fake_registered_with(IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE),
        WINDOWS * WINDOW);
    ck_assert_uint_eq(fake_registered_with(IBV_ACCESS_REMOTE_READ), 0);
    ck_assert_uint_eq(fake_registered_with(IBV_ACCESS_REMOTE_ATOMIC), 0);
    for (i = 0; i < WINDOWS; i++) {
        rdmahttp_endpoint_release(ep, t[i]);
    }
}
END_TEST

/* Each origin has its own: nobody uses another one's tag. */
START_TEST(endpoints_share_nothing)
{
    const rdmahttp_endpoint *a = go(0);
    const rdmahttp_endpoint *b = go(1);
    static const uint8_t zero[RDMA_HDR_TOKEN_LEN / 2];
    unsigned i;

    ck_assert_ptr_ne(a->pd, b->pd);
    ck_assert_ptr_eq(a->window[0].region.mr->pd, a->pd);
    ck_assert_ptr_eq(b->window[0].region.mr->pd, b->pd);
    ck_assert_uint_ne(a->port, b->port);
    for (i = 0; i < 2; i++) { /* either half is random */
        size_t at = i * sizeof(zero);

        ck_assert(memcmp(a->token + at, b->token + at, sizeof(zero)));
        ck_assert(memcmp(a->token + at, zero, sizeof(zero)));
        ck_assert(memcmp(b->token + at, zero, sizeof(zero)));
    }
    ck_assert(memcmp(a->token, a->token + sizeof(zero), sizeof(zero)));
}
END_TEST

/* 1: the value of this key, up to its end, is asterisks in one and none in the
 * other, which are the same otherwise. */
static int is_masked(const char *field, const char *masked, const char *key)
{
    const char *at = strstr(field, key);
    const char *m = strstr(masked, key);
    size_t n;

    ck_assert_ptr_nonnull(at);
    ck_assert_ptr_nonnull(m);
    ck_assert_int_eq(at - field, m - masked);
    at += strlen(key);
    m += strlen(key);
    n = strcspn(at, ":\"");
    return n > 0 && strspn(m, "*") == n && strcspn(at, "*") >= n;
}

/* Whoever knows them can write to memory: they are not for a log. */
START_TEST(secrets_are_masked)
{
    rdmahttp_endpoint *ep = go(0);
    rdmahttp_transfer *t = rdmahttp_endpoint_begin(ep);
    char field[RDMA_HDR_FORMAT_MAX];
    char masked[RDMA_HDR_FORMAT_MAX];
    size_t i;

    ck_assert_int_eq(rdmahttp_endpoint_field(ep, t, field, masked), 0);
    ck_assert(is_masked(field, masked, "token=:"));
    ck_assert(is_masked(field, masked, "stag=\""));
    ck_assert(is_masked(field, masked, "to=\""));
    ck_assert_uint_eq(strlen(masked), strlen(field));
    for (i = 0; i < strlen(field); i++) {
        ck_assert(masked[i] == field[i] || masked[i] == '*');
    }
    rdmahttp_endpoint_release(ep, t);
}
END_TEST

static void add(Suite *s)
{
    TCase *t = tcase_create("endpoint");

    tcase_add_checked_fixture(t, setup, teardown);
    suite_add_tcase(s, t);
    tcase_add_test(t, windows_can_be_written_and_no_more);
    tcase_add_test(t, endpoints_share_nothing);
    tcase_add_test(t, secrets_are_masked);
}

int main(void)
{
    return common_main("client, what it gives away", add);
}
