/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
/* One thread, one loop: file descriptors and timers. */
#ifndef LOOP_H
#define LOOP_H

#include <stdbool.h>
#include <stdint.h>

typedef void loop_fd_fn(void *arg, unsigned events);
typedef void loop_timer_fn(void *arg);

/* `events` as epoll has them; watching again changes them. False for
 * what cannot be watched, as a file. */
bool loop_watch(int fd, unsigned events, loop_fd_fn *fn, void *arg);
void loop_unwatch(int fd);

/* One timer for each pair of fn and arg: setting it again moves it. */
void loop_timer(uint64_t ms, loop_timer_fn *fn, void *arg);
void loop_cancel(loop_timer_fn *fn, void *arg);

/* free() once nothing of this round can use it any more. */
void loop_free(void *memory);

void loop_run(const bool *done);
double loop_now(void);

/* Memory or the end. */
void *need(void *memory);

#endif
