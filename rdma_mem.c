/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "rdma_mem.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- budget ------------------------------------------------------------ */

struct rdma_mem {
    pthread_mutex_t lock;
    size_t budget;
    size_t reserved;
    size_t used;
    size_t pools; /* of used: it fills what is reserved, even while a pool is
                   * still being registered */
    size_t peak;
    void (*changed)(size_t used);
};

rdma_mem *rdma_mem_create(size_t budget)
{
    rdma_mem *mem = calloc(1, sizeof(*mem));

    if (!mem) {
        return NULL;
    }
    pthread_mutex_init(&mem->lock, NULL);
    mem->budget = budget;
    return mem;
}

void rdma_mem_destroy(rdma_mem *mem)
{
    if (mem) {
        pthread_mutex_destroy(&mem->lock);
        free(mem);
    }
}

/* What it is for; each leaves alone what is kept for those before it. */
typedef enum use { FOR_POOL, FOR_REGION, FOR_ARENA } use;

static size_t available(const rdma_mem *mem, use what)
{
    size_t free = mem->budget - mem->used;
    size_t kept = 0;

    if (what != FOR_POOL && mem->reserved > mem->pools) {
        kept = mem->reserved - mem->pools;
    }
    if (what == FOR_ARENA) {
        kept += mem->budget / RDMA_MEM_ARENAS_LEAVE;
    }
    return free > kept ? free - kept : 0;
}

void rdma_mem_reserve(rdma_mem *mem, size_t bytes)
{
    pthread_mutex_lock(&mem->lock);
    mem->reserved = bytes;
    pthread_mutex_unlock(&mem->lock);
}

void rdma_mem_usage_get(rdma_mem *mem, rdma_mem_usage *out)
{
    pthread_mutex_lock(&mem->lock);
    out->budget = mem->budget;
    out->available = available(mem, FOR_ARENA);
    out->used = mem->used;
    out->peak = mem->peak;
    pthread_mutex_unlock(&mem->lock);
}

void rdma_mem_watch(rdma_mem *mem, void (*changed)(size_t used))
{
    mem->changed = changed;
}

/* [locked] */
static void set_used(rdma_mem *mem, size_t used)
{
    mem->used = used;
    if (used > mem->peak) {
        mem->peak = used;
    }
    if (mem->changed) {
        mem->changed(used);
    }
}

static int spend(rdma_mem *mem, size_t len, use what)
{
    int rc = EDQUOT;

    pthread_mutex_lock(&mem->lock);
    if (len <= available(mem, what)) {
        set_used(mem, mem->used + len);
        mem->pools += what == FOR_POOL ? len : 0;
        rc = 0;
    }
    pthread_mutex_unlock(&mem->lock);
    return rc;
}

static void refund(rdma_mem *mem, size_t len, use what)
{
    pthread_mutex_lock(&mem->lock);
    set_used(mem, mem->used - len);
    mem->pools -= what == FOR_POOL ? len : 0;
    pthread_mutex_unlock(&mem->lock);
}

/* ---- region ------------------------------------------------------------ */

/* 0: it would wrap. */
static size_t whole_pages(size_t len)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);

    return len > SIZE_MAX - page ? 0 : (len + page - 1) / page * page;
}

/* Pages are never handed on: while a packet refers to them, as one that waits to
 * be sent again does, the kernel keeps them from everybody. */
#ifndef RDMA_TEST_REUSE_ARENAS
static char *get_pages(size_t len)
{
    return mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                -1, 0);
}

static void put_pages(char *base, size_t len)
{
    munmap(base, len);
}
#else /* What must not be done, to show that test_reuse.py sees it. */
static struct {
    char *base;
    size_t len;
} kept[64];
static pthread_mutex_t kept_lock = PTHREAD_MUTEX_INITIALIZER;

/* Leave these pages, if any, and take some of that length, if any. */
static char *swap_pages(char *base, size_t put, size_t take)
{
    char *found = NULL;
    unsigned i;

    pthread_mutex_lock(&kept_lock);
    for (i = 0; i < 64; i++) {
        if (base && !kept[i].base) {
            kept[i].base = base;
            kept[i].len = put;
            base = NULL;
        }
        else if (take && !found && kept[i].base && kept[i].len == take) {
            found = kept[i].base;
            kept[i].base = NULL;
        }
    }
    pthread_mutex_unlock(&kept_lock);
    return found;
}

