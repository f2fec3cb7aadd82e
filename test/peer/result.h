/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
/* What is counted, checked and printed. */
#ifndef RESULT_H
#define RESULT_H

#include "endpoint.h"

void result_print(struct endpoint **endpoints, double seconds);

#endif
