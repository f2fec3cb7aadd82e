/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_mem: what is counted, what is handed out, what is zero.
 */
#include "../../rdma_mem.h"

#include <check.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fake_private.h"

#define BLOCK RDMA_MEM_BLOCK
#define MIB   ((size_t)1024 * 1024)

static size_t page;
static rdma_mem *mem;
static struct ibv_pd *pd;

static size_t used(void)
{
    rdma_mem_usage u;

    rdma_mem_usage_get(mem, &u);
    ck_assert_uint_eq(u.used, fake_registered()); /* as the kernel counts */
    ck_assert_uint_le(u.used, u.peak);
    ck_assert_uint_le(u.peak, u.budget);
    return u.used;
}

static void begin(void)
{
    page = (size_t)sysconf(_SC_PAGESIZE);
    fake_start();
    mem = rdma_mem_create(MIB);
    pd = ibv_alloc_pd(&fake_context);
}

static void end(void)
{
    ck_assert_uint_eq(used(), 0);
    rdma_mem_destroy(mem);
    ibv_dealloc_pd(pd);
    ck_assert_uint_eq(fake_stop(), 0);
}

static int is_zero(const char *p, size_t n)
{
    while (n > 0 && *p == 0) {
        p++;
        n--;
    }
    return n == 0;
}

/* ---- budget and regions ------------------------------------------------ */

START_TEST(region_is_whole_zeroed_pages)
{
    static const size_t lens[] = {1, 4095, 4096, 4097, 100000};
    rdma_mem_region r;
    size_t i;

    for (i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
        ck_assert_int_eq(rdma_mem_map(mem, pd, lens[i], 0, &r), 0);
        ck_assert_uint_ge(r.len, lens[i]);
        ck_assert_uint_lt(r.len, lens[i] + page);
        ck_assert_uint_eq(r.len % page, 0);
        ck_assert_uint_eq((uintptr_t)r.base % page, 0);
        ck_assert(is_zero(r.base, r.len));
        memset(r.base, 1, r.len);
        ck_assert_ptr_eq(r.mr->addr, r.base);
        ck_assert_uint_eq(used(), r.len);
        rdma_mem_unmap(mem, &r);
        ck_assert_ptr_null(r.base);
        ck_assert_ptr_null(r.mr);
        rdma_mem_unmap(mem, &r); /* again: nothing */
        ck_assert_uint_eq(used(), 0);
    }
}
END_TEST

START_TEST(budget_is_kept)
{
    rdma_mem_region a, b;
    rdma_mem_usage u;

    ck_assert_int_eq(rdma_mem_map(mem, pd, MIB, 0, &a), 0);
    ck_assert_int_eq(rdma_mem_map(mem, pd, 1, 0, &b), EDQUOT);
    ck_assert_ptr_null(b.base);
    rdma_mem_unmap(mem, &a);
    ck_assert_int_eq(rdma_mem_map(mem, pd, MIB - page, 0, &a), 0);
    ck_assert_int_eq(rdma_mem_map(mem, pd, page + 1, 0, &b), EDQUOT);
    ck_assert_int_eq(rdma_mem_map(mem, pd, page, 0, &b), 0);
    rdma_mem_unmap(mem, &a);
    rdma_mem_unmap(mem, &b);
    rdma_mem_usage_get(mem, &u);
    ck_assert_uint_eq(u.peak, MIB);
    ck_assert_uint_eq(u.budget, MIB);
}
END_TEST

START_TEST(arenas_leave_some)
{
    size_t most = MIB / 2 - MIB / RDMA_MEM_ARENAS_LEAVE;
    rdma_mem_arena *arena;
    rdma_mem_region a, b;

    rdma_mem_reserve(mem, MIB / 2);
    ck_assert_int_eq(rdma_mem_arena_create(mem, pd, most + 1, &arena), EDQUOT);
    ck_assert_int_eq(rdma_mem_arena_create(mem, pd, most, &arena), 0);
    ck_assert_int_eq(
        rdma_mem_map(mem, pd, MIB / RDMA_MEM_ARENAS_LEAVE, 0, &a), 0);
    ck_assert_int_eq(rdma_mem_map(mem, pd, 1, 0, &b), EDQUOT);
    rdma_mem_unmap(mem, &a);
    rdma_mem_arena_destroy(arena);
    rdma_mem_reserve(mem, 0);
}
END_TEST

