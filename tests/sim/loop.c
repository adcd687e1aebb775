/* libuv: as much of it as dust uses, with its order of things within a turn of the loop (timers, idle, prepare, poll,
 * close) and its cached time. What is found in poll is handled in an order drawn by chance.
 *
 * Each handle has a struct of its own here, found through the reserved words of uv_handle_t; the loop is found through
 * uv_loop_t.data. A loop's thread is a task, which waits on the loop. */
#include "tests/sim/loop.h"

#include <stdlib.h>
#include <string.h>
#include <uv.h>

#include "tests/sim/machine.h"
#include "tests/sim/net.h"
#include "tests/sim/sched.h"

enum kind { KIND_TIMER, KIND_ASYNC, KIND_PREPARE, KIND_IDLE, KIND_POLL };

struct handle {
    struct handle *next; /* of the loop */
    uv_handle_t *uv;
    struct loop *loop;
    enum kind kind;
    bool active, unref, closing;
    bool pending; /* async */
    uint64_t due_ms, repeat_ms, order;
    int fd;
    union {
        uv_timer_cb timer;
        uv_async_cb async;
        uv_prepare_cb prepare;
        uv_idle_cb idle;
        uv_poll_cb poll;
    } cb;
    uv_close_cb close_cb;
};

struct post {
    struct post *next;
    void (*fn)(void *arg);
    void *arg;
};

struct loop {
    uint64_t now_ms, order;
    struct handle *handles;
    struct post *posts, **posts_tail;
    unsigned works; /* in the thread pool */
    bool woken;
};

static struct handle *handle_of(const void *uv)
{
    return ((const uv_handle_t *)uv)->u.reserved[0];
}

static struct loop *loop_of(const uv_loop_t *uv)
{
    return uv->data;
}

void loop_wake(struct loop *l)
{
    l->woken = true;
    task_wake(l);
}

/* Call fn(arg) on the loop's thread, in its next turn. Any thread. */
static void loop_post(struct loop *l, void (*fn)(void *arg), void *arg)
{
    struct post *p = must(calloc(1, sizeof *p));

    p->fn = fn;
    p->arg = arg;
    *l->posts_tail = p;
    l->posts_tail = &p->next;
    loop_wake(l);
}

/* ---- libuv ---- */

int __wrap_uv_loop_init(uv_loop_t *uv);
int __wrap_uv_loop_close(uv_loop_t *uv);
int __wrap_uv_run(uv_loop_t *uv, uv_run_mode mode);
uint64_t __wrap_uv_now(const uv_loop_t *uv);
uint64_t __wrap_uv_hrtime(void);
void __wrap_uv_walk(uv_loop_t *uv, uv_walk_cb cb, void *arg);
int __wrap_uv_async_init(uv_loop_t *uv, uv_async_t *h, uv_async_cb cb);
int __wrap_uv_async_send(uv_async_t *h);
int __wrap_uv_timer_init(uv_loop_t *uv, uv_timer_t *h);
int __wrap_uv_timer_start(uv_timer_t *h, uv_timer_cb cb, uint64_t ms, uint64_t repeat_ms);
int __wrap_uv_prepare_init(uv_loop_t *uv, uv_prepare_t *h);
int __wrap_uv_prepare_start(uv_prepare_t *h, uv_prepare_cb cb);
int __wrap_uv_idle_init(uv_loop_t *uv, uv_idle_t *h);
int __wrap_uv_idle_start(uv_idle_t *h, uv_idle_cb cb);
int __wrap_uv_idle_stop(uv_idle_t *h);
int __wrap_uv_poll_init(uv_loop_t *uv, uv_poll_t *h, int fd);
int __wrap_uv_poll_start(uv_poll_t *h, int events, uv_poll_cb cb);
int __wrap_uv_poll_stop(uv_poll_t *h);
void __wrap_uv_close(uv_handle_t *h, uv_close_cb cb);
int __wrap_uv_is_closing(const uv_handle_t *h);
int __wrap_uv_is_active(const uv_handle_t *h);
void __wrap_uv_unref(uv_handle_t *h);
int __wrap_uv_queue_work(uv_loop_t *uv, uv_work_t *req, uv_work_cb run, uv_after_work_cb after);

static struct handle *handle_new(uv_loop_t *uv, void *h, enum kind kind)
{
    struct loop *l = loop_of(uv);
    struct handle *n = must(calloc(1, sizeof *n));

    *n = (struct handle){.next = l->handles, .uv = h, .loop = l, .kind = kind};
    l->handles = n;
    n->uv->u.reserved[0] = n;
    n->uv->loop = uv;
    return n;
}

int __wrap_uv_loop_init(uv_loop_t *uv)
{
    struct loop *l = must(calloc(1, sizeof *l));

    if (!world.healing && task_machine() != NULL && task_machine()->failing != 0 && chance(300)) {
        free(l);
        return UV_EMFILE;
    }
    l->posts_tail = &l->posts;
    l->now_ms = world.now_ns / MS_NS;
    uv->data = l;
    tally()->loops++;
    return 0;
}

