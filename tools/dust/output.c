/* Rows for people, and for programs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"

#define KEPT_ROWS 1000 /* by which the widths are found; what comes behind them is printed as wide */

void print_json_text(const char *text, int n)
{
    putchar('"');
    for (int i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];

        if (c == '"' || c == '\\') {
            printf("\\%c", c);
        } else if (c < 0x20) {
            printf("\\u%04x", c);
        } else {
            putchar(c);
        }
    }
    putchar('"');
}

static void print_hex(const unsigned char *blob, int n)
{
    for (int i = 0; i < n; i++) {
        printf("%02x", blob[i]);
    }
}

static void print_json_value(sqlite3_stmt *stmt, int i)
{
    char text[40];
    double v;

    switch (sqlite3_column_type(stmt, i)) {
    case SQLITE_NULL:
        fputs("null", stdout);
        break;
    case SQLITE_INTEGER:
        fputs((const char *)sqlite3_column_text(stmt, i), stdout);
        break;
    case SQLITE_FLOAT:
        v = sqlite3_column_double(stmt, i);
        if (v - v != 0) {
            fputs(v > 0 ? "1e999" : "-1e999", stdout); /* infinity */
        } else {
            snprintf(text, sizeof text, "%.15g", v);
            printf(strtod(text, NULL) == v ? "%.15g" : "%.17g", v);
        }
        break;
    case SQLITE_BLOB:
        putchar('"');
        print_hex(sqlite3_column_blob(stmt, i), sqlite3_column_bytes(stmt, i));
        putchar('"');
        break;
    default:
        print_json_text((const char *)sqlite3_column_text(stmt, i), sqlite3_column_bytes(stmt, i));
    }
}

static void print_json_row(sqlite3_stmt *stmt)
{
    putchar('{');
    for (int i = 0; i < sqlite3_column_count(stmt); i++) {
        const char *name = sqlite3_column_name(stmt, i);

        fputs(i == 0 ? "" : ", ", stdout);
        print_json_text(name, (int)strlen(name));
        fputs(": ", stdout);
        print_json_value(stmt, i);
    }
    putchar('}');
}

static int print_json(sqlite3_stmt *stmt)
{
    int rc;

    putchar('[');
    for (bool first = true; (rc = sqlite3_step(stmt)) == SQLITE_ROW; first = false) {
        fputs(first ? "\n  " : ",\n  ", stdout);
        print_json_row(stmt);
    }
    fputs("\n]\n", stdout);
    return rc;
}

/* ---- columns ---- */

static char *cell_text(sqlite3_stmt *stmt, int i)
{
    if (sqlite3_column_type(stmt, i) == SQLITE_BLOB) {
        const unsigned char *p = sqlite3_column_blob(stmt, i);
        int n = sqlite3_column_bytes(stmt, i);
        char *text = malloc(2 * (size_t)n + 1);

        for (int k = 0; text != NULL && k < n; k++) {
            snprintf(text + 2 * k, 3, "%02x", p[k]);
        }
        if (text != NULL) {
            text[2 * n] = '\0';
        }
        return text;
    }
    return strdup(sqlite3_column_type(stmt, i) == SQLITE_NULL ? "" : (const char *)sqlite3_column_text(stmt, i));
}

/* Characters, taking each code point for one column. */
static int width_of(const char *text)
{
    int n = 0;

    for (; *text != '\0'; text++) {
        n += ((unsigned char)*text & 0xc0) != 0x80;
    }
    return n;
}

/* Line ends would break the columns. */
static void put_cell(const char *text, int width, bool last, bool right)
{
    int pad = width - width_of(text);

    if (right && pad > 0) {
        printf("%*s", pad, "");
    }
    for (const char *p = text; *p != '\0'; p++) {
        putchar(*p == '\n' || *p == '\r' || *p == '\t' ? ' ' : *p);
    }
    if (!right && !last && pad > 0) {
        printf("%*s", pad, "");
    }
    fputs(last ? "\n" : "  ", stdout);
}

static void put_row(char *const *row, const int *width, const bool *right, int columns)
{
    for (int i = 0; i < columns; i++) {
        put_cell(row[i] != NULL ? row[i] : "", width[i], i == columns - 1, right[i]);
    }
}

static void free_cells(char **cells, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        free(cells[i]);
    }
    free(cells);
}

static int print_columns(sqlite3_stmt *stmt)
{
    int columns = sqlite3_column_count(stmt), rc = SQLITE_ROW;
    char **cells = calloc((KEPT_ROWS + 1) * (size_t)columns, sizeof *cells);
    int *width = calloc((size_t)columns, sizeof *width);
    bool *right = calloc((size_t)columns, sizeof *right);
    size_t rows = 0;

    if (cells == NULL || width == NULL || right == NULL) {
        free(cells);
        free(width);
        free(right);
        return SQLITE_NOMEM;
    }
    for (int i = 0; i < columns; i++) {
        width[i] = width_of(sqlite3_column_name(stmt, i));
        right[i] = true;
    }
    while (rows < KEPT_ROWS && (rc = sqlite3_step(stmt)) == SQLITE_ROW) {
        for (int i = 0; i < columns; i++) {
            char *text = cell_text(stmt, i);
            int w = text != NULL ? width_of(text) : 0, type = sqlite3_column_type(stmt, i);

            cells[rows * (size_t)columns + (size_t)i] = text;
            width[i] = w > width[i] ? w : width[i];
            right[i] = right[i] && (type == SQLITE_INTEGER || type == SQLITE_FLOAT || type == SQLITE_NULL);
        }
        rows++;
    }
    for (int i = 0; i < columns; i++) {
        put_cell(sqlite3_column_name(stmt, i), width[i], i == columns - 1, right[i] && rows != 0);
    }
    for (size_t k = 0; k < rows; k++) {
        put_row(cells + k * (size_t)columns, width, right, columns);
    }
    while (rc == SQLITE_ROW && (rc = sqlite3_step(stmt)) == SQLITE_ROW) {
        for (int i = 0; i < columns; i++) {
            char *text = cell_text(stmt, i);

            put_cell(text != NULL ? text : "", width[i], i == columns - 1, right[i]);
            free(text);
        }
    }
    free_cells(cells, rows * (size_t)columns);
    free(width);
    free(right);
    return rc;
}

int print_rows(sqlite3_stmt *stmt, bool json)
{
    int rc = json ? print_json(stmt) : print_columns(stmt);

    return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

void print_row_line(sqlite3_stmt *stmt, bool json)
{
    if (json) {
        print_json_row(stmt);
        putchar('\n');
    } else {
        for (int i = 0; i < sqlite3_column_count(stmt); i++) {
            char *text = cell_text(stmt, i);

            put_cell(text != NULL ? text : "", 0, i == sqlite3_column_count(stmt) - 1, false);
            free(text);
        }
    }
    fflush(stdout);
}
