/* dqlite answers at once that the database is busy, where SQLite would wait if asked to: that is waited for here, as
 * long and in the same steps as SQLite does with the busy timeout in sqlite.c. */
#include "dqlite_client.h"

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BUSY_MS 30000
#define COLUMNS_MAX 2000 /* SQLite's, as it is by default */
#define VERSION 1
#define ROWS_DONE 0xffffffffffffffffULL
#define ROWS_PART 0xeeeeeeeeeeeeeeeeULL

/* Of values, beside SQLite's own. */
enum { TYPE_UNIXTIME = 9, TYPE_ISO8601 = 10, TYPE_BOOLEAN = 11 };

void client_init(struct client *c, const char *target)
{
    memset(c, 0, sizeof *c);
    c->target = target;
    c->fd = -1;
}

void client_free(struct client *c)
{
    disconnect(c);
    free(c->out.at);
    free(c->in.at);
}

void disconnect(struct client *c)
{
    if (c->fd >= 0) {
        close(c->fd);
    }
    c->fd = -1;
    c->in.len = c->used = 0;
    c->in.full = false;
}

static bool lose(struct client *c, const char *why)
{
    snprintf(c->why, sizeof c->why, "%s", why);
    disconnect(c);
    return false;
}

bool broken(struct client *c)
{
    return lose(c, "dqlite answered what is not a message of its protocol");
}

/* A request. Numbers are little endian. */

void put_number(struct client *c, uint64_t value, size_t size)
{
    uint8_t byte[WORD];

    for (size_t i = 0; i < size; i++) {
        byte[i] = (uint8_t)(value >> (8 * i));
    }
    append(&c->out, byte, size);
}

void put_text(struct client *c, const char *text)
{
    size_t len = strlen(text);

    append(&c->out, text, len);
    append(&c->out, "\0\0\0\0\0\0\0", WORD - len % WORD); /* a zero, and up to the end of the word */
}

void begin_request(struct client *c, enum request type)
{
    c->out.len = 0;
    c->out.full = false;
    put_number(c, (uint64_t)type << 32, WORD); /* the length comes before the type, when it is known */
}

/* An answer. */

bool get_number(struct client *c, size_t size, uint64_t *value)
{
    if ((size_t)(c->end - c->at) < size) {
        return false;
    }
    *value = 0;
    for (size_t i = 0; i < size; i++) {
        *value |= (uint64_t)c->at[i] << (8 * i);
    }
    c->at += size;
    return true;
}

/* Bytes, and what is left of their last word. */
static bool get_bytes(struct client *c, uint64_t len, const uint8_t **at)
{
    uint64_t left = (uint64_t)(c->end - c->at);

    if (len > left || (len + WORD - 1) / WORD * WORD > left) {
        return false;
    }
    *at = c->at;
    c->at += (len + WORD - 1) / WORD * WORD;
    return true;
}

/* Ends with a zero, which is in the message. */
static bool get_text(struct client *c, const char **text)
{
    const uint8_t *zero = c->at < c->end ? memchr(c->at, '\0', (size_t)(c->end - c->at)) : NULL, *at;

    if (zero == NULL || !get_bytes(c, (uint64_t)(zero - c->at) + 1, &at)) {
        return false;
    }
    *text = (const char *)at;
    return true;
}

/* Until so many bytes are there. */
static bool fetch(struct client *c, size_t len)
{
    uint8_t data[16384];

    while (c->in.len < len) {
        ssize_t n = receive(c->fd, data, sizeof data, c->why);

        if (n < 0) {
            disconnect(c);
            return false;
        }
        append(&c->in, data, (size_t)n);
        if (c->in.full) {
            return lose(c, "out of memory");
        }
        if (c->in.len < len && now_ms() > c->deadline) { /* something came, time and again, but no answer */
            return lose(c, "connection lost: the answer does not end");
        }
    }
    return true;
}