int __wrap_uv_loop_close(uv_loop_t *uv)
{
    (void)uv; /* events to come may know it: it is never freed */
    return 0;
}

uint64_t __wrap_uv_now(const uv_loop_t *uv)
{
    return loop_of(uv)->now_ms;
}

uint64_t __wrap_uv_hrtime(void)
{
    return world.now_ns;
}

void __wrap_uv_walk(uv_loop_t *uv, uv_walk_cb cb, void *arg)
{
    for (struct handle *h = loop_of(uv)->handles, *next; h != NULL; h = next) {
        next = h->next;
        cb(h->uv, arg);
    }
}

int __wrap_uv_async_init(uv_loop_t *uv, uv_async_t *h, uv_async_cb cb)
{
    struct handle *n = handle_new(uv, h, KIND_ASYNC);

    n->cb.async = cb;
    n->active = true;
    return 0;
}

int __wrap_uv_async_send(uv_async_t *h)
{
    struct handle *n = handle_of(h);

    n->pending = true;
    loop_wake(n->loop);
    task_point();
    return 0;
}

int __wrap_uv_timer_init(uv_loop_t *uv, uv_timer_t *h)
{
    handle_new(uv, h, KIND_TIMER);
    return 0;
}

int __wrap_uv_timer_start(uv_timer_t *h, uv_timer_cb cb, uint64_t ms, uint64_t repeat_ms)
{
    struct handle *n = handle_of(h);

    if (n->closing) {
        return UV_EINVAL;
    }
    n->cb.timer = cb;
    n->due_ms = n->loop->now_ms + ms;
    n->repeat_ms = repeat_ms;
    n->order = n->loop->order++;
    n->active = true;
    return 0;
}

int __wrap_uv_prepare_init(uv_loop_t *uv, uv_prepare_t *h)
{
    handle_new(uv, h, KIND_PREPARE);
    return 0;
}

int __wrap_uv_prepare_start(uv_prepare_t *h, uv_prepare_cb cb)
{
    handle_of(h)->cb.prepare = cb;
    handle_of(h)->active = true;
    return 0;
}

int __wrap_uv_idle_init(uv_loop_t *uv, uv_idle_t *h)
{
    handle_new(uv, h, KIND_IDLE);
    return 0;
}

int __wrap_uv_idle_start(uv_idle_t *h, uv_idle_cb cb)
{
    handle_of(h)->cb.idle = cb;
    handle_of(h)->active = true;
    return 0;
}

int __wrap_uv_idle_stop(uv_idle_t *h)
{
    handle_of(h)->active = false;
    return 0;
}

int __wrap_uv_poll_init(uv_loop_t *uv, uv_poll_t *h, int fd)
{
    handle_new(uv, h, KIND_POLL)->fd = fd;
    net_watch(fd, loop_of(uv));
    return 0;
}

int __wrap_uv_poll_start(uv_poll_t *h, int events, uv_poll_cb cb)
{
    (void)events; /* UV_READABLE */
    handle_of(h)->cb.poll = cb;
    handle_of(h)->active = true;
    return 0;
}

int __wrap_uv_poll_stop(uv_poll_t *h)
{
    handle_of(h)->active = false;
    return 0;
}

void __wrap_uv_close(uv_handle_t *h, uv_close_cb cb)
{
    struct handle *n = handle_of(h);

    if (n->closing) {
        violation("a libuv handle is closed twice");
    }
    n->active = false;
    n->closing = true;
    n->close_cb = cb;
}

int __wrap_uv_is_closing(const uv_handle_t *h)
{
    return handle_of(h)->closing;
}

int __wrap_uv_is_active(const uv_handle_t *h)
{
    return handle_of(h)->active;
}

void __wrap_uv_unref(uv_handle_t *h)
{
    handle_of(h)->unref = true;
}

/* Each runs on a thread of its own. */
struct work {
    struct loop *loop;
    uv_work_t *req;
    uv_work_cb run;
    uv_after_work_cb after;
};

static void work_done(void *arg)
{
    struct work *w = arg;

    w->loop->works--;
    w->after(w->req, 0);
    free(w);
}

static void work_run(void *arg)
{
    struct work *w = arg;

    w->run(w->req);
    loop_post(w->loop, work_done, w);
}

int __wrap_uv_queue_work(uv_loop_t *uv, uv_work_t *req, uv_work_cb run, uv_after_work_cb after)
{
    struct work *w = must(calloc(1, sizeof *w));

    *w = (struct work){.loop = loop_of(uv), .req = req, .run = run, .after = after};
    w->loop->works++;
    task_spawn(task_machine(), "work", work_run, w);
    return 0;
}

/* ---- a turn ---- */

static void update_time(struct loop *l)
{
    l->now_ms = world.now_ns / MS_NS;
}

