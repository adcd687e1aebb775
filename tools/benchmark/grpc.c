/* libnghttp2 makes and takes the frames; here is what it sends and receives by, and gRPC's five bytes and trailers. */
#include "grpc.h"

#include <nghttp2/nghttp2.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "driver.h"

#define PAUSE_MS 20 /* after a connection could not be made */
#define WINDOW (4 << 20)
#define PREFIX 5 /* of a message: a byte that tells if it is compressed, 4 of its length */

struct grpc {
    const char *target;
    char *why;
    int fd;
    nghttp2_session *session; /* NULL: not connected */
    struct bytes frames;      /* to send */
    struct bytes request, reply;
    size_t sent; /* of the request, as frames */
    int32_t stream;
    bool closed;    /* the stream is, */
    uint32_t reset; /* with this error code */
    int http_status, grpc_status;
    char message[120]; /* that came with grpc_status */
};

static void disconnect(struct grpc *g)
{
    nghttp2_session_del(g->session);
    g->session = NULL;
    if (g->fd >= 0) {
        close(g->fd);
    }
    g->fd = -1;
}

/* For what leaves the connection of no use. */
__attribute__((format(printf, 2, 3))) static bool lose(struct grpc *g, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(g->why, WHY_MAX, format, args);
    va_end(args);
    disconnect(g);
    return false;
}

/* A number of at most three digits; 999 for anything else. */
static int parse_status(const uint8_t *value, size_t len)
{
    int status = 0;

    for (size_t i = 0; i < len; i++) {
        if (value[i] < '0' || value[i] > '9' || i == 3) {
            return 999;
        }
        status = status * 10 + value[i] - '0';
    }
    return len > 0 ? status : 999;
}

static bool is(const char *text, const uint8_t *name, size_t len)
{
    return strlen(text) == len && memcmp(text, name, len) == 0;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_len,
    const uint8_t *value, size_t len, uint8_t flags, void *ctx)
{
    struct grpc *g = ctx;

    (void)session;
    (void)flags;
    if (frame->hd.stream_id != g->stream) {
        return 0;
    }
    if (is(":status", name, name_len)) {
        g->http_status = parse_status(value, len);
    } else if (is("grpc-status", name, name_len)) {
        g->grpc_status = parse_status(value, len);
    } else if (is("grpc-message", name, name_len)) {
        len = len < sizeof g->message ? len : sizeof g->message - 1;
        memcpy(g->message, value, len);
        g->message[len] = '\0';
    }
    return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t stream, const uint8_t *data, size_t len, void *ctx)
{
    struct grpc *g = ctx;

    (void)session;
    (void)flags;
    if (stream == g->stream) {
        g->reply.full = g->reply.full || len > REPLY_MAX - g->reply.len;
        append(&g->reply, data, len);
    }
    return g->reply.full ? NGHTTP2_ERR_CALLBACK_FAILURE : 0;
}

static int on_close(nghttp2_session *session, int32_t stream, uint32_t error_code, void *ctx)
{
    struct grpc *g = ctx;

    (void)session;
    if (stream == g->stream) {
        g->closed = true;
        g->reset = error_code;
    }
    return 0;
}

static ssize_t read_request(nghttp2_session *session, int32_t stream, uint8_t *to, size_t room, uint32_t *flags,
    nghttp2_data_source *source, void *ctx)
{
    struct grpc *g = ctx;
    size_t left = g->request.len - g->sent, n = left < room ? left : room;

    (void)session;
    (void)stream;
    (void)source;
    memcpy(to, g->request.at + g->sent, n);
    g->sent += n;
    if (n == left) {
        *flags |= NGHTTP2_DATA_FLAG_EOF;
    }
    return (ssize_t)n;
}

static bool connect_session(struct grpc *g)
{
    const nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, WINDOW},
    };
    nghttp2_session_callbacks *callbacks;
    bool ok;

    g->fd = dial(g->target, g->why);
    if (g->fd < 0) {
        return false;
    }
    if (nghttp2_session_callbacks_new(&callbacks) != 0) {
        return lose(g, "out of memory");
    }
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
    ok = nghttp2_session_client_new(&g->session, callbacks, g) == 0 &&
         nghttp2_submit_settings(g->session, NGHTTP2_FLAG_NONE, settings, sizeof settings / sizeof *settings) == 0 &&
         nghttp2_session_set_local_window_size(g->session, NGHTTP2_FLAG_NONE, 0, WINDOW) == 0;
    nghttp2_session_callbacks_del(callbacks);
    return ok || lose(g, "out of memory");
}

/* Sends all that the session has, in as few packets as may be. */
static bool flush(struct grpc *g)
{
    const uint8_t *frame;
    ssize_t n;

    g->frames.len = 0;
    g->frames.full = false;
    while ((n = nghttp2_session_mem_send(g->session, &frame)) > 0) {
        append(&g->frames, frame, (size_t)n);
    }
    if (n < 0 || g->frames.full) {
        return lose(g, "HTTP/2: %s", n < 0 ? nghttp2_strerror((int)n) : "out of memory");
    }
    if (!send_all(g->fd, g->frames.at, g->frames.len, g->why)) {
        disconnect(g);
        return false;
    }
    return true;
}

