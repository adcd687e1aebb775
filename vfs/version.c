/* The history of the page store: staging, publishing, voiding, and waiting for one of these. What happens to the nodes
 * that nobody needs any more: trim.c. Folding into app.db: fold.c. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vfs/clock.h"
#include "vfs/store_impl.h"

static const struct vid *head_id(const struct store *s)
{
    return s->newest != NULL ? &s->newest->id : &s->base.id;
}

/* Under the mutex: what somebody may be waiting for has happened. */
static void wake(struct store *s)
{
    if (s->waiters != 0) {
        pthread_cond_broadcast(&s->changed);
    }
    if (s->watching) {
        s->watcher(s->watcher_ctx);
    }
}

/* Under the mutex. */
static void set_applied(struct store *s, uint64_t index)
{
    s->applied = index;
    atomic_store_explicit(&s->head->applied_ms, clock_ms(), memory_order_relaxed);
    atomic_store_explicit(&s->head->applied, index, memory_order_release);
}

static void info_of(const struct version *v, struct head_info *out)
{
    *out = (struct head_info){.seq = v->seq, .index = v->index, .id = v->id, .n_pages = v->n_pages};
}

void store_agreed_info(struct store *s, struct head_info *out)
{
    if (s->agreed != NULL) {
        info_of(s->agreed, out);
    } else {
        *out = s->base;
    }
}

static void head_info(struct store *s, struct head_info *out)
{
    if (s->newest != NULL) {
        info_of(s->newest, out);
    } else {
        *out = s->base;
    }
}