static bool is_alive(const struct loop *l)
{
    for (const struct handle *h = l->handles; h != NULL; h = h->next) {
        if (h->closing || (h->active && !h->unref)) {
            return true;
        }
    }
    return l->works > 0 || l->posts != NULL;
}

static struct handle *first_timer(const struct loop *l)
{
    struct handle *first = NULL;

    for (struct handle *h = l->handles; h != NULL; h = h->next) {
        if (h->kind == KIND_TIMER && h->active &&
            (first == NULL || h->due_ms < first->due_ms || (h->due_ms == first->due_ms && h->order < first->order))) {
            first = h;
        }
    }
    return first;
}

static void run_timers(struct loop *l)
{
    struct handle *h;

    while ((h = first_timer(l)) != NULL && h->due_ms <= l->now_ms) {
        h->active = h->repeat_ms != 0;
        h->due_ms = l->now_ms + h->repeat_ms;
        h->order = l->order++;
        h->cb.timer((uv_timer_t *)h->uv);
    }
}

static bool run_kind(struct loop *l, enum kind kind)
{
    bool any = false;

    for (struct handle *h = l->handles, *next; h != NULL; h = next) {
        next = h->next;
        if (h->kind == kind && h->active) {
            any = true;
            if (kind == KIND_IDLE) {
                h->cb.idle((uv_idle_t *)h->uv);
            } else {
                h->cb.prepare((uv_prepare_t *)h->uv);
            }
        }
    }
    return any;
}

static bool is_ready(const struct handle *h)
{
    return h->active && ((h->kind == KIND_ASYNC && h->pending) || (h->kind == KIND_POLL && net_readable(h->fd)));
}

static bool anything_ready(const struct loop *l)
{
    for (const struct handle *h = l->handles; h != NULL; h = h->next) {
        if (is_ready(h)) {
            return true;
        }
    }
    return l->posts != NULL;
}

static void run_posts(struct loop *l)
{
    struct post *p = l->posts, *next;

    l->posts = NULL;
    l->posts_tail = &l->posts;
    for (; p != NULL; p = next) {
        next = p->next;
        p->fn(p->arg);
        free(p);
    }
}

static void handle_ready(struct handle *h)
{
    if (!is_ready(h)) {
        return; /* no more */
    }
    if (h->kind == KIND_ASYNC) {
        h->pending = false;
        h->cb.async((uv_async_t *)h->uv);
    } else {
        h->cb.poll((uv_poll_t *)h->uv, 0, UV_READABLE);
    }
}

#define READY_MAX 64

static void run_ready(struct loop *l)
{
    struct handle *ready[READY_MAX];
    unsigned n = 0;
    bool posts_done = false;

    for (struct handle *h = l->handles; h != NULL && n < READY_MAX; h = h->next) {
        if (is_ready(h)) {
            ready[n++] = h;
        }
    }
    while (n > 0 || !posts_done) {
        unsigned i = (unsigned)chance_below(n + (posts_done ? 0 : 1));

        if (i == n) {
            posts_done = true;
            run_posts(l);
        } else {
            handle_ready(ready[i]);
            ready[i] = ready[--n];
        }
        task_point();
    }
}

static void run_closing(struct loop *l)
{
    struct handle *closing = NULL;

    for (struct handle **p = &l->handles; *p != NULL;) {
        struct handle *h = *p;

        if (h->closing) {
            *p = h->next;
            h->next = closing;
            closing = h;
        } else {
            p = &h->next;
        }
    }
    for (struct handle *h = closing, *next; h != NULL; h = next) {
        uv_close_cb cb = h->close_cb;
        uv_handle_t *uv = h->uv;

        next = h->next;
        if (cb != NULL) {
            cb(uv);
        }
    }
}

static uint64_t sleep_until_ns(const struct loop *l, bool idle)
{
    const struct handle *h = first_timer(l);
    uint64_t due_ms = h != NULL ? h->due_ms : UINT64_MAX;

    for (h = l->handles; h != NULL; h = h->next) {
        idle = idle || h->closing;
    }
    return idle ? 0 : due_ms == UINT64_MAX ? NEVER : due_ms * MS_NS;
}

int __wrap_uv_run(uv_loop_t *uv, uv_run_mode mode)
{
    struct loop *l = loop_of(uv);

    (void)mode; /* UV_RUN_DEFAULT */
    update_time(l);
    while (is_alive(l)) {
        bool idle;
        uint64_t until_ns;

        update_time(l);
        run_timers(l);
        idle = run_kind(l, KIND_IDLE);
        run_kind(l, KIND_PREPARE);
        until_ns = sleep_until_ns(l, idle);
        if (!anything_ready(l) && until_ns > world.now_ns && is_alive(l)) {
            l->woken = false;
            task_wait(l, until_ns);
        } else {
            task_point();
        }
        update_time(l);
        run_ready(l);
        run_closing(l);
    }
    return 0;
}