static bool receive_frames(struct grpc *g)
{
    uint8_t data[16384];
    ssize_t n = receive(g->fd, data, sizeof data, g->why), used;

    if (n < 0) {
        disconnect(g);
        return false;
    }
    used = nghttp2_session_mem_recv(g->session, data, (size_t)n);
    if (g->reply.full) {
        return lose(g, "an answer longer than %u bytes, or than memory", REPLY_MAX);
    }
    return used >= 0 || lose(g, "HTTP/2: %s", nghttp2_strerror((int)used));
}

/* Whether the stream that is closed brought a message. */
static bool check_reply(struct grpc *g)
{
    const uint8_t *at = g->reply.at;

    if (g->reset != NGHTTP2_NO_ERROR) {
        return lose(g, "stream closed: %s", nghttp2_http2_strerror(g->reset));
    }
    if (g->http_status != 200) {
        return lose(g, "HTTP status %d", g->http_status);
    }
    if (g->grpc_status < 0) {
        return lose(g, "an answer without grpc-status");
    }
    if (g->grpc_status != 0) { /* the connection is as good as before */
        snprintf(g->why, WHY_MAX, "grpc-status %d: %s", g->grpc_status, g->message);
        return false;
    }
    if (g->reply.len < PREFIX || at[0] != 0 ||
        ((size_t)at[1] << 24 | (size_t)at[2] << 16 | (size_t)at[3] << 8 | at[4]) != g->reply.len - PREFIX) {
        return lose(g, "an answer that is not one plain gRPC message");
    }
    return true;
}

struct grpc *grpc_new(const char *target, char *why)
{
    struct grpc *g = calloc(1, sizeof *g);

    if (g != NULL) {
        g->target = target;
        g->why = why;
        g->fd = -1;
    }
    return g;
}

void grpc_free(struct grpc *g)
{
    disconnect(g);
    free(g->frames.at);
    free(g->request.at);
    free(g->reply.at);
    free(g);
}

struct bytes *grpc_prepare(struct grpc *g)
{
    g->request.len = 0;
    g->request.full = false;
    append(&g->request, "\0\0\0\0", PREFIX);
    return &g->request;
}

static nghttp2_nv header(const char *name, const char *value)
{
    return (nghttp2_nv){
        .name = (uint8_t *)(uintptr_t)name, /* nghttp2 does not write to them */
        .namelen = strlen(name),
        .value = (uint8_t *)(uintptr_t)value,
        .valuelen = strlen(value),
        .flags = NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE,
    };
}

/* Opens the stream of the request that was prepared. */
static bool submit(struct grpc *g, const char *path)
{
    const nghttp2_nv headers[] = {
        header(":method", "POST"),
        header(":scheme", "http"),
        header(":path", path),
        header(":authority", g->target),
        header("content-type", "application/grpc"),
        header("te", "trailers"),
    };
    const nghttp2_data_provider body = {.read_callback = read_request};
    size_t len = g->request.len - PREFIX;

    for (int i = 1; i < PREFIX; i++) {
        g->request.at[i] = (uint8_t)(len >> (8 * (PREFIX - 1 - i)));
    }
    g->sent = 0;
    g->reply.len = 0;
    g->reply.full = false;
    g->closed = false;
    g->reset = NGHTTP2_NO_ERROR;
    g->http_status = 0;
    g->grpc_status = -1;
    g->message[0] = '\0';
    g->stream = nghttp2_submit_request(g->session, NULL, headers, sizeof headers / sizeof *headers, &body, NULL);
    return g->stream > 0 || lose(g, "HTTP/2: %s", nghttp2_strerror(g->stream));
}

static bool wait_for_reply(struct grpc *g)
{
    int64_t deadline = now_ms() + TIMEOUT_S * 1000;

    while (!g->closed) {
        if (!flush(g)) {
            return false;
        }
        if (g->closed) {
            break;
        }
        if (!nghttp2_session_want_read(g->session)) {
            return lose(g, "connection lost: the HTTP/2 session ended");
        }
        if (!receive_frames(g)) {
            return false;
        }
        if (!g->closed && now_ms() > deadline) { /* something came, time and again, but no answer */
            return lose(g, "connection lost: no answer in %d s", TIMEOUT_S);
        }
    }
    return true;
}

bool grpc_call(struct grpc *g, const char *path, const uint8_t **at, const uint8_t **end)
{
    if (g->request.full || g->request.len - PREFIX > UINT32_MAX) {
        return lose(g, "out of memory");
    }
    if (g->session == NULL && !connect_session(g)) {
        pause_ms(PAUSE_MS); /* the caller may try without end */
        return false;
    }
    if (!submit(g, path) || !wait_for_reply(g) || !check_reply(g)) {
        return false;
    }
    *at = g->reply.at + PREFIX;
    *end = g->reply.at + g->reply.len;
    return true;
}
