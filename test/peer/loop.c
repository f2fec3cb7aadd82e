/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "loop.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum { FDS = 65536, EVENTS = 64 };

static struct {
    loop_fd_fn *fn;
    void *arg;
} watched[FDS];

struct timer {
    struct timer *next;
    double at;
    loop_timer_fn *fn;
    void *arg;
};
static struct timer *timers;

struct trash {
    struct trash *next;
    void *memory;
};
static struct trash *trash;

static int epoll = -1;

void *need(void *memory)
{
    if (memory == NULL) {
        fputs("rdma_peer: out of memory\n", stderr);
        _exit(2);
    }
    return memory;
}

double loop_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

bool loop_watch(int fd, unsigned events, loop_fd_fn *fn, void *arg)
{
    struct epoll_event event = {.events = events, .data = {.fd = fd}};
    if (epoll < 0) {
        epoll = epoll_create1(EPOLL_CLOEXEC);
    }
    if (fd < 0 || fd >= FDS) {
        return false;
    }
    if (epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event) != 0
        && epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0) {
        return false;
    }
    watched[fd].fn = fn;
    watched[fd].arg = arg;
    return true;
}

void loop_unwatch(int fd)
{
    if (fd >= 0 && fd < FDS && watched[fd].fn != NULL) {
        epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL);
        watched[fd].fn = NULL;
    }
}

void loop_cancel(loop_timer_fn *fn, void *arg)
{
    for (struct timer **t = &timers; *t != NULL; t = &(*t)->next) {
        if ((*t)->fn == fn && (*t)->arg == arg) {
            struct timer *dead = *t;
            *t = dead->next;
            free(dead);
            return;
        }
    }
}

void loop_timer(uint64_t ms, loop_timer_fn *fn, void *arg)
{
    struct timer *t = need(malloc(sizeof *t));
    struct timer **place = &timers;
    loop_cancel(fn, arg);
    t->at = loop_now() + (double)ms / 1e3;
    t->fn = fn;
    t->arg = arg;
    while (*place != NULL && (*place)->at <= t->at) {
        place = &(*place)->next;
    }
    t->next = *place;
    *place = t;
}

void loop_free(void *memory)
{
    struct trash *t = need(malloc(sizeof *t));
    t->next = trash;
    t->memory = memory;
    trash = t;
}

static void sweep(void)
{
    while (trash != NULL) {
        struct trash *t = trash;
        trash = t->next;
        free(t->memory);
        free(t);
    }
}

static void run_timers(void)
{
    double now = loop_now();
    while (timers != NULL && timers->at <= now) {
        struct timer *t = timers;
        timers = t->next;
        t->fn(t->arg);
        free(t);
    }
}

void loop_run(const bool *done)
{
    struct epoll_event events[EVENTS];
    while (!*done) {
        int wait = -1;
        if (timers != NULL) {
            double left = (timers->at - loop_now()) * 1e3;
            wait = left <= 0 ? 0 : left > 60000 ? 60000 : (int)left + 1;
        }
        int n = epoll_wait(epoll, events, EVENTS, wait);
        for (int i = 0; i < n && !*done; i++) {
            int fd = events[i].data.fd;
            if (watched[fd].fn != NULL) {
                watched[fd].fn(watched[fd].arg, events[i].events);
            }
        }
        if (!*done) {
            run_timers();
        }
        sweep();
    }
}
