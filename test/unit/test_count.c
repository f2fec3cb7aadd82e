/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_count: the table, and children that come, count, and go. That the engine
 * counts what it does is held after every test of it: kit_teardown().
 */
#include "../../rdma_count.h"

#include <check.h>
#include <ctype.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../rdma_hdr.h"

#define SLOTS 3

static rdma_count_board *board;

static void begin(void)
{
    board = rdma_count_board_create(SLOTS);
    ck_assert_ptr_nonnull(board);
}

static uint64_t total(rdma_count_id id)
{
    return rdma_count_total(board, id);
}

/* As a child of this pid would. */
static void count_as(pid_t pid)
{
    ck_assert_int_eq(rdma_count_claim(board, pid), 0);
}

/* ---- the table --------------------------------------------------------- */

static int is_pascal_case(const char *name)
{
    const char *p;

    for (p = name; *p; p++) {
        if (!isalpha((unsigned char)*p)) {
            return 0;
        }
        if (isupper((unsigned char)*p) && !islower((unsigned char)p[1])) {
            return 0;
        }
    }
    return isupper((unsigned char)*name);
}

START_TEST(names)
{
    const rdma_count_info *info = &rdma_count_infos[_i];
    int i;

    ck_assert_msg(is_pascal_case(info->name), "%s", info->name);
    ck_assert_msg(*info->what && !strpbrk(info->what, "<>&\""), "%s",
                  info->what);
    for (i = 0; i < _i; i++) {
        ck_assert_str_ne(rdma_count_infos[i].name, info->name);
        if (strcmp(rdma_count_infos[i].group, info->group) == 0) {
            ck_assert_str_eq(rdma_count_infos[_i - 1].group, info->group);
        }
    }
}
END_TEST

/* Reasons are counted by their distance from the first one. */
START_TEST(reasons_in_the_order_of_their_tokens)
{
    char name[64];

    snprintf(name, sizeof(name), "declined%s",
             rdma_hdr_declined_name((rdma_hdr_declined)_i));
    ck_assert_int_eq(
        strcasecmp(
            rdma_count_infos[RDMA_COUNT_DeclinedSmall + _i - RDMA_HDR_SMALL]
                .name,
            name),
        0);
}
END_TEST

START_TEST(no_group_of_reasons_is_longer)
{
    int i, n = 0;

    for (i = 0; i < RDMA_COUNT_N; i++) {
        n += strcmp(rdma_count_infos[i].group, "Declined") == 0;
    }
    ck_assert_int_eq(n, RDMA_HDR_DECLINED_COUNT - RDMA_HDR_SMALL);
}
END_TEST

/* ---- children ---------------------------------------------------------- */

START_TEST(sum_of_all_children)
{
    count_as(101);
    rdma_count_add(RDMA_COUNT_RequestsWrite, 5);
    rdma_count_add(RDMA_COUNT_StreamsOpen, 2);
    rdma_count_sub(RDMA_COUNT_StreamsOpen, 1);
    rdma_count_raise(RDMA_COUNT_MemoryPeak, 70);
    rdma_count_raise(RDMA_COUNT_MemoryPeak, 30);
    count_as(102);
    rdma_count_add(RDMA_COUNT_RequestsWrite, 7);
    rdma_count_add(RDMA_COUNT_StreamsOpen, 3);
    rdma_count_raise(RDMA_COUNT_MemoryPeak, 50);
    ck_assert_uint_eq(total(RDMA_COUNT_RequestsWrite), 12);
    ck_assert_uint_eq(total(RDMA_COUNT_StreamsOpen), 4);
    ck_assert_uint_eq(total(RDMA_COUNT_MemoryPeak), 70);
    ck_assert_uint_eq(total(RDMA_COUNT_Children), 2);
    ck_assert_uint_eq(total(RDMA_COUNT_RequestsRead), 0);
}
END_TEST

START_TEST(each_child_by_itself)
{
    count_as(101);
    count_as(102);
    rdma_count_add(RDMA_COUNT_LeasesOpen, 9);
    ck_assert_uint_eq(rdma_count_slots(board), SLOTS);
    ck_assert_int_eq(rdma_count_pid(board, 0), 101);
    ck_assert_int_eq(rdma_count_pid(board, 1), 102);
    ck_assert_int_eq(rdma_count_pid(board, 2), 0);
    ck_assert_uint_eq(rdma_count_held(board, 0, RDMA_COUNT_LeasesOpen), 0);
    ck_assert_uint_eq(rdma_count_held(board, 1, RDMA_COUNT_LeasesOpen), 9);
}
END_TEST

