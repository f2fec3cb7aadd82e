/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
/* Misbehaviour: what to do at which step. */
#ifndef SCRIPT_H
#define SCRIPT_H

#include "endpoint.h"

enum step {
    BEFORE_REQUEST,
    REQUEST_SENT,
    CONNECT_REQUEST,
    ACCEPTED,
    ESTABLISHED,
    HELLO_COME,
    FIRST_MESSAGE,
    WRITTEN_FIN,
    HEAD_COME,
    BEFORE_READ,
    DURING_READ,
    BEFORE_CONSUMED,
    CONSUMED_SENT,
    DONE,
    STEPS
};

/* NAME[@N][/C]=ACTION[:ARGUMENT]; false when it is not understood. */
bool script_add(const char *text);
void script_help(void);
/* Whether to go on: false when it waits or the step was the end of it. */
bool script_at(enum step step, struct endpoint *ep, struct link *l,
               struct request *r);
/* Begins to listen to stdin. */
void script_start(void);

#endif
