/* raft/fetch: the messages of a state transfer, as they come out of the wire.
 *
 * The first byte of the input: bit 0: an answer, else a question; bit 1: to a question for the pages that it is about,
 * of the size that it says; the upper bits choose the page size. Then the numbers of the note (8 bytes each; 0, 1 and 3
 * of them of one byte if bit 2 is set), and its data. */
#include "raft/fetch.h"
#include "tests/fuzz/fuzz.h"
#include "vfs/lockpage.h"

static void try_question(const struct note *note)
{
    struct fetch f;

    memset(&f, 0x5a, sizeof f);
    if (!fetch_decode(note, &f)) {
        check(all_are(&f, 0x5a, sizeof f));
        check(note->num[0] == 0 || note->num[0] >= UINT32_MAX || note->num[1] == 0 || note->num[1] > FETCH_PAGES_MAX ||
              note->data_len % FETCH_HASH_SIZE != 0 || note->data_len / FETCH_HASH_SIZE > note->num[1]);
        return;
    }
    check(f.first == note->num[0] && f.first > 0 && f.n > 0 && f.n <= note->num[1] && f.n <= FETCH_PAGES_MAX);
    check(f.first + f.n > f.first);
    check(f.n == note->num[1] || f.first + f.n == UINT32_MAX);
    check(f.n_hashes <= f.n && f.hashes == note->data && f.n_hashes * FETCH_HASH_SIZE <= note->data_len);
}

/* Would a member have sent it? As the header says, computed another way. */
static bool sound(const struct note *note, uint32_t first, uint32_t page_size)
{
    uint64_t step = 4 + (uint64_t)page_size, before = 0;

    if (note->num[0] != first || first == 0 || note->num[4] != page_size || note->num[1] == 0 ||
        note->num[1] > FETCH_PAGES_MAX || note->num[3] > UINT32_MAX || first + note->num[1] > note->num[3] + 1 ||
        note->data_len % step != 0) {
        return false;
    }
    for (uint64_t at = 0; at < note->data_len; at += step) {
        uint64_t pgno = le_get(note->data + at, 4);

        if (pgno < first || pgno >= first + note->num[1] || pgno <= before || (pgno - 1) * page_size == 0x40000000) {
            return false;
        }
        before = pgno;
    }
    return true;
}

static void try_answer(const struct note *note, uint32_t first, uint32_t page_size)
{
    struct fetch_reply r;
    const uint8_t *page;
    uint32_t pgno, n = 0;
    bool good;

    memset(&r, 0x5a, sizeof r);
    good = fetch_reply_decode(note, first, page_size, &r);
    check(good == sound(note, first, page_size));
    if (!good) {
        check(all_are(&r, 0x5a, sizeof r));
        return;
    }
    check(r.first == first && r.n == note->num[1] && r.index == note->num[2] && r.n_pages == note->num[3]);
    check(r.page_size == page_size && vid_equal(&r.id, &note->id[0]));
    for (; fetch_reply_next(&r, &pgno, &page); n++) {
        const uint8_t *at = note->data + (size_t)n * fetch_page_bytes(page_size);
        uint8_t number[4];

        check(page == at + 4 && pgno == le_get(at, 4));
        check(pgno != lock_page(page_size) && pgno <= r.n_pages);
        check(fetch_page_put(number, pgno) == number + 4 && memcmp(number, at, 4) == 0);
    }
    check(n * fetch_page_bytes(page_size) == note->data_len && n <= r.n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint32_t sizes[] = {512, 512, 512, 1024, 1024, 2048, 4096, 65536};
    struct input in = {data, size};
    unsigned flags = (unsigned)input_number(&in, 1);
    uint32_t page_size = sizes[flags >> 3 & 7], first = 5;
    struct note note = {.kind = 1};
    uint8_t *copy;

    for (unsigned i = 0; i < 5; i++) {
        note.num[i] = input_number(&in, (flags & 4) && i != 2 && i != 4 ? 1 : 8);
    }
    memset(note.id, 0x11, sizeof note.id);
    if (flags & 2) {
        first = (uint32_t)note.num[0];
        note.num[4] = page_size;
    }
    copy = exact_copy(in.p, in.left);
    note.data = in.left != 0 ? copy : NULL;
    note.data_len = (uint32_t)in.left;
    if (flags & 1) {
        try_answer(&note, first, page_size);
    } else {
        try_question(&note);
    }
    free(copy);
    return 0;
}