START_TEST(what_is_done_outlives_a_child_and_what_is_held_does_not)
{
    int i;

    count_as(101);
    for (i = 0; i < RDMA_COUNT_N; i++) {
        rdma_count_set((rdma_count_id)i, 10);
    }
    rdma_count_release(board, 101);
    for (i = 0; i < RDMA_COUNT_N; i++) {
        uint64_t left = rdma_count_infos[i].kind == RDMA_COUNT_GAUGE ? 0 : 10;

        if (i == RDMA_COUNT_ConnectionsLost) {
            left += 20; /* of both kinds */
        }
        else if (i == RDMA_COUNT_LeasesLost) {
            left += 10;
        }
        ck_assert_msg(total((rdma_count_id)i) == left, "%s",
                      rdma_count_infos[i].name);
    }
    ck_assert_int_eq(rdma_count_pid(board, 0), 0);
}
END_TEST

START_TEST(next_child_goes_on_from_there)
{
    int pid;

    for (pid = 101; pid < 110; pid++) {
        count_as(pid);
        ck_assert_uint_eq(total(RDMA_COUNT_MemoryInUse), 0);
        rdma_count_add(RDMA_COUNT_BytesRead, 1000);
        rdma_count_set(RDMA_COUNT_MemoryInUse, 1);
        rdma_count_release(board, pid);
    }
    ck_assert_uint_eq(total(RDMA_COUNT_BytesRead), 9000);
}
END_TEST

START_TEST(one_child_too_many_counts_for_itself)
{
    pid_t pid;

    for (pid = 101; pid <= 100 + SLOTS; pid++) {
        count_as(pid);
    }
    rdma_count_here = calloc(1, sizeof(*rdma_count_here)); /* as it begins */
    ck_assert_int_eq(rdma_count_claim(board, pid), -1);
    rdma_count_add(RDMA_COUNT_RequestsTcp, 1);
    ck_assert_uint_eq(total(RDMA_COUNT_RequestsTcp), 0);
    rdma_count_release(board, pid); /* it has none */
    ck_assert_uint_eq(total(RDMA_COUNT_Children), SLOTS);
    rdma_count_release(board, 102);
    free(rdma_count_here);
    ck_assert_int_eq(rdma_count_claim(board, pid), 0);
    ck_assert_int_eq(rdma_count_pid(board, 1), pid);
}
END_TEST

START_TEST(no_two_slots_share_a_cache_line)
{
    count_as(101);
    ck_assert_uint_eq((uintptr_t)rdma_count_here % 64, 0);
    ck_assert_uint_eq(sizeof(rdma_count_slot) % 64, 0);
}
END_TEST

/* ---- all at once ------------------------------------------------------- */

#define TIMES   20000
#define THREADS 4

static void *count_many(void *arg)
{
    int i;

    for (i = 0; i < TIMES; i++) {
        rdma_count_add(RDMA_COUNT_RequestsAsked, 1);
        rdma_count_add(RDMA_COUNT_LeasesOpen, 1);
        rdma_count_sub(RDMA_COUNT_LeasesOpen, 1);
    }
    return arg;
}

static void child_main(void)
{
    pthread_t threads[THREADS];
    int i;

    if (rdma_count_claim(board, getpid())) {
        _exit(1);
    }
    for (i = 0; i < THREADS; i++) {
        if (pthread_create(&threads[i], NULL, count_many, NULL)) {
            _exit(2);
        }
    }
    for (i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    _exit(rdma_count_here->of[RDMA_COUNT_LeasesOpen] == 0 ? 0 : 3);
}

START_TEST(processes_and_threads_lose_nothing)
{
    uint64_t last = 0;
    int i, status;

    for (i = 0; i < SLOTS; i++) {
        pid_t pid = fork();

        ck_assert_int_ge(pid, 0);
        if (pid == 0) {
            child_main();
        }
    }
    while (last < (uint64_t)SLOTS * THREADS * TIMES) { /* it only grows */
        uint64_t now = total(RDMA_COUNT_RequestsAsked);

        ck_assert_uint_ge(now, last);
        last = now;
        sched_yield();
    }
    for (i = 0; i < SLOTS; i++) {
        pid_t pid = wait(&status);

        ck_assert(WIFEXITED(status));
        ck_assert_int_eq(WEXITSTATUS(status), 0);
        rdma_count_release(board, pid);
    }
    ck_assert_uint_eq(total(RDMA_COUNT_RequestsAsked),
                      (uint64_t)SLOTS * THREADS * TIMES);
    ck_assert_uint_eq(total(RDMA_COUNT_Children), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("rdma_count");
    TCase *tc = tcase_create("all");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(tc, begin, NULL);
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, names, 0, RDMA_COUNT_N);
    tcase_add_loop_test(tc, reasons_in_the_order_of_their_tokens,
                        RDMA_HDR_SMALL, RDMA_HDR_DECLINED_COUNT);
    tcase_add_test(tc, no_group_of_reasons_is_longer);
    tcase_add_test(tc, sum_of_all_children);
    tcase_add_test(tc, each_child_by_itself);
    tcase_add_test(tc, what_is_done_outlives_a_child_and_what_is_held_does_not);
    tcase_add_test(tc, next_child_goes_on_from_there);
    tcase_add_test(tc, one_child_too_many_counts_for_itself);
    tcase_add_test(tc, no_two_slots_share_a_cache_line);
    tcase_add_test(tc, processes_and_threads_lose_nothing);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