static bool receive_message(struct client *c)
{
    uint64_t words, size;

    if (c->used != 0) {
        c->in.len -= c->used;
        memmove(c->in.at, c->in.at + c->used, c->in.len);
        c->used = 0;
    }
    if (!fetch(c, WORD)) {
        return false;
    }
    c->at = c->in.at;
    c->end = c->in.at + WORD;
    get_number(c, 4, &words);
    c->type = *c->at;
    size = words * WORD;
    if (size > REPLY_MAX) {
        return lose(c, "dqlite's answer is longer than anything expected");
    }
    if (!fetch(c, WORD + size)) {
        return false;
    }
    c->used = WORD + size;
    c->at = c->in.at + WORD;
    c->end = c->at + size;
    return true;
}

/* Whether it is an answer of that type. */
static bool check_type(struct client *c, enum response expected)
{
    const char *text;

    if (c->type == expected) {
        return true;
    }
    if (c->type != RESPONSE_FAILURE || !get_number(c, WORD, &c->code) || !get_text(c, &text)) {
        return broken(c);
    }
    snprintf(c->why, sizeof c->why, "%.150s (%llu)", text, (unsigned long long)c->code);
    return false;
}

/* Sends the request, and waits for its answer. */
static bool exchange_once(struct client *c, enum response expected)
{
    size_t words = c->out.len / WORD - 1;

    c->code = 0;
    if (c->out.full) {
        return lose(c, "out of memory");
    }
    if (c->in.len != c->used) { /* an answer that nothing asked for */
        return broken(c);
    }
    for (int i = 0; i < 4; i++) {
        c->out.at[i] = (uint8_t)(words >> (8 * i));
    }
    if (!send_all(c->fd, c->out.at, c->out.len, c->why)) {
        disconnect(c);
        return false;
    }
    c->deadline = now_ms() + TIMEOUT_S * 1000;
    return receive_message(c) && check_type(c, expected);
}

/* The same as often as it takes, while the database is busy. */
bool exchange(struct client *c, enum response expected)
{
    static const unsigned char delays[] = {1, 2, 5, 10, 15, 20, 25, 25, 25, 50, 50, 100}; /* as SQLite has them */
    int64_t end = now_ms() + BUSY_MS;

    for (size_t i = 0; !exchange_once(c, expected); i++) {
        unsigned delay = delays[i < sizeof delays ? i : sizeof delays - 1];

        if (c->fd < 0 || (c->code & 0xff) != SQLITE_BUSY || now_ms() + delay > end) {
            return false;
        }
        pause_ms(delay);
    }
    return true;
}

/* Connections. */

static bool greet(struct client *c, const char *address)
{
    const uint8_t version[WORD] = {VERSION};

    disconnect(c);
    c->fd = dial(address, c->why);
    if (c->fd < 0) {
        return false;
    }
    if (!send_all(c->fd, version, sizeof version, c->why)) {
        disconnect(c);
        return false;
    }
    return true;
}

/* Connects to the target and has it say where the leader is. */
bool ask_leader(struct client *c, char *address)
{
    const char *text;
    uint64_t id;

    if (!greet(c, c->target)) {
        return false;
    }
    begin_request(c, REQUEST_LEADER);
    put_number(c, 0, WORD);
    if (!exchange(c, RESPONSE_SERVER)) {
        return false;
    }
    if (!get_number(c, WORD, &id) || !get_text(c, &text) || strlen(text) >= ADDRESS_MAX) {
        return broken(c);
    }
    strcpy(address, text);
    return true;
}

bool connect_leader(struct client *c)
{
    char address[ADDRESS_MAX];

    if (!ask_leader(c, address)) {
        return false;
    }
    if (address[0] == '\0') {
        return lose(c, "no leader");
    }
    if (strcmp(address, c->target) != 0 && !greet(c, address)) {
        return false;
    }
    begin_request(c, REQUEST_CLIENT);
    put_number(c, 0, WORD);
    return exchange(c, RESPONSE_WELCOME);
}

