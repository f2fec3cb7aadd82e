/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * fake: libibverbs and librdmacm without a device, for tests. Linked instead of
 * the two libraries; has the functions that the engine and a test's client use.
 *
 * All queue pairs live in this process. A thread of the fake, the wire, moves
 * bytes and completes work requests: late, in order within a queue pair, in any
 * order between them, as a seed says. What a caller may not do (destroy what is
 * in use, leave an event unacknowledged, overrun a queue) ends the process with
 * a line that says so.
 *
 * The seed also picks the style of the device: like siw (a WRITE has completed
 * when it is on its way, private data is exact) or like rxe (completed when it
 * has landed, private data is padded). $FAKE_SEED repeats a run, as far as the
 * scheduler allows.
 */
#ifndef FAKE_H
#define FAKE_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <apr_pools.h>
#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

/* Once, first thing in main(): the seed of $FAKE_SEED or of the clock, which is
 * printed. */
void fake_seed(void);
unsigned fake_seed_modulo(unsigned n);
/* What the seed makes of it, from 0 to below - 1. */
unsigned fake_pick(unsigned below);

/* In the process of each test: start the wire; stop and join it. fake_stop()
 * returns how many objects (PDs, MRs, CQs, channels, QPs, ids) are still open,
 * having said which: 0 in every good test. */
void fake_start(void);
unsigned fake_stop(void);
/* An MR whose ibv_dereg_mr() has failed stays registered, and its PD cannot be
 * deallocated. This ends them, with their memory, as the end of a process would:
 * whoever they belong to is through with them. Returns how many bytes. */
size_t fake_free_kept(void);

/* Wait until nothing can happen any more by itself. */
void fake_settle(void);

/* 1: a work request that has not completed reads or writes some of these bytes, at
 * either end. */
int fake_is_posted(const void *at, size_t len);
/* 1: there is registered memory with this tag, and anybody may READ it. */
int fake_may_be_read(const void *at, uint32_t rkey);

unsigned fake_open_objects(void);
size_t fake_registered(void);    /* bytes registered now */
size_t fake_registered_with(unsigned access); /* ... with all of these rights */
void fake_memlock(size_t bytes); /* ENOMEM for what is beyond; 0: no limit */

/* What happens to a connect to this port. */
typedef enum fake_route {
    FAKE_NORMAL,   /* the listener decides; nobody listens: refused */
    FAKE_BLOCKED,  /* rdma_connect() blocks until a signal comes: siw's way */
    FAKE_SILENT,   /* it returns, and no event ever comes */
    FAKE_NO_DEVICE /* rdma_resolve_addr() fails with ENOENT */
} fake_route;
void fake_route_to(uint16_t port, fake_route route);
/* How many rdma_connect() were called for this port. */
unsigned fake_connects(uint16_t port);

/* This end has stopped (SIGSTOP): nothing lands there, and nothing that it has
 * posted leaves. What is sent to it goes on until FAKE_WIRE are on their way. */
#define FAKE_WIRE 8
void fake_freeze(struct rdma_cm_id *id, int on);
/* It is frozen, but so many more work requests of its peer land. */
void fake_let_land(struct rdma_cm_id *id, unsigned n);
/* It goes on when its peer arms its send CQ the next time, and all that this
 * completes has completed just before. */
void fake_thaw_at_arm(struct rdma_cm_id *id);
/* How many WRITEs of its peer cannot complete because it is frozen. */
unsigned fake_stuck(struct rdma_cm_id *id);
/* The connection is lost: both ends hear of it. */
void fake_kill(struct rdma_cm_id *id);
/* The device is about to be removed: every connection and every id that is bound
 * to it hears of it. It is there again at once. */
void fake_remove_device(void);
/* 1: the descriptors of the device refer to nothing. */
int fake_is_let_go_of(void);
/* 1: posts to a QP in error fail with ENOTCONN; 0: the seed decides whether
 * they fail, are flushed, both, or never complete. */
void fake_refuse_dead_posts(int on);

/* The n-th call (1 and up) of this function from now on, by a thread that is
 * not spared, fails with this errno. Functions of the two libraries, and those
 * of the C library that the engine has from below. An ibv_post_send() that fails
 * with ENOTCONN has queued its work request all the same: it blocks the send
 * queue, and is flushed with it. A CQ whose ibv_poll_cq() has failed is broken: no
 * other succeeds. */
void fake_fail(const char *function, unsigned nth, int error);
/* The same, but first it does this; with an error of 0 it does not fail. */
void fake_meet(const char *function, unsigned nth, int error,
               void (*act)(void *baton), void *baton);
/* Was it called so often, and has done what it was to do? fake_failed() forgets
 * it then. */
int fake_met(void);
int fake_failed(void);
/* Calls of this function by threads that are not spared do not return, until
 * this is called with NULL. */
void fake_hold(const char *function);
/* Wait until one of them is held. */
void fake_await_held(void);
void fake_spare_this_thread(int on);

/* In the place of those of the C library and APR (Makefile.apxs). */
void *fake_calloc(size_t n, size_t size);
int fake_pthread_create(pthread_t *thread, const pthread_attr_t *attr,
                        void *(*start)(void *), void *baton);
int fake_eventfd(unsigned initial, int flags);
int fake_fcntl(int fd, int command, ...);
void *fake_mmap(void *addr, size_t len, int prot, int flags, int fd,
                off_t offset);

apr_status_t fake_apr_pool_create(apr_pool_t **out, apr_abortfunc_t abort,
                                  apr_allocator_t *allocator);

#endif /* FAKE_H */