/* Not counted twice: neither as used nor as set aside for it. */
START_TEST(pools_fill_what_is_set_aside)
{
    size_t most = MIB / 2 - MIB / RDMA_MEM_ARENAS_LEAVE;
    rdma_mem_pool *pool;
    rdma_mem_usage u;

    rdma_mem_reserve(mem, MIB / 2);
    rdma_mem_usage_get(mem, &u);
    ck_assert_uint_eq(u.available, most);
    ck_assert_int_eq(rdma_mem_pool_create(mem, pd, MIB / 2, &pool), 0);
    rdma_mem_usage_get(mem, &u);
    ck_assert_uint_eq(u.available, most);
    rdma_mem_pool_destroy(pool);
    rdma_mem_usage_get(mem, &u);
    ck_assert_uint_eq(u.available, most);
    rdma_mem_reserve(mem, 0);
}
END_TEST

START_TEST(sizes_that_cannot_be)
{
    static const size_t lens[] = {0, SIZE_MAX, SIZE_MAX - 1, SIZE_MAX - 4095,
                                  SIZE_MAX / 2};
    rdma_mem_region r;
    rdma_mem_arena *arena;
    size_t i;
    int rc;

    for (i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
        rc = lens[i] == SIZE_MAX / 2 ? EDQUOT : ENOMEM;
        ck_assert_int_eq(rdma_mem_map(mem, pd, lens[i], 0, &r), rc);
        ck_assert_ptr_null(r.base);
        ck_assert_int_eq(rdma_mem_arena_create(mem, pd, lens[i], &arena), rc);
        ck_assert_ptr_null(arena);
    }
}
END_TEST

START_TEST(refusal_of_the_device_is_refunded)
{
    rdma_mem_region r;

    fake_fail("ibv_reg_mr", 1, EINVAL);
    ck_assert_int_eq(rdma_mem_map(mem, pd, 10000, 0, &r), EINVAL);
    ck_assert_ptr_null(r.base);
    ck_assert_uint_eq(used(), 0);
    ck_assert_int_eq(rdma_mem_map(mem, pd, MIB, 0, &r), 0);
    rdma_mem_unmap(mem, &r);
}
END_TEST

/* The device keeps the MR: the pages must stay, and stay counted. */
START_TEST(memory_that_cannot_be_deregistered)
{
    rdma_mem_region r;
    struct ibv_mr *mr;
    char *base;
    rdma_mem_usage u;

    ck_assert_int_eq(rdma_mem_map(mem, pd, page, 0, &r), 0);
    base = r.base;
    mr = r.mr;
    fake_fail("ibv_dereg_mr", 1, EIO);
    rdma_mem_unmap(mem, &r);
    ck_assert_ptr_null(r.base);
    base[0] = 1; /* still there */
    rdma_mem_usage_get(mem, &u);
    ck_assert_uint_eq(u.used, page);
    r = (rdma_mem_region){base, page, mr};
    rdma_mem_unmap(mem, &r);
}
END_TEST

/* ---- pool -------------------------------------------------------------- */

START_TEST(pool_takes_all_or_none)
{
    rdma_mem_pool *pool;
    char *b[5] = {NULL, NULL, NULL, NULL, NULL};
    unsigned i, j;

    ck_assert_int_eq(rdma_mem_pool_create(mem, pd, MIB + 5, &pool), 0);
    ck_assert_uint_eq(rdma_mem_pool_bytes(pool), 4 * BLOCK);
    ck_assert_int_eq(rdma_mem_pool_take(pool, 5, b), ENOMEM);
    ck_assert_int_eq(rdma_mem_pool_take(pool, 3, b), 0);
    ck_assert_int_eq(rdma_mem_pool_take(pool, 2, b + 3), ENOMEM);
    ck_assert_int_eq(rdma_mem_pool_take(pool, 1, b + 3), 0);
    for (i = 0; i < 4; i++) {
        memset(b[i], (int)i, BLOCK); /* none overlaps another */
        for (j = 0; j < i; j++) {
            ck_assert_int_eq(b[j][BLOCK - 1], (int)j);
        }
    }
    rdma_mem_pool_give(pool, b[1]);
    ck_assert_int_eq(rdma_mem_pool_take(pool, 2, b + 3), ENOMEM);
    ck_assert_int_eq(rdma_mem_pool_take(pool, 1, b + 4), 0);
    ck_assert_ptr_eq(b[4], b[1]);
    rdma_mem_pool_destroy(pool);
    rdma_mem_pool_destroy(NULL);
}
END_TEST

