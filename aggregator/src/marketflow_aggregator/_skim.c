/* Takes plain trades into open windows without making a Python object of any.
 *
 * An option: series.Series.in_order does the same where this is not built, and is the reference. Only what is beyond
 * doubt is taken: a record whose bytes are as codec.encode writes a trade, to the letter, whose id is the next one of
 * its symbol, and whose time is in the symbol's open window. Anything else is left to Python, and so is all that
 * follows it in the batch: of its symbol, or, where it is not a trade to the letter, of all.
 *
 * Prices and quantities are whole numbers of 1e-8, sums have 128 bits; what does not fit is left to Python as well, so
 * nothing is ever rounded. Python takes a symbol's totals out (take) before it looks at the symbol, and gives it back
 * (arm) when it is done.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <string.h>

typedef __int128 wide;

enum { NAME = 32, PLACES = 8, INTEGERS = 10, DIGITS_OF_INT = 18 };

typedef struct {
    char name[NAME];
    unsigned char length; /* 0: a free place */
    unsigned char armed;
    int64_t start, end, next_id;
    int64_t first_id, count, open, high, low, close;
    wide volume, quote, taker, taker_quote;
} Run;

typedef struct {
    PyObject_HEAD
    Run *runs; /* a hash table with open addressing; its size is a power of two, and never more than half is used */
    size_t size, used;
} Skimmer;

typedef struct {
    const char *symbol;
    size_t symbol_length;
    int64_t trade_id, price, qty, traded_at;
    int bought; /* by the taker */
    int fits;   /* 0: a trade to the letter whose numbers are too long for this */
} Trade;

/* --- one record ------------------------------------------------------------------------------------------------ */

static int eat(const char **at, const char *end, const char *literal, size_t length)
{
    if ((size_t)(end - *at) < length || memcmp(*at, literal, length) != 0)
        return 0;
    *at += length;
    return 1;
}

#define EAT(literal) eat(&at, end, literal, sizeof(literal) - 1)

/* Text up to the closing quote, which is eaten: printable ASCII without an escape. */
static int text(const char **at, const char *end, const char **start, size_t *length)
{
    const char *p = *at;
    while (p < end && *p != '"') {
        if (*p < 0x20 || *p > 0x7e || *p == '\\')
            return 0;
        p++;
    }
    if (p == end)
        return 0;
    *start = *at;
    *length = (size_t)(p - *at);
    *at = p + 1;
    return 1;
}

/* A whole number as JSON has it, not negative. */
static int whole(const char **at, const char *end, int64_t *value)
{
    const char *p = *at;
    int64_t found = 0;
    while (p < end && *p >= '0' && *p <= '9') {
        if (p - *at >= DIGITS_OF_INT)
            return 0;
        found = found * 10 + (*p++ - '0');
    }
    if (p == *at || (**at == '0' && p - *at > 1))
        return 0;
    *value = found;
    *at = p;
    return 1;
}

/* Digits; the first `most` of them are appended to value. Returns how many there are. */
static size_t digits(const char **at, const char *end, size_t most, int64_t *value)
{
    const char *p = *at;
    while (p < end && *p >= '0' && *p <= '9') {
        if ((size_t)(p - *at) < most)
            *value = *value * 10 + (*p - '0');
        p++;
    }
    size_t found = (size_t)(p - *at);
    *at = p;
    return found;
}

/* Digits, with a point and more digits where there is one, and the closing quote; in 1e-8. Sets *fits to 0 where that
 * does not hold it. */
static int number(const char **at, const char *end, int64_t *value, int *fits)
{
    const char *p = *at;
    int64_t found = 0;
    size_t integers = digits(&p, end, INTEGERS, &found), places = 0;
    if (integers == 0)
        return 0;
    if (p < end && *p == '.') {
        p++;
        places = digits(&p, end, PLACES, &found);
        if (places == 0)
            return 0;
    }
    if (integers > INTEGERS || places > PLACES)
        *fits = 0;
    for (; places < PLACES; places++)
        found *= 10;
    if (p == end || *p != '"')
        return 0;
    *value = found;
    *at = p + 1;
    return 1;
}

