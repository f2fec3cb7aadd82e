/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * What rwget has around the transfer: the names of its files, and which hosts a
 * proxy stands before.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../client/output.h"
#include "../../client/route.h"

static char folder[] = "/tmp/test_rwget.XXXXXX";

static void setup(void)
{
    ck_assert_ptr_nonnull(mkdtemp(folder));
    ck_assert_int_eq(chdir(folder), 0);
}

static void teardown(void)
{
    static const char *const names[] = {"a", "a.1", "a.2", "a.3", "-"};
    size_t i;

    for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        unlink(names[i]);
    }
    ck_assert_int_eq(chdir("/"), 0);
    ck_assert_int_eq(rmdir(folder), 0); /* nothing else was left */
}

static void put(const char *name, const char *text)
{
    FILE *f = fopen(name, "w");

    ck_assert_ptr_nonnull(f);
    fputs(text, f);
    fclose(f);
}

static void expect(const char *name, const char *text)
{
    char buf[16] = "";
    FILE *f = fopen(name, "r");

    ck_assert_msg(f != NULL, "%s is not there", name);
    buf[fread(buf, 1, sizeof(buf) - 1, f)] = '\0';
    fclose(f);
    ck_assert_str_eq(buf, text);
}

static void start(output *out, const char *name, int fresh, const char *text)
{
    ck_assert_int_eq(output_open(out, name, fresh, 0), 0);
    ck_assert_int_eq(output_write(out, text, strlen(text)), 0);
}

/* Whoever is the last to end takes the name that is free then. */
START_TEST(names_that_are_taken_meanwhile)
{
    output first, second, third;

    start(&first, "a", 1, "first");
    start(&second, "a", 1, "second");
    start(&third, "a", 1, "third");
    ck_assert_int_eq(output_commit(&second), 0);
    ck_assert_str_eq(second.path, "a");
    put("a.1", "another's");
    ck_assert_int_eq(output_commit(&first), 0);
    ck_assert_str_eq(first.path, "a.2");
    ck_assert_int_eq(output_commit(&third), 0);
    ck_assert_str_eq(third.path, "a.3");
    output_close(&first);
    output_close(&second);
    output_close(&third);
    expect("a", "second");
    expect("a.1", "another's");
    expect("a.2", "first");
    expect("a.3", "third");
}
END_TEST

START_TEST(a_name_that_was_given)
{
    output out;

    put("a", "old");
    start(&out, "a", 0, "new");
    expect("a", "old");
    ck_assert_int_eq(output_commit(&out), 0);
    output_close(&out);
    expect("a", "new");
    start(&out, "-", 1, "file"); /* not standard output: a URL ended so */
    ck_assert_int_eq(output_commit(&out), 0);
    output_close(&out);
    expect("-", "file");
}
END_TEST

START_TEST(nothing_is_left)
{
    output out;

    start(&out, "a", 1, "partial");
    ck_assert_int_eq(output_rewind(&out), 0);
    output_close(&out);
    output_close(&out);
    ck_assert_int_eq(access("a", F_OK), -1);
}
END_TEST

static const struct {
    const char *no_proxy, *host;
    int proxied;
} proxies[] = {{"", "www.example", 1},
               {"*", "www.example", 0},
               {"*", "192.0.2.1", 0},
               {"a.example,*", "www.example", 1}, /* libcurl takes it so */
               {"example", "www.example", 0},
               {".example", "www.example", 0},
               {"example", "wwwexample", 1},
               {"a.example, WWW.example", "www.example", 0},
               {"192.0.2.1", "192.0.2.1", 0},
               {"2.1", "192.0.2.1", 1}, /* an address has no domain */
               {"::1", "2001:db8::1", 1},
               {"2001:db8::1", "2001:db8::1", 0}};

START_TEST(proxies_and_exemptions)
{
    setenv("http_proxy", "http://proxy.example:3128", 1);
    unsetenv("all_proxy");
    unsetenv("ALL_PROXY");
    setenv("no_proxy", proxies[_i].no_proxy, 1);
    ck_assert_int_eq(rdmahttp_route_proxied("http", proxies[_i].host),
                     proxies[_i].proxied);
}
END_TEST

/* A literal needs no name server, and a look-up that is cancelled waits for
 * none. */
START_TEST(ways_to_a_host)
{
    struct sockaddr_storage out[RDMAHTTP_ROUTES];
    int fds[2];

    ck_assert_uint_eq(
        rdmahttp_route_locals("127.0.0.1", "80", NULL, 10000, 0, out), 1);
    ck_assert_int_eq(out[0].ss_family, AF_INET);
    ck_assert_uint_eq(
        rdmahttp_route_locals("127.0.0.1", "80", "::1", 10000, 0, out), 0);
    ck_assert_int_eq(pipe(fds), 0);
    ck_assert_int_eq(write(fds[1], "", 1), 1);
    rdmahttp_route_locals("nobody.invalid", "80", NULL, 3600 * 1000, fds[0],
                          out);
    close(fds[0]);
    close(fds[1]);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("rwget");
    TCase *t = tcase_create("output"), *r = tcase_create("route");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, names_that_are_taken_meanwhile);
    tcase_add_test(t, a_name_that_was_given);
    tcase_add_test(t, nothing_is_left);
    tcase_add_loop_test(r, proxies_and_exemptions, 0,
                        (int)(sizeof(proxies) / sizeof(proxies[0])));
    tcase_add_test(r, ways_to_a_host);
    suite_add_tcase(suite, t);
    suite_add_tcase(suite, r);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
