/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_count: what the children have done and what they hold, in numbers.
 *
 *   board   memory that the parent and all its children share, made once: a slot
 *           for each child, and some to spare
 *   slot    one child's numbers. While the child lives only it writes to them;
 *           when it has ended the parent clears what it held, and what it had
 *           done stays, for the next child of this slot to go on from: a sum over
 *           all slots never falls
 *
 * Counting is one relaxed atomic add to memory that no other process writes. Any
 * thread may count, locked or not. A process without a slot (the parent, a test)
 * counts into one of its own that nobody reads.
 *
 * No httpd, no APR, no verbs in here.
 */
#ifndef RDMA_COUNT_H
#define RDMA_COUNT_H

#include <stdint.h>
#include <sys/types.h>

typedef enum rdma_count_kind {
    RDMA_COUNT_COUNTER, /* grows; all children's are added up */
    RDMA_COUNT_GAUGE,   /* what is held now; 0 when the child has ended; added up
                         */
    RDMA_COUNT_PEAK     /* the most that any one child has held */
} rdma_count_kind;

/* X(name, kind, group, what it says). docs/STATUS.md explains each; all that
 * shows numbers shows them in this order. Those of Declined stand in the order of
 * rdma_hdr_declined. No character here needs escaping in HTML. */
#define RDMA_COUNT_TABLE(X)                                                   \
    X(RequestsAsked, COUNTER, Requests, "asked for RDMA")                     \
    X(RequestsWrite, COUNTER, Requests, "answered by server-write")           \
    X(RequestsRead, COUNTER, Requests, "answered by client-read")             \
    X(RequestsWriteStreamed, COUNTER, Requests, "streamed by server-write")   \
    X(RequestsReadStreamed, COUNTER, Requests, "streamed by client-read")     \
    X(RequestsTcp, COUNTER, Requests, "asked, and were answered over TCP")    \
    X(BytesWrite, COUNTER, Requests, "body bytes by server-write")            \
    X(BytesRead, COUNTER, Requests, "body bytes offered to client-read")      \
    X(BytesWriteStreamed, COUNTER, Requests, "streamed by server-write")      \
    X(BytesReadStreamed, COUNTER, Requests, "streamed by client-read")        \
    X(BytesTcp, COUNTER, Requests, "body bytes of RequestsTcp")               \
    X(StreamsCut, COUNTER, Requests, "streams broken off after their head")   \
    X(StreamsOpen, GAUGE, Requests, "streams now; each holds a worker")       \
    X(DeclinedSmall, COUNTER, Declined, "shorter than RdmaMinSize")           \
    X(DeclinedPolicy, COUNTER, Declined, "the configuration forbids it")      \
    X(DeclinedConnect, COUNTER, Declined, "no connection to the client")      \
    X(DeclinedBusy, COUNTER, Declined, "a limit of this server is reached")   \
    X(DeclinedMemory, COUNTER, Declined, "RdmaMemory is used up")             \
    X(DeclinedTls, COUNTER, Declined, "https, and RdmaOverTLS is Off")        \
    X(DeclinedMalformed, COUNTER, Declined, "the request field is wrong")     \
    X(DeclinedVersion, COUNTER, Declined, "a later version is asked for")     \
    X(DeclinedWindow, COUNTER, Declined, "the client's window is too small")  \
    X(DeclinedDevice, COUNTER, Declined, "no RDMA device")                    \
    X(DeclinedFailed, COUNTER, Declined, "given up when RDMA had begun")      \
    X(ConnectionsMade, COUNTER, Connections, "made")                          \
    X(ConnectionsReused, COUNTER, Connections,                                \
      "requests that found one of their client's")                            \
    X(ConnectionsFailedUnreachable, COUNTER, Connections,                     \
      "not made: the client did not answer")                                  \
    X(ConnectionsFailedRejected, COUNTER, Connections,                        \
      "not made: the client said no")                                         \
    X(ConnectionsFailedResources, COUNTER, Connections,                       \
      "not made: no device or no resources here")                             \
    X(ConnectionsFailedCancelled, COUNTER, Connections,                       \
      "not made: this child stopped")                                         \
    X(ConnectionsClosedIdle, COUNTER, Connections, "closed: RdmaIdleTimeout") \
    X(ConnectionsClosedEvicted, COUNTER, Connections,                         \
      "closed: made room for another one")                                    \
    X(ConnectionsClosedPeer, COUNTER, Connections,                            \
      "closed: the client has gone, or the network")                          \
    X(ConnectionsClosedSilent, COUNTER, Connections,                          \
      "closed: the client did not answer in time")                            \
    X(ConnectionsClosedProtocol, COUNTER, Connections,                        \
      "closed: the client broke the protocol")                                \
    X(ConnectionsClosedError, COUNTER, Connections,                           \
      "closed: the device failed, or no resources here")                      \
    X(ConnectionsClosedStopping, COUNTER, Connections,                        \
      "closed: this child stopped")                                           \
    X(ConnectionsLost, COUNTER, Connections, "ended with their child")        \
    X(ConnectionsOpenWrite, GAUGE, Connections, "open now, server-write")     \
    X(ConnectionsOpenRead, GAUGE, Connections, "open now, client-read")       \
    X(ConnectsQueued, GAUGE, Connections, "waiting to be made now")           \
    X(ConnectsInFlight, GAUGE, Connections, "being made now")                 \
    X(LeasesGranted, COUNTER, Leases, "bodies offered to client-read")        \
    X(LeasesDone, COUNTER, Leases, "read to the end")                         \
    X(LeasesExpired, COUNTER, Leases, "not read within RdmaLeaseTimeout")     \
    X(LeasesAborted, COUNTER, Leases, "given up, or the connection closed")   \
    X(LeasesLost, COUNTER, Leases, "ended with their child")                  \
    X(LeasesOpen, GAUGE, Leases, "open now")                                  \
    X(ArenasAttached, COUNTER, Memory, "registered for client-read")          \
    X(ArenasOpen, GAUGE, Memory, "arenas now")                                \
    X(MemoryInUse, GAUGE, Memory, "bytes registered now")                     \
    X(MemoryLimit, GAUGE, Memory, "bytes that may be registered")             \
    X(MemoryPeak, PEAK, Memory, "most bytes of any one child, ever")          \
    X(Children, GAUGE, Children, "processes that serve")

