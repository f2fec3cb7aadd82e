/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The requests that the server works at.
 */
#ifndef JOB_H
#define JOB_H

#include <stddef.h>
#include <sys/socket.h>

struct job;
struct session;

/* A request has come; *place is the session's job, set before anything is
 * said. */
void job_new(struct session *s, const struct sockaddr_storage *peer,
             const struct sockaddr_storage *local, const char *head,
             struct job **place);
/* Its HTTP connection has gone. */
void job_left(struct job *j);

/* What a job says to HTTP. */
void session_send(struct session *s, const void *data, size_t len);
void session_done(struct session *s);
void session_end(struct session *s);

#endif
