/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_credit: who may send when, the credit rule of PROTOCOL.md as pure
 * arithmetic, so that it can be tested as a model.
 *
 * iWARP has no receiver-not-ready: a SEND that finds no posted receive kills
 * the connection. So each end keeps posted + owed = depth and tells the other,
 * in every message, how many receives it has posted again.
 */
#ifndef RDMA_CREDIT_H
#define RDMA_CREDIT_H

typedef struct rdma_credit {
    unsigned avail; /* messages that we may still send */
    unsigned limit; /* avail never exceeds it: the peer's depth */
    unsigned owed;  /* receives posted again that the peer has not heard of */
    unsigned depth; /* receives that we have posted */
} rdma_credit;

static inline void rdma_credit_init(rdma_credit *k, unsigned our_depth,
                                    unsigned peer_depth)
{
    k->avail = k->limit = peer_depth;
    k->owed = 0;
    k->depth = our_depth;
}

/* Rule 1: a message has arrived and its receive is posted again. -1: it returns
 * more credits than the peer can owe, or the peer had none for it. */
static inline int rdma_credit_arrived(rdma_credit *k, unsigned credits)
{
    if (credits > k->limit - k->avail || k->owed == k->depth) {
        return -1;
    }
    k->avail += credits;
    k->owed++;
    return 0;
}

/* Rule 3: the last credit is spent only on a message that returns some. */
static inline int rdma_credit_may_send(const rdma_credit *k)
{
    return k->avail >= 2 || (k->avail == 1 && k->owed >= 1);
}

/* Rule 2: a message goes; the credits that it must carry. */
static inline unsigned rdma_credit_spend(rdma_credit *k)
{
    unsigned credits = k->owed;

    k->owed = 0;
    k->avail--;
    return credits;
}

/* Rule 4: nothing else is queued; should a PONG go to return credits? */
static inline int rdma_credit_wants_pong(const rdma_credit *k)
{
    return k->owed >= k->depth / 2;
}

#endif /* RDMA_CREDIT_H */