START_TEST(pool_has_no_remote_rights)
{
    rdma_mem_pool *pool;
    char *b;

    ck_assert_int_eq(rdma_mem_pool_create(mem, pd, BLOCK, &pool), 0);
    ck_assert_int_eq(rdma_mem_pool_take(pool, 1, &b), 0);
    fake_lock();
    ck_assert_ptr_nonnull(
        fake_find_mr(pd, rdma_mem_pool_lkey(pool), (uintptr_t)b, BLOCK, 0));
    ck_assert_ptr_null(fake_find_mr(pd, rdma_mem_pool_lkey(pool), (uintptr_t)b,
                                    1, IBV_ACCESS_REMOTE_READ));
    ck_assert_ptr_null(fake_find_mr(pd, rdma_mem_pool_lkey(pool), (uintptr_t)b,
                                    1, IBV_ACCESS_REMOTE_WRITE));
    fake_unlock();
    rdma_mem_pool_destroy(pool);
}
END_TEST

START_TEST(pool_halves_until_it_fits)
{
    static const struct {
        size_t wanted, memlock, got; /* blocks */
    } cases[] = {{8, 0, 4}, {16, 0, 4}, {0, 0, 1}, {4, 3, 2}, {4, 1, 1}};
    rdma_mem_pool *pool;
    size_t i;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        fake_memlock(cases[i].memlock * BLOCK);
        ck_assert_int_eq(
            rdma_mem_pool_create(mem, pd, cases[i].wanted * BLOCK, &pool), 0);
        ck_assert_uint_eq(rdma_mem_pool_bytes(pool), cases[i].got * BLOCK);
        ck_assert_uint_eq(used(), cases[i].got * BLOCK);
        rdma_mem_pool_destroy(pool);
    }
    fake_memlock(BLOCK - 1);
    ck_assert_int_eq(rdma_mem_pool_create(mem, pd, 4 * BLOCK, &pool), ENOMEM);
    ck_assert_ptr_null(pool);
    fake_memlock(0);
    fake_fail("ibv_reg_mr", 1, EPERM); /* smaller would not help */
    ck_assert_int_eq(rdma_mem_pool_create(mem, pd, 4 * BLOCK, &pool), EPERM);
    ck_assert_ptr_null(pool);
}
END_TEST

/* ---- arena ------------------------------------------------------------- */

START_TEST(arena_is_first_fit)
{
    rdma_mem_arena *arena;
    rdma_mem_part a, b, c, d;

    ck_assert_int_eq(rdma_mem_arena_create(mem, pd, 8 * page, &arena), 0);
    ck_assert_uint_eq(rdma_mem_arena_bytes(arena), 8 * page);
    ck_assert(rdma_mem_arena_idle(arena));
    ck_assert_int_eq(rdma_mem_part_take(arena, 1, &a), 0);
    ck_assert_int_eq(rdma_mem_part_take(arena, 2 * page, &b), 0);
    ck_assert_int_eq(rdma_mem_part_take(arena, page + 1, &c), 0);
    ck_assert(!rdma_mem_arena_idle(arena));
    ck_assert_ptr_eq(b.base, a.base + page);
    ck_assert_ptr_eq(c.base, b.base + 2 * page);
    ck_assert_int_eq(rdma_mem_part_take(arena, 3 * page + 1, &d), ENOMEM);
    ck_assert_int_eq(rdma_mem_part_take(arena, 3 * page, &d), 0);
    ck_assert_ptr_eq(d.base, c.base + 2 * page);
    rdma_mem_part_give(arena, &b); /* a hole of two pages */
    ck_assert_ptr_null(b.base);
    rdma_mem_part_give(arena, &d);
    ck_assert_int_eq(rdma_mem_part_take(arena, 2 * page + 1, &d), 0);
    ck_assert_ptr_eq(d.base, c.base + 2 * page); /* the hole is too small */
    ck_assert_int_eq(rdma_mem_part_take(arena, 2 * page, &b), 0);
    ck_assert_ptr_eq(b.base, a.base + page); /* fills it exactly */
    rdma_mem_part_give(arena, &a);
    rdma_mem_part_give(arena, &c);
    rdma_mem_part_give(arena, &b);
    rdma_mem_part_give(arena, &d);
    ck_assert(rdma_mem_arena_idle(arena));
    ck_assert_int_eq(rdma_mem_part_take(arena, 8 * page, &a), 0);
    rdma_mem_arena_destroy(arena); /* with a part that lives */
    rdma_mem_arena_destroy(NULL);
}
END_TEST

START_TEST(arena_refuses)
{
    static const size_t lens[] = {0, SIZE_MAX, SIZE_MAX - 4096};
    rdma_mem_arena *arena;
    rdma_mem_part p;
    size_t i;

    ck_assert_int_eq(rdma_mem_arena_create(mem, pd, MIB + 1, &arena), EDQUOT);
    ck_assert_ptr_null(arena);
    ck_assert_int_eq(rdma_mem_arena_create(mem, pd, page, &arena), 0);
    for (i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
        ck_assert_int_eq(rdma_mem_part_take(arena, lens[i], &p), ENOMEM);
    }
    ck_assert_int_eq(rdma_mem_part_take(arena, page + 1, &p), ENOMEM);
    ck_assert(rdma_mem_arena_idle(arena));
    rdma_mem_arena_destroy(arena);
}
END_TEST

