/* What most draws come to, compiled: one row of logits at a time, as the class _Near of sampling.py has it, step for step and in doubles. What it leaves
   undecided is decided there. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Places of tokens that there are not: of a number that is to be followed by another, and of what is for Python to say. */
#define REFUSED (-2)
#define UNDECIDED (-1)
/* Near tokens of a row; where they are more it is undecided. */
#define NEAR 4096

/* Logits that are compared before it is looked whether any is near, and then which; multiples of 4. */
#define MANY 64
#define FEW 16
/* Logits from which on other threads may run meanwhile. */
#define LONG 8192
/* Numbers that a token may have: TURN of sampling.py. */
#define TURN 64

typedef struct {
    double largest, temperature, top_p, min_p;
    Py_ssize_t top_k, place;
    uint64_t key, turn;
} Row;

/* The near tokens of a row, in order. */
typedef struct {
    float limit;
    Py_ssize_t most, count;
    int32_t place[NEAR];
    float value[NEAR], copy[NEAR];
    double weight[NEAR];
    /* All near ones weigh, a far one at most, and near ones with all far ones at most. */
    double mass, unit, all;
} Near;

typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Truths __attribute__((vector_size(16)));

/* Whether n of them, a multiple of 4, are all below a limit. */
static inline __attribute__((always_inline)) int below(const float *x, int n, Floats limit)
{
    Truths all = {-1, -1, -1, -1};
    for (int i = 0; i < n; i += 4) {
        Floats some;
        memcpy(&some, x + i, sizeof some);
        all &= some < limit;
    }
    return all[0] & all[1] & all[2] & all[3];
}

/* The k-th largest, from 0 on, of values that are put in another order (Hoare, CACM algorithm 65). */
static float kth_largest(float *values, Py_ssize_t count, Py_ssize_t k)
{
    Py_ssize_t low = 0, high = count - 1;
    while (low < high) {
        const float pivot = values[low + (high - low) / 2];
        Py_ssize_t i = low, j = high;
        while (i <= j) {
            while (values[i] > pivot) i++;
            while (values[j] < pivot) j--;
            if (i <= j) {
                const float other = values[i];
                values[i++] = values[j];
                values[j--] = other;
            }
        }
        if (k <= j) high = j;
        else if (k >= i) low = i;
        else break;
    }
    return values[k];
}

