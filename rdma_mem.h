/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_mem: registered memory under one budget.
 *
 *   budget (rdma_mem)   what one process may have registered, in bytes
 *   region              one anonymous mapping with one memory region (MR)
 *   pool                a region cut into blocks of equal size; no remote
 *                       rights: the sources of RDMA WRITEs
 *   arena               a region with REMOTE_READ that belongs to one
 *                       connection for life; bodies lie in its parts
 *
 * Every registration is counted against the budget, as the kernel counts it
 * against RLIMIT_MEMLOCK: in whole pages, once for each registration. All
 * sizes are bytes. The budget and the pool have locks of their own (leaves of
 * the lock order) and may be used by any thread; a region and an arena belong
 * to whoever made them, who serialises.
 */
#ifndef RDMA_MEM_H
#define RDMA_MEM_H

#include <stddef.h>
#include <stdint.h>

#include <infiniband/verbs.h>

typedef struct rdma_mem rdma_mem;

/* NULL: no memory. The owner destroys it last, when used is 0 again. */
rdma_mem *rdma_mem_create(size_t budget);
void rdma_mem_destroy(rdma_mem *mem);

/* Arenas leave this share of the budget (1/n) for what is not an arena, so
 * that a connection can still be made when bodies have taken all they can. */
#define RDMA_MEM_ARENAS_LEAVE 16

typedef struct rdma_mem_usage {
    size_t budget;
    size_t used; /* registered now */
    size_t available; /* for an arena */
    size_t peak; /* the most that was ever registered */
} rdma_mem_usage;
/* Set so much aside that only pools may have; what they have counts. */
void rdma_mem_reserve(rdma_mem *mem, size_t bytes);
void rdma_mem_usage_get(rdma_mem *mem, rdma_mem_usage *out);
/* Before anything is registered: whom to tell of every change of used. Called
 * under the budget's lock. */
void rdma_mem_watch(rdma_mem *mem, void (*changed)(size_t used));

/* ---- region ------------------------------------------------------------ */

typedef struct rdma_mem_region {
    char *base; /* page-aligned, zeroed at first; NULL: no region */
    size_t len; /* whole pages */
    struct ibv_mr *mr;
} rdma_mem_region;

/* Map at least len bytes and register them in pd with these access flags.
 * 0; EDQUOT: the budget forbids it; ENOMEM: the address space or
 * RLIMIT_MEMLOCK does; or the errno of ibv_reg_mr. On failure *out is all zero and nothing is held. */
int rdma_mem_map(rdma_mem *mem, struct ibv_pd *pd, size_t len, unsigned access,
                 rdma_mem_region *out);
/* Deregister, then unmap: in this order the pages can never be reused while a
 * device still knows them. The QPs that used it are destroyed before. A zero
 * region is left alone; *r is zero afterwards. */
void rdma_mem_unmap(rdma_mem *mem, rdma_mem_region *r);

/* ---- pool of blocks ---------------------------------------------------- */

#define RDMA_MEM_BLOCK ((size_t)256 * 1024) /* bytes of a block */

typedef struct rdma_mem_pool rdma_mem_pool;

/* A pool of at most bytes, at least one block; it halves its size as long as
 * the budget or RLIMIT_MEMLOCK refuses. 0 or an errno, *out NULL then. */
int rdma_mem_pool_create(rdma_mem *mem, struct ibv_pd *pd, size_t bytes,
                         rdma_mem_pool **out);
/* Every block has been given back before. */
void rdma_mem_pool_destroy(rdma_mem_pool *pool);

/* Take n blocks, all or none. 0, or ENOMEM at once: nobody waits here. */
int rdma_mem_pool_take(rdma_mem_pool *pool, unsigned n, char *blocks[]);
void rdma_mem_pool_give(rdma_mem_pool *pool, char *block);
uint32_t rdma_mem_pool_lkey(const rdma_mem_pool *pool);
size_t rdma_mem_pool_bytes(const rdma_mem_pool *pool);

/* ---- arena of parts ---------------------------------------------------- */

typedef struct rdma_mem_arena rdma_mem_arena;

typedef struct rdma_mem_part {
    struct rdma_mem_part *next; /* the arena's, in order of address */
    char *base;
    size_t len;  /* bytes asked for */
    size_t span; /* bytes taken: whole pages */
} rdma_mem_part;

int rdma_mem_arena_create(rdma_mem *mem, struct ibv_pd *pd, size_t bytes,
                          rdma_mem_arena **out);
/* The connection's QP has been destroyed before; parts still live end here. */
void rdma_mem_arena_destroy(rdma_mem_arena *arena);
size_t rdma_mem_arena_bytes(const rdma_mem_arena *arena);
uint32_t rdma_mem_arena_rkey(const rdma_mem_arena *arena);
int rdma_mem_arena_idle(const rdma_mem_arena *arena); /* 1: no part is live */

/* First fit of len bytes (1 and up). 0, or ENOMEM. The bytes beyond len up to
 * the page's end are zeroed: the client could read them. */
int rdma_mem_part_take(rdma_mem_arena *arena, size_t len, rdma_mem_part *part);
void rdma_mem_part_give(rdma_mem_arena *arena, rdma_mem_part *part);

#endif /* RDMA_MEM_H */