void store_tell(struct store *s)
{
    struct store_told told = {.base = s->base};

    store_agreed_info(s, &told.agreed);
    head_info(s, &told.head);
    atomic_fetch_add_explicit(&s->head->told_gen, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    copy_racy(&s->head->told, &told, sizeof told);
    atomic_fetch_add_explicit(&s->head->told_gen, 1, memory_order_release);
}

/* Put v, which is new and knows its id, parent and size, on top of the head. Under the mutex. */
static void stage(struct store *s, struct version *v, const uint32_t *nodes, uint32_t n)
{
    v->seq = s->next_seq++;
    v->state = VERSION_SPECULATIVE;
    v->after = s->applied;
    for (uint32_t i = 0; i < n; i++) {
        struct store_node *d = node_at(s, nodes[i]);

        atomic_store_explicit(&d->n_pages, v->n_pages, memory_order_relaxed);
        d->sibling = v->nodes;
        v->nodes = nodes[i];
        node_seal(s, nodes[i]);
        node_push(s, nodes[i], v->seq);
    }
    v->prev = s->newest;
    if (s->newest != NULL) {
        s->newest->next = v;
    } else {
        s->oldest = v;
    }
    s->newest = v;
    s->n_versions++;
    store_tell(s); /* first: what can be held can be told of */
    atomic_store(&s->head->head, v->seq);
}

/* Under the mutex. */
static void publish(struct store *s, struct version *v, uint64_t index)
{
    struct held h;

    v->index = index;
    v->state = VERSION_AGREED;
    s->agreed = v;
    store_tell(s); /* first, as above */
    atomic_store(&s->head->agreed, v->seq);
    if (s->applied < index) {
        set_applied(s, index);
    }
    held_scan(s, &h);
    gen_open(s);
    for (uint32_t n = v->nodes, next; n != 0; n = next) {
        struct store_node *d = node_at(s, n);

        next = d->sibling; /* n itself is never dropped here: it is the newest agreed of its page */
        d->sibling = 0;
        store_trim_page(s, atomic_load_explicit(&d->pgno, memory_order_relaxed), &h);
    }
    gen_close(s);
    v->nodes = 0;
    wake(s);
}

/* Take v and all above it out of the history. Under the mutex. */
static void make_void(struct store *s, struct version *v)
{
    s->newest = v->prev;
    if (v->prev != NULL) {
        v->prev->next = NULL;
    } else {
        s->oldest = NULL;
    }
    v->prev = NULL;
    atomic_store(&s->head->head, s->newest != NULL ? s->newest->seq : s->base.seq);
    store_tell(s);
    atomic_fetch_add(&s->head->epoch, 1);
    /* A writer that started on top of it must not go on reading: whoever pins the old head after this scan sees the
     * new epoch and begins again. */
    for (uint32_t i = 0, n = n_slots(s); i < n; i++) {
        if (atomic_load(&s->slots[i].seq) >= v->seq) {
            atomic_store(&s->slots[i].dead, 1);
        }
    }
    gen_open(s);
    for (struct version *w = v; w != NULL; w = w->next) {
        w->state = VERSION_VOID;
        s->n_versions--;
        for (uint32_t n = w->nodes, next; n != 0; n = next) {
            next = node_at(s, n)->sibling;
            node_drop(s, n);
        }
        w->nodes = 0;
    }
    gen_close(s);
    wake(s);
}

static struct version *version_new(
    const struct vid *id, const struct vid *parent, uint32_t n_pages, void *owner, struct err *e)
{
    struct version *v = calloc(1, sizeof *v);

    if (v == NULL) {
        err_set(e, DUST_NOMEM, "out of memory");
        return NULL;
    }
    v->id = *id;
    v->parent = *parent;
    v->n_pages = n_pages;
    v->owner = owner;
    return v;
}

int store_stage(struct store *s, const struct vid *id, const struct vid *parent, uint32_t n_pages,
    const uint32_t *nodes, uint32_t n, void *owner, struct version *copy, struct err *e)
{
    struct version *v = version_new(id, parent, n_pages, owner, e);
    int rv = DUST_OK;

    if (v == NULL) {
        return DUST_NOMEM;
    }
    pthread_mutex_lock(&s->mutex);
    if (vid_equal(parent, head_id(s))) {
        stage(s, v, nodes, n);
        *copy = *v;
        v = NULL;
        if (s->watching) {
            s->watcher(s->watcher_ctx);
        }
    } else {
        rv = err_set(e, DUST_STALE, "the database has moved on since this transaction read it; roll back and retry");
    }
    pthread_mutex_unlock(&s->mutex);
    free(v);
    return rv;
}

void store_publish(struct store *s, struct version *v, uint64_t index)
{
    pthread_mutex_lock(&s->mutex);
    publish(s, v, index);
    pthread_mutex_unlock(&s->mutex);
}

static struct version *oldest_speculative(const struct store *s)
{
    return s->agreed != NULL ? s->agreed->next : s->oldest;
}

int store_agree(struct store *s, const struct vid *id, const struct vid *parent, uint32_t n_pages,
    const uint32_t *nodes, uint32_t n, uint64_t index, struct version **voided, struct err *e)
{
    struct version *v = version_new(id, parent, n_pages, NULL, e);

    if (v == NULL) {
        return DUST_NOMEM;
    }
    pthread_mutex_lock(&s->mutex);
    *voided = oldest_speculative(s);
    if (*voided != NULL && vid_equal(&(*voided)->id, id)) {
        publish(s, *voided, index);
        pthread_mutex_unlock(&s->mutex);
        *voided = NULL;
        free(v);
        return DUST_EXISTS;
    }
    if (*voided != NULL) {
        make_void(s, *voided);
    }
    stage(s, v, nodes, n);
    publish(s, v, index);
    pthread_mutex_unlock(&s->mutex);
    return DUST_OK;
}

struct version *store_void(struct store *s, struct version *v)
{
    pthread_mutex_lock(&s->mutex);
    make_void(s, v);
    pthread_mutex_unlock(&s->mutex);
    return v;
}

void version_free(struct version *v)
{
    free(v);
}

void store_agreed(struct store *s, struct head_info *out)
{
    struct store_told told;

    if (s->attached) {
        store_hear(s, &told);
        *out = told.agreed;
        return;
    }
    pthread_mutex_lock(&s->mutex);
    store_agreed_info(s, out);
    pthread_mutex_unlock(&s->mutex);
}

void store_head(struct store *s, struct head_info *out)
{
    struct store_told told;

    if (s->attached) {
        store_hear(s, &told);
        *out = told.head;
        return;
    }
    pthread_mutex_lock(&s->mutex);
    head_info(s, out);
    pthread_mutex_unlock(&s->mutex);
}

void store_base(struct store *s, struct head_info *out)
{
    struct store_told told;

    if (s->attached) {
        store_hear(s, &told);
        *out = told.base;
        return;
    }
    pthread_mutex_lock(&s->mutex);
    *out = s->base;
    pthread_mutex_unlock(&s->mutex);
}

void store_rebase(struct store *s, const struct head_info *head)
{
    pthread_mutex_lock(&s->mutex);
    gen_open(s);
    s->base = *head;
    s->base.seq = s->next_seq++;
    atomic_store(&s->head->base_n_pages, head->n_pages);
    atomic_store(&s->head->base, s->base.seq);
    atomic_store(&s->head->head, s->base.seq);
    atomic_store(&s->head->agreed, s->base.seq);
    if (s->applied < head->index) {
        set_applied(s, head->index);
    }
    store_tell(s);
    gen_close(s);
    wake(s);
    pthread_mutex_unlock(&s->mutex);
}

static struct version *find(struct store *s, uint64_t seq)
{
    struct version *v = s->newest;

    while (v != NULL && v->seq > seq) {
        v = v->prev;
    }
    return v != NULL && v->seq == seq ? v : NULL;
}

static bool told_id_of(struct store *s, uint64_t seq, struct vid *id)
{
    struct store_told told;
    const struct head_info *known[3] = {&told.head, &told.agreed, &told.base};

    store_hear(s, &told);
    for (int i = 0; i < 3; i++) {
        if (known[i]->seq == seq) {
            *id = known[i]->id;
            return true;
        }
    }
    return false;
}

bool store_id_of(struct store *s, uint64_t seq, struct vid *id)
{
    struct version *v;
    bool found = true;

    if (s->attached) {
        return told_id_of(s, seq, id);
    }
    pthread_mutex_lock(&s->mutex);
    v = find(s, seq);
    if (v != NULL) {
        *id = v->id;
    } else if (seq == s->base.seq) {
        *id = s->base.id;
    } else {
        found = false;
    }
    pthread_mutex_unlock(&s->mutex);
    return found;
}

uint64_t store_seq_of(struct store *s, const struct vid *id)
{
    uint64_t seq = 0;

    pthread_mutex_lock(&s->mutex);
    for (const struct version *v = s->newest; v != NULL && seq == 0; v = v->prev) {
        seq = vid_equal(&v->id, id) ? v->seq : 0;
    }
    if (seq == 0 && vid_equal(&s->base.id, id)) {
        seq = s->base.seq;
    }
    pthread_mutex_unlock(&s->mutex);
    return seq;
}

struct version *store_oldest_speculative(struct store *s)
{
    struct version *v;

    pthread_mutex_lock(&s->mutex);
    v = oldest_speculative(s);
    pthread_mutex_unlock(&s->mutex);
    return v;
}

int store_wait_agreed(struct store *s, uint64_t seq, uint32_t timeout_ms)
{
    struct timespec until = deadline_in_ms(timeout_ms);
    int rv = DUST_BUSY;
    bool late = false;

    if (atomic_load(&s->head->agreed) >= seq && seq <= atomic_load(&s->head->base)) {
        return DUST_OK;
    }
    pthread_mutex_lock(&s->mutex);
    s->waiters++;
    for (;;) {
        uint64_t agreed = s->agreed != NULL ? s->agreed->seq : s->base.seq;

        if (seq <= s->base.seq || (seq <= agreed && find(s, seq) != NULL)) {
            rv = DUST_OK;
            break;
        }
        if (find(s, seq) == NULL) {
            rv = DUST_VOID;
            break;
        }
        if (late || s->closing) {
            break;
        }
        late = pthread_cond_timedwait(&s->changed, &s->mutex, &until) == ETIMEDOUT;
    }
    s->waiters--;
    pthread_mutex_unlock(&s->mutex);
    return rv;
}

void store_set_applied(struct store *s, uint64_t index)
{
    pthread_mutex_lock(&s->mutex);
    if (index > s->applied) {
        set_applied(s, index);
        if (s->waiters != 0) {
            pthread_cond_broadcast(&s->changed);
        }
    }
    pthread_mutex_unlock(&s->mutex);
}

void store_rewind_applied(struct store *s, uint64_t index)
{
    pthread_mutex_lock(&s->mutex);
    if (index < s->applied) {
        set_applied(s, index);
    }
    pthread_mutex_unlock(&s->mutex);
}

uint64_t store_applied(struct store *s)
{
    return atomic_load_explicit(&s->head->applied, memory_order_acquire);
}

uint64_t store_patience(struct store *s, uint64_t since_ms, uint32_t timeout_ms)
{
    uint64_t applied_ms = atomic_load_explicit(&s->head->applied_ms, memory_order_relaxed);

    return (applied_ms > since_ms ? applied_ms : since_ms) + timeout_ms;
}

int store_wait_applied(struct store *s, uint64_t index, uint32_t timeout_ms)
{
    struct timespec until = deadline_in_ms(timeout_ms);
    bool late = false;
    int rv;

    pthread_mutex_lock(&s->mutex);
    s->waiters++;
    while (s->applied < index && !late && !s->closing) {
        late = pthread_cond_timedwait(&s->changed, &s->mutex, &until) == ETIMEDOUT;
    }
    rv = s->applied >= index ? DUST_OK : DUST_BUSY;
    s->waiters--;
    pthread_mutex_unlock(&s->mutex);
    return rv;
}

/* Called often: the mutex is taken only if there is something to say. Whoever waits says so before it looks. */
void store_set_durable(struct store *s, uint64_t index, const struct vid *noted)
{
    bool same = vid_equal(&s->noted, noted);

    atomic_store(&s->durable, index);
    if (same && !atomic_load(&s->durable_awaited)) {
        return;
    }
    pthread_mutex_lock(&s->mutex);
    s->noted = *noted;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
}

int store_wait_durable(struct store *s, const struct head_info *head, uint32_t timeout_ms)
{
    struct timespec until = deadline_in_ms(timeout_ms);
    bool late = false, ok;

    pthread_mutex_lock(&s->mutex);
    atomic_store(&s->durable_awaited, true);
    do {
        ok = head->index <= atomic_load(&s->durable) || vid_equal(&head->id, &s->noted);
        if (ok || late || s->closing) {
            break;
        }
        late = pthread_cond_timedwait(&s->changed, &s->mutex, &until) == ETIMEDOUT;
    } while (true);
    atomic_store(&s->durable_awaited, false);
    pthread_mutex_unlock(&s->mutex);
    return ok ? DUST_OK : DUST_BUSY;
}

void store_wake(struct store *s, bool closing)
{
    pthread_mutex_lock(&s->mutex);
    s->closing = closing;
    pthread_cond_broadcast(&s->changed); /* all, counted or not */
    if (s->watching) {
        s->watcher(s->watcher_ctx);
    }
    pthread_mutex_unlock(&s->mutex);
}

void store_watch(struct store *s, void (*changed)(void *ctx), void *ctx)
{
    pthread_mutex_lock(&s->mutex);
    s->watcher = changed;
    s->watcher_ctx = ctx;
    s->watching = false;
    pthread_mutex_unlock(&s->mutex);
}

void store_watching(struct store *s, bool on)
{
    pthread_mutex_lock(&s->mutex);
    s->watching = on && s->watcher != NULL;
    pthread_mutex_unlock(&s->mutex);
}

void store_stats(struct store *s, struct store_stats *out)
{
    struct held h;

    pthread_mutex_lock(&s->mutex);
    held_scan(s, &h);
    *out = (struct store_stats){
        .frames_all = (uint64_t)n_chunks(s) * CHUNK_NODES,
        .frames_used = (uint64_t)n_chunks(s) * CHUNK_NODES - s->n_free,
        .bytes = s->region.size,
        .readers = h.readers,
        .base_seq = s->base.seq,
        .agreed_seq = atomic_load(&s->head->agreed),
        .head_seq = atomic_load(&s->head->head),
        .versions = s->n_versions,
        .oldest_reader = h.n != 0 ? h.seq[0] : 0,
    };
    pthread_mutex_unlock(&s->mutex);
}