/* Whether the bytes are a trade to the letter. */
static int read_trade(const char *at, size_t length, Trade *trade)
{
    const char *end = at + length, *ignored;
    size_t ignored_length;
    int64_t received_at;
    trade->fits = 1;
    if (!EAT("{\"type\":\"trade\",\"source\":\"") || !text(&at, end, &ignored, &ignored_length) ||
        !EAT(",\"symbol\":\"") || !text(&at, end, &trade->symbol, &trade->symbol_length) ||
        !EAT(",\"trade_id\":") || !whole(&at, end, &trade->trade_id) ||
        !EAT(",\"price\":\"") || !number(&at, end, &trade->price, &trade->fits) ||
        !EAT(",\"qty\":\"") || !number(&at, end, &trade->qty, &trade->fits) ||
        !EAT(",\"buyer_is_maker\":"))
        return 0;
    if (EAT("true"))
        trade->bought = 0;
    else if (EAT("false"))
        trade->bought = 1;
    else
        return 0;
    return EAT(",\"traded_at\":") && whole(&at, end, &trade->traded_at) &&
           EAT(",\"received_at\":") && whole(&at, end, &received_at) && EAT("}") && at == end;
}

/* --- symbols --------------------------------------------------------------------------------------------------- */

/* The place of a symbol, or the free one where it would be. */
static Run *place(Run *runs, size_t size, const char *name, size_t length)
{
    uint64_t hash = 1469598103934665603u; /* FNV-1a */
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ (unsigned char)name[i]) * 1099511628211u;
    for (size_t i = (size_t)(hash ^ (hash >> 32));; i++) {
        Run *run = &runs[i & (size - 1)];
        if (run->length == 0 || (run->length == length && memcmp(run->name, name, length) == 0))
            return run;
    }
}

static Run *find(Skimmer *self, const char *name, size_t length)
{
    if (length == 0 || length > NAME || self->size == 0)
        return NULL;
    Run *run = place(self->runs, self->size, name, length);
    return run->length ? run : NULL;
}

static int grow(Skimmer *self)
{
    size_t size = self->size ? self->size * 2 : 64;
    Run *runs = PyMem_Calloc(size, sizeof(Run));
    if (runs == NULL) {
        PyErr_NoMemory();
        return 0;
    }
    for (size_t i = 0; i < self->size; i++)
        if (self->runs[i].length)
            *place(runs, size, self->runs[i].name, self->runs[i].length) = self->runs[i];
    PyMem_Free(self->runs);
    self->runs = runs;
    self->size = size;
    return 1;
}

/* Takes a trade in; 0: it does not go on with the run, or a sum would not fit. */
static int fold(Run *run, const Trade *trade)
{
    wide quote = (wide)trade->price * trade->qty, volume, quotes;
    if (!trade->fits || trade->trade_id != run->next_id || trade->traded_at < run->start || trade->traded_at >= run->end ||
        __builtin_add_overflow(run->volume, (wide)trade->qty, &volume) ||
        __builtin_add_overflow(run->quote, quote, &quotes))
        return 0;
    run->volume = volume;
    run->quote = quotes;
    if (trade->bought) { /* parts of the above: they fit */
        run->taker += trade->qty;
        run->taker_quote += quote;
    }
    if (run->count == 0) {
        run->first_id = trade->trade_id;
        run->open = run->high = run->low = trade->price;
    } else if (trade->price > run->high) {
        run->high = trade->price;
    } else if (trade->price < run->low) {
        run->low = trade->price;
    }
    run->close = trade->price;
    run->count++;
    run->next_id++;
    return 1;
}

/* --- what Python sees -------------------------------------------------------------------------------------------- */