#define RDMA_COUNT_ID(name, kind, group, what) RDMA_COUNT_##name,
typedef enum rdma_count_id {
    RDMA_COUNT_TABLE(RDMA_COUNT_ID) RDMA_COUNT_N
} rdma_count_id;
#undef RDMA_COUNT_ID

typedef struct rdma_count_info {
    const char *name; /* PascalCase */
    rdma_count_kind kind;
    const char *group; /* neighbours of the same group stand together */
    const char *what;  /* a few words, for people */
} rdma_count_info;

extern const rdma_count_info rdma_count_infos[RDMA_COUNT_N];

/* ---- counting ---------------------------------------------------------- */

/* Slots share no cache line: no child waits for another one's writing. */
typedef struct rdma_count_slot {
    pid_t pid; /* atomic; 0: free */
    uint64_t of[RDMA_COUNT_N];
} __attribute__((aligned(64))) rdma_count_slot;

extern rdma_count_slot *rdma_count_here; /* this process's; never NULL */

static inline void rdma_count_add(rdma_count_id id, uint64_t n)
{
    __atomic_fetch_add(&rdma_count_here->of[id], n, __ATOMIC_RELAXED);
}

static inline void rdma_count_sub(rdma_count_id id, uint64_t n)
{
    __atomic_fetch_sub(&rdma_count_here->of[id], n, __ATOMIC_RELAXED);
}

/* For gauges and peaks whose owner has a lock for them. */
static inline void rdma_count_set(rdma_count_id id, uint64_t value)
{
    __atomic_store_n(&rdma_count_here->of[id], value, __ATOMIC_RELAXED);
}

/* Raise a peak to value, if it is lower; as rdma_count_set(). */
void rdma_count_raise(rdma_count_id id, uint64_t value);

/* ---- the board --------------------------------------------------------- */

typedef struct rdma_count_board rdma_count_board;

/* The parent. Anonymous shared memory for so many children at once, all 0; it
 * lasts as long as the processes that have it. NULL: no memory (errno). */
rdma_count_board *rdma_count_board_create(unsigned slots);

/* Differs between two builds whose boards are not alike: a board made by one is
 * of no use to the other. */
uint32_t rdma_count_layout(void);

/* A child, once, before it counts: from now on it counts on the board. 0, or -1:
 * no slot is free, its numbers will be missing. */
int rdma_count_claim(rdma_count_board *board, pid_t pid);
/* The parent, when that child has ended, however it did: what it held is lost or
 * gone. A pid without a slot is left alone. */
void rdma_count_release(rdma_count_board *board, pid_t pid);

/* Any process: all children's, those that have ended among them. */
uint64_t rdma_count_total(const rdma_count_board *board, rdma_count_id id);

/* Any process: the child in slot i, from 0, or 0 if it is free; and what this
 * child holds (gauges only: the rest is its predecessors', too). */
unsigned rdma_count_slots(const rdma_count_board *board);
pid_t rdma_count_pid(const rdma_count_board *board, unsigned i);
uint64_t rdma_count_held(const rdma_count_board *board, unsigned i,
                         rdma_count_id gauge);

#endif /* RDMA_COUNT_H */