/* What lies behind a body in its last page was somebody else's. */
START_TEST(part_ends_with_zeros)
{
    rdma_mem_arena *arena;
    rdma_mem_part p;
    size_t len;

    ck_assert_int_eq(rdma_mem_arena_create(mem, pd, 4 * page, &arena), 0);
    for (len = 1; len <= 3 * page; len += 511) {
        ck_assert_int_eq(rdma_mem_part_take(arena, len, &p), 0);
        ck_assert_uint_eq(p.len, len);
        ck_assert(is_zero(p.base + len, p.span - len));
        memset(p.base, 0x55, p.span);
        rdma_mem_part_give(arena, &p);
    }
    rdma_mem_arena_destroy(arena);
}
END_TEST

START_TEST(arena_has_no_right_but_to_be_read)
{
    rdma_mem_arena *arena;
    rdma_mem_part p;
    uint32_t key;

    ck_assert_int_eq(rdma_mem_arena_create(mem, pd, page, &arena), 0);
    ck_assert_int_eq(rdma_mem_part_take(arena, page, &p), 0);
    key = rdma_mem_arena_rkey(arena);
    fake_lock();
    ck_assert_ptr_nonnull(
        fake_find_mr(pd, key, (uintptr_t)p.base, page, IBV_ACCESS_REMOTE_READ));
    ck_assert_ptr_null(fake_find_mr(pd, key, (uintptr_t)p.base, page,
                                    IBV_ACCESS_REMOTE_WRITE));
    ck_assert_ptr_null(
        fake_find_mr(pd, key, (uintptr_t)p.base, page, IBV_ACCESS_LOCAL_WRITE));
    fake_unlock();
    rdma_mem_arena_destroy(arena);
}
END_TEST

/* Any order of taking and giving: parts never overlap, and an empty arena is
 * whole again. */
START_TEST(arena_at_random)
{
    rdma_mem_arena *arena;
    rdma_mem_part parts[16];
    unsigned char mark[16] = {0};
    unsigned step, i;
    unsigned r = 12345;

    memset(parts, 0, sizeof(parts));
    ck_assert_int_eq(rdma_mem_arena_create(mem, pd, 32 * page, &arena), 0);
    for (step = 0; step < 5000; step++) {
        r = r * 1103515245u + 12345u;
        i = r >> 16 & 15;
        if (parts[i].base) {
            ck_assert_int_eq((unsigned char)parts[i].base[0], mark[i]);
            ck_assert_int_eq((unsigned char)parts[i].base[parts[i].len - 1],
                             mark[i]);
            rdma_mem_part_give(arena, &parts[i]);
        }
        else if (rdma_mem_part_take(arena, 1 + (r >> 8) % (6 * page), &parts[i])
                 == 0) {
            mark[i] = (unsigned char)step;
            memset(parts[i].base, mark[i], parts[i].len);
        }
        else {
            memset(&parts[i], 0, sizeof(parts[i]));
        }
    }
    for (i = 0; i < 16; i++) {
        if (parts[i].base) {
            rdma_mem_part_give(arena, &parts[i]);
        }
    }
    ck_assert(rdma_mem_arena_idle(arena));
    ck_assert_int_eq(rdma_mem_part_take(arena, 32 * page, &parts[0]), 0);
    rdma_mem_arena_destroy(arena);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("mem");
    TCase *tc = tcase_create("mem");
    SRunner *runner;
    int failed;

    fake_seed();
    tcase_add_checked_fixture(tc, begin, end);
    tcase_add_test(tc, region_is_whole_zeroed_pages);
    tcase_add_test(tc, budget_is_kept);
    tcase_add_test(tc, arenas_leave_some);
    tcase_add_test(tc, pools_fill_what_is_set_aside);
    tcase_add_test(tc, sizes_that_cannot_be);
    tcase_add_test(tc, refusal_of_the_device_is_refunded);
    tcase_add_test(tc, memory_that_cannot_be_deregistered);
    tcase_add_test(tc, pool_takes_all_or_none);
    tcase_add_test(tc, pool_has_no_remote_rights);
    tcase_add_test(tc, pool_halves_until_it_fits);
    tcase_add_test(tc, arena_is_first_fit);
    tcase_add_test(tc, arena_refuses);
    tcase_add_test(tc, part_ends_with_zeros);
    tcase_add_test(tc, arena_has_no_right_but_to_be_read);
    tcase_add_test(tc, arena_at_random);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