static PyObject *skim(PyObject *object, PyObject *values)
{
    Skimmer *self = (Skimmer *)object;
    if (!PyList_Check(values)) {
        PyErr_SetString(PyExc_TypeError, "values must be a list");
        return NULL;
    }
    PyObject *rest = PyList_New(0);
    Py_ssize_t count = PyList_Size(values);
    int to_the_letter = 1;
    for (Py_ssize_t i = 0; rest != NULL && i < count; i++) {
        Trade trade;
        char *bytes;
        Py_ssize_t length;
        PyObject *value = PyList_GetItem(values, i);
        if (to_the_letter && PyBytes_Check(value) && PyBytes_AsStringAndSize(value, &bytes, &length) == 0 &&
            read_trade(bytes, (size_t)length, &trade)) {
            Run *run = find(self, trade.symbol, trade.symbol_length);
            if (run != NULL && run->armed && fold(run, &trade))
                continue;
            if (run != NULL)
                run->armed = 0;
        } else {
            to_the_letter = 0;
        }
        PyObject *index = PyLong_FromSsize_t(i);
        if (index == NULL || PyList_Append(rest, index) < 0)
            Py_CLEAR(rest);
        Py_XDECREF(index);
    }
    return rest;
}

static PyObject *arm(PyObject *object, PyObject *args)
{
    Skimmer *self = (Skimmer *)object;
    const char *name;
    Py_ssize_t length;
    long long next_id, start, end;
    if (!PyArg_ParseTuple(args, "s#LLL", &name, &length, &next_id, &start, &end)) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError))
            return NULL;
        PyErr_Clear();
        Py_RETURN_FALSE;
    }
    if (length == 0 || length > NAME)
        Py_RETURN_FALSE;
    if (self->used * 2 >= self->size && !grow(self))
        return NULL;
    Run *run = place(self->runs, self->size, name, (size_t)length);
    if (run->count) {
        PyErr_SetString(PyExc_ValueError, "what was taken in has to be taken out first");
        return NULL;
    }
    self->used += run->length == 0;
    *run = (Run){.length = (unsigned char)length, .armed = 1, .start = start, .end = end, .next_id = next_id};
    memcpy(run->name, name, (size_t)length);
    Py_RETURN_TRUE;
}

static PyObject *take(PyObject *object, PyObject *args)
{
    const char *name;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(args, "s#", &name, &length))
        return NULL;
    Run *run = find((Skimmer *)object, name, (size_t)length);
    if (run == NULL || run->count == 0) {
        if (run != NULL)
            run->armed = 0;
        Py_RETURN_NONE;
    }
    PyObject *found = Py_BuildValue(
        "(LLLLLLLLKLKLKLK)", (long long)run->first_id, (long long)(run->next_id - 1), (long long)run->count,
        (long long)run->open, (long long)run->high, (long long)run->low, (long long)run->close,
        (long long)(run->volume >> 64), (unsigned long long)run->volume,
        (long long)(run->quote >> 64), (unsigned long long)run->quote,
        (long long)(run->taker >> 64), (unsigned long long)run->taker,
        (long long)(run->taker_quote >> 64), (unsigned long long)run->taker_quote);
    if (found != NULL) {
        run->armed = 0;
        run->count = 0;
    }
    return found;
}

static void release(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    PyMem_Free(((Skimmer *)object)->runs);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"arm", arm, METH_VARARGS,
     "arm(symbol, next_id, start, end) -> bool\n\nTake trades of the symbol from id next_id on whose time is in [start, end), in "
     "microseconds. False: its name is too long, or a number has more than 64 bits."},
    {"skim", skim, METH_O, "skim(values) -> list[int]\n\nTake in what can be; the indices of the rest, in order."},
    {"take", take, METH_VARARGS,
     "take(symbol) -> tuple | None\n\nTake out what was taken in, and take no more: first id, last id, count, then in 1e-8 "
     "open, high, low, close, then as high and low 64 bits volume (1e-8), quote volume (1e-16) and the taker's of both."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_methods, methods},
    {Py_tp_dealloc, release},
    {Py_tp_doc, "The open windows of one partition."},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "marketflow_aggregator._skim.Skimmer",
    .basicsize = sizeof(Skimmer),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};

static int execute(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&spec);
    return type == NULL || PyModule_AddObjectRef(module, "Skimmer", type) < 0 ? -1 : (Py_DECREF(type), 0);
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, execute}, {0, NULL}};

static PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "_skim", .m_doc = "Takes plain trades into open windows.", .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__skim(void)
{
    return PyModuleDef_Init(&module);
}