bool open_database(struct client *c, const char *name)
{
    uint64_t db;

    begin_request(c, REQUEST_OPEN);
    put_text(c, name);
    put_number(c, 0, WORD); /* flags */
    put_text(c, "");        /* VFS */
    if (!exchange(c, RESPONSE_DB)) {
        return false;
    }
    if (!get_number(c, 4, &db)) {
        return broken(c);
    }
    c->db = (uint32_t)db;
    return true;
}

/* Results. */

bool exec(struct client *c, uint64_t *changed)
{
    uint64_t last;

    if (!exchange(c, RESPONSE_RESULT)) {
        return false;
    }
    return (get_number(c, WORD, &last) && get_number(c, WORD, changed)) || broken(c);
}

/* Reads a value; prints it if asked to. Whether it is one, and whether it has anything in it. */
static bool get_value(struct client *c, unsigned type, bool print, bool *some)
{
    const char *text = "";
    const uint8_t *at = c->at;
    uint64_t number = 0;
    double real;

    if (type == SQLITE_TEXT || type == TYPE_ISO8601) {
        if (!get_text(c, &text)) {
            return false;
        }
        *some = text[0] != '\0';
    } else if (!get_number(c, WORD, &number) || (type == SQLITE_BLOB && !get_bytes(c, number, &at))) {
        return false;
    } else {
        *some = type == SQLITE_BLOB ? number != 0 : type != SQLITE_NULL;
    }
    if (!print) {
        return true;
    }
    switch (type) {
    case SQLITE_INTEGER:
    case TYPE_UNIXTIME:
    case TYPE_BOOLEAN:
        printf("%lld", (long long)number);
        break;
    case SQLITE_FLOAT:
        memcpy(&real, &number, sizeof real);
        printf("%.15g", real);
        break;
    case SQLITE_BLOB:
        fwrite(at, 1, number, stdout);
        break;
    default:
        fputs(text, stdout);
    }
    return true;
}

/* Reads a row: the types of its values, 4 bits each, up to the end of a word, and the values. */
static bool get_row(struct client *c, unsigned columns, bool print, uint64_t *rows)
{
    const uint8_t *types;
    bool some = false;

    if (!get_bytes(c, (columns + 1) / 2, &types)) {
        return false;
    }
    for (unsigned i = 0; i < columns; i++) {
        unsigned type = types[i / 2] >> (i % 2 * 4) & 15;
        bool known = (type >= SQLITE_INTEGER && type <= SQLITE_NULL) || (type >= TYPE_UNIXTIME && type <= TYPE_BOOLEAN);

        if (print && i != 0) {
            putchar('|');
        }
        if (!known || !get_value(c, type, print, &some)) {
            return false;
        }
        *rows += i == 0 && some;
    }
    if (print) {
        putchar('\n');
    }
    return true;
}

/* Reads what one message has of the rows. Whether it is sound, and whether it is the last. */
static bool get_rows(struct client *c, bool print, uint64_t *rows, bool *last)
{
    uint64_t columns, mark;
    const char *name;

    if (!get_number(c, WORD, &columns) || columns == 0 || columns > COLUMNS_MAX) {
        return false;
    }
    for (uint64_t i = 0; i < columns; i++) {
        if (!get_text(c, &name)) {
            return false;
        }
    }
    for (;;) {
        if (!get_number(c, WORD, &mark)) {
            return false;
        }
        if (mark == ROWS_DONE || mark == ROWS_PART) {
            *last = mark == ROWS_DONE;
            return c->at == c->end;
        }
        c->at -= WORD;
        if (!get_row(c, (unsigned)columns, print, rows)) {
            return false;
        }
    }
}

bool query(struct client *c, bool print, uint64_t *rows)
{
    bool last = false;

    *rows = 0;
    if (!exchange(c, RESPONSE_ROWS)) {
        return false;
    }
    for (;;) {
        if (!get_rows(c, print, rows, &last)) {
            return broken(c);
        }
        if (last) {
            return true;
        }
        if (now_ms() > c->deadline) {
            return lose(c, "connection lost: the rows do not end");
        }
        if (!receive_message(c) || !check_type(c, RESPONSE_ROWS)) {
            return false;
        }
    }
}
