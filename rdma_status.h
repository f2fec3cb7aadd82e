/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_status: the numbers of rdma_count for people and programs: the handler
 * rdma-status, a section of mod_status, and the life of the board that all
 * children count on.
 *
 * The board is made once and outlives restarts, of which this module's statics
 * know nothing: httpd keeps the pointer.
 */
#ifndef RDMA_STATUS_H
#define RDMA_STATUS_H

#include <httpd.h>
#include <ap_mpm.h>

/* The parent, whenever it has read its configuration: make the board, or find the
 * one of the last time. */
void rdma_status_open(server_rec *s);

/* The hook child_init: from now on this child counts on the board. */
void rdma_status_child_init(apr_pool_t *pchild, server_rec *s);
/* The hook child_status, in the parent: what a child held has gone with it. */
void rdma_status_child_status(server_rec *s, pid_t pid, ap_generation_t gen,
                              int slot, mpm_child_status state);

/* SetHandler rdma-status: HTML, or with ?auto lines of "Key: value". */
int rdma_status_handler(request_rec *r);
/* mod_status's hook: the same in its page; keys begin with "Rdma" there. */
int rdma_status_section(request_rec *r, int flags);

#endif /* RDMA_STATUS_H */
