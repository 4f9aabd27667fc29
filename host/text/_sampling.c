/* What most draws come to, compiled: one number of one row of logits at a time, as the class _Near of sampling.py has it, step for step and in doubles.
   What it leaves undecided is decided there. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stdint.h>
#include <string.h>

#define REFUSED (-1)
#define UNDECIDED (-2)
/* Near tokens of a row; where they are more it is undecided. */
#define NEAR 4096

/* Logits that are compared before it is looked whether any is near, and then which; multiples of 4. */
#define MANY 64
#define FEW 16
/* Logits from which on other threads may run meanwhile. */
#define LONG 8192

typedef struct {
    const float *logits;
    double largest, number, temperature, top_p, min_p;
    Py_ssize_t top_k, place;
} Row;

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

/* The place of the token that the row's number falls on. */
static Py_ssize_t drawn(const Row *row, Py_ssize_t n, double far)
{
    int32_t place[NEAR];
    float value[NEAR], copy[NEAR];
    double weight[NEAR];
    const float *x = row->logits;
    const double warmth = row->temperature;
    const Py_ssize_t most = 0 < row->top_k && row->top_k < n ? row->top_k : n;
    const float limit = (float)(row->largest - warmth * (log((double)most) + far));

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
                if (count == NEAR || !isfinite(x[from])) return UNDECIDED;
                place[count] = (int32_t)from;
                value[count++] = x[from];
            }
        }
    }
    for (Py_ssize_t i = 0; i < count; i++) weight[i] = exp(((double)value[i] - row->largest) / warmth);
    if (count > most) { /* of equal ones the first stay */
        memcpy(copy, value, (size_t)count * sizeof *copy);
        const float least = kth_largest(copy, count, most - 1);
        Py_ssize_t stay = most;
        for (Py_ssize_t i = 0; i < count; i++) stay -= value[i] > least;
        for (Py_ssize_t i = 0; i < count; i++)
            if (value[i] < least || (value[i] == least && stay-- <= 0)) weight[i] = 0.0;
    }
    double near = 0.0;
    for (Py_ssize_t i = 0; i < count; i++) near += weight[i];
    const double unit = exp(((double)limit - row->largest) / warmth);
    const double all = near + (count < most ? (double)(most - count) * unit : 0.0);
    const double number = row->number * all;
    if (!(near > 0.0 && isfinite(all))) return UNDECIDED;

    if (number >= near) { /* a far one */
        if (row->min_p >= unit || (row->top_p < 1.0 && near >= row->top_p * all)) return REFUSED;
        if (row->top_k || count >= most) return UNDECIDED;
        const double beyond = (number - near) / unit;
        Py_ssize_t which = most - count - 1, at;
        if (beyond < (double)which) which = (Py_ssize_t)beyond;
        at = which;
        for (Py_ssize_t i = 0; i < count && place[i] <= at; i++) at++;
        if (beyond - (double)which >= exp(((double)x[at] - (double)limit) / warmth)) return REFUSED;
        return row->top_p == 1.0 && row->min_p == 0.0 ? at : UNDECIDED;
    }
    Py_ssize_t one = 0;
    for (double sum = weight[0]; !(sum > number); sum += weight[one]) one++;
    if (row->min_p != 0.0 && weight[one] < row->min_p) return REFUSED;
    if (row->top_p != 1.0) {
        double above = 0.0;
        for (Py_ssize_t i = 0; i < count; i++)
            if (value[i] > value[one] || (i < one && value[i] == value[one])) above += weight[i];
        if (above >= row->top_p * near) return above < row->top_p * all ? UNDECIDED : REFUSED;
    }
    return place[one];
}

/* The item of a list, or NULL with an exception. */
static PyObject *item(PyObject *list, Py_ssize_t i)
{
    if (!PyList_Check(list) || i >= PyList_GET_SIZE(list)) {
        PyErr_SetString(PyExc_TypeError, "largest, settings and numbers are lists, as long as rows");
        return NULL;
    }
    return PyList_GET_ITEM(list, i);
}

static int filled(Row *row, const Py_buffer *logits, PyObject *rows, PyObject *const *lists, Py_ssize_t i)
{
    PyObject *largest = item(lists[0], i), *setting = item(lists[1], i), *number = item(lists[2], i);
    if (!largest || !setting || !number) return 0;
    const Py_ssize_t at = PyNumber_AsSsize_t(PyList_GET_ITEM(rows, i), PyExc_IndexError);
    if (at == -1 && PyErr_Occurred()) return 0;
    if (at < 0 || at >= logits->shape[0]) {
        PyErr_Format(PyExc_IndexError, "row %zd of %zd", at, logits->shape[0]);
        return 0;
    }
    if (!PyTuple_Check(setting) || PyTuple_GET_SIZE(setting) != 4) {
        PyErr_SetString(PyExc_TypeError, "a setting is (temperature, top_k, top_p, min_p)");
        return 0;
    }
    row->logits = (const float *)logits->buf + at * logits->shape[1];
    row->largest = PyFloat_AsDouble(largest);
    row->number = PyFloat_AsDouble(number);
    row->temperature = PyFloat_AsDouble(PyTuple_GET_ITEM(setting, 0));
    row->top_k = PyNumber_AsSsize_t(PyTuple_GET_ITEM(setting, 1), NULL); /* at most the largest there is */
    row->top_p = PyFloat_AsDouble(PyTuple_GET_ITEM(setting, 2));
    row->min_p = PyFloat_AsDouble(PyTuple_GET_ITEM(setting, 3));
    return !PyErr_Occurred();
}

static PyObject *draw(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    Py_buffer logits;
    PyObject *out = NULL;
    (void)module;
    if (given != 6 || !PyList_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "draw(logits, rows, largest, settings, numbers, far)");
        return NULL;
    }
    const double far = PyFloat_AsDouble(args[5]);
    if (PyErr_Occurred() || PyObject_GetBuffer(args[0], &logits, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)) return NULL;
    const Py_ssize_t count = PyList_GET_SIZE(args[1]);
    Row *rows = PyMem_New(Row, count);
    if (!rows) {
        PyErr_NoMemory();
        goto done;
    }
    if (logits.ndim != 2 || strcmp(logits.format, "f") || logits.shape[1] > INT32_MAX) {
        PyErr_SetString(PyExc_TypeError, "logits are float32[sequences, n]");
        goto done;
    }
    for (Py_ssize_t i = 0; i < count; i++)
        if (!filled(&rows[i], &logits, args[1], args + 2, i)) goto done;
    PyThreadState *state = count * logits.shape[1] >= LONG ? PyEval_SaveThread() : NULL;
    for (Py_ssize_t i = 0; i < count; i++) rows[i].place = drawn(&rows[i], logits.shape[1], far);
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
     "draw(logits, rows, largest, settings, numbers, far, /)\n--\n\nSee _sampling.pyi."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_sampling", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__sampling(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module && (PyModule_AddIntConstant(module, "REFUSED", REFUSED) || PyModule_AddIntConstant(module, "UNDECIDED", UNDECIDED)))
        Py_CLEAR(module);
    return module;
}
