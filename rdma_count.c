/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "rdma_count.h"

#include <stddef.h>
#include <sys/mman.h>

#define INFO(name, kind, group, what)                                         \
    {#name, RDMA_COUNT_##kind, #group, what},
const rdma_count_info rdma_count_infos[RDMA_COUNT_N] = {
    RDMA_COUNT_TABLE(INFO)
};
#undef INFO

struct rdma_count_board {
    unsigned slots;
    rdma_count_slot slot[1]; /* as many as there are */
};

static rdma_count_slot nobodys;
rdma_count_slot *rdma_count_here = &nobodys;

void rdma_count_raise(rdma_count_id id, uint64_t value)
{
    if (value > __atomic_load_n(&rdma_count_here->of[id], __ATOMIC_RELAXED)) {
        rdma_count_set(id, value);
    }
}

/* ---- the board --------------------------------------------------------- */

rdma_count_board *rdma_count_board_create(unsigned slots)
{
    size_t len = sizeof(rdma_count_board)
                 + (slots > 1 ? slots - 1 : 0) * sizeof(rdma_count_slot);
    rdma_count_board *board = mmap(NULL, len, PROT_READ | PROT_WRITE,
                                   MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (board == MAP_FAILED) {
        return NULL;
    }
    board->slots = slots;
    return board;
}

/* FNV-1a over all that the meaning of a slot's words depends on. */
uint32_t rdma_count_layout(void)
{
    uint32_t hash = 2166136261u;
    unsigned i;

    for (i = 0; i < RDMA_COUNT_N; i++) {
        const char *p = rdma_count_infos[i].name;

        do { /* its end, too */
            hash = (hash ^ (unsigned char)*p) * 16777619u;
        } while (*p++);
        hash = (hash ^ (unsigned)rdma_count_infos[i].kind) * 16777619u;
    }
    return hash;
}

int rdma_count_claim(rdma_count_board *board, pid_t pid)
{
    unsigned i;

    for (i = 0; i < board->slots; i++) {
        pid_t nobody = 0;

        if (__atomic_compare_exchange_n(&board->slot[i].pid, &nobody, pid, 0,
                                        __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
            rdma_count_here = &board->slot[i];
            rdma_count_set(RDMA_COUNT_Children, 1);
            return 0;
        }
    }
    return -1;
}

static uint64_t get(const rdma_count_slot *slot, rdma_count_id id)
{
    return __atomic_load_n(&slot->of[id], __ATOMIC_RELAXED);
}

static void add(rdma_count_slot *slot, rdma_count_id id, uint64_t n)
{
    __atomic_fetch_add(&slot->of[id], n, __ATOMIC_RELAXED);
}

static void clear(rdma_count_slot *slot)
{
    unsigned id;

    add(slot, RDMA_COUNT_ConnectionsLost,
        get(slot, RDMA_COUNT_ConnectionsOpenWrite)
            + get(slot, RDMA_COUNT_ConnectionsOpenRead));
    add(slot, RDMA_COUNT_LeasesLost, get(slot, RDMA_COUNT_LeasesOpen));
    for (id = 0; id < RDMA_COUNT_N; id++) {
        if (rdma_count_infos[id].kind == RDMA_COUNT_GAUGE) {
            __atomic_store_n(&slot->of[id], 0, __ATOMIC_RELAXED);
        }
    }
}

void rdma_count_release(rdma_count_board *board, pid_t pid)
{
    unsigned i;

    for (i = 0; i < board->slots; i++) {
        if (rdma_count_pid(board, i) == pid) {
            clear(&board->slot[i]);
            __atomic_store_n(&board->slot[i].pid, 0, __ATOMIC_RELEASE);
        }
    }
}

uint64_t rdma_count_total(const rdma_count_board *board, rdma_count_id id)
{
    uint64_t total = 0;
    unsigned i;

    for (i = 0; i < board->slots; i++) {
        uint64_t n = get(&board->slot[i], id);

        if (rdma_count_infos[id].kind != RDMA_COUNT_PEAK) {
            total += n;
        }
        else if (n > total) {
            total = n;
        }
    }
    return total;
}

unsigned rdma_count_slots(const rdma_count_board *board)
{
    return board->slots;
}

pid_t rdma_count_pid(const rdma_count_board *board, unsigned i)
{
    return __atomic_load_n(&board->slot[i].pid, __ATOMIC_ACQUIRE);
}

uint64_t rdma_count_held(const rdma_count_board *board, unsigned i,
                         rdma_count_id gauge)
{
    return get(&board->slot[i], gauge);
}