/* Sampler.number. */
static double number(const Row *row, int tried)
{
    uint64_t z = row->key + (row->turn * TURN + (uint64_t)tried + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (double)((z ^ z >> 31) >> 11) / 9007199254740992.0;
}

/* Whether it could be weighed. */
static int weighed(Near *near, const Row *row, const float *x, Py_ssize_t n, double far)
{
    const double temperature = row->temperature;
    const Py_ssize_t most = 0 < row->top_k && row->top_k < n ? row->top_k : n;
    const float limit = (float)(row->largest - temperature * (log((double)most) + far));
    const Floats limits = {limit, limit, limit, limit};
    Py_ssize_t count = 0, from = 0;
    while (from < n) {
        if (n - from >= MANY && below(x + from, MANY, limits)) {
            from += MANY;
            continue;
        }
        const Py_ssize_t end = n - from < MANY ? n : from + MANY;
        while (from < end) {
            if (end - from >= FEW && below(x + from, FEW, limits)) {
                from += FEW;
                continue;
            }
            const Py_ssize_t to = end - from < FEW ? end : from + FEW;
            for (; from < to; from++) {
                if (x[from] < limit) continue;
                if (count == NEAR || !isfinite(x[from])) return 0;
                near->place[count] = (int32_t)from;
                near->value[count++] = x[from];
            }
        }
    }
    for (Py_ssize_t i = 0; i < count; i++) near->weight[i] = exp(((double)near->value[i] - row->largest) / temperature);
    if (count > most) { /* of equal ones the first stay */
        memcpy(near->copy, near->value, (size_t)count * sizeof *near->copy);
        const float least = kth_largest(near->copy, count, most - 1);
        Py_ssize_t stay = most;
        for (Py_ssize_t i = 0; i < count; i++) stay -= near->value[i] > least;
        for (Py_ssize_t i = 0; i < count; i++)
            if (near->value[i] < least || (near->value[i] == least && stay-- <= 0)) near->weight[i] = 0.0;
    }
    double mass = 0.0;
    for (Py_ssize_t i = 0; i < count; i++) mass += near->weight[i];
    near->limit = limit;
    near->most = most;
    near->count = count;
    near->mass = mass;
    near->unit = exp(((double)limit - row->largest) / temperature);
    near->all = mass + (count < most ? (double)(most - count) * near->unit : 0.0);
    return mass > 0.0 && isfinite(near->all);
}

/* The place of the token that a number falls on. */
static Py_ssize_t fallen(const Near *near, const Row *row, const float *x, double on)
{
    if (on >= near->mass) { /* a far one */
        if (row->min_p >= near->unit || (row->top_p < 1.0 && near->mass >= row->top_p * near->all)) return REFUSED;
        if (row->top_k || near->count >= near->most) return UNDECIDED;
        const double beyond = (on - near->mass) / near->unit;
        Py_ssize_t which = near->most - near->count - 1, at;
        if (beyond < (double)which) which = (Py_ssize_t)beyond;
        at = which;
        for (Py_ssize_t i = 0; i < near->count && near->place[i] <= at; i++) at++;
        if (beyond - (double)which >= exp(((double)x[at] - (double)near->limit) / row->temperature)) return REFUSED;
        return row->top_p == 1.0 && row->min_p == 0.0 ? at : UNDECIDED;
    }
    Py_ssize_t one = 0;
    for (double sum = near->weight[0]; !(sum > on); sum += near->weight[one]) one++;
    if (row->min_p != 0.0 && near->weight[one] < row->min_p) return REFUSED;
    if (row->top_p != 1.0) {
        const float value = near->value[one];
        double above = 0.0;
        for (Py_ssize_t i = 0; i < near->count; i++)
            if (near->value[i] > value || (i < one && near->value[i] == value)) above += near->weight[i];
        if (above >= row->top_p * near->mass) return above < row->top_p * near->all ? UNDECIDED : REFUSED;
    }
    return near->place[one];
}

static Py_ssize_t drawn(const Row *row, const float *x, Py_ssize_t n, double far, int tries)
{
    Near near;
    if (!weighed(&near, row, x, n, far)) return UNDECIDED;
    for (int tried = 0; tried <= tries; tried++) {
        const Py_ssize_t place = fallen(&near, row, x, number(row, tried) * near.all);
        if (place != REFUSED) return place;
    }
    return UNDECIDED;
}

/* Fills the i-th row from largest, settings and turns. */
static int filled(Row *row, PyObject *const *lists, Py_ssize_t i)
{
    PyObject *setting = PyList_GET_ITEM(lists[1], i);
    if (!PyTuple_Check(setting) || PyTuple_GET_SIZE(setting) != 5) {
        PyErr_SetString(PyExc_TypeError, "a setting is (temperature, top_k, top_p, min_p, key)");
        return 0;
    }
    row->largest = PyFloat_AsDouble(PyList_GET_ITEM(lists[0], i));
    row->temperature = PyFloat_AsDouble(PyTuple_GET_ITEM(setting, 0));
    row->top_k = PyNumber_AsSsize_t(PyTuple_GET_ITEM(setting, 1), NULL); /* at most the largest there is */
    row->top_p = PyFloat_AsDouble(PyTuple_GET_ITEM(setting, 2));
    row->min_p = PyFloat_AsDouble(PyTuple_GET_ITEM(setting, 3));
    row->key = PyLong_AsUnsignedLongLongMask(PyTuple_GET_ITEM(setting, 4));
    row->turn = PyLong_AsUnsignedLongLongMask(PyList_GET_ITEM(lists[2], i));
    return !PyErr_Occurred();
}

static PyObject *draw(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    Py_buffer logits;
    PyObject *out = NULL;
    (void)module;
    if (given != 7 || !PyList_Check(args[2]) || !PyList_Check(args[3]) || !PyList_Check(args[4])) {
        PyErr_SetString(PyExc_TypeError, "draw(logits, first, largest, settings, turns, far, tries)");
        return NULL;
    }
    const Py_ssize_t first = PyNumber_AsSsize_t(args[1], PyExc_IndexError), count = PyList_GET_SIZE(args[2]);
    const double far = PyFloat_AsDouble(args[5]);
    const int tries = (int)PyLong_AsLong(args[6]);
    if (PyErr_Occurred() || PyObject_GetBuffer(args[0], &logits, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)) return NULL;
    Row *rows = PyMem_New(Row, count);
    if (!rows) {
        PyErr_NoMemory();
        goto done;
    }
    if (logits.ndim != 2 || strcmp(logits.format, "f") || logits.shape[1] > INT32_MAX) {
        PyErr_SetString(PyExc_TypeError, "logits are float32[sequences, n]");
        goto done;
    }
    if (PyList_GET_SIZE(args[3]) != count || PyList_GET_SIZE(args[4]) != count) {
        PyErr_SetString(PyExc_ValueError, "largest, settings and turns are as many");
        goto done;
    }
    if (first < 0 || first > logits.shape[0] - count) {
        PyErr_Format(PyExc_IndexError, "rows %zd to %zd of %zd", first, first + count - 1, logits.shape[0]);
        goto done;
    }
    for (Py_ssize_t i = 0; i < count; i++)
        if (!filled(&rows[i], args + 2, i)) goto done;
    const Py_ssize_t n = logits.shape[1];
    const float *x = (const float *)logits.buf + first * n;
    PyThreadState *state = count * n >= LONG ? PyEval_SaveThread() : NULL;
    for (Py_ssize_t i = 0; i < count; i++) rows[i].place = drawn(&rows[i], x + i * n, n, far, tries);
    if (state) PyEval_RestoreThread(state);
    out = PyList_New(count);
    for (Py_ssize_t i = 0; out && i < count; i++) {
        PyObject *place = PyLong_FromSsize_t(rows[i].place);
        if (!place) Py_CLEAR(out);
        else PyList_SET_ITEM(out, i, place);
    }
done:
    PyMem_Free(rows);
    PyBuffer_Release(&logits);
    return out;
}

static PyMethodDef methods[] = {
    {"draw", (PyCFunction)(void (*)(void))draw, METH_FASTCALL,
     "draw(logits, first, largest, settings, turns, far, tries, /)\n--\n\nSee _sampling.pyi."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_sampling", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__sampling(void)
{
    return PyModule_Create(&definition);
}