static char *get_pages(size_t len)
{
    char *base = swap_pages(NULL, 0, len);

    return base ? base
                : mmap(NULL, len, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void put_pages(char *base, size_t len)
{
    swap_pages(base, len, 0);
}
#endif

static int map(rdma_mem *mem, struct ibv_pd *pd, size_t len, unsigned access,
               use what, rdma_mem_region *out)
{
    int rc;
    char *base;

    memset(out, 0, sizeof(*out));
    len = whole_pages(len);
    if (!len) {
        return ENOMEM;
    }
    rc = spend(mem, len, what);
    if (rc) {
        return rc;
    }
    base = get_pages(len);
    if (base == MAP_FAILED) {
        refund(mem, len, what);
        return ENOMEM;
    }
    errno = 0;
    out->mr = ibv_reg_mr(pd, base, len, access);
    if (!out->mr) {
        rc = errno ? errno : EIO;
        put_pages(base, len);
        refund(mem, len, what);
        return rc;
    }
    out->base = base;
    out->len = len;
    return 0;
}

int rdma_mem_map(rdma_mem *mem, struct ibv_pd *pd, size_t len, unsigned access,
                 rdma_mem_region *out)
{
    return map(mem, pd, len, access, FOR_REGION, out);
}

static void unmap(rdma_mem *mem, rdma_mem_region *r, use what)
{
    if (!r->base) {
        return;
    }
    /* If the device keeps the MR (it may while it is being removed), the pages
     * stay where they are: leaked memory is better than reused memory. */
    if (ibv_dereg_mr(r->mr) == 0) {
        put_pages(r->base, r->len);
        refund(mem, r->len, what);
    }
    memset(r, 0, sizeof(*r));
}

void rdma_mem_unmap(rdma_mem *mem, rdma_mem_region *r)
{
    unmap(mem, r, FOR_REGION);
}

/* ---- pool -------------------------------------------------------------- */

struct rdma_mem_pool {
    pthread_mutex_t lock;
    rdma_mem *mem;
    rdma_mem_region region;
    unsigned free;  /* blocks in stack */
    char *stack[1]; /* as many as there are blocks */
};

int rdma_mem_pool_create(rdma_mem *mem, struct ibv_pd *pd, size_t bytes,
                         rdma_mem_pool **out)
{
    size_t blocks = bytes / RDMA_MEM_BLOCK ? bytes / RDMA_MEM_BLOCK : 1;
    rdma_mem_region region;
    rdma_mem_pool *pool;
    size_t i;
    int rc;

    *out = NULL;
    for (;;) {
        rc = map(mem, pd, blocks * RDMA_MEM_BLOCK, IBV_ACCESS_LOCAL_WRITE,
                 FOR_POOL, &region);
        if ((rc != ENOMEM && rc != EDQUOT) || blocks == 1) {
            break;
        }
        blocks /= 2;
    }
    if (rc) {
        return rc;
    }
    pool = calloc(1, sizeof(*pool) + blocks * sizeof(pool->stack[0]));
    if (!pool) {
        unmap(mem, &region, FOR_POOL);
        return ENOMEM;
    }
    pthread_mutex_init(&pool->lock, NULL);
    pool->mem = mem;
    pool->region = region;
    for (i = blocks; i > 0; i--) { /* the lowest address is taken first */
        pool->stack[pool->free++] = region.base + (i - 1) * RDMA_MEM_BLOCK;
    }
    *out = pool;
    return 0;
}

void rdma_mem_pool_destroy(rdma_mem_pool *pool)
{
    if (pool) {
        unmap(pool->mem, &pool->region, FOR_POOL);
        pthread_mutex_destroy(&pool->lock);
        free(pool);
    }
}

int rdma_mem_pool_take(rdma_mem_pool *pool, unsigned n, char *blocks[])
{
    int rc = ENOMEM;

    pthread_mutex_lock(&pool->lock);
    if (pool->free >= n) {
        rc = 0;
        while (n > 0) {
            blocks[--n] = pool->stack[--pool->free];
        }
    }
    pthread_mutex_unlock(&pool->lock);
    return rc;
}

void rdma_mem_pool_give(rdma_mem_pool *pool, char *block)
{
    pthread_mutex_lock(&pool->lock);
    pool->stack[pool->free++] = block;
    pthread_mutex_unlock(&pool->lock);
}

uint32_t rdma_mem_pool_lkey(const rdma_mem_pool *pool)
{
    return pool->region.mr->lkey;
}

size_t rdma_mem_pool_bytes(const rdma_mem_pool *pool)
{
    return pool->region.len;
}

/* ---- arena ------------------------------------------------------------- */

struct rdma_mem_arena {
    rdma_mem *mem;
    rdma_mem_region region;
    rdma_mem_part *parts; /* live, in order of address */
};

int rdma_mem_arena_create(rdma_mem *mem, struct ibv_pd *pd, size_t bytes,
                          rdma_mem_arena **out)
{
    rdma_mem_arena *arena = calloc(1, sizeof(*arena));
    int rc;

    *out = NULL;
    if (!arena) {
        return ENOMEM;
    }
    rc = map(mem, pd, bytes, IBV_ACCESS_REMOTE_READ, FOR_ARENA, &arena->region);
    if (rc) {
        free(arena);
        return rc;
    }
    arena->mem = mem;
    *out = arena;
    return 0;
}

void rdma_mem_arena_destroy(rdma_mem_arena *arena)
{
    if (arena) {
        unmap(arena->mem, &arena->region, FOR_ARENA);
        free(arena);
    }
}

size_t rdma_mem_arena_bytes(const rdma_mem_arena *arena)
{
    return arena->region.len;
}

uint32_t rdma_mem_arena_rkey(const rdma_mem_arena *arena)
{
    return arena->region.mr->rkey;
}

int rdma_mem_arena_idle(const rdma_mem_arena *arena)
{
    return arena->parts == NULL;
}

int rdma_mem_part_take(rdma_mem_arena *arena, size_t len, rdma_mem_part *part)
{
    char *at = arena->region.base;
    char *end = at + arena->region.len;
    rdma_mem_part **link = &arena->parts;
    size_t span = whole_pages(len);

    if (!len || !span) {
        return ENOMEM;
    }
    while (*link && (size_t)((*link)->base - at) < span) {
        at = (*link)->base + (*link)->span;
        link = &(*link)->next;
    }
    if (!*link && (size_t)(end - at) < span) {
        return ENOMEM;
    }
    part->next = *link;
    part->base = at;
    part->len = len;
    part->span = span;
    *link = part;
    memset(at + len, 0, span - len);
    return 0;
}

void rdma_mem_part_give(rdma_mem_arena *arena, rdma_mem_part *part)
{
    rdma_mem_part **link = &arena->parts;

    while (*link && *link != part) {
        link = &(*link)->next;
    }
    if (*link) {
        *link = part->next;
    }
    memset(part, 0, sizeof(*part));
}
