/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The credit rule as a model: every state that two ends can reach, by any order
 * of sending and delivering, is visited. In none of them may a message find no
 * posted receive, a peer be accused wrongly, or somebody who wants to send wait
 * for ever.
 */
#include "rdma_credit.h"

#include <check.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH_MAX 6

/* Messages on their way to an end, oldest first: the credits they carry. */
typedef struct pipe {
    unsigned n;
    unsigned char credits[DEPTH_MAX];
} pipe;

typedef struct world {
    rdma_credit end[2];
    pipe to[2]; /* to[e]: what end e has not received yet */
} world;

typedef struct search {
    uint64_t *seen; /* open addressing; 0 is free */
    size_t size, used;
    world *todo;
    size_t ntodo, room;
} search;

static uint64_t encode(const world *w)
{
    uint64_t code = 1;
    unsigned e, i;

    for (e = 0; e < 2; e++) {
        code = code * 8 + w->end[e].avail;
        code = code * 8 + w->end[e].owed;
        code = code * 8 + w->to[e].n;
        for (i = 0; i < DEPTH_MAX; i++) {
            code = code * 8 + (i < w->to[e].n ? w->to[e].credits[i] : 0u);
        }
    }
    return code;
}

/* For what is tried very often: check writes a note for each ck_assert. */
#define must(what)                                                            \
    do {                                                                      \
        if (!(what)) {                                                        \
            ck_abort_msg("%s", #what);                                        \
        }                                                                     \
    } while (0)

static void visit(search *s, const world *w)
{
    uint64_t code = encode(w);
    size_t at = (size_t)(code * 0x9e3779b97f4a7c15u >> 20) % s->size;

    while (s->seen[at]) {
        if (s->seen[at] == code) {
            return;
        }
        at = (at + 1) % s->size;
    }
    s->seen[at] = code;
    s->used++;
    must(s->used < s->size / 2); /* or the model is larger than thought */
    if (s->ntodo == s->room) {
        s->room = s->room ? s->room * 2 : 1024;
        s->todo = realloc(s->todo, s->room * sizeof(*s->todo));
        ck_assert_ptr_nonnull(s->todo);
    }
    s->todo[s->ntodo++] = *w;
}

static void step(search *s, const world *from)
{
    unsigned e;

    for (e = 0; e < 2; e++) {
        const rdma_credit *me = &from->end[e];
        const rdma_credit *other = &from->end[1 - e];

        if (rdma_credit_may_send(me)) {
            world w = *from;
            pipe *p = &w.to[1 - e];

            must(p->n < other->depth); /* a receive is posted */
            p->credits[p->n++] = (unsigned char)rdma_credit_spend(&w.end[e]);
            visit(s, &w);
        }
        if (from->to[e].n > 0) {
            world w = *from;
            pipe *p = &w.to[e];
            unsigned credits = p->credits[0];

            memmove(p->credits, p->credits + 1, --p->n);
            must(!rdma_credit_arrived(&w.end[e], credits));
            visit(s, &w);
        }
        /* Nothing on its way: whoever wants to send can, or the other end owes
         * so much that it sends a PONG by itself. */
        if (from->to[0].n + from->to[1].n == 0 && !rdma_credit_may_send(me)) {
            must(rdma_credit_wants_pong(other)
                 && rdma_credit_may_send(other));
        }
    }
}

static size_t explore(unsigned depth0, unsigned depth1)
{
    search s = {NULL, (size_t)1 << 22, 0, NULL, 0, 0};
    world w;

    s.seen = calloc(s.size, sizeof(*s.seen));
    ck_assert_ptr_nonnull(s.seen);
    memset(&w, 0, sizeof(w));
    rdma_credit_init(&w.end[0], depth0, depth1);
    rdma_credit_init(&w.end[1], depth1, depth0);
    visit(&s, &w);
    while (s.ntodo > 0) {
        world next = s.todo[--s.ntodo];

        step(&s, &next);
    }
    free(s.seen);
    free(s.todo);
    return s.used;
}

START_TEST(no_deadlock)
{
    unsigned d0, d1;

    for (d0 = 2; d0 <= DEPTH_MAX; d0++) { /* the ends are alike */
        for (d1 = 2; d1 <= d0; d1++) {
            ck_assert_uint_gt(explore(d0, d1), 10);
        }
    }
}
END_TEST

START_TEST(credits_beyond_the_depth)
{
    rdma_credit k;

    rdma_credit_init(&k, 8, 8);
    ck_assert_int_eq(rdma_credit_arrived(&k, 1), -1);
    rdma_credit_spend(&k);
    ck_assert_int_eq(rdma_credit_arrived(&k, 2), -1);
    ck_assert_int_eq(rdma_credit_arrived(&k, 1), 0);
    ck_assert_uint_eq(k.avail, 8);
}
END_TEST

/* The peer has sent as many as we have receives, and has been told of none that
 * was posted again. */
START_TEST(messages_beyond_the_credits)
{
    rdma_credit k;
    unsigned i;

    rdma_credit_init(&k, 8, 32);
    for (i = 0; i < 8; i++) {
        ck_assert_int_eq(rdma_credit_arrived(&k, 0), 0);
    }
    ck_assert_int_eq(rdma_credit_arrived(&k, 0), -1);
    ck_assert_uint_eq(rdma_credit_spend(&k), 8);
    ck_assert_int_eq(rdma_credit_arrived(&k, 0), 0);
}
END_TEST

/* Depths that are too large for every state to be seen: a walk of many steps, with
 * what step() asserts at each. */
START_TEST(unequal_depths)
{
    static const unsigned depths[][2] = {
        {8, 255}, {255, 8}, {32, 255}, {255, 32}, {32, 8}, {9, 8}, {255, 255}};
    const unsigned *depth = depths[_i];
    rdma_credit end[2];
    unsigned char way[2][256]; /* credits on their way to an end, a ring */
    unsigned head[2] = {0, 0};
    unsigned n[2] = {0, 0};
    uint32_t random = (uint32_t)_i + 1;
    unsigned sent = 0;
    long i;

    rdma_credit_init(&end[0], depth[0], depth[1]);
    rdma_credit_init(&end[1], depth[1], depth[0]);
    for (i = 0; i < 1000000; i++) {
        unsigned e;

        random = random * 1664525 + 1013904223;
        e = random >> 31;
        if (random >> 30 & 1) {
            if (rdma_credit_may_send(&end[e])) {
                must(n[1 - e] < depth[1 - e]);
                way[1 - e][(head[1 - e] + n[1 - e]++) % 256] =
                    (unsigned char)rdma_credit_spend(&end[e]);
                sent++;
            }
            else if (n[0] + n[1] == 0) {
                must(rdma_credit_wants_pong(&end[1 - e])
                     && rdma_credit_may_send(&end[1 - e]));
            }
        }
        else if (n[e] > 0) {
            must(!rdma_credit_arrived(&end[e], way[e][head[e]++ % 256]));
            n[e]--;
        }
    }
    ck_assert_uint_gt(sent, 100000);
}
END_TEST

START_TEST(the_last_credit_brings_one_back)
{
    rdma_credit k;

    rdma_credit_init(&k, 8, 1);
    ck_assert(!rdma_credit_may_send(&k));
    ck_assert_int_eq(rdma_credit_arrived(&k, 0), 0);
    ck_assert(rdma_credit_may_send(&k));
    ck_assert_uint_eq(rdma_credit_spend(&k), 1);
    ck_assert(!rdma_credit_may_send(&k));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("credit");
    TCase *tc = tcase_create("credit");
    SRunner *runner;
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, no_deadlock);
    tcase_add_loop_test(tc, unequal_depths, 0, 7);
    tcase_add_test(tc, credits_beyond_the_depth);
    tcase_add_test(tc, messages_beyond_the_credits);
    tcase_add_test(tc, the_last_credit_brings_one_back);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
