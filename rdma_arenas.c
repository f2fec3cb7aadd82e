/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "rdma_arenas.h"
#include "rdma_count.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ARENAS      16                    /* of one connection */
#define ARENA_LEAST ((size_t)64 * 1024)   /* bytes, when memory is short */
#define ARENA_GOOD  ((size_t)1024 * 1024) /* bytes, when it is not */
#define SHARE       32      /* one arena in so many parts of what is free */
#define IDLE        5000000 /* microseconds: then it is given back */

struct rdma_arenas {
    rdma_mem *mem;
    struct ibv_pd *pd;
    size_t max;
    size_t share;
    size_t *bytes; /* of all of them, and of others */
    unsigned n;
    struct {
        rdma_mem_arena *arena;
        rdma_conn_time idle_since;
    } of[ARENAS];
};

rdma_arenas *rdma_arenas_create(rdma_mem *mem, struct ibv_pd *pd, size_t max,
                                size_t share, size_t *bytes)
{
    rdma_arenas *a = calloc(1, sizeof(*a));

    if (a) {
        a->mem = mem;
        a->pd = pd;
        a->max = max;
        a->share = share;
        a->bytes = bytes;
    }
    return a;
}

static void drop(rdma_arenas *a, unsigned i)
{
    __atomic_sub_fetch(a->bytes, rdma_mem_arena_bytes(a->of[i].arena),
                       __ATOMIC_RELAXED);
    rdma_mem_arena_destroy(a->of[i].arena);
    a->of[i] = a->of[--a->n];
    rdma_count_sub(RDMA_COUNT_ArenasOpen, 1);
}

void rdma_arenas_destroy(rdma_arenas *a)
{
    if (a) {
        while (a->n > 0) {
            drop(a, 0);
        }
        free(a);
    }
}

/* What the client may have more. Others count, too, meanwhile: the limit is held
 * to within what comes at the same moment. */
static size_t left(const rdma_arenas *a)
{
    size_t used = __atomic_load_n(a->bytes, __ATOMIC_RELAXED);

    return used < a->share ? a->share - used : 0;
}

/* Make room for one more of so many bytes, at the cost of idle ones. */
static int make_room(rdma_arenas *a, size_t bytes)
{
    unsigned i = 0;

    while (i < a->n && (a->n == ARENAS || bytes > left(a))) {
        if (rdma_mem_arena_idle(a->of[i].arena)) {
            drop(a, i);
        }
        else {
            i++;
        }
    }
    return a->n < ARENAS && bytes <= left(a);
}

static int add(rdma_arenas *a, size_t bytes)
{
    if (!make_room(a, bytes)
        || rdma_mem_arena_create(a->mem, a->pd, bytes, &a->of[a->n].arena)) {
        return ENOMEM;
    }
    a->of[a->n].idle_since = rdma_conn_now();
    __atomic_add_fetch(a->bytes, rdma_mem_arena_bytes(a->of[a->n].arena),
                       __ATOMIC_RELAXED);
    a->n++;
    rdma_count_add(RDMA_COUNT_ArenasAttached, 1);
    rdma_count_add(RDMA_COUNT_ArenasOpen, 1);
    return 0;
}

/* An arena that can hold len bytes, and more, so that the next body finds room in
 * it, too; but the less memory is left, for others or for other connections of the
 * same client, the less more. */
static int grow(rdma_arenas *a, size_t len)
{
    size_t bytes = ARENA_GOOD;
    size_t most;
    rdma_mem_usage u;

    if (len > a->max) {
        return ENOMEM;
    }
    while (bytes < len) {
        bytes *= 2;
    }
    rdma_mem_usage_get(a->mem, &u);
    most = u.available < left(a) ? u.available : left(a);
    while (bytes > ARENA_LEAST && (bytes > a->max || bytes > most / SHARE)) {
        bytes /= 2;
    }
    return bytes > len && add(a, bytes) == 0 ? 0 : add(a, len);
}

static int take(rdma_arenas *a, size_t len, rdma_arenas_part *out)
{
    unsigned i;

    for (i = 0; i < a->n; i++) {
        if (rdma_mem_part_take(a->of[i].arena, len, &out->mem) == 0) {
            out->arena = a->of[i].arena;
            return 0;
        }
    }
    return ENOMEM;
}

int rdma_arenas_take(rdma_arenas *a, size_t len, rdma_arenas_part *out)
{
    if (take(a, len, out) == 0) {
        return 0;
    }
    return grow(a, len) ? ENOMEM : take(a, len, out);
}

void rdma_arenas_give(rdma_arenas *a, rdma_arenas_part *part)
{
    unsigned i;

    if (!part->mem.base) {
        return;
    }
    rdma_mem_part_give(part->arena, &part->mem);
    for (i = 0; i < a->n; i++) {
        if (a->of[i].arena == part->arena) {
            a->of[i].idle_since = rdma_conn_now();
        }
    }
    memset(part, 0, sizeof(*part));
}

void rdma_arenas_drop_idle(rdma_arenas *a)
{
    unsigned most = ARENAS;

    (void)rdma_arenas_trim(a, RDMA_CONN_NEVER, &most);
}

rdma_conn_time rdma_arenas_trim(rdma_arenas *a, rdma_conn_time now,
                                unsigned *most)
{
    rdma_conn_time next = RDMA_CONN_NEVER;
    unsigned i = 0;

    while (i < a->n) {
        rdma_conn_time until = a->of[i].idle_since + IDLE;

        if (!rdma_mem_arena_idle(a->of[i].arena)) {
            i++;
        }
        else if (now >= until && *most > 0) {
            drop(a, i);
            --*most;
        }
        else {
            next = until < next ? until : next;
            i++;
        }
    }
    return next;
}
