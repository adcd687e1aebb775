/* Calls of gRPC over HTTP/2 without TLS, one at a time on a connection of its own. */
#ifndef DUST_BENCHMARK_GRPC_H
#define DUST_BENCHMARK_GRPC_H

#include "wire.h"

struct grpc;

/* For host:port, which lives as long as it does; NULL if there is no memory. It connects when it is called first, and
 * again in the call after the one that lost the connection. Why a call failed is told in `why` (WHY_MAX bytes). */
struct grpc *grpc_new(const char *target, char *why);
void grpc_free(struct grpc *g);

/* Where the message of the next call is to be appended. */
struct bytes *grpc_prepare(struct grpc *g);
/* Sends it and waits for the answer: the message from `at` to `end`, good until the next call. */
bool grpc_call(struct grpc *g, const char *path, const uint8_t **at, const uint8_t **end);

#endif
