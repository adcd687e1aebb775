#include "vfs/sqltext.h"

#include <stdlib.h>
#include <string.h>

void sqltext_add(struct sqltext *t, const char *sql)
{
    static const char cut[] = " /* cut */";
    size_t n = strlen(sql);

    if (t->cut || (t->text == NULL && (t->text = malloc(SQL_TEXT_MAX)) == NULL)) {
        return;
    }
    if (t->len + n + 2 + sizeof cut > SQL_TEXT_MAX) {
        n = SQL_TEXT_MAX - sizeof cut - t->len - 2;
        while (n > 0 && ((unsigned char)sql[n] & 0xc0) == 0x80) {
            n--; /* not within a UTF-8 character */
        }
        t->cut = true;
    }
    if (t->len != 0) {
        t->text[t->len++] = '\n';
    }
    memcpy(t->text + t->len, sql, n);
    t->len += (uint32_t)n;
    if (t->cut) {
        memcpy(t->text + t->len, cut, sizeof cut - 1);
        t->len += sizeof cut - 1;
    }
}

void sqltext_forget(struct sqltext *t)
{
    t->len = 0;
    t->cut = false;
}

void sqltext_deinit(struct sqltext *t)
{
    free(t->text);
    *t = (struct sqltext){.text = NULL};
}
